#!/usr/bin/env python3
"""Convert a checkpoint to safetensors, which every later load reads without risk.

python tools/convert_checkpoint.py ovseg_swinbase_vitL14_ft_mpt.pth ovseg.safetensors
python tools/convert_checkpoint.py old.pth old.safetensors --trust    # the file may run code: only if you trust it
python tools/convert_checkpoint.py model_final.pth model.safetensors --half --drop clip_adapter.clip_model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ovseg.checkpoint import save_safetensors
from ovseg.errors import OvsegError, user_errors
from ovseg.state_dicts import read_state_dict, tensors_of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="checkpoint: .pth, .pt, .pkl or .safetensors")
    parser.add_argument("output", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--trust", action="store_true", help="allow the input to run code while it is read")
    parser.add_argument("--half", action="store_true", help="store floating-point parameters as float16")
    parser.add_argument("--drop", metavar="PREFIX", action="append", default=[], help="leave out keys with this prefix")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.output.suffix != ".safetensors":
        raise OvsegError(f"{args.output} must end in .safetensors")
    if args.output.exists() and not args.overwrite:
        raise OvsegError(f"{args.output} exists: choose another name, or add --overwrite")
    state = read_trusted(args.input) if args.trust else read_state_dict(args.input)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(args.drop))}
    if args.half:
        state = {name: halve(tensor) for name, tensor in state.items()}
    save_safetensors(state, args.output)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {len(state)} tensors, {size:.1f} MB")


def halve(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def read_trusted(path: Path) -> Mapping[str, Tensor]:
    """Read a pickle that may run code; the caller has said that its source is trusted."""
    if not path.is_file():
        raise OvsegError(f"the weight file {path} does not exist: check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)  # unsafe on purpose: --trust
    except Exception as error:  # whatever the file's code raises
        raise OvsegError(f"{path} cannot be read even with --trust ({type(error).__name__}: {error})") from error
    return tensors_of(content, path)


if __name__ == "__main__":
    with user_errors():
        main()
