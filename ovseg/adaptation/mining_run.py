"""A whole mining run, from options to ``summary.json``; what ``tools/mine_mask_text_pairs.py`` calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from rich.console import Console

from ovseg.adaptation.mask_sources import MaskSource, SegmenterMasks, ToyMasks, folder_masks
from ovseg.adaptation.miner import Miner
from ovseg.adaptation.mining import (
    Work,
    claim,
    default_shard_size,
    mine_shards,
    wait_for_all,
)
from ovseg.adaptation.mining_options import (
    GROUND_TRUTH,
    TOY,
    MiningOptions,
    check_options,
    names_of,
    settings_of,
    words_of,
)
from ovseg.adaptation.mining_report import SHEET, print_summary, summarise, write_contact_sheet
from ovseg.adaptation.pair_list import LIST, write_crops, write_list
from ovseg.adaptation.pair_shards import SUMMARY
from ovseg.adaptation.tuned_clip import clip_flags
from ovseg.checkpoint.state_dicts import bare_clip_names, read_state_dict
from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.model import ClipSource, find_clip
from ovseg.data.caption_files import ALLOWED_BAD, CaptionedImage, CaptionedImages, check_bad, read_captions
from ovseg.errors import OvsegError
from ovseg.evaluation.report import write_json
from ovseg.io.files import atomic_path, cache_dir
from ovseg.io.inputs import find_inputs
from ovseg.segmenter import Segmenter
from ovseg.toy import CLASS_NAMES, render_split
from ovseg.vocabulary import get_templates
from ovseg.vocabulary.nouns import get_extractor

CROPS = "crops"  # folder of the original list's pictures


def run(options: MiningOptions) -> None:
    """Mine in this process, one of those of the run; the main one writes what belongs to all.

    Raises:
        OvsegError: as the command line shows them.
    """
    main = comm.is_main_process()
    check_options(options)
    found, records = _read_data(options)
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
            _mine(options, work, missing, records, seen)
        wait_for_all(work)
        if options.write_list:
            for shard in work.shards[comm.get_rank() :: comm.get_world_size()]:
                write_crops(shard, options.output / CROPS)
        if main:
            _finish(options, work, found, seen is not None)


def _read_data(options: MiningOptions) -> tuple[CaptionedImages, dict[str, dict[str, Any]]]:
    """The images, and the toy world's records by file name."""
    records: dict[str, dict[str, Any]] = {}
    if options.data.startswith(TOY):
        scenes = render_split(options.data.removeprefix(TOY), num_scenes=options.max_images)
        records = {scene["file_name"]: scene for scene in scenes}
        images = [
            CaptionedImage(Path(scene["file_name"]), str(scene["image_id"]), tuple(scene["captions"]))
            for scene in scenes
        ]
        found = CaptionedImages(images, sum(len(item.captions) for item in images))
    elif Path(options.data).is_dir():
        if options.names_from != "labels":
            raise OvsegError(f"--data {options.data} is a folder, without captions: give a file of captions")
        files = find_inputs([options.data])[0]
        found = CaptionedImages([CaptionedImage(file, file.stem, ()) for file in files])
        if not files:
            raise OvsegError(f"the folder {options.data} holds no pictures")
    else:
        columns = (options.image_column, options.caption_column, options.delimiter)
        found = read_captions(options.data, options.image_root, *columns)
    if options.max_images is not None:
        found.images = found.images[: options.max_images]
    return found, records


def _mine(
    options: MiningOptions, work: Work, missing: Sequence[int], records: dict[str, Any], seen: frozenset[str] | None
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
        masks = ToyMasks(records, CLASS_NAMES)
    else:
        names = names_of(options.label_names) if options.label_names else ()
        masks = folder_masks(Path(options.masks), options.masks_are, root, names, options.ignore_label)
    clip = None
    if options.clip and not by_labels:
        clip = _build_clip(options, masks.threshold).to(device)
    elif segmenter is not None:
        clip = segmenter.model.clip_adapter
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


def _build_clip(options: MiningOptions, threshold: float) -> ClipAdapter:
    """CLIP, with mask prompts where its weights have them."""
    with clip_flags():
        return _adapter(find_clip(options.architecture, options.clip), options, threshold)


def _adapter(source: ClipSource, options: MiningOptions, threshold: float) -> ClipAdapter:
    if source.fetch_weights is None:
        raise OvsegError(f"--clip {options.clip} names no weights: give a file, or one of open_clip's tags")
    depth = _prompt_depth(source)
    adapter = ClipAdapter(
        source,
        templates=get_templates(options.templates),
        mask_threshold=threshold,
        mask_prompt_depth=depth,
        mask_prompt_forward=depth > 0,
        text_cache_dir=cache_dir() / "text",
        truncate_prompts=True,
    )
    adapter.ensure_weights()
    return adapter.eval()


def _prompt_depth(source: ClipSource) -> int:
    if not Path(source.weights_hint).is_file():
        return 0
    state = bare_clip_names(read_state_dict(source.weights_hint))
    prompts = state.get("visual.mask_embedding")
    return 0 if prompts is None else len(prompts)


def _finish(options: MiningOptions, work: Work, found: CaptionedImages, seen_known: bool) -> None:
    """What the main process does when all shards are there; ``summary.json`` is the last file."""
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
