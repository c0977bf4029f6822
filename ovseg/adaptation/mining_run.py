"""Mining, from the options of ``tools/mine_mask_text_pairs.py`` to ``summary.json``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.utils import comm
from rich.console import Console

from ovseg.adaptation.mask_sources import MaskSource, SegmenterMasks, WorldMasks, folder_masks
from ovseg.adaptation.miner import Miner
from ovseg.adaptation.mining import (
    Work,
    claim,
    default_shard_size,
    file_fingerprint,
    fingerprint,
    mine_shards,
    wait_for_all,
)
from ovseg.adaptation.mining_options import GROUND_TRUTH, MiningOptions, check_options
from ovseg.adaptation.mining_report import SHEET, print_summary, summarise, write_contact_sheet
from ovseg.adaptation.pair_list import LIST, write_crops, write_list
from ovseg.adaptation.pair_shards import SUMMARY
from ovseg.adaptation.tuned_clip import clip_flags
from ovseg.checkpoint.state_dicts import bare_clip_names, tensor_names
from ovseg.clip.adapter import PROMPTS, ClipAdapter, load_clip
from ovseg.clip.model import find_clip
from ovseg.config import load_cfg
from ovseg.config.files import by_content
from ovseg.data.caption_files import ALLOWED_BAD, CaptionedImage, CaptionedImages, check_bad, read_captions
from ovseg.data.worlds import find_world, is_split, split_records, vocabulary_of, words_of
from ovseg.errors import OvsegError
from ovseg.evaluation.report import write_json
from ovseg.io.files import atomic_path, cache_dir
from ovseg.io.inputs import find_inputs
from ovseg.naming import MaskedCrops
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import get_templates
from ovseg.vocabulary.nouns import get_extractor

CROPS = "crops"  # folder of the crops of the original's list


# options that pairs do not depend on
_FREE = {"output", "write_list", "allow_bad", "device"}
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
        content = yaml.safe_dump(by_content(yaml.safe_load(cfg.dump())))
        settings["config"] = hashlib.sha256(content.encode()).hexdigest()
    return settings


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
    work = Work(found.images, size, options.output)
    if main and found.bad:
        _write_lines(options.output / "bad_captions.txt", found.bad)
    check_bad(len(found.bad), found.entries, "captions", options.output / "bad_captions.txt", options.allow_bad)
    with ExitStack() as stack:
        if main:
            stack.enter_context(claim(options.output, settings_of(options, found, seen, size)))
        # only the main process looks, for all must divide the same list
        missing, complete = comm.all_gather((work.missing(), (options.output / SUMMARY).is_file()))[0]
        if main and complete and not missing:
            Console(stderr=True, soft_wrap=True).print(f"{options.output} is complete already", markup=False)
        if missing:
            if main:
                (options.output / SUMMARY).unlink(missing_ok=True)  # shards of a finished run were deleted
            _mine(options, work, missing, world_masks, seen)
        wait_for_all(work)
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
        files = find_inputs([options.data])[0]
        found = CaptionedImages([CaptionedImage(file, file.stem, ()) for file in files])
        if not files:
            raise OvsegError(f"the folder {options.data} holds no images")
    else:
        columns = (options.image_column, options.caption_column, options.delimiter)
        found = read_captions(options.data, options.image_root, *columns)
    if options.max_images is not None:
        found.images = found.images[: options.max_images]
    return found, masks


def _mine(
    options: MiningOptions,
    work: Work,
    missing: Sequence[int],
    world_masks: WorldMasks | None,
    seen: frozenset[str] | None,
) -> None:
    rank, world = comm.get_rank(), comm.get_world_size()
    device = options.device
    if device is None or device == "cuda":
        device = f"cuda:{comm.get_local_rank()}" if torch.cuda.is_available() else device or "cpu"
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
    miner = Miner(
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
    largest_bad = math.inf if options.allow_bad else ALLOWED_BAD * len(work.images)
    title = "images" if world == 1 else f"images (1 of {world} processes)"
    mine_shards(work, miner, missing[rank::world], largest_bad, title, show=comm.is_main_process())


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
    bad = work.bad()
    if bad:
        _write_lines(output / "bad_images.txt", bad)
    check_bad(len(bad), len(work.images), "images", output / "bad_images.txt", options.allow_bad)
    if options.write_list:
        for shard in shards:  # helps where other processes are slower
            write_crops(shard, output / CROPS)
        write_list(shards, output / LIST, output / CROPS)
    summary = {"data": options.data}
    summary |= summarise(shards, len(work.images), found.entries, len(found.bad) + len(bad), seen_known)
    write_contact_sheet(shards, output / SHEET)
    write_json(output / SUMMARY, summary)
    print_summary(summary, output)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
