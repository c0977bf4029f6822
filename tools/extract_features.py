#!/usr/bin/env python3
"""Write the embeddings of the pixels and masks of images, in the space of the text embeddings of words.

python tools/extract_features.py --config-file configs/openseg_R101.yaml --input photos/*.jpg --output features \\
    --stride 1 --dtype float16 MODEL.WEIGHTS openseg.safetensors

Of each image OUTPUT/<name>.safetensors: pixels (D, h, w), and of systems with masks regions (N, D) and masks (N, h, w).
Systems: OpenSeg, LSeg, LSegPlus, DenseCLIP, and ProposeAndName with the namer PooledMap. From Python:
Segmenter.features and Segmenter.embed_words (docs/systems.md).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ovseg.cli.options import parse_with_options
from ovseg.config.files import check_file
from ovseg.errors import CannotWrite, OvsegError, user_errors
from ovseg.io.files import check_writable, locked_folder
from ovseg.io.inputs import find_inputs, is_video


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the model: a YAML file, or the name of one in configs/")
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, or patterns like 'photos/**/*.jpg'")
    parser.add_argument("--output", type=Path, required=True, help="folder; existing files are replaced")
    parser.add_argument("--stride", type=float, default=4, help="pixels between two vectors, from 1 (default: 4)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="(default: %(default)s)")
    parser.add_argument("--format", choices=("safetensors", "npz"), default="safetensors")
    parser.add_argument("--raw", action="store_true", help="the network's own vectors, instead of unit vectors")
    parser.add_argument("--without-masks", action="store_true", help="leave out masks and their embeddings")
    parser.add_argument("--skip-existing", action="store_true", help="leave out images whose file exists")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: MODEL.DEVICE, or cpu without a GPU)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if an image failed."""
    args = parse_with_options(build_parser(), argv)
    check_file(args.config_file)
    files, failures = find_inputs(args.input)
    failures += [(str(file), "it is a video: give images") for file in files if is_video(file)]
    jobs = [(file, args.output / f"{file.stem}.{args.format}") for file in files if not is_video(file)]
    if twice := [target for target, count in Counter(target for _, target in jobs).items() if count > 1]:
        raise OvsegError(f"several images would be written to {twice[0]}: give them in runs with their own --output")
    if args.skip_existing:
        jobs = [(file, target) for file, target in jobs if not target.exists()]
    if jobs:
        check_writable(jobs[0][1])
        with locked_folder(args.output):
            _extract(jobs, args, failures)
    for name, reason in failures:
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _extract(jobs: Sequence[tuple[Path, Path]], args: argparse.Namespace, failures: list[tuple[str, str]]) -> None:
    """Write the features of every job; add what fails to ``failures``."""
    import ovseg  # takes seconds

    ovseg.register()
    segmenter = ovseg.Segmenter.from_config(args.config_file, opts=args.opts, device=args.device)
    from ovseg.meta_arch.embeddings import text_space_of

    text_space_of(segmenter.model)  # an error of all images
    options = {"stride": args.stride, "with_masks": not args.without_masks, "normalised": not args.raw}
    for file, target in jobs:
        try:
            features = segmenter.features(file, dtype=args.dtype, **options)
            features.save(target)
            print(f"{file} -> {target}: {features!r}")
        except CannotWrite:
            raise
        except OvsegError as error:
            failures.append((str(file), str(error)))


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
