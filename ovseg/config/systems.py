"""Configuration keys that only some systems read; others refuse them, as keys without effect."""

from __future__ import annotations

# By the value of MODEL.META_ARCHITECTURE: the system, its baseline without masks, and the original's names of both.
SIMBASELINE = ("SimBaseline", "ZeroShotMaskFormer")
SIMBASELINE_PER_PIXEL = ("SimBaselinePerPixel", "ZeroShotPerPixelModel")
ZEGFORMER = ("ZegFormer", "MaskFormer")

_BOTH = (*SIMBASELINE, *SIMBASELINE_PER_PIXEL)
_CLIP, _REGION = "MODEL.CLIP_ADAPTER", "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER"
_TEXT = ("PROMPT_LEARNER", "PROMPT_DIM", "PROMPT_SHAPE", "PROMPT_CHECKPOINT")
_CLIPS_OWN = ("CLIP_MODEL_NAME", "CLIP_WEIGHTS", "PREDEFINED_PROMPT_TEMPLATES")
_ZEGFORMER = (
    "MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE",
    "SEM_SEG_HEAD.TRAIN_CLASS_JSON",
    "SEM_SEG_HEAD.TEST_CLASS_JSON",
    "SEM_SEG_HEAD.CLIP_CLASSIFICATION",
    "SEM_SEG_HEAD.CLIP_PRETRAINED",
    "SEM_SEG_HEAD.TEMPERATURE",
    "PROMPT_ENSEMBLE_TYPE",
    "MASK_FORMER.ENSEMBLING",
    "MASK_FORMER.GZERO_CALIBRATE",
)
_CAPTION = ("KEEP_PROB", "POS", "FORM", "MAX_WORDS", "WORD_FILE", "WORDS", "TAGGER", "STOP_WORDS")
_IMAGE_TEXT = (
    *(f"DATASETS.IMAGE_TEXT.{name}" for name in ("ROOT", "FILE")),
    *(f"INPUT.IMG_AUG.{name}" for name in ("DEIT_AUG", "IMG_SIZE", "IMG_SCALE", "COLOR_JITTER", "AUTO_AUGMENT")),
    *(f"INPUT.IMG_AUG.{name}" for name in ("INTERPOLATION", "RE_PROB", "RE_MODE", "RE_COUNT", "FLIP_PROB", "EXIF")),
    *(
        f"INPUT.TEXT_AUG.{name}"
        for name in ("MAX_SEQ_LEN", "LEGACY_STRIP", "ENTITIES", "TEMPLATES", "MULTI_LABEL", "WORD_TYPE")
    ),
)
_ZERO_SHOT = ("ROOT", "FILE", "BATCH", "TEMPLATES", "NAMES")
_PARTS = ("PROPOSER.NAME", "PROPOSER.MASKS", "NAMER.NAME", "FUSION.NAME", "RENDERING.NAME")
_OF_ALIGNED_CROPS = ("CLIP_PIXEL_MEAN", "CLIP_PIXEL_STD", "CLIP_CLS_STYLE", "MASK_FORMER.ENSEMBLING_ALL_CLS")

WITHOUT_MASKS = ("OVSegmentor", "LSeg", "LSegPlus", "DenseCLIP", *SIMBASELINE_PER_PIXEL)  # they score each pixel

# Systems that read a key, and what to set in others. The second CLIP's own keys have no effect without
# SEPERATE_ADAPTER, but configurations of the originals have them in any case.
ONLY_IN: dict[str, tuple[tuple[str, ...], str]] = {
    **{f"{_CLIP}.{name}": (_BOTH, f"set {_CLIP}.TEXT_TEMPLATES") for name in _TEXT},
    **{f"{_REGION}.{name}": (_BOTH, "only SimBaseline has a second CLIP") for name in (*_TEXT, *_CLIPS_OWN)},
    f"{_CLIP}.SEPERATE_ADAPTER": (SIMBASELINE, "only SimBaseline has a second CLIP"),
    **{f"MODEL.{name}": (ZEGFORMER, "only ZegFormer reads it") for name in _ZEGFORMER},
    **{f"MODEL.{name}": ((*ZEGFORMER, "ProposeAndName"), "only ZegFormer reads it") for name in _OF_ALIGNED_CROPS},
    **{f"MODEL.DENSE.{name}": (("DenseCLIP",), "only DenseCLIP reads it") for name in ("KS_THRESH", "PD_THRESH")},
    **{
        f"MODEL.{name}": (("ProposeAndName",), "a system has its own parts, MODEL.META_ARCHITECTURE ProposeAndName any")
        for name in _PARTS
    },
    **{f"INPUT.CAPTION.{name}": (("OpenSeg",), "only OpenSeg trains on captions") for name in _CAPTION},
    **dict.fromkeys(_IMAGE_TEXT, (("OVSegmentor",), "only OVSegmentor trains on image-text pairs alone")),
    "DATASETS.PSEUDO_MASKS": (("OpenSeg",), "only OpenSeg trains on masks without classes"),
    **{f"TEST.ZERO_SHOT.{name}": (("OVSegmentor",), "only OVSegmentor classifies images") for name in _ZERO_SHOT},
    f"{_CLIP}.REGION_RESIZED": (SIMBASELINE, "only SimBaseline takes crops of other sizes than CLIP's input"),
}


