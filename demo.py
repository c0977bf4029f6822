#!/usr/bin/env python
"""Segment images and videos into given words.

python demo.py --class-names sky tree road person --input photo.jpg
python demo.py --config-file configs/ovseg_swinB_vitL_demo.yaml --class-names Oculus Ukulele \\
    --input a.jpg b.jpg --output ./pred --opts MODEL.WEIGHTS ovseg_swinbase_vitL14_ft_mpt.pth
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ovseg.cli.options import parse_with_options
from ovseg.cli.words import words_of_demo
from ovseg.config.files import check_file
from ovseg.errors import user_errors
from ovseg.io.cpus import let_idle_threads_sleep
from ovseg.vocabulary import label_set_names

DEFAULT_MODEL = "photo"
DEFAULT_OUTPUT = "predictions"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, which has the options of the original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        default=DEFAULT_MODEL,
        help="the model: a YAML file, or the name of one in configs/ (default: photo, a small model for photographs; "
        "toy is for toy scenes)",
    )
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument(
        "--class-names",
        nargs="+",
        metavar="WORD",
        help="words to look for; quote those with blanks. Or one text with synonyms: 'person, child; dog'",
    )
    words.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="words, one per line: name, or name: synonym, synonym; or a list of classes, id:name,name",
    )
    words.add_argument("--label-set", metavar="NAME", help=f"words of a data set: {', '.join(label_set_names())}")
    parser.add_argument(
        "--background",
        nargs="+",
        metavar="WORD",
        default=[],
        help="background words, such as 'other, background', whose pixels are unlabelled; without them every "
        "pixel gets one of the words to look for",
    )
    parser.add_argument(
        "--input", nargs="+", required=True, help="images, videos, folders, or patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument(
        "--output",
        default=DEFAULT_OUTPUT,
        help="folder, or for one input a file; existing results are replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave out inputs that have results for the same words"
    )
    parser.add_argument(
        "--granularity",
        type=_share,
        metavar="G",
        help="from 0 (coarse) to 1 (precise): each word keeps the masks with a score above G times its best one, 1 its "
        "best mask; for every model with masks (MODEL.RENDERING.GRANULARITY)",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help="pixels whose best score is lower are unlabelled ('unknown'), in the unit of the model's scores "
        "(TEST.BACKGROUND_THRESHOLD)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also print each mask's best words by each classifier, and write them to the JSON",
    )
    parser.add_argument(
        "--batch-size", type=_count, default=1, metavar="N", help="images that the model takes at a time (default: 1)"
    )
    parser.add_argument(
        "--drawing", choices=("png", "jpg", "webp"), default="png", help="format of drawings (default: %(default)s)"
    )
    parser.add_argument(
        "--png-level", type=int, choices=range(10), default=4, help="compression of PNG files: 1 is fast, 9 is small"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: MODEL.DEVICE, or cpu without a GPU)")
    parser.add_argument(
        "--opts", nargs="*", metavar="KEY VALUE", help="override configuration keys, as KEY VALUE or KEY=VALUE"
    )
    return parser


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 (coarse) to 1 (precise)")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 if an input failed. Errors that prevent a run exit with status 2.
    """
    args = parse_with_options(build_parser(), argv)
    if args.granularity is not None:
        args.opts = ["MODEL.RENDERING.GRANULARITY", args.granularity, *args.opts]
    if args.min_score is not None:
        args.opts = ["TEST.BACKGROUND_THRESHOLD", args.min_score, *args.opts]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        vocabulary = words_of_demo(args)
        check_file(args.config_file)
        let_idle_threads_sleep()
        from ovseg.cli.segment_inputs import segment_inputs  # imports slowly: after the arguments are checked

        return segment_inputs(
            args.input,
            vocabulary,
            output=args.output,
            config_file=args.config_file,
            device=args.device,
            opts=args.opts,
            explain=args.explain,
            skip_existing=args.skip_existing,
            is_photo=args.config_file == DEFAULT_MODEL,
            batch_size=args.batch_size,
            drawing=args.drawing,
            png_level=args.png_level,
        )


if __name__ == "__main__":
    sys.exit(main())
