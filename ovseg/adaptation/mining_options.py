"""The options of mining; imports nothing that takes seconds, so that wrong ones are refused at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg.config.files import check_file
from ovseg.data.worlds import is_split
from ovseg.errors import OvsegError
from ovseg.io.ray_options import RayOptions

GROUND_TRUTH = "ground-truth"
MASK_KINDS = ("labels", "instances", "files")  # of a folder of masks


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
    ray: RayOptions | None = None


def check_options(options: MiningOptions) -> None:
    """Refuse options that cannot work together."""
    if not is_split(options.data) and not Path(options.data).exists():
        raise OvsegError(f"there is no captions file {options.data}")
    if options.masks is None and not options.config_file:
        raise OvsegError("name where masks come from: --config-file CONFIG --weights FILE, or --masks")
    if options.masks is not None and options.config_file:
        raise OvsegError("give either --masks or a segmenter (--config-file), not both")
    if options.masks == GROUND_TRUTH and not is_split(options.data):
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
    if options.config_file:
        check_file(options.config_file)
