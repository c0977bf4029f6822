#!/usr/bin/env python
"""Segment the images of a folder as OVSegmentor's published demo does, with images of every kind (--vis).

python -u -m main_demo --cfg configs/test_voc12.yml --resume ovsegmentor.pth --vis input_pred_label pred \\
    --vocab voc --image_folder photos --output_folder results
python -u -m main_demo --cfg configs/test_voc12.yml --resume ovsegmentor.pth --vis input_pred \\
    --vocab cat dog train bus "traffic light" --image_folder photos --output_folder results
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ovseg.cli.options import parse_with_options
from ovseg.errors import user_errors


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the original's command line, with a few options of ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cfg",
        default="./configs/test_voc12.yml",
        metavar="FILE",
        help="configuration in the published format or in ours (default: %(default)s)",
    )
    parser.add_argument("--resume", metavar="FILE", help="checkpoint (default: checkpoint.resume of the configuration)")
    parser.add_argument(
        "--image_folder", "--image-folder", metavar="FOLDER", help="images; subfolders are not searched"
    )
    parser.add_argument("--output_folder", "--output-folder", metavar="FOLDER", help="results are FOLDER/MODE/NAME")
    parser.add_argument(
        "--vocab",
        nargs="+",
        metavar="WORD",
        help="voc, context, coco, coco_stuff or ade for the classes of a data set; or words to look for, those with "
        "blanks in quotes (default: ade)",
    )
    parser.add_argument(
        "--vis",
        nargs="+",
        metavar="MODE",
        help="input, pred, input_pred, input_pred_label, all_groups, first_group, final_group or mask, see "
        "docs/ovsegmentor.md (default: input_pred_label)",
    )
    parser.add_argument(
        "--bg_thresh",
        "--bg-thresh",
        type=float,
        metavar="T",
        help="pixels whose best score is lower are background (default: that of the configuration's data set)",
    )
    parser.add_argument(
        "--no_background", "--no-background", action="store_true", help="every pixel gets a word; 0 is still background"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # of the original's launcher
    parser.add_argument("--opts", nargs="*", metavar="KEY=VALUE", help="override keys, of the published format or ours")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 if an image failed. Errors that prevent a run exit with status 2.
    """
    args = parse_with_options(build_parser(), argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        from ovseg.cli.published_demo import segment_folder  # imports slowly: after the arguments are checked

        return segment_folder(args)


if __name__ == "__main__":
    sys.exit(main())
