"""Permitted values of configuration keys, checked before anything is built."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY as HEADS

from ovseg.config.ovsegmentor import PRETRAINED
from ovseg.config.systems import SIMBASELINE_PER_PIXEL
from ovseg.config.values import leaves
from ovseg.errors import OvsegError, shown
from ovseg.io.files import is_file

# (what to give, test of a number) -> keys; of a list, each element is tested
_WEIGHT = "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT"
_STAGES_OF = "MODEL.OVSEGMENTOR.IMG_ENCODER"  # two stages of blocks, the first of which ends in groups
_COUNT = ("a whole number from 1 to 16384", lambda x: isinstance(x, int) and 1 <= x <= 16384)
_NUMBERS: dict[tuple[str, Callable[[float], bool]], str] = {
    _COUNT: """
        MODEL.SWIN.PRETRAIN_IMG_SIZE MODEL.SWIN.PATCH_SIZE MODEL.SWIN.EMBED_DIM MODEL.SWIN.DEPTHS MODEL.SWIN.NUM_HEADS
        MODEL.SWIN.WINDOW_SIZE MODEL.SWIN.PROJECT_DIM MODEL.SEM_SEG_HEAD.EMBEDDING_DIM
        MODEL.SEM_SEG_HEAD.EMBED_HIDDEN_DIM MODEL.SEM_SEG_HEAD.EMBED_LAYERS MODEL.SEM_SEG_HEAD.MASK_DIM
        MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.MASK_FORMER.NHEADS MODEL.MASK_FORMER.DIM_FEEDFORWARD
        MODEL.MASK_FORMER.HIDDEN_DIM MODEL.MASK_FORMER.NUM_OBJECT_QUERIES MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE
        MODEL.CLIP_VISION_DIM MODEL.SCAN_DIM MODEL.SCAN_FEEDFORWARD MODEL.PATCH_SIZE INPUT.MIN_SIZE_TRAIN
        MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.WIDTH_PER_GROUP MODEL.RESNETS.RES2_OUT_CHANNELS
        MODEL.RESNETS.STEM_OUT_CHANNELS INPUT.MAX_SIZE_TRAIN INPUT.MAX_SIZE_TEST SOLVER.IMS_PER_BATCH
        SOLVER.TEST_IMS_PER_BATCH TEST.AUG.MIN_SIZES
        TEST.AUG.MAX_SIZE TEST.SLIDING_TILE_SIZE MODEL.PROPOSER.BOUNDARY_TREE.SIZE
        MODEL.PROPOSER.BOUNDARY_TREE.NUM_MASKS MODEL.NAMER.MAP_SIZE MODEL.CLIP_ADAPTER.PROMPT_DIM
        MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_DIM MODEL.LSEG.NUM_FEATURES
        MODEL.OPENSEG.NUM_PROPOSALS MODEL.OPENSEG.HEAD_DIM MODEL.OPENSEG.NUM_HEADS MODEL.OPENSEG.FFN_DIM
        MODEL.OPENSEG.CANVAS INPUT.CAPTION.MAX_WORDS MODEL.LSEG_PLUS.HEAD_DIM TEST.MULTI_SCALE.BASE_SIZE
        TEST.MULTI_SCALE.CROP_SIZE MODEL.DENSE.BLOCKS MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE
        MODEL.OVSEGMENTOR.IMG_ENCODER.PATCH_SIZE MODEL.OVSEGMENTOR.IMG_ENCODER.EMBED_DIM
        MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_HEADS MODEL.OVSEGMENTOR.IMG_ENCODER.EMBED_FACTORS
        MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_OUTPUT_GROUPS MODEL.OVSEGMENTOR.TEXT_ENCODER.WIDTH
        MODEL.OVSEGMENTOR.PROJ_HIDDEN_DIM MODEL.OVSEGMENTOR.OUTPUT_DIM MODEL.OVSEGMENTOR.TOP_CLASSES
        INPUT.IMG_AUG.IMG_SIZE INPUT.IMG_AUG.RE_COUNT""",
    ("a whole number from 0 to 16384", lambda x: isinstance(x, int) and 0 <= x <= 16384): """
        MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS MODEL.MASK_FORMER.ENC_LAYERS MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH
        MODEL.CLIP_ADAPTER.REGION_CHUNK_SIZE MODEL.NAMER.MAX_CROPS INPUT.MIN_SIZE_TEST
        DATALOADER.NUM_WORKERS MODEL.SELECT_ORI_CLIP_ID
        MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_GROUP_TOKENS MODEL.OVSEGMENTOR.WINDOW MODEL.OVSEGMENTOR.STRIDE""",
    ("a whole number from 3 to 16384, two for both marks", lambda x: isinstance(x, int) and 3 <= x <= 16384): """
        INPUT.TEXT_AUG.MAX_SEQ_LEN""",
    ("whole numbers from 0 to 70", lambda x: isinstance(x, int) and 0 <= x <= 70): """
        MODEL.CLIP_ADAPTER.PROMPT_SHAPE MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_SHAPE""",
    ("-1 (all) or a whole number of at least 1", lambda x: isinstance(x, int) and (x == -1 or x >= 1)): """
        DATASETS.SAMPLE_PER_CLASS""",
    ("a whole number from 1 to 100", lambda x: isinstance(x, int) and 1 <= x <= 100): """
        MODEL.MASK_FORMER.DEC_LAYERS MODEL.OPENSEG.NUM_BLOCKS MODEL.OVSEGMENTOR.IMG_ENCODER.DEPTHS
        MODEL.OVSEGMENTOR.CROSS_LAYERS""",
    ("a whole number from 0 to 100", lambda x: isinstance(x, int) and 0 <= x <= 100): "MODEL.LSEG.BLOCK_DEPTH",
    ("a whole number up to 16384", lambda x: x <= 16384): """
        MODEL.MASK_FORMER.SIZE_DIVISIBILITY INPUT.SIZE_DIVISIBILITY""",
    ("a whole number of at least 1", lambda x: isinstance(x, int) and x >= 1): """
        MODEL.SEM_SEG_HEAD.NUM_CLASSES MODEL.MASK_FORMER.TRAIN_NUM_POINTS SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD
        LOG_PERIOD""",
    ("a number of at least 0", lambda x: x >= 0): """
        MODEL.MASK_FORMER.NO_OBJECT_WEIGHT MODEL.MASK_FORMER.CLASS_WEIGHT MODEL.MASK_FORMER.DICE_WEIGHT
        MODEL.MASK_FORMER.MASK_WEIGHT SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM
        SOLVER.WEIGHT_DECAY_EMBED SOLVER.POLY_LR_POWER SOLVER.BACKBONE_MULTIPLIER SOLVER.WARMUP_ITERS
        MODEL.OPENSEG.SEG_LOSS_WEIGHT MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT DATASETS.TRAIN_WEIGHTS TEST.EVAL_PERIOD
        MODEL.PROPOSER.SAM.STABILITY_OFFSET MODEL.OVSEGMENTOR.ENTITY_WEIGHT MODEL.OVSEGMENTOR.MASKLOSS_WEIGHT
        MODEL.OVSEGMENTOR.MULTI_LABEL_LOSS_WEIGHT
        INPUT.IMG_AUG.COLOR_JITTER""",
    ("a number of at least 1", lambda x: x >= 1): "MODEL.MASK_FORMER.OVERSAMPLE_RATIO",
    ("a number above 0", lambda x: x > 0): """
        MODEL.PIXEL_STD MODEL.CLIP_PIXEL_STD MODEL.SEM_SEG_HEAD.TEMPERATURE MODEL.SWIN.MLP_RATIO MODEL.FREQUENCY_SIGMA
        MODEL.CLIP_ADAPTER.MASK_EXPAND_RATIO SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE
        MODEL.OPENSEG.TAU_INIT MODEL.OPENSEG.TAU_MIN
        INPUT.CROP.SIZE MODEL.LSEG_PLUS.TAU_INIT MODEL.LSEG_PLUS.TAU_MIN TEST.MULTI_SCALE.SCALES
        MODEL.OVSEGMENTOR.IMG_ENCODER.MLP_RATIO MODEL.OVSEGMENTOR.CONTRAST_TEMPERATURE""",
    ("a number from 0 to 1", lambda x: 0 <= x <= 1): """
        MODEL.SWIN.DROP_RATE MODEL.SWIN.ATTN_DROP_RATE MODEL.SWIN.DROP_PATH_RATE MODEL.MASK_FORMER.DROPOUT
        MODEL.TIMM.DROP_PATH_RATE
        MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO MODEL.CLIP_ADAPTER.MASK_THR MODEL.CLIP_ADAPTER.REPLACE_RATIO
        INPUT.CROP.SINGLE_CATEGORY_MAX_AREA SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR MODEL.DENSE.KS_THRESH
        MODEL.DENSE.PD_THRESH MODEL.NAMER.DUPLICATE_IOU MODEL.FUSION.VOID_BY_CLIP MODEL.RENDERING.GRANULARITY
        INPUT.CAPTION.KEEP_PROB
        MODEL.PROPOSER.SAM.IOU_THRESHOLD MODEL.PROPOSER.SAM.STABILITY_THRESHOLD MODEL.PROPOSER.SAM.NMS_THRESHOLD
        MODEL.OVSEGMENTOR.IMG_ENCODER.DROP_RATE MODEL.OVSEGMENTOR.IMG_ENCODER.ATTN_DROP_RATE
        MODEL.OVSEGMENTOR.IMG_ENCODER.DROP_PATH_RATE MODEL.OVSEGMENTOR.CROSS_THRESHOLD MODEL.OVSEGMENTOR.GROUP_RATIO
        MODEL.OVSEGMENTOR.MOMENTUM MODEL.OVSEGMENTOR.BG_THRESH INPUT.IMG_AUG.RE_PROB INPUT.IMG_AUG.FLIP_PROB""",
    ("a number up to 1 (0 or below means CLIP only)", lambda x: x <= 1): _WEIGHT,
    # epochs, and the zero-shot classification
    ("numbers from 0 to below 1", lambda x: 0 <= x < 1): "SOLVER.BETAS",
    ("a number from 0 to 1000", lambda x: 0 <= x <= 1000): "SOLVER.WARMUP_LR SOLVER.MIN_LR",
    ("a number above 0 and up to 1", lambda x: 0 < x <= 1): "SOLVER.EPS INPUT.IMG_AUG.IMG_SCALE",
    ("a whole number from 0 to 1000000", lambda x: isinstance(x, int) and 0 <= x <= 1000000): """
        SOLVER.MAX_EPOCHS SOLVER.WARMUP_EPOCHS SOLVER.ACCUMULATION_STEPS""",
    ("a whole number from 1 to 4096", lambda x: isinstance(x, int) and 1 <= x <= 4096): "TEST.ZERO_SHOT.BATCH",
    ("a number from -1 to 1", lambda x: -1 <= x <= 1): "TEST.SG_IOU_THRESHOLD",
    ("a share of the tile from 0 to below 1", lambda x: 0 <= x < 1): "TEST.SLIDING_OVERLAP",
    # Segment Anything
    ("a whole number from 1 to 16384", lambda x: isinstance(x, int) and 1 <= x <= 16384): """
        MODEL.PROPOSER.SAM.POINTS_AT_A_TIME MODEL.PROPOSER.SAM.CROP_DOWNSCALE""",
    ("a whole number from 1 to 256", lambda x: isinstance(x, int) and 1 <= x <= 256): """
        MODEL.PROPOSER.SAM.POINTS_PER_SIDE""",
    ("a whole number from 0 to 4", lambda x: isinstance(x, int) and 0 <= x <= 4): "MODEL.PROPOSER.SAM.CROP_LAYERS",
    ("a whole number from 0 to 64", lambda x: isinstance(x, int) and 0 <= x <= 64): """
        MODEL.OVSEGMENTOR.MULTI_LABEL INPUT.TEXT_AUG.MULTI_LABEL""",
    ("a whole number of at least 0", lambda x: isinstance(x, int) and x >= 0): "MODEL.PROPOSER.SAM.MIN_AREA",
    ("a share from 0 to below 1", lambda x: 0 <= x < 1): "MODEL.PROPOSER.SAM.CROP_OVERLAP",
    ("a number", lambda x: True): """
        MODEL.OPENSEG.MASK_LOGIT_SCALE
        MODEL.PIXEL_MEAN MODEL.CLIP_PIXEL_MEAN MODEL.SEEN_BIAS MODEL.MASK_FORMER.GZERO_CALIBRATE""",
}
_LENGTHS = {
    "MODEL.PIXEL_MEAN": 3,
    "MODEL.PIXEL_STD": 3,
    "MODEL.CLIP_PIXEL_MEAN": 3,
    "MODEL.CLIP_PIXEL_STD": 3,
    "INPUT.CROP.SIZE": 2,
    "SOLVER.BETAS": 2,
    "INPUT.IMG_AUG.IMG_SCALE": 2,
    **{f"{_STAGES_OF}.{name}": 2 for name in ("DEPTHS", "NUM_HEADS", "EMBED_FACTORS", "NUM_GROUP_TOKENS")},
    f"{_STAGES_OF}.NUM_OUTPUT_GROUPS": 1,
    "MODEL.OVSEGMENTOR.WINDOW": 2,
    "MODEL.OVSEGMENTOR.STRIDE": 2,
    "MODEL.CLIP_ADAPTER.PROMPT_SHAPE": 2,
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_SHAPE": 2,
}
_MAY_BE_NONE = {"MODEL.RENDERING.GRANULARITY"}
_MAY_BE_EMPTY = {"DATASETS.TRAIN_WEIGHTS", "TEST.SAVE_BEST"}
_STAGES = ("res2", "res3", "res4", "res5")
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_TEXTS: dict[str, Sequence[Any]] = {  # of a list, each of its elements
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.CAPTION.POS": ("noun", "noun+adj", "noun+adj+verb"),
    "INPUT.CAPTION.FORM": ("word", "phrase", "known"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("absolute", "absolute_range", "relative", "relative_range"),
    "INPUT.DATASET_MAPPER_NAME": ("mask_former_semantic",),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "MODEL.SWIN.OUT_FEATURES": (*_STAGES, "fc"),
    "MODEL.RESNETS.OUT_FEATURES": ("stem", *_STAGES),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.RESNETS.STEM_TYPE": ("basic", "deeplab"),
    "MODEL.SEM_SEG_HEAD.NORM": _NORMS,
    "MODEL.LSEG.BACKBONE": ("clip_vitl16_384", "clipRN50x16_vitl16_384", "clip_vitb32_384", "clip_resnet101"),
    "MODEL.LSEG.READOUT": ("project", "add", "ignore"),
    "MODEL.LSEG.ARCH_OPTION": (0, 1, 2),
    "MODEL.LSEG.ACTIVATION": ("lrelu", "tanh", "relu"),
    "MODEL.LSEG_PLUS.NORM": _NORMS,
    "MODEL.TIMM.NORM": ("BN", "SyncBN", "FrozenBN"),
    "MODEL.OPENSEG.NORM": _NORMS,
    "MODEL.OPENSEG.POS_EMBED": ("full", "separable"),
    "MODEL.OPENSEG.DICE_FORM": ("vnet", "linear"),
    "MODEL.OPENSEG.SYNONYM_MAX": ("region", "pixel"),
    "MODEL.OPENSEG.TEST_PROPOSALS": ("predicted", "none", "gt"),
    "MODEL.OVSEGMENTOR.IMG_ENCODER.TYPE": ("GroupViT",),
    "MODEL.OVSEGMENTOR.IMG_ENCODER.IMGNET_PRETRAINED": PRETRAINED,
    "MODEL.OVSEGMENTOR.PROJ_NUM_LAYERS": (2, 0, -1),
    "MODEL.OVSEGMENTOR.COST_TYPE": ("L2", "cosine"),
    "MODEL.OVSEGMENTOR.TEMPLATES": ("simple", "subset", "full", "identity"),
    "MODEL.MASK_FORMER.TEST.PAINTING": ("mask_sum", "class_winner"),
    "INPUT.IMG_AUG.INTERPOLATION": ("bilinear", "bicubic", "random"),
    "INPUT.IMG_AUG.RE_MODE": ("pixel", "rand", "const"),
    "INPUT.TEXT_AUG.WORD_TYPE": ("noun", "entity"),
    "INPUT.TEXT_AUG.TEMPLATES": ("full", "subset", "simple", "identity"),
    "MODEL.CLIP_ADAPTER.TEXT_TEMPLATES": ("vild", "imagenet", "maskclip", "predefined"),
    "MODEL.CLIP_ADAPTER.PROMPT_LEARNER": ("vild", "imagenet", "predefined", "learnable"),
    "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER.PROMPT_LEARNER": ("vild", "imagenet", "predefined", "learnable"),
    "MODEL.CLIP_ADAPTER.TEXT_ENCODER": ("clip", "table"),
    "MODEL.PROMPT_ENSEMBLE_TYPE": ("single", "imagenet_select", "imagenet"),
    "MODEL.CLIP_CLS_STYLE": ("cropmask", "mask", "crop"),
    "MODEL.DENSE.MODE": ("value", "value_no_residual", "last_tokens", "mask_attention"),
    "MODEL.CLIP_ADAPTER.MASK_FILL": ("mean", "zero"),
    "MODEL.CLIP_ADAPTER.PRECISION": ("fp32", "bf16", "fp16"),
    "MODEL.PROPOSER.PRECISION": ("fp32", "bf16", "fp16"),
    "MODEL.PROPOSER.BOUNDARY_TREE.BOUNDARY": ("auto", "hed", "gradient"),
    "MODEL.PROPOSER.BOUNDARY_TREE.RANKING": ("auto", "network", "tree"),
    "MODEL.CLIP_ADAPTER.ENSEMBLE_VARIANT": ("auto", "plain", "log"),
    "MODEL.RENDERING.RESIZE": ("bilinear", "nearest"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "EpochCosine"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "TEST.MIOU_CONVENTION": ("union", "ground_truth"),
    "TEST.VOCABULARY": ("names", "synonyms"),
    "TEST.SYNONYMS": ("region", "pixel"),
    "TEST.TASKS": ("seg", "cls"),
    "TEST.ZERO_SHOT.TEMPLATES": ("simple", "subset", "full", "identity"),
    "TEST.ZERO_SHOT.NAMES": ("imagenet", ""),
    "TEST.SAVE_BEST": ("mIoU", "pACC", "mACC", "fwIoU", "top1", "top5"),
    "TEST.ORACLE": ("none", "masks", "labels", "words"),
    "TEST.ORACLE_LABEL": ("iou", "intersection", "soft_iou"),
    "TEST.SAVE_PREDICTIONS": (None, False, True, "rle", "png"),
    "METRIC": ("Vanilla", "SG-IoU"),
}
_OR_FILES = ("TEST.VOCABULARY", "TEST.ZERO_SHOT.NAMES")  # keys whose value may also be the path of a file
_REGISTERED = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": HEADS,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": HEADS,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
}
# beginnings of qualified names: Detectron2's models know no words, its heads give no proposals
_OF_ANOTHER_KIND = {
    "MODEL.META_ARCHITECTURE": ("detectron2.",),
    "MODEL.SEM_SEG_HEAD.NAME": (
        "detectron2.",
        "ovseg.proposals.maskformer.BasePixelDecoder",
        "ovseg.proposals.maskformer.TransformerEncoderPixelDecoder",
        "ovseg.proposals.mask2former.MSDeformAttnPixelDecoder",
        "ovseg.meta_arch.",
    ),
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": (
        "detectron2.",
        "ovseg.proposals.maskformer.OpenVocab",
        "ovseg.proposals.maskformer.ZeroShot",
        "ovseg.proposals.zegformer.",
        "ovseg.meta_arch.",
        "ovseg.proposals.mask2former.OpenVoca",
    ),
}


def check_config(cfg: CfgNode) -> None:
    """Check the values of all keys, independently of the model.

    Raises:
        OvsegError: a value is not permitted; names the key, its value and what to give.
    """
    for key, value in leaves(cfg):
        for part in value if isinstance(value, (list, tuple)) else (value,):
            infinite = isinstance(part, float) and not math.isfinite(part)
            if infinite and (key, part) != ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf):  # the largest element
                raise _refusal(key, value, "a finite number")
    for (wanted, test), keys in _NUMBERS.items():
        for key in keys.split():
            value = lookup(cfg, key)
            if (value is None and key in _MAY_BE_NONE) or (key in _MAY_BE_EMPTY and not value):
                continue
            if key == _WEIGHT and cfg.MODEL.META_ARCHITECTURE in SIMBASELINE_PER_PIXEL:
                continue  # above 1, this system leaves CLIP out
            if not all(type(part) in (int, float) and test(part) for part in _parts(value)):
                raise _refusal(key, value, wanted)
    for key, length in _LENGTHS.items():
        if len(lookup(cfg, key)) != length:
            raise _refusal(key, lookup(cfg, key), f"{length} number{'s' * (length > 1)}")
    for key, choices in _TEXTS.items():
        value = lookup(cfg, key)
        kinds = [(type(choice), choice) for choice in choices]  # 1 is not True here
        if key in _OR_FILES and isinstance(value, str) and is_file(value):
            continue
        if key in _MAY_BE_EMPTY and not value:
            continue
        if not all((type(part), part) in kinds for part in _parts(value)):
            raise OvsegError(
                f"{key} is {shown(value)}; choose one of {', '.join(map(str, choices))}"
                f"{', or give a file' if key in _OR_FILES else ''}{_nearest(value, choices)}"
            )
    for key in ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME"):
        if not lookup(cfg, key):
            raise _refusal(key, lookup(cfg, key), "a name")
    for key, registry in _REGISTERED.items():
        _check_registered(key, lookup(cfg, key), [name for name, _ in registry])
    _check_together(cfg)


def check_inference(cfg: CfgNode, source: str) -> None:
    """Check that a model which is about to be built takes words and has trained weights.

    Args:
        cfg: its configuration, with the checkpoint in ``MODEL.WEIGHTS``.
        source: name of the configuration, for messages.

    Raises:
        OvsegError: the weights are not named or do not exist, or the model has classes of its own.
    """
    weights, remedy = cfg.MODEL.WEIGHTS, "give a trained checkpoint (MODEL.WEIGHTS, or weights=... in Python)"
    if not weights and needs_checkpoint(cfg):
        raise OvsegError(
            f"{source} names no weights, and without trained weights every result would be random: {remedy}"
        )
    if weights and "://" not in weights and not os.path.exists(weights):
        raise OvsegError(f"the weight file {weights} does not exist: {remedy}")
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not getattr(architecture, "takes_words", not architecture.__module__.startswith("detectron2.")):
        raise OvsegError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which has classes of its own and takes no "
            "words: give a configuration of OVSeg or SCAN, or evaluate it with train_net.py --eval-only"
        )


def check_kind(cfg: CfgNode, key: str) -> None:
    """Check that a registered name is of a class that the key takes, which Detectron2's defaults are not.

    Raises:
        OvsegError: names the key, its value and what to give.
    """
    others = _OF_ANOTHER_KIND[key]
    names = [
        name for name, entry in _REGISTERED[key] if not f"{entry.__module__}.{entry.__qualname__}".startswith(others)
    ]
    _check_registered(key, lookup(cfg, key), names)


def lookup(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key.

    Raises:
        OvsegError: the configuration lacks it, like one made by Detectron2's own ``get_cfg``.
    """
    for part in key.split("."):
        if part not in cfg:
            raise OvsegError(
                f"this configuration has no {key}: make it by ovseg.config.get_cfg() or load_cfg(FILE), which know the "
                "keys of ovseg, not by detectron2.config.get_cfg()"
            )
        cfg = cfg[part]
    return cfg


