"""Command lines with KEY VALUE pairs of the configuration in them, wherever they stand."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

# What keys look like; which of them there are is known only when Detectron2 is imported, which takes seconds.
SECTIONS = ("MODEL", "DATASETS", "DATALOADER", "INPUT", "SOLVER", "TEST", "GLOBAL", "WANDB")
ALONE = (
    *("OUTPUT_DIR", "SEED", "LOG_PERIOD", "METRIC", "VERSION", "CUDNN_BENCHMARK", "VIS_PERIOD", "FLOAT32_PRECISION"),
    *("ORACLE", "PSEUDO", "PSEUDO_WITH_PRIOR", "PSEUDO_REJECT_THRESHOLD", "PSEUDO_FLAG_NAME"),  # SimBaseline's
)
_KEY = re.compile(rf"(?:{'|'.join(SECTIONS)})(?:\.[A-Z][A-Z0-9_]*)+|TEST\.PER_DATASET\..+")
_FILE = re.compile(
    r"[A-Z]+\.(?:JPE?G?|PNG|WEBP|BMP|GIF|TIFF?|P[PGBN]M|JP2|AVIF|TGA|MP4|AVI|MOV|MKV|WEBM|M4V|MPE?G|WMV)"
)


def parse_with_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, bare: bool = False
) -> argparse.Namespace:
    """Parse a command line whose ``opts`` are pairs of KEY and VALUE, or KEY=VALUE.

    Pairs may stand before, between and behind the command's own options, with or without ``--opts`` before them.

    Args:
        parser: reads everything else.
        argv: words after the command's name; None for this process's.
        bare: keys without a section (OUTPUT_DIR, SEED) are keys behind other words, too, not only behind ``--opts``.

    Returns:
        what ``parser`` gives, and ``opts``. A word such as TEST.JPG, or one that names a file, is no key.
    """
    rest: list[str] = []
    pairs: list[str] = []
    behind_opts = False  # until the next option of the command
    words = list(sys.argv[1:] if argv is None else argv)
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if word == "--opts":
            behind_opts = True
        elif word.startswith("--"):
            behind_opts = False
            rest.append(word)
        elif behind_opts or _is_key(name) or (bare and name in ALONE):
            pairs.append(word)
            if "=" not in word and words and not words[0].startswith("--"):
                pairs.append(words.pop(0))
        else:
            rest.append(word)
    args, unknown = parser.parse_known_args(rest)
    if unrecognised := [word for word in unknown if word.startswith("--") or not bare]:
        parser.error(f"unrecognized arguments: {' '.join(unrecognised)}")
    args.opts = [*pairs, *(getattr(args, "opts", None) or []), *unknown]
    return args


def _is_key(name: str) -> bool:
    return bool(_KEY.fullmatch(name)) and not _FILE.fullmatch(name) and not os.path.exists(name)
