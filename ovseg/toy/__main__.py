"""Write toy scenes as images, with the words of what is in them: something to try ``demo.py`` on.

python -m ovseg.toy --output output/scenes --scenes 3
python demo.py --config-file toy --input output/scenes/*.png --vocabulary output/scenes/words.txt
python -m ovseg.toy --sheet sheet.png --scenes 12    # one image of scenes, labels and captions
"""

from __future__ import annotations

import argparse
import textwrap
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


def draw_sheet(seeds: Sequence[int], columns: int, path: Path) -> None:
    """Write an image with one row of scenes above one row of their labels, with the second caption below."""
    import numpy as np  # drawing libraries take seconds: once the arguments are right
    import supervision as sv
    from matplotlib.figure import Figure

    from ovseg.toy.classes import CLASS_NAMES
    from ovseg.toy.scene import make_scene

    rows = -(-len(seeds) // columns)
    figure = Figure(figsize=(2.4 * columns, 6.0 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, scene in enumerate(map(make_scene, seeds)):
        row, column = divmod(index, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        above.imshow(scene.image)
        above.set_title(f"seed {scene.seed}", fontsize=8)
        present = np.unique(scene.labels)
        masks = np.stack([scene.labels == label for label in present])
        segments = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.arange(len(present)))
        bgr = np.ascontiguousarray(scene.image[:, :, ::-1])
        below.imshow(sv.MaskAnnotator(opacity=0.7).annotate(bgr, segments)[:, :, ::-1])
        words = ", ".join(CLASS_NAMES[label] for label in present)
        below.set_title(textwrap.fill(words, 38), fontsize=6)
        caption = textwrap.fill(scene.captions[1], 38)
        below.text(0.5, -0.03, caption, fontsize=6, ha="center", va="top", transform=below.transAxes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


if __name__ == "__main__":
    with user_errors():
        main()
