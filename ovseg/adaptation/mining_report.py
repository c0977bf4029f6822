"""Summary of mined pairs: numbers, and a contact sheet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console

from ovseg.adaptation.pair_list import FILL
from ovseg.adaptation.pair_shards import Pair, PairDataset, iterate_infos
from ovseg.io.files import atomic_path
from ovseg.io.images import save_image
from ovseg.result.drawing import shorten_text, text_font

SHEET = "contact_sheet.png"
SHEET_PAIRS = 100
SHEET_COLUMNS = 10
CELL, LINE = 128, 20  # pixels: side of a crop's cell, height of its text
TOP = 50


def summarise(shards: Sequence[Path], images: int, captions: int, bad: int, seen_known: bool) -> dict[str, Any]:
    """Count the pairs of finished shards.

    Args:
        shards: all of them.
        images: images that were mined.
        captions: captions that the source held.
        bad: unusable entries and images.
        seen_known: whether the pairs say if their noun is a seen class.

    Returns:
        "pairs", "unique_nouns", "images", "images_with_pairs", "captions", "bad", "mean_score", "seen_share" (of
        pairs; None if not known), "seen_share_of_nouns", "top" (noun and count of the 50 most frequent), "shards".
    """
    nouns: Counter[str] = Counter()
    seen_nouns: set[str] = set()
    with_pairs: set[str] = set()
    total_score, scored = 0.0, 0
    for shard in shards:
        for info in iterate_infos(shard):
            nouns[info["text"]] += 1
            with_pairs.add(info["key"].partition("_")[0])
            if info.get("seen"):
                seen_nouns.add(info["text"])
            if info.get("score") is not None:
                total_score, scored = total_score + info["score"], scored + 1
    pairs = nouns.total()
    return {
        "pairs": pairs,
        "unique_nouns": len(nouns),
        "images": images,
        "images_with_pairs": len(with_pairs),
        "captions": captions,
        "bad": bad,
        "mean_score": round(total_score / scored, 4) if scored else None,
        "seen_share": round(sum(nouns[n] for n in seen_nouns) / pairs, 4) if seen_known and pairs else None,
        "seen_share_of_nouns": round(len(seen_nouns) / len(nouns), 4) if seen_known and pairs else None,
        "top": [[noun, count] for noun, count in sorted(nouns.items(), key=lambda x: (-x[1], x[0]))[:TOP]],
        "shards": len(shards),
    }


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print the numbers in a few lines."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{output}: {summary['pairs']} pairs, {summary['unique_nouns']} unique nouns, from "
        f"{summary['images_with_pairs']} of {summary['images']} images; {summary['bad']} bad entries left out"
    )
    if summary["seen_share"] is not None:
        console.print(
            f"seen classes: {summary['seen_share']:.1%} of the pairs, {summary['seen_share_of_nouns']:.1%} of the nouns"
        )
    console.print("most frequent: " + ", ".join(f"{noun} {count}" for noun, count in summary["top"]))


def write_contact_sheet(shards: Sequence[Path], path: Path, seed: int = 0) -> None:
    """Draw up to 100 pairs, picked at random: each masked crop with its text below."""
    dataset = PairDataset(list(shards))
    chosen = random.Random(seed).sample(range(len(dataset)), min(SHEET_PAIRS, len(dataset)))
    rows = max(1, -(-len(chosen) // SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL, rows * (CELL + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        pair = dataset[index]
        x, y = place % SHEET_COLUMNS * CELL, place // SHEET_COLUMNS * (CELL + LINE)
        sheet.paste(_thumbnail(pair), (x + 2, y + 2))
        font = text_font(pair.text, 13)
        text = shorten_text(pair.text, font, CELL - 6)
        draw.text((x + CELL / 2, y + CELL + LINE / 2), text, font=font, fill="#222222", anchor="mm")
    with atomic_path(path) as temporary:
        save_image(sheet, temporary)


def _thumbnail(pair: Pair) -> Image.Image:
    """Return the crop on the fill's colour, centred in a square of ``CELL - 4`` pixels, its aspect ratio kept."""
    side = CELL - 4
    pixels = np.where(pair.mask[:, :, None], pair.image, np.array(FILL, np.uint8))
    scale = side / max(pixels.shape[:2])
    size = [max(1, round(length * scale)) for length in pixels.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    square = Image.new("RGB", (side, side), FILL)
    square.paste(
        Image.fromarray(cv2.resize(pixels, size, interpolation=method)), [(side - length) // 2 for length in size]
    )
    return square
