"""Mining, from the options of ``tools/mine_mask_text_pairs.py`` to ``summary.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ovseg.adaptation.mask_sources import MaskSource, SegmenterMasks, WorldMasks, folder_masks
from ovseg.adaptation.miner import FoundPair, Miner
from ovseg.adaptation.mining_options import GROUND_TRUTH, MiningOptions, check_options
from ovseg.adaptation.mining_report import SHEET, print_summary, summarise, write_contact_sheet
from ovseg.adaptation.pair_list import LIST, write_crops, write_list
from ovseg.adaptation.pair_shards import SHARD, SUMMARY, ShardWriter
from ovseg.adaptation.shard_making import fill_shards
from ovseg.adaptation.shard_work import (
    Kind,
    Work,
    check_images,
    default_shard_size,
    file_fingerprint,
    filled,
    fingerprint,
    teacher_settings,
    write_lines,
)
from ovseg.adaptation.tuned_clip import clip_flags
from ovseg.checkpoint.state_dicts import bare_clip_names, tensor_names
from ovseg.clip.adapter import PROMPTS, ClipAdapter, load_clip
from ovseg.clip.model import find_clip
from ovseg.data.caption_files import CaptionedImage, CaptionedImages, check_bad, images_of, read_captions
from ovseg.data.worlds import find_world, is_split, split_records, vocabulary_of, words_of
from ovseg.errors import OvsegError
from ovseg.evaluation.report import write_json
from ovseg.io.files import cache_dir
from ovseg.naming import MaskedCrops
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import get_templates
from ovseg.vocabulary.nouns import get_extractor

CROPS = "crops"  # folder of the crops of the original's list


class PairFile(ShardWriter):
    """A shard of pairs, as :class:`ovseg.adaptation.shard_work.ShardFile`."""

    def add(self, index: int, item: CaptionedImage, found: Sequence[FoundPair]) -> None:
        for count, pair in enumerate(found):
            self.write(f"{index:09d}_{count:03d}", pair.image, pair.mask, pair.info)


PAIRS = Kind("pairs", SHARD, PairFile)

# options that pairs do not depend on
_FREE = {"output", "write_list", "allow_bad", "device", "ray"}
# options that count by their results: images and captions, contents of files
_BY_CONTENT = {"data", "image_root", "image_column", "caption_column", "delimiter", "max_images"}
_BY_CONTENT |= {"config_file", "weights", "opts", "clip"}


def settings_of(
    options: MiningOptions, found: CaptionedImages, seen: frozenset[str] | None, size: int
) -> dict[str, Any]:
    """Return what the pairs depend on; weights and words by their contents, so that a changed file is noticed."""
    settings: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in _FREE | _BY_CONTENT
    }
    settings |= {"shard_size": size, "images": len(found.images), "captions_sha256": _fingerprint(found)}
    if options.clip:
        settings["clip"] = file_fingerprint(Path(options.clip)) if Path(options.clip).is_file() else options.clip
    for name in ("vocabulary", "label_names"):
        if value := getattr(options, name):
            settings[name] = hashlib.sha256("\n".join(words_of(value)).encode()).hexdigest()
    settings["seen"] = None if seen is None else hashlib.sha256("\n".join(sorted(seen)).encode()).hexdigest()
    if options.config_file:
        settings |= teacher_settings(options.config_file, options.weights, options.opts)
    return settings


def _fingerprint(found: CaptionedImages) -> str:
    return fingerprint((item.path.name, item.image_id, item.captions) for item in found.images)


def run(options: MiningOptions) -> None:
    """Mine in this process, one of those of the run; the main one writes what belongs to all.

    Raises:
        OvsegError: as the command line shows them.
    """
    main = comm.is_main_process()
    check_options(options)
    found, world_masks = _read_data(options)
    seen = frozenset(word.lower() for word in words_of(options.seen)) if options.seen else None
    size = options.shard_size or default_shard_size(len(found.images))
    work = Work(PAIRS, found.images, size, options.output)
    if main and found.bad:
        write_lines(options.output / "bad_captions.txt", found.bad)
    check_bad(len(found.bad), found.entries, "captions", options.output / "bad_captions.txt", options.allow_bad)

    def settings() -> dict[str, Any]:
        return settings_of(options, found, seen, size)

    def make(missing: Sequence[int]) -> None:
        finder = partial(build_miner, options, world_masks, seen)
        fill_shards(work, finder, missing, options.allow_bad, options.device, options.ray)

    with filled(work, settings, make):
        if options.write_list:
            for shard in work.shards[comm.get_rank() :: comm.get_world_size()]:
                write_crops(shard, options.output / CROPS)
        if main:
            _finish(options, work, found, seen is not None)


def _read_data(options: MiningOptions) -> tuple[CaptionedImages, WorldMasks | None]:
    """Return the images, and the ground truth of those of a world."""
    masks = None
    if is_split(options.data):
        records = split_records(options.data, options.max_images)
        masks = WorldMasks(find_world(options.data), records)
        images = [CaptionedImage(Path(r["file_name"]), str(r["image_id"]), tuple(r["captions"])) for r in records]
        found = CaptionedImages(images, sum(len(item.captions) for item in images))
    elif Path(options.data).is_dir():
        if options.names_from != "labels":
            raise OvsegError(f"--data {options.data} is a folder, without captions: give a file of captions")
        found = images_of([options.data])
    else:
        columns = (options.image_column, options.caption_column, options.delimiter)
        found = read_captions(options.data, options.image_root, *columns)
    if options.max_images is not None:
        found.images = found.images[: options.max_images]
    return found, masks


def build_miner(
    options: MiningOptions, world_masks: WorldMasks | None, seen: frozenset[str] | None, device: str
) -> Miner:
    """Build the miner of the options.

    Args:
        world_masks: ground truth of a world's images.
        seen: lower-case words of the seen classes.
        device: of the models.
    """
    by_labels = options.names_from == "labels"
    segmenter = None
    if options.config_file:
        segmenter = Segmenter.from_config(options.config_file, options.weights, options.opts, device)
    root = options.image_root or Path(options.data)
    root = root if root.is_dir() else root.parent
    masks: MaskSource
    if segmenter is not None:
        masks = SegmenterMasks(segmenter)
    elif options.masks == GROUND_TRUTH:
        masks = world_masks
    else:
        names = vocabulary_of(options.label_names).names if options.label_names else ()
        masks = folder_masks(Path(options.masks), options.masks_are, root, names, options.ignore_label)
    clip = None
    if options.clip and not by_labels:
        clip = _build_clip(options, masks.threshold).to(device)
    elif segmenter is not None:
        clip = segmenter.model.mask_namer
    known = words_of(options.vocabulary) if options.vocabulary else ()
    return Miner(
        masks=masks,
        extractor=None if by_labels else get_extractor(options.tagger, options.nouns, known),
        clip=clip,
        all_captions=options.captions == "all",
        min_score=options.min_score,
        min_area=options.min_area,
        max_size=options.max_size,
        seen=seen,
        image_root=root,
    )


def _build_clip(options: MiningOptions, threshold: float) -> MaskedCrops:
    """Build the namer, with mask prompts where CLIP's weights have them."""
    with clip_flags():
        source = find_clip(options.architecture, options.clip)
        if source.fetch_weights is None:
            raise OvsegError(f"--clip {options.clip} names no weights: give a file, or one of open_clip's tags")
        local = Path(source.weights_hint).is_file()
        depth, *_ = bare_clip_names(tensor_names(source.weights_hint)).get(PROMPTS, (0,)) if local else (0,)
        adapter = ClipAdapter(
            *load_clip(source, depth),
            source,
            templates=get_templates(options.templates),
            mask_prompt_depth=depth,
            text_cache_dir=cache_dir() / "text",
            truncate_prompts=True,
        )
    return MaskedCrops(adapter, mask_threshold=threshold, mask_prompts=depth > 0).eval()


def _finish(options: MiningOptions, work: Work, found: CaptionedImages, seen_known: bool) -> None:
    """Write what belongs to all shards, in the main process; ``summary.json`` is the last file."""
    output, shards = options.output, work.shards
    bad = check_images(work, options.allow_bad)
    if options.write_list:
        for shard in shards:  # helps where other processes are slower
            write_crops(shard, output / CROPS)
        write_list(shards, output / LIST, output / CROPS)
    summary = {"data": options.data}
    summary |= summarise(shards, len(work.images), found.entries, len(found.bad) + len(bad), seen_known)
    write_contact_sheet(shards, output / SHEET)
    write_json(output / SUMMARY, summary)
    print_summary(summary, output)
