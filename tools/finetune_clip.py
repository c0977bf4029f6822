"""Fine-tune CLIP on mask-text pairs, or tune its mask prompts (OVSeg, section 3.2 and 3.3; SCAN, section 3.3).

    # the image tower, then the mask prompts on top of it: the order that works best
    python tools/finetune_clip.py --architecture configs/toy/clip.json --clip weights/toy/clip.safetensors \\
        --pairs output/pairs --tune full --val toy --output output/ft
    python tools/finetune_clip.py --architecture configs/toy/clip.json --clip output/ft/best.safetensors \\
        --pairs output/pairs --tune mask-prompt --val toy --output output/ft_mpt

    # the image tower for SCAN: part of a crop's background is replaced by the whole image
    python tools/finetune_clip.py --architecture configs/toy/clip.json --clip weights/toy/clip.safetensors \\
        --pairs output/pairs --image-root toy:train --tune contextual-shift --val toy --output output/cs \\
        --recipe configs/adaptation/scan_toy.yaml

    # a large CLIP on one GPU: batches of 256 without their memory, the same gradients
    python tools/finetune_clip.py --architecture ViT-L/14 --clip openai --pairs PAIRS --tune full --output OUT \\
        --recipe configs/adaptation/ovseg_paper.yaml --micro-batch 64 --checkpoint-activations --precision bf16

    # four GPUs; batch_size counts all of them
    torchrun --nproc-per-node 4 tools/finetune_clip.py ...

A run that was stopped is resumed with --resume and the same arguments. It writes epoch_N.pt and last.pt as open_clip
does, best.safetensors, metrics.jsonl, the recipe that was used, and tensorboard/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ovseg
from ovseg.adaptation.recipe import MODES, add_flags, read_recipe, recipe_from_flags
from ovseg.errors import user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", required=True, help="an open_clip name, OpenAI's name, or a JSON file")
    parser.add_argument("--clip", required=True, help="its weights: a file (an earlier run's too) or an open_clip tag")
    parser.add_argument(
        "--pairs",
        required=True,
        nargs="+",
        help="folder or .tar shards of mine_mask_text_pairs.py, or filepath/title .tsv",
    )
    parser.add_argument("--tune", required=True, choices=MODES)
    parser.add_argument("--output", required=True, type=Path, help="a new folder, or with --resume that of the run")
    parser.add_argument("--recipe", type=Path, help="YAML of the options below; flags override it")
    parser.add_argument("--val", help="zero-shot check after each epoch: toy, or a folder of filled crops per class")
    parser.add_argument(
        "--image-root", help="contextual-shift: folder of the whole images that the crops were cut from, or toy:train"
    )
    parser.add_argument("--val-image-root", help="contextual-shift: the same for a folder of crops given as --val")
    parser.add_argument("--resume", action="store_true", help="resume the run in --output")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cuda falls back to the CPU")
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes, one for each GPU; with --device cpu on the CPU"
    )
    add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    given = read_recipe(args.recipe, args.tune) if args.recipe else {}
    recipe = recipe_from_flags(args, args.tune, args.recipe)
    ovseg.register()  # imports slowly: after the arguments are checked
    from ovseg.adaptation.finetune import Job, finetune
    from ovseg.engine.launch import World, choose_device, launch

    device = choose_device(args.device, args.num_gpus, "--device")
    job = Job(
        architecture=args.architecture,
        clip=args.clip,
        pairs=tuple(args.pairs),
        tune=args.tune,
        output=args.output,
        recipe=recipe,
        val=args.val,
        resume=args.resume,
        depth_asked="depth" in args or "depth" in given,
        device=device,
        image_root=args.image_root,
        val_image_root=args.val_image_root,
    )
    launch(finetune, World(processes_here=max(args.num_gpus, 1), cuda=device == "cuda"), (job,))


if __name__ == "__main__":
    with user_errors():
        main()