def _check_together(cfg: CfgNode) -> None:
    former, head, swin, crop = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.SWIN, cfg.INPUT.CROP
    if former.HIDDEN_DIM % former.NHEADS:
        raise _refusal("MODEL.MASK_FORMER.NHEADS", former.NHEADS, f"a divisor of HIDDEN_DIM, {former.HIDDEN_DIM}")
    if head.NORM == "GN" and head.CONVS_DIM % 32:
        raise _refusal("MODEL.SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM, "a multiple of 32 with NORM GN")
    if former.HIDDEN_DIM % 2:
        raise _refusal("MODEL.MASK_FORMER.HIDDEN_DIM", former.HIDDEN_DIM, "an even number")
    if head.PIXEL_DECODER_NAME != "BasePixelDecoder" and head.CONVS_DIM % former.NHEADS:
        raise _refusal(
            "MODEL.SEM_SEG_HEAD.CONVS_DIM", head.CONVS_DIM, f"a multiple of MODEL.MASK_FORMER.NHEADS, {former.NHEADS}"
        )
    if not 1 <= len(swin.DEPTHS) <= len(_STAGES) or len(swin.NUM_HEADS) != len(swin.DEPTHS):
        raise _refusal("MODEL.SWIN.DEPTHS", swin.DEPTHS, "up to four numbers, as many as in MODEL.SWIN.NUM_HEADS")
    if not all(isinstance(stage, int) and 0 <= stage < len(swin.DEPTHS) for stage in swin.NORM_INDICES or ()):
        raise _refusal("MODEL.SWIN.NORM_INDICES", swin.NORM_INDICES, f"stages from 0 to {len(swin.DEPTHS) - 1}")
    for stage, heads in enumerate(swin.NUM_HEADS):
        if (swin.EMBED_DIM << stage) % heads:
            channels = swin.EMBED_DIM << stage
            raise _refusal("MODEL.SWIN.NUM_HEADS", swin.NUM_HEADS, f"a divisor of {channels} for stage {stage + 1}")
    relative = crop.TYPE.startswith("relative")
    if not all(part <= 1 if relative else isinstance(part, int) for part in crop.SIZE):
        wanted = "parts of the image's sides, up to 1" if relative else "whole numbers of pixels"
        raise _refusal("INPUT.CROP.SIZE", crop.SIZE, f"{wanted} with INPUT.CROP.TYPE {crop.TYPE}")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(cfg.INPUT.MIN_SIZE_TRAIN) != 2:
        raise _refusal("INPUT.MIN_SIZE_TRAIN", cfg.INPUT.MIN_SIZE_TRAIN, "the ends of the range, two numbers")
    names, weights = cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS
    if weights and (len(weights) != len(names) or sum(weights) <= 0):
        wanted = f"a number for each data set of DATASETS.TRAIN ({len(names)}), not all of them 0; or () for none"
        raise _refusal("DATASETS.TRAIN_WEIGHTS", weights, wanted)
    if cfg.INPUT.CAPTION.FORM != "known" and cfg.INPUT.CAPTION.WORDS:
        raise _refusal("INPUT.CAPTION.WORDS", cfg.INPUT.CAPTION.WORDS, "'', or set INPUT.CAPTION.FORM known")
    solver = cfg.SOLVER
    for key in () if solver.MAX_EPOCHS else ("MAX_ITER", "CHECKPOINT_PERIOD"):
        if solver[key] % max(solver.ACCUMULATION_STEPS, 1):
            wanted = f"a multiple of SOLVER.ACCUMULATION_STEPS, {solver.ACCUMULATION_STEPS}"
            raise _refusal(f"SOLVER.{key}", solver[key], wanted)
    for score in cfg.TEST.SAVE_BEST:
        task = "cls" if score in ("top1", "top5") else "seg"
        if task not in cfg.TEST.TASKS:
            wanted = f"scores of {', '.join(cfg.TEST.TASKS)}, or add {task} to TEST.TASKS"
            raise _refusal("TEST.SAVE_BEST", cfg.TEST.SAVE_BEST, wanted)
    if (scale := cfg.INPUT.IMG_AUG.IMG_SCALE)[0] > scale[1]:
        raise _refusal("INPUT.IMG_AUG.IMG_SCALE", scale, "the least share first, then the largest, such as [0.08, 1.0]")
    windows, tokens = cfg.MODEL.OVSEGMENTOR, cfg.MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_GROUP_TOKENS
    if not tokens[0] or tokens[1]:
        raise _refusal(f"{_STAGES_OF}.NUM_GROUP_TOKENS", tokens, "a number and 0, such as [64, 0]")
    if any(step > side or (side and not step) for side, step in zip(windows.WINDOW, windows.STRIDE, strict=True)):
        wanted = f"numbers from 1 to those of MODEL.OVSEGMENTOR.WINDOW, {windows.WINDOW}; [0, 0] for windows of [0, 0]"
        raise _refusal("MODEL.OVSEGMENTOR.STRIDE", windows.STRIDE, wanted)
    adapter = cfg.MODEL.CLIP_ADAPTER
    if (adapter.TEXT_ENCODER == "table") != bool(adapter.TEXT_TABLE):
        wanted = (
            "a file, or MODEL.CLIP_ADAPTER.TEXT_ENCODER clip" if not adapter.TEXT_TABLE else "'' with TEXT_ENCODER clip"
        )
        raise _refusal("MODEL.CLIP_ADAPTER.TEXT_TABLE", adapter.TEXT_TABLE, wanted)


def _check_registered(key: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise _refusal(key, name, f"a registered name{_nearest(name, names) or ', such as ' + ', '.join(names)}")


def _parts(value: Any) -> Sequence[Any]:
    """Return the elements of a list, NaN for an empty one; else the value alone."""
    return (value or (math.nan,)) if isinstance(value, (list, tuple)) else (value,)


def _nearest(value: Any, names: Sequence[Any]) -> str:
    lower = {str(name).lower(): str(name) for name in names}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[near[0]]}?" if near else ""


def _refusal(key: str, value: Any, wanted: str) -> OvsegError:
    return OvsegError(f"{key} is {shown(value)}: give {wanted}")


def needs_checkpoint(cfg: CfgNode) -> bool:
    """Return whether a model without ``MODEL.WEIGHTS`` is certain to have random weights, before it is built.

    Parts of the free combination may have none: masks of a file, say, and CLIP's crops. Dense CLIP has none.
    """
    return cfg.MODEL.META_ARCHITECTURE not in ("DenseCLIP", "ProposeAndName")
