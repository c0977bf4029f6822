#!/usr/bin/env python3
"""Segment photographs that installed packages contain, into words that fit each of them.

python tools/segment_photographs.py --output output/photographs

The photographs are those of scikit-image (in the public domain: a cat, coffee, a rocket, an astronaut) and of
scikit-learn (a temple by a lake, CC BY 2.0, by danielbuechele). The model is ``photo``; --config-file names another.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ovseg.errors import user_errors
from ovseg.io.photographs import WORDS, photographs


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ``OvsegError`` if a package is missing or the folder cannot be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/photographs"), help="folder (default: %(default)s)")
    parser.add_argument("--config-file", default="photo", help="the model (default: %(default)s)")
    args = parser.parse_args(argv)

    load = photographs()
    from rich.console import Console
    from rich.table import Table

    import ovseg

    ovseg.register()
    start = time.perf_counter()
    segmenter = ovseg.Segmenter.from_config(args.config_file)
    loaded = time.perf_counter() - start
    table = Table("photograph", "found", "seconds", "result")
    for name, words in WORDS.items():
        start = time.perf_counter()
        result = segmenter(load(name), words)
        seconds = time.perf_counter() - start
        path = args.output / f"{name}.png"
        result.save(path)
        found = ", ".join(f"{result.names[k]} {result.fractions[k]:.0%}" for k in result.found)
        table.add_row(name, found, f"{seconds:.1f}", str(path))
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(f"The model was loaded in {loaded:.1f} s. Every pixel gets one of the words.")


if __name__ == "__main__":
    with user_errors():
        main()