# Keys that most systems read, but not these, and what to set there.
_WITHOUT_PROMPTS = {
    f"{_CLIP}.TEXT_TEMPLATES": f"set {_CLIP}.PROMPT_LEARNER",
    f"{_CLIP}.MASK_PROMPT_FWD": "only OVSeg has mask prompts",
    f"{_CLIP}.MASK_PROMPT_DEPTH": "only OVSeg has mask prompts",
}
_WITHOUT_CLIP = {  # OVSegmentor has encoders, windows and a background of its own
    f"{_CLIP}.CLIP_MODEL_NAME": "set MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG",
    f"{_CLIP}.CLIP_WEIGHTS": "set MODEL.OVSEGMENTOR.TEXT_ENCODER.WEIGHTS",
    f"{_CLIP}.TEXT_TEMPLATES": "set MODEL.OVSEGMENTOR.TEMPLATES",
    f"{_CLIP}.PREDEFINED_PROMPT_TEMPLATES": "set MODEL.OVSEGMENTOR.TEMPLATES",
    f"{_CLIP}.TEXT_ENCODER": "set MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG",
    "MODEL.RENDERING.GRANULARITY": "a pixel belongs to one group",
    "TEST.SLIDING_WINDOW": "set MODEL.OVSEGMENTOR.WINDOW and STRIDE",
    "TEST.BACKGROUND_THRESHOLD": "set MODEL.OVSEGMENTOR.BG_THRESH",
}
_BARE_WORDS = 'words are encoded by CLIP without a prompt; give "templates" in the requests, or use LSegPlus'
NOT_IN: dict[tuple[str, ...], dict[str, str]] = {
    (*ZEGFORMER, *SIMBASELINE_PER_PIXEL, "LSeg", "LSegPlus", "OpenSeg", "DenseCLIP", "Mask2Former", "OVSegmentor"): {
        f"MODEL.{name}": "only OVSeg, SCAN, SimBaseline and ProposeAndName read it"
        for name in ("FUSION.VOID_BY_CLIP", "NAMER.MAX_CROPS", "NAMER.DUPLICATE_IOU")
    },
    (*SIMBASELINE_PER_PIXEL, "LSeg", "LSegPlus", "OpenSeg", "DenseCLIP", "OVSegmentor"): {
        f"MODEL.{name}": "only systems with a proposal network of their own or crops read it"
        for name in ("PROPOSER.PRECISION", "COMPILE", "CUDA_GRAPHS")
    },
    _BOTH: _WITHOUT_PROMPTS,
    ("OVSegmentor",): _WITHOUT_CLIP,
    ("LSeg",): {
        f"{_CLIP}.{name}": _BARE_WORDS for name in ("TEXT_TEMPLATES", "PREDEFINED_PROMPT_TEMPLATES", "TEXT_ENCODER")
    },
    ZEGFORMER: {
        f"{_CLIP}.TEXT_TEMPLATES": "set MODEL.PROMPT_ENSEMBLE_TYPE",
        f"{_CLIP}.PREDEFINED_PROMPT_TEMPLATES": "set MODEL.PROMPT_ENSEMBLE_TYPE",
        f"{_CLIP}.MASK_FILL": "set MODEL.CLIP_CLS_STYLE",
        f"{_CLIP}.MASK_EXPAND_RATIO": "set MODEL.CLIP_CLS_STYLE",
        f"{_CLIP}.MASK_THR": "the threshold of the crops is 0.5",
        f"{_CLIP}.MASK_MATTING": "set MODEL.CLIP_CLS_STYLE",
        f"{_CLIP}.MASK_CROPS": "set MODEL.CLIP_CLS_STYLE to crop",
        f"{_CLIP}.MASK_PROMPT_FWD": "its CLIP has no mask prompts",
        f"{_CLIP}.CLIP_ENSEMBLE": "set MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION",
        f"{_CLIP}.CLIP_ENSEMBLE_WEIGHT": "set MODEL.MASK_FORMER.ENSEMBLING or ENSEMBLING_ALL_CLS",
        f"{_CLIP}.DROP_NO_OBJECT_BEFORE_SOFTMAX": "it is dropped after the softmax",
    },
}


def unread_keys(name: str) -> dict[str, str]:
    """Return the keys that the system of this name does not read, and what to do in place of each."""
    unread = {key: remedy for key, (systems, remedy) in ONLY_IN.items() if name not in systems}
    for systems, remedies in NOT_IN.items():
        if name in systems:
            unread |= remedies
    return unread
