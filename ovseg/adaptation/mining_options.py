"""The options of a mining run, and what of them its pairs depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.adaptation.mining import file_fingerprint, fingerprint
from ovseg.config import load_cfg
from ovseg.data.caption_files import CaptionedImages
from ovseg.errors import OvsegError
from ovseg.toy import BASE_CLASSES, CLASS_NAMES
from ovseg.vocabulary import Vocabulary, label_set_names

TOY = "toy:"
GROUND_TRUTH = "ground-truth"
TOY_WORDS = {"toy": CLASS_NAMES, "toy_base": BASE_CLASSES}


@dataclass(frozen=True)
class MiningOptions:
    """The options of ``tools/mine_mask_text_pairs.py``, which says what each means."""

    data: str
    output: Path
    image_root: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    delimiter: str | None = None
    max_images: int | None = None
    config_file: str | None = None
    weights: str | None = None
    opts: Sequence[str] = ()
    masks: str | None = None
    masks_are: str | None = None
    label_names: str | None = None
    ignore_label: int = 255
    architecture: str | None = None
    clip: str | None = None
    templates: str = "vild"
    captions: str = "one"
    names_from: str = "captions"
    nouns: str = "noun"
    tagger: str = "textblob"
    vocabulary: str | None = None
    min_score: float | None = None
    min_area: float = 0.0005
    max_size: int = 1024
    shard_size: int | None = None
    seen: str | None = None
    write_list: bool = False
    allow_bad: bool = False
    device: str | None = None


# options that pairs do not depend on
_FREE = {"output", "write_list", "allow_bad", "device"}
# options that are told by what they lead to: images and captions, contents of files
_BY_CONTENT = {"data", "image_root", "image_column", "caption_column", "delimiter", "max_images"}
_BY_CONTENT |= {"config_file", "weights", "opts", "clip"}


def check_options(options: MiningOptions) -> None:
    """Refuse options that cannot work together."""
    if options.masks is None and not options.config_file:
        raise OvsegError("name where masks come from: --config-file CONFIG --weights FILE, or --masks")
    if options.masks is not None and options.config_file:
        raise OvsegError("give either --masks or a segmenter (--config-file), not both")
    if options.masks == GROUND_TRUTH and not options.data.startswith(TOY):
        raise OvsegError(f"--masks {GROUND_TRUTH} is for --data toy:...; for other data give the folder of the masks")
    if bool(options.architecture) != bool(options.clip):
        raise OvsegError("--architecture and --clip belong together: give both or none")
    if options.clip == "none":
        raise OvsegError("--clip none: a CLIP of random weights would pair nouns and masks at random; name its weights")
    named = options.masks == GROUND_TRUTH or bool(options.label_names)
    if options.names_from == "labels" and not named:
        raise OvsegError("--names-from labels needs masks with names: --label-names, or ground truth of the toy world")
    if options.names_from == "captions" and not options.clip and not options.config_file:
        raise OvsegError("name the CLIP that assigns nouns to masks: --architecture and --clip")
    if options.shard_size is not None and options.shard_size < 1:
        raise OvsegError("--shard-size must be at least 1")
    if options.max_size < 16:
        raise OvsegError("--max-size must be at least 16 pixels")


def words_of(name: str) -> tuple[str, ...]:
    """Words of "toy", "toy_base", a label set, or a file; synonyms too."""
    if name in TOY_WORDS:
        return TOY_WORDS[name]
    vocabulary = Vocabulary.from_label_set(name) if name in label_set_names() else Vocabulary.from_file(name)
    return tuple(dict.fromkeys(text for texts in vocabulary.synonyms for text in texts))


def names_of(name: str) -> tuple[str, ...]:
    """One name for each value of a label map."""
    if name in TOY_WORDS:
        return TOY_WORDS[name]
    return (Vocabulary.from_label_set(name) if name in label_set_names() else Vocabulary.from_file(name)).names


def settings_of(
    options: MiningOptions, found: CaptionedImages, seen: frozenset[str] | None, size: int
) -> dict[str, Any]:
    """What the pairs depend on; weights and words by their contents, so that a changed file is noticed."""
    settings: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in _FREE | _BY_CONTENT
    }
    settings |= {"shard_size": size, "images": len(found.images), "captions_sha256": fingerprint(found.images)}
    if options.clip:
        settings["clip"] = file_fingerprint(Path(options.clip)) if Path(options.clip).is_file() else options.clip
    for name in ("vocabulary", "label_names"):
        if value := getattr(options, name):
            settings[name] = hashlib.sha256("\n".join(words_of(value)).encode()).hexdigest()
    settings["seen"] = None if seen is None else hashlib.sha256("\n".join(sorted(seen)).encode()).hexdigest()
    if options.config_file:
        cfg = load_cfg(options.config_file, options.opts)
        files = {"weights": options.weights or cfg.MODEL.WEIGHTS, "clip_weights": cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS}
        for name, path in files.items():
            settings[name] = file_fingerprint(Path(path)) if path and Path(path).is_file() else path
        cfg.MODEL.WEIGHTS = cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = ""
        settings["config"] = hashlib.sha256(cfg.dump().encode()).hexdigest()
    return settings
