"""Command lines with KEY VALUE pairs of the configuration in them, wherever they stand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ovseg.config import get_cfg
from ovseg.config.errors import dotted_keys
from ovseg.config.per_dataset import KEY as PER_DATASET


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
        what ``parser`` gives, and ``opts``.
    """
    keys = {key for key in dotted_keys(get_cfg()) if bare or "." in key} | {PER_DATASET}
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
        elif behind_opts or name in keys or name.startswith(f"{PER_DATASET}."):
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
