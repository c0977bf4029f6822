#!/usr/bin/env python3
"""List the files of this package that one call of a segmenter enters, and its deepest stack.

python tools/trace_call.py
python tools/trace_call.py --config-file configs/toy/scan_toy.yaml --words "red star" brick

The words are asked three times: of an image file, of the file again (the words are known now), and of an array. Only
frames of ovseg/ count, those of comprehensions and generators too; building the model is not part of a call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import ovseg
from ovseg.errors import user_errors

REPO = Path(__file__).resolve().parents[1]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=REPO / "configs/toy/ovseg_toy.yaml", type=Path)
    parser.add_argument("--input", default=REPO / "docs/images/scene.png", type=Path, help="an image file")
    parser.add_argument("--words", nargs="+", default=["red star", "brick"])
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

from rich.console import Console

from ovseg import Segmenter
from ovseg.io.images import read_image

PACKAGE = Path(ovseg.__file__).resolve().parent


def trace_call(function: Callable[[], Any]) -> tuple[list[str], list[str]]:
    """Call ``function`` and return what it went through in the package.

    Returns:
        files whose code ran, relative to the package, in the order in which they were entered; and ``file:function`` of
        each frame where the stack was deepest, outermost first.
    """
    files: list[str] = []
    deepest: list[str] = []
    names: dict[str, str] = {}

    def name_of(frame: FrameType) -> str:
        path = frame.f_code.co_filename
        if path not in names:
            names[path] = str(Path(path).relative_to(PACKAGE)) if path.startswith(f"{PACKAGE}/") else ""
        return names[path]

    def enter(frame: FrameType | None, event: str, _: Any) -> None:
        if event != "call" or not (name := name_of(frame)):
            return
        if name not in files:
            files.append(name)
        stack = []
        while frame is not None:
            if name := name_of(frame):
                stack.append(f"{name}:{frame.f_code.co_name}")
            frame = frame.f_back
        if len(stack) > len(deepest):
            deepest[:] = reversed(stack)

    before = sys.getprofile()
    sys.setprofile(enter)
    try:
        function()
    finally:
        sys.setprofile(before)
    return files, deepest


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    segmenter = Segmenter.from_config(str(args.config_file), device=args.device)
    console, image = Console(highlight=False, soft_wrap=True), read_image(args.input)
    for title, given in (("a file", args.input), ("the same words again", args.input), ("an array", image)):
        files, stack = trace_call(lambda given=given: segmenter(given, args.words))
        console.print(f"{title}: {len(files)} files of ovseg/, {len(stack)} frames deep")
        console.print(f"  files: {', '.join(files)}", markup=False)
        console.print(f"  stack: {' > '.join(stack)}", markup=False)


if __name__ == "__main__":
    with user_errors():
        main()
