#!/usr/bin/env python
"""Train OVSegmentor by the published command line; train_net.py is the same with our configuration keys.

python -u -m main_pretrain --cfg configs/ovsegmentor/ovsegmentor_pretrain_vit_bert_stage1.yml --num-gpus 8
torchrun --nproc-per-node 8 main_pretrain.py --cfg configs/ovsegmentor/ovsegmentor_pretrain_vit_bert_stage2.yml
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
    parser.add_argument("--batch-size", type=int, metavar="N", help="images of a process (data.train.batch_size)")
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="weights to start from; a run goes on by itself where its folder has checkpoints",
    )
    parser.add_argument("--amp-opt-level", choices=("O0", "O1", "O2"), help="O0: float32; others: mixed precision")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the results (output)")
    parser.add_argument("--tag", metavar="NAME", help="write to the folder NAME in it")
    parser.add_argument("--eval", action="store_true", help="evaluate the checkpoint, do not train")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases (WANDB.ENABLED)")
    parser.add_argument(
        "--keep", type=int, help="no effect, as in the original: checkpoints are kept as train_net.py does"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of this machine; 0: the CPU (default: 1)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # torchrun sets LOCAL_RANK
    parser.add_argument("--dist_url", "--dist-url", default="auto", help="where processes meet (default: a free port)")
    parser.add_argument("--opts", nargs="*", metavar="KEY=VALUE", help="override keys, of the published format or ours")
    return parser


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    arguments = parse_with_options(build_parser())
    with user_errors():
        from ovseg.cli.published_runs import pretrain

        pretrain(arguments)
