#!/usr/bin/env python
"""Evaluate OVSegmentor on a data set by the published command line, and draw its images (--vis).

python -u -m main_seg --cfg configs/test_voc12.yml --resume ovsegmentor.pth
python -u -m main_seg --cfg configs/test_coco.yml --resume ovsegmentor.pth \\
    --opts evaluate.seg.opts=[test_cfg.bg_thresh=0.8]
"""

from __future__ import annotations

import argparse
import logging

from ovseg.cli.options import parse_with_options
from ovseg.errors import user_errors


def build_parser() -> argparse.ArgumentParser:
    """Return the options of the original, and ours for the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="configuration in the published format or in ours")
    parser.add_argument("--resume", metavar="FILE", help="checkpoint (default: checkpoint.resume of the configuration)")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the results (output)")
    parser.add_argument("--tag", metavar="NAME", help="write to the folder NAME in it")
    parser.add_argument(
        "--vis",
        nargs="+",
        metavar="MODE",
        help="then also write FOLDER/vis_imgs/MODE: input, pred, input_pred, input_pred_label, all_groups, "
        "first_group, final_group or mask",
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of this machine; 0: the CPU (default: 1)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # torchrun sets LOCAL_RANK
    parser.add_argument("--opts", nargs="*", metavar="KEY=VALUE", help="override keys, of the published format or ours")
    return parser


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    arguments = parse_with_options(build_parser())
    with user_errors():
        from ovseg.cli.published_runs import evaluate

        evaluate(arguments)
