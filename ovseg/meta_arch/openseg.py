"""``OpenSeg``: masks without classes, and words grounded in them from captions (ECCV 2022, arXiv 2112.12143).

Figure 2 of the paper::

    image -> backbone -> pyramid -> F -+-> mask branch, queries ---> masks s (N, h, w) --+--------- L_S: labelled masks
                                       |                                                 v
                                       +-> semantic branch -> F_z -> sum in each mask -> z (N, D)
                                                                                         |
    caption -> nouns, adjectives -> text tower, frozen -> w (K, D) ------------------> cosine ---- L_G: images, captions

At inference the words are any, and the score of a pixel is the sum over all masks of cosine x mask (equation 6). The
ablations of Table 4 have the same weights: without masks, and with true ones.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.clip.adapter import ClipAdapter
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.pixel_scores import MaskSum, TextMaximum
from ovseg.meta_arch.propose_and_name import ProposeAndName, check_model, common, request_arguments
from ovseg.meta_arch.word_model import WordModel
from ovseg.naming import SingleNamer
from ovseg.naming.region_pixels import RegionPixels
from ovseg.naming.region_words import RegionWords
from ovseg.proposals.fpn import FusedTrunk
from ovseg.proposals.given_masks import TrueMasks
from ovseg.proposals.region_queries import RegionQueries


@META_ARCH_REGISTRY.register()
def OpenSeg(cfg: CfgNode) -> WordModel:
    """Return the model; :class:`ProposeAndName` documents its inputs and outputs.

    With ``MODEL.OPENSEG.TEST_PROPOSALS`` "gt" its masks in evaluation are the true ones of requests, see
    :class:`ovseg.proposals.given_masks.GroundTruth`; with "none" it scores each pixel, as :class:`PerPixel` documents.

    In training a request has ``image``; ``instances`` with ``gt_masks`` bool (M, H, W), any M; and ``caption_words``, a
    list of str, which may be empty. The losses are ``loss_grounding`` and ``loss_segmentation``.
    """
    check_model(cfg, with_head=False)
    own = cfg.MODEL.OPENSEG
    trunk = FusedTrunk.from_config(cfg, own.HEAD_DIM, own.NORM)
    proposer = RegionQueries(cfg, trunk)
    clip_adapter = ClipAdapter(cfg, mask_prompt_depth=None, image_tower=False)
    clip_adapter.non_object_embedding.requires_grad_(False)  # there is no such class
    namer = RegionWords.from_config(cfg, clip_adapter, trunk)
    if own.TEST_PROPOSALS == "none":
        chunk = cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE
        return PerPixel(scorer=RegionPixels(proposer, namer), class_chunk_size=chunk, **request_arguments(cfg))
    if own.TEST_PROPOSALS == "gt":
        proposer = TrueMasks(proposer, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    render = TextMaximum if own.SYNONYM_MAX == "pixel" else MaskSum
    return ProposeAndName(
        proposer=proposer,
        namers=[namer],
        fuse=SingleNamer(),
        render=render.from_config(cfg),
        mask_namer=namer,
        resize_masks=own.TEST_PROPOSALS == "gt",
        **common(cfg),
    )
