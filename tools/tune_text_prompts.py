"""Train SimBaseline's learned prompts on ground-truth regions (arXiv 2112.14757, section 3.3).

    python tools/tune_text_prompts.py --config-file configs/toy/simbaseline_prompts_toy.yaml --num-gpus 0
    python tools/tune_text_prompts.py --config-file configs/simbaseline_R101c_vitB_prompts_coco156.yaml --num-gpus 4

KEY VALUE pairs override keys of the configuration. A run that was stopped is resumed with --resume. OUTPUT_DIR gets
model_final.pth, which is MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT of a segmenter with PROMPT_LEARNER learnable. Authors of
the paper advise to train several times, with other seeds (SEED, DATASETS.SAMPLE_SEED): results differ.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.config.files import check_file
from ovseg.errors import user_errors

if TYPE_CHECKING:
    from ovseg.config import CfgNode


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", metavar="FILE", required=True, help="a configuration of SimBaseline")
    parser.add_argument("--resume", action="store_true", help="resume the run in OUTPUT_DIR")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of this machine; 0: the CPU (default: 1)")
    parser.add_argument(
        "--fill",
        choices=("original", "mean"),
        default="original",
        help="behind regions: 0.48, 0.46, 0.41 in the normalised image, as the published prompts were trained, or the "
        "mean colour, as regions have at inference",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override configuration keys; KEY=VALUE, too")
    return parser


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train, in each process of the run."""
    ovseg.register()
    from ovseg.adaptation.prompt_tuning import tune_prompts
    from ovseg.engine.setup import owned_output, setup

    with owned_output(cfg):
        setup(cfg, args)
        tune_prompts(cfg, resume=args.resume, fill=args.fill)


def main() -> None:
    args = parse_with_options(build_parser(), bare=True)
    check_file(args.config_file)
    ovseg.register()
    from ovseg.config import load_cfg
    from ovseg.engine.launch import World, choose_device, launch

    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    cfg.freeze()
    launch(run, World(max(args.num_gpus, 1), cuda=cfg.MODEL.DEVICE.startswith("cuda")), (cfg, args))


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with user_errors():
        main()
