"""Write toy scenes as images, with the words of what is in them: something to try ``demo.py`` on.

python -m ovseg.toy --output output/scenes --scenes 3
python demo.py --input output/scenes/*.png --vocabulary output/scenes/words.txt
python -m ovseg.toy --sheet sheet.png --scenes 12    # one image of scenes, labels and captions
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ovseg.errors import OvsegError, user_errors
from ovseg.io.files import atomic_path, locked_folder
from ovseg.toy.classes import SPLITS


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        OvsegError: a range of scenes that the split does not have, or a folder that cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ovseg.toy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, metavar="FOLDER", help="gets <number>.png and words.txt")
    target.add_argument("--sheet", type=Path, metavar="FILE", help="gets a contact sheet with labels and captions")
    parser.add_argument("--split", choices=tuple(SPLITS), default="val", help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="the first scene of the split (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=1, help="how many (default: %(default)s)")
    args = parser.parse_args(argv)

    first_seed, total = SPLITS[args.split]
    if args.first < 0 or args.scenes < 1 or args.first + args.scenes > total:
        raise OvsegError(f"--first {args.first} --scenes {args.scenes}: {args.split} has scenes 0 to {total - 1}")
    numbers = range(args.first, args.first + args.scenes)
    if args.sheet:
        from ovseg.toy.overview import draw_sheet  # drawing libraries take seconds: once the arguments are right

        draw_sheet([first_seed + number for number in numbers], min(6, args.scenes), args.sheet)
        print(args.sheet)
    else:
        with locked_folder(args.output):
            export(args.output, first_seed, numbers)


def export(folder: Path, first_seed: int, numbers: range) -> None:
    """Write ``<number>.png`` for each scene of seed ``first_seed + number``, and their words to ``words.txt``."""
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    from ovseg.toy.scene import make_scene

    console = Console(soft_wrap=True, highlight=False)
    words: dict[str, None] = {}  # in the order of their appearance
    for number in track(numbers, "drawing", console=Console(stderr=True), transient=True, disable=len(numbers) < 5):
        scene = make_scene(first_seed + number)
        path = folder / f"{number:04d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(scene.image).save(temporary)
        words |= dict.fromkeys((*scene.stuff, *(thing.name for thing in scene.things)))
        console.print(f"{path}: {scene.captions[0]}", markup=False)
    with atomic_path(folder / "words.txt") as temporary:
        temporary.write_text("\n".join(words) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        main()
