"""OVSegmentor's published configuration keys, and ours that each of them becomes (specification 18.2).

The published files are lower case and nested: ``model``, ``data``, ``train``, ``evaluate``, ``checkpoint``, and a few
keys of the top level. :func:`translate` is the only place that knows them; everything after it reads our keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ovseg.config.defaults import DEFAULTS
from ovseg.config.values import fit
from ovseg.errors import OvsegError, shown
from ovseg.io.plain_yaml import unknown_key

OVSEGMENTOR = "MODEL.OVSEGMENTOR"
LR_IMAGES = 4096  # of a global batch, for which the published learning rates are given
BATCH = 256  # images of a process, where a file gives learning rates without one

# Sections whose keys keep their names, in capitals.
SECTIONS = {
    "model.img_encoder": f"{OVSEGMENTOR}.IMG_ENCODER",
    "model.text_encoder": f"{OVSEGMENTOR}.TEXT_ENCODER",
    "model": OVSEGMENTOR,
    "data.img_aug": "INPUT.IMG_AUG",
    "data.text_aug": "INPUT.TEXT_AUG",
}
# Keys that become one of ours, with the value as it is.
RENAMED = {
    "data.train.root_dir": "DATASETS.IMAGE_TEXT.ROOT",
    "data.train.meta_file": "DATASETS.IMAGE_TEXT.FILE",
    "data.train.num_workers": "DATALOADER.NUM_WORKERS",
    "data.val.root_dir": "TEST.ZERO_SHOT.ROOT",
    "data.val.meta_file": "TEST.ZERO_SHOT.FILE",
    "data.val.batch_size": "TEST.ZERO_SHOT.BATCH",
    "train.epochs": "SOLVER.MAX_EPOCHS",
    "train.warmup_epochs": "SOLVER.WARMUP_EPOCHS",
    "train.weight_decay": "SOLVER.WEIGHT_DECAY",
    "train.accumulation_steps": "SOLVER.ACCUMULATION_STEPS",
    "train.optimizer.betas": "SOLVER.BETAS",
    "train.optimizer.eps": "SOLVER.EPS",
    "evaluate.eval_freq": "TEST.EVAL_PERIOD",
    "evaluate.task": "TEST.TASKS",
    "evaluate.cls.template": "TEST.ZERO_SHOT.TEMPLATES",
    "evaluate.seg.template": f"{OVSEGMENTOR}.TEMPLATES",
    "checkpoint.resume": "MODEL.WEIGHTS",
    "checkpoint.stage1_checkpoint": f"{OVSEGMENTOR}.STAGE1_CHECKPOINT",
    "checkpoint.save_freq": "SOLVER.CHECKPOINT_PERIOD",
    "output": "OUTPUT_DIR",
    "seed": "SEED",
    "print_freq": "LOG_PERIOD",
}
# Keys whose values have other names here, with the key that takes them.
WORDS: dict[str, tuple[str, dict[Any, Any]]] = {
    "model.type": ("MODEL.META_ARCHITECTURE", {"MultiLabelContrastive": "OVSegmentor"}),
    "model.text_encoder.type": (
        f"{OVSEGMENTOR}.TEXT_ENCODER.CONFIG",
        {
            "Bert": "bert-base-uncased",
            "BertMedium": "prajjwal1/bert-medium",
            "DistilBert": "distilbert-base-uncased",
            "Roberta": "roberta-base",
        },
    ),
    "train.optimizer.name": ("SOLVER.OPTIMIZER", {"adamw": "ADAMW", "sgd": "SGD"}),
    "train.lr_scheduler.name": ("SOLVER.LR_SCHEDULER_NAME", {"cosine": "EpochCosine"}),
    "train.amp_opt_level": ("SOLVER.AMP.ENABLED", {"O0": False, "O1": True, "O2": True}),
}
# Learning rates for LR_IMAGES images.
SCALED = {
    "train.base_lr": "SOLVER.BASE_LR",
    "train.warmup_lr": "SOLVER.WARMUP_LR",
    "train.min_lr": "SOLVER.MIN_LR",
}
# Options of test_cfg in evaluate.seg.opts.
WINDOWS = {
    "test_cfg.bg_thresh": f"{OVSEGMENTOR}.BG_THRESH",
    "test_cfg.crop_size": f"{OVSEGMENTOR}.WINDOW",
    "test_cfg.stride": f"{OVSEGMENTOR}.STRIDE",
}
# The data sets of evaluate.seg.cfg: ours, and the threshold of background (specification 9).
TEST_SETS = {
    "pascal_voc12": ("pascalvoc21_ovsegmentor_sem_seg_val", 0.95),
    "pascal_context": ("pascal_context_60_ovsegmentor_sem_seg_val", 0.35),
    "coco": ("coco_2017_val_object_sem_seg", 0.9),
    "coco_stuff": ("coco_2017_val_stuff_172_sem_seg", 0.95),
    "ade20k": ("ade20k_ovsegmentor_sem_seg_val", 0.95),
}
# Scores whose best weights are kept if the key is true, and the task that gives them.
SAVE_BEST = {"evaluate.seg.save_best": ("mIoU", "seg"), "evaluate.cls.save_best": ("top1", "cls")}
# Keys that have one value only here, and what to do.
FIXED: dict[str, tuple[Any, str]] = {
    "data.train.read_from": ("dir", "read images from a folder (data.train.root_dir); petrel needs a private client"),
    "data.val.read_from": ("dir", "read images from a folder (data.val.root_dir); petrel needs a private client"),
    "data.train.mask_type": ("class", "no other questions exist"),
    "data.train.use_distilbert": (True, "the questions are those of encoders of BERT's kind"),
}
# Keys that must agree with another one, which is the one that has an effect.
SAME_AS = {
    "data.train.use_entity": "model.use_entityloss",
    "data.train.cross_image": "model.use_maskloss",
}
# Keys without effect, in the original or here, and why.
IGNORED = {
    **dict.fromkeys(("model.text_encoder.context_length", "model.text_encoder.layers"), "the text encoder's own"),
    "model.text_encoder.vocab_size": "the text encoder's own",
    "model_name": "it was a part of the output folder's name",
    "checkpoint.auto_resume": "main_pretrain reads it; elsewhere it is --resume",
    **dict.fromkeys(("vis", "vocab", "image_folder", "output_folder"), "main_demo reads it"),
    **dict.fromkeys(("tag", "checkpoint.freq", "checkpoint.max_kept"), "no effect in the original"),
    **dict.fromkeys(("train.seed", "train.use_entity", "data.val.type"), "no effect in the original"),
    "data.val.label_texts_ensemble": "no effect in the original",
    **{
        f"data.{part}.{key}": "no effect in the original"
        for part in ("train", "val")
        for key in ("image_reader", "sampler", "transforms", "test_resize", "input_size")
    },
}
# What the original fixes in its code: pixel statistics (RGB) and the size of images in evaluation.
SYSTEM: dict[str, Any] = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.MIN_SIZE_TEST": 448,
    "INPUT.ANTIALIAS_TEST": False,
    "INPUT.MAX_SIZE_TEST": 2048,
}


def translate(tree: Mapping[str, Any], source: str, processes: int = 1, images: int | None = None) -> dict[str, Any]:
    """Return our keys, nested, of a published configuration.

    Args:
        tree: the content of a file over that of its bases, without interpolations.
        source: file or options, for errors.
        processes: of the training; a batch of the published keys is that of one process.
        images: of a global batch, for learning rates without a batch; None for BATCH images a process.

    Raises:
        OvsegError: an unknown key, or a value that cannot be; names the published key and the remedy.
    """
    values = dict(_leaves(tree))
    ours: dict[str, Any] = {}
    for key, value in values.items():
        if key in RENAMED:
            ours[RENAMED[key]] = value
        elif key in WORDS:
            name, words = WORDS[key]
            ours.setdefault(name, _word(key, value, words, source))
        elif key in FIXED:
            _check_fixed(key, value, source)
        elif key in SAME_AS:
            _check_same(key, value, values, source)
        elif key in SCALED or key in SAVE_BEST or key in IGNORED or key in _SPECIAL:
            pass
        else:
            ours[_in_capitals(key, source)] = value
    if (key := "train.epochs") in values and fit(values[key], 0, key) < 1:
        raise OvsegError(f"{source}: {key} is {shown(values[key])}: give a number of epochs, at least 1")
    if "model.type" in values:
        ours |= SYSTEM
    ours |= _batch(values, processes, images, source) | _clipping(values) | _evaluation(values, source)
    return _nested(ours)


_SPECIAL = ("data.train.batch_size", "train.clip_grad", "evaluate.seg.cfg", "evaluate.seg.opts")


def known_keys() -> list[str]:
    """Return all published keys, for suggestions."""
    own = [
        f"{section}.{key.removeprefix(f'{name}.').lower()}"
        for key in DEFAULTS
        for section, name in SECTIONS.items()
        if key.startswith(f"{name}.") and "." not in key.removeprefix(f"{name}.")
    ]
    return [*own, *RENAMED, *WORDS, *SCALED, *SAVE_BEST, *FIXED, *SAME_AS, *IGNORED, *_SPECIAL]


def _in_capitals(key: str, source: str) -> str:
    """Return our key of one that keeps its name."""
    section, _, name = key.rpartition(".")
    ours = f"{SECTIONS.get(section, '')}.{name.upper()}"
    if ours not in DEFAULTS or name != name.lower():
        raise unknown_key(key, known_keys(), source)
    return ours


def _word(key: str, value: Any, words: Mapping[Any, Any], source: str) -> Any:
    if not isinstance(value, str) or value not in words:
        raise OvsegError(f"{source}: {key} is {shown(value)}: choose one of {', '.join(words)}")
    return words[value]


def _check_fixed(key: str, value: Any, source: str) -> None:
    only, remedy = FIXED[key]
    if fit(value, only, key) != only:
        raise OvsegError(f"{source}: {key} is {shown(value)}: set it to {str(only).lower()}; {remedy}")


def _check_same(key: str, value: Any, values: Mapping[str, Any], source: str) -> None:
    """Check a key that repeats another one; the other one's default counts where the file does not have it."""
    other = SAME_AS[key]
    section, _, name = other.rpartition(".")
    expected = values.get(other, DEFAULTS.get(f"{SECTIONS[section]}.{name.upper()}"))
    if expected is not None and fit(value, expected, key) != fit(expected, expected, other):
        raise OvsegError(
            f"{source}: {key} is {shown(value)}, but {other} is {shown(expected)}: write {key}: ${{{other}}}, or give "
            "both the same value"
        )


