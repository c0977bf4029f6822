#!/usr/bin/env python3
"""Put an adapted CLIP into a segmenter's checkpoint, and say which configuration keys go with it.

python tools/replace_clip.py --clip output/finetune/best.safetensors --segmenter model_final.pth --output fused.pth
python tools/replace_clip.py --clip CS_CLIP.pt --segmenter Seg_model.pth --output SCAN.pth  # what SCAN's script does
python tools/replace_clip.py --clip CLIP --segmenter MODEL --output OUT.safetensors --only-visual --dry-run
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ovseg
from ovseg.errors import user_errors


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True, help="the adapted CLIP, in open_clip's names or wrapped")
    parser.add_argument(
        "--segmenter", type=Path, required=True, help="checkpoint to put it into, with an old CLIP or without"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help=".safetensors: tensors alone; .pth: Detectron2's layout, with the optimiser's state and the rest",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and report, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--only-visual",
        action="store_true",
        help="store no text tower: MODEL.CLIP_ADAPTER.CLIP_WEIGHTS gives it, and must be the CLIP that was adapted",
    )
    parser.add_argument("--half", action="store_true", help="store floating-point tensors as float16")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    ovseg.register()  # takes seconds: mistakes have been answered before
    from ovseg.adaptation.fusion import fuse_files

    report = fuse_files(
        args.clip,
        args.segmenter,
        args.output,
        only_visual=args.only_visual,
        half=args.half,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
    )
    print(report)
    if args.dry_run:
        print(f"--dry-run: {args.output} was not written")
    else:
        print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    with user_errors():
        main()
