"""``ContextClipAdapter``: names masks by their crops and the whole image around them.

SCAN, arXiv 2312.04089, section 3.3; specification, section 8.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ovseg.clip.adapter import ClipAdapter, MaskedImage, image_size
from ovseg.clip.contextual_shift import Context, draw_patches, encode_shifted, shifted_blocks
from ovseg.clip.model import ClipSource, load_clip_weights
from ovseg.clip.regions import crop_masks
from ovseg.clip.twin import share, shared_copy, unshared
from ovseg.clip.vit import is_plain_vit
from ovseg.clip.whole_image import WholeImages, look_at_whole, squash
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)

ORIGINAL = "original_clip."
VISUAL = "clip_model.visual."


class ContextClipAdapter(ClipAdapter):
    """A :class:`ClipAdapter` with a second image tower, the original CLIP's, which looks at whole images.

    The two towers share every tensor that is equal in both, as all are before CS-CLIP is fine-tuned; the state has the
    names of both. A checkpoint with other values parts them, one with the same values joins them again.

    Args:
        source: which CLIP, see :class:`ClipAdapter`; its weights are the original's.
        kept_depths: depths of the original's patch tokens that :meth:`look` returns.
        replace_ratio: part of a crop's background patches that the contextual shift replaces, in [0, 1].
        replace_layers: blocks after which it does.
        replace_seed: of its draws: each image is seeded by itself, by this number and its pixels; negative draws
            from Python's global stream, as the original.
        context_of_first: all images of a batch get the context of the first, as in the original.
        adapter: the remaining arguments of :class:`ClipAdapter`.

    Raises:
        OvsegError: a value that cannot work, named by its configuration key.
    """

    default_weights = "datacomp_xl_s13b_b90k"

    @configurable
    def __init__(
        self,
        source: ClipSource,
        *,
        kept_depths: Sequence[int],
        replace_ratio: float = 0.15,
        replace_layers: Sequence[int] = (1, 3, 5, 7, 9),
        replace_seed: int = 0,
        context_of_first: bool = True,
        **adapter: Any,
    ):
        super().__init__(source, mask_prompt_depth=None, **adapter)
        visual = self.clip_model.visual
        if not is_plain_vit(visual):
            raise OvsegError(
                f"MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME {source.name}: the contextual shift needs a plain CLIP vision "
                f"transformer, not a {type(visual).__name__}; choose ViT-L-14 or ViT-B-16"
            )
        if not 0 <= replace_ratio <= 1:
            raise OvsegError(f"MODEL.CLIP_ADAPTER.REPLACE_RATIO is {replace_ratio}: give a number from 0 to 1")
        blocks = len(visual.transformer.resblocks)
        if not kept_depths or not all(0 <= depth <= blocks for depth in kept_depths):
            raise OvsegError(
                f"MODEL.SELECT_ORI_CLIP_ID is {list(kept_depths)}: give numbers of the {blocks} blocks of CLIP's image "
                f"tower, 1 to {blocks}"
            )
        self.original_clip = shared_copy(visual)
        self.kept_depths = tuple(kept_depths)
        self.replace_ratio = replace_ratio
        self.replace_blocks = shifted_blocks(replace_layers, visual)
        self.replace_seed = replace_seed
        self.context_of_first = context_of_first
        self.lacking_original = frozenset(self.original_clip.state_dict())
        self.register_load_state_dict_post_hook(_note_loaded_original)

    @classmethod
    def from_config(cls, cfg) -> dict:
        adapter = cfg.MODEL.CLIP_ADAPTER
        arguments = super().from_config(cfg)
        del arguments["mask_prompt_depth"]
        if arguments.pop("mask_prompt_forward"):
            raise OvsegError(
                "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD is True, but this system has no mask prompts: set it to False"
            )
        return arguments | {
            "kept_depths": cfg.MODEL.SELECT_ORI_CLIP_ID,
            "replace_ratio": adapter.REPLACE_RATIO,
            "replace_layers": adapter.REPLACE_LAYER,
            "replace_seed": adapter.REPLACE_SEED,
            "context_of_first": adapter.CONTEXT_OF_FIRST_IMAGE,
        }

    def train(self, mode: bool = True) -> ContextClipAdapter:
        """Set the mode; both towers are frozen and stay in evaluation mode."""
        super().train(mode)
        self.original_clip.eval()
        return self

    def look(self, images: Sequence[Tensor], divisibility: int) -> WholeImages:
        """Let the original CLIP see whole images, (3, H, W) each, 0 .. 255; padded as the proposal network's input."""
        self.ensure_weights()
        size, interpolation = image_size(self.clip_model), self.source.preprocessing.whole_interpolation
        squashed = squash(images, divisibility, size, self.pixel_mean[0], self.pixel_std[0], interpolation)
        with self.autocast(squashed.device.type):
            return look_at_whole(self.original_clip, squashed, self.kept_depths)

    def context(self, seen: WholeImages, index: int, image: Tensor) -> Context:
        """The context of one image of a batch; ``image``: its pixels as requested, for the seed of its draws."""
        source = 0 if self.context_of_first else index
        seed = None if self.replace_seed < 0 else f"{self.replace_seed} {_digest(image)}"
        return Context(seen.class_tokens[:, source : source + 1], seed)

    def pieces(self, image: MaskedImage) -> Iterator[tuple[Tensor, ...]]:
        """Yield crops (v, 3, S, S), which of their patches are drawn (v, blocks, P), class tokens (v, L + 1, width).

        Without a context the crops stand alone: nothing is drawn.
        """
        if image.context is None:
            visual = self.clip_model.visual
            blocks, patches = len(visual.transformer.resblocks), len(visual.positional_embedding) - 1
            tokens = image.image.new_zeros(blocks + 1, 1, visual.conv1.out_channels)
            drawn = tokens.new_zeros(len(self.replace_blocks), len(image.probabilities), patches).bool()
        else:
            tokens, drawn = image.context.class_tokens, self.draw(image.probabilities, image.context)
        regions = self.regions(image.image, image.probabilities)
        for (crops, _), which in zip(regions, drawn.transpose(0, 1).split(self.crops_at_a_time), strict=True):
            yield crops, which, tokens.transpose(0, 1).expand(len(crops), -1, -1)

    def encode(self, crops: Tensor, drawn: Tensor, class_tokens: Tensor) -> Tensor:
        drawn, class_tokens = drawn.transpose(0, 1), class_tokens.transpose(0, 1)
        with self.autocast(crops.device.type):
            features = encode_shifted(self.clip_model.visual, crops, drawn, class_tokens, self.replace_blocks)
        return features.float()

    def draw(self, probabilities: Tensor, context: Context) -> Tensor:
        """Draw the patches to replace of all V valid masks of an image at once; bool (blocks, V, P)."""
        size = image_size(self.clip_model)
        masks = torch.cat([crop_masks(*cut, size) for cut in self.cuts(probabilities)])
        return draw_patches(
            self.clip_model.visual, masks, self.replace_ratio, len(self.replace_blocks), context.generator()
        )

    def ensure_weights(self) -> None:
        """See :meth:`ClipAdapter.ensure_weights`: the original tower has no other source than ``CLIP_WEIGHTS``."""
        with self.weights_lock:
            super().ensure_weights()
            if self.lacking_original:
                self._complete_original()

    def _complete_original(self) -> None:
        absent = {f"visual.{name}" for name in self.lacking_original & set(self._unshared())}
        if absent and self.source.fetch_weights is not None:
            load_clip_weights(nn.ModuleDict({"visual": self.original_clip}), self.source, absent)
        elif absent:
            logger.warning(
                "the original CLIP %s HAS RANDOM WEIGHTS (%d of its tensors), and the queries look at it: set "
                "MODEL.WEIGHTS to a complete checkpoint or MODEL.CLIP_ADAPTER.CLIP_WEIGHTS to CLIP's weights.",
                self.source.name,
                len(absent),
            )
        self.lacking_original = frozenset()
        self._share({name: torch.equal(*pair) for name, pair in self._unshared().items()})

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Before the towers load: part what the state has different values for, join what it has one value for."""
        found: dict[str, bool] = {}
        for name in self.original_clip.state_dict():
            tuned, original = (state_dict.get(prefix + tower + name) for tower in (VISUAL, ORIGINAL))
            if tuned is not None or original is not None:
                found[name] = tuned is not None and original is not None and torch.equal(tuned, original)
        self._share(found)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _unshared(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        return unshared(self.original_clip, self.clip_model.visual)

    def _share(self, wanted: Mapping[str, bool]) -> None:
        share(self.original_clip, self.clip_model.visual, wanted)


def _note_loaded_original(adapter: ContextClipAdapter, incompatible_keys: Any) -> None:
    """Remember what a checkpoint gave of the original tower."""
    missing = {name.rpartition(ORIGINAL)[2] for name in incompatible_keys.missing_keys if ORIGINAL in name}
    adapter.lacking_original &= missing


def _digest(image: Tensor) -> str:
    """Of the pixels' values, whatever their type and device."""
    return hashlib.sha256(image.to("cpu", torch.uint8).contiguous().numpy().tobytes()).hexdigest()