def _batch(values: Mapping[str, Any], processes: int, images: int | None, source: str) -> dict[str, Any]:
    """Return the global batch, and the learning rates for it."""
    ours: dict[str, Any] = {}
    rates = sorted(SCALED.keys() & values.keys())
    if (key := "data.train.batch_size") in values or (rates and images is None):
        batch = fit(values.get(key, BATCH), 0, key)
        if batch < 1:
            raise OvsegError(f"{source}: {key} is {batch}: give the number of images of a process, at least 1")
        images = ours["SOLVER.IMS_PER_BATCH"] = batch * processes
    steps = fit(values.get("train.accumulation_steps", 0), 0, "train.accumulation_steps")
    for rate in rates:
        ours[SCALED[rate]] = fit(values[rate], 0.0, rate) * images / LR_IMAGES * max(steps, 1)
    return ours


def _clipping(values: Mapping[str, Any]) -> dict[str, Any]:
    if (key := "train.clip_grad") not in values:
        return {}
    limit = 0.0 if values[key] is None else fit(values[key], 0.0, key)
    if not limit:
        return {"SOLVER.CLIP_GRADIENTS.ENABLED": False}
    settings = {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": limit}
    return {f"SOLVER.CLIP_GRADIENTS.{name}": value for name, value in settings.items()}


def _evaluation(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the data set and its threshold, what ``evaluate.seg.opts`` overrides, and which checkpoints are kept."""
    ours: dict[str, Any] = {}
    if (key := "evaluate.seg.cfg") in values:
        name = PurePath(str(values[key])).stem
        if name not in TEST_SETS:
            raise OvsegError(f"{source}: {key} is {shown(values[key])}: choose one of {', '.join(TEST_SETS)}")
        dataset, threshold = TEST_SETS[name]
        ours |= {"DATASETS.TEST": [dataset], f"{OVSEGMENTOR}.BG_THRESH": threshold}
    if not values.keys().isdisjoint(SAVE_BEST):
        tasks = fit(values.get("evaluate.task", DEFAULTS["TEST.TASKS"]), [""], "evaluate.task")
        kept = [
            score
            for key, (score, task) in SAVE_BEST.items()
            if task in tasks and fit(values.get(key, False), False, key)
        ]
        ours["TEST.SAVE_BEST"] = kept
    key = "evaluate.seg.opts"
    options = ",".join(map(str, fit(values.get(key) or [], [""], key)))  # a pair (224,224) has a comma, too
    for option in filter(None, re.split(r",\s*(?=test_cfg\.)", options)):
        name, equals, value = option.partition("=")
        if name == "test_cfg.mode" and value in ("slide", "whole"):
            keys = [f"{OVSEGMENTOR}.{name}" for name in ("WINDOW", "STRIDE")]
            ours |= {key: [0, 0] if value == "whole" else DEFAULTS[key] for key in keys}
        elif name in WINDOWS and equals:
            ours[WINDOWS[name]] = value
        else:
            raise OvsegError(
                f"{source}: {key} has {shown(option)}: give NAME=VALUE, with one of {', '.join(WINDOWS)}, or "
                "test_cfg.mode=slide or =whole"
            )
    return ours


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value); a section with nothing in it yields nothing."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif value is not None or name not in _SECTIONS_ALONE:
            yield name, value


_SECTIONS_ALONE = {"model", "data", "train", "evaluate", "checkpoint", *SECTIONS, "data.train", "data.val"}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
