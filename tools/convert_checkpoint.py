#!/usr/bin/env python3
"""Convert a checkpoint to safetensors, which loads without risk (the default command), convert a backbone of another
project to Detectron2's names, or compare the CLIP in a checkpoint with another one.

python tools/convert_checkpoint.py ovseg_swinbase_vitL14_ft_mpt.pth ovseg.safetensors
python tools/convert_checkpoint.py old.pth old.safetensors --trust    # the file may run code: only if you trust it
python tools/convert_checkpoint.py model_final.pth model.safetensors --half --drop clip_adapter.clip_model.
python tools/convert_checkpoint.py swin swin_base_patch4_window12_384_22k.pth swin_base_patch4_window12_384_22k.pkl
python tools/convert_checkpoint.py torchvision resnet101.pth R101.pkl
python tools/convert_checkpoint.py visual-model image_text.pth backbone.safetensors
python tools/convert_checkpoint.py compare fused.pth finetuned_clip.pt    # mean absolute difference of each tensor
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovseg.errors import OvsegError, reason_of, user_errors

COMMANDS = {
    "safetensors": "rewrite a checkpoint as safetensors (the default)",
    "swin": "a Swin of Microsoft's repository",
    "torchvision": "a torchvision ResNet",
    "visual-model": "the Swin-like tower under visual_model. of an image-text checkpoint",
    "compare": "mean absolute difference of each CLIP tensor between a full checkpoint and a CLIP",
}
HELP = ("-h", "--help")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in COMMANDS.items():
        sub = commands.add_parser(command, help=what, description=what)
        sub.add_argument("input", type=Path, help="checkpoint: .pth, .pt, .pkl or .safetensors")
        if command == "compare":
            sub.add_argument("clip", type=Path, help="the other CLIP, wrapped or not")
        else:
            others = "" if command == "safetensors" else ", .pkl, .pth"
            sub.add_argument("output", type=Path, help=f"file to write, ending in .safetensors{others}")
            sub.add_argument("--half", action="store_true", help="store floating-point parameters as float16")
            sub.add_argument("--overwrite", action="store_true", help="replace an existing output")
        if command == "safetensors":
            sub.add_argument(
                "--drop", metavar="PREFIX", action="append", default=[], help="leave out keys with this prefix"
            )
        sub.add_argument("--trust", action="store_true", help="allow the input to run code while it is read")
    args = parser.parse_args(argv if argv and argv[0] in (*COMMANDS, *HELP) else ["safetensors", *argv])
    for path in (args.input, *([args.clip] if args.command == "compare" else [])):
        if not path.exists():
            raise OvsegError(f"the weight file {path} does not exist: check the path")
    return args


if __name__ == "__main__":
    with user_errors():
        parse()  # --help and mistakes are answered before what takes seconds is imported

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ovseg.adaptation.fusion import compare
from ovseg.checkpoint import save_safetensors
from ovseg.checkpoint.converters import BACKBONE_SUFFIXES, CONVERTERS, save_backbone
from ovseg.checkpoint.state_dicts import (
    halved,
    is_plain_pickle,
    read_checkpoint,
    read_settings,
    read_state_dict,
    tensors_of,
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "compare":
        show_comparison(compare(read(args.input, args.trust)[0], read(args.clip, args.trust)[0]))
        return
    suffixes = (".safetensors",) if args.command == "safetensors" else BACKBONE_SUFFIXES
    if args.output.suffix not in suffixes:
        raise OvsegError(f"{args.output} must end in {' or '.join(suffixes)}")
    if args.output.exists() and not args.overwrite:
        raise OvsegError(f"{args.output} exists: choose another name, or add --overwrite")
    state, settings = read(args.input, args.trust)
    if args.command == "safetensors":
        state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(args.drop))}
    else:
        try:
            state = CONVERTERS[args.command](state)
        except OvsegError as error:
            raise OvsegError(f"{args.input}: {error}") from error
    if args.half:
        state = halved(state)
    if args.command == "safetensors":
        save_safetensors(state, args.output, settings)
    else:
        save_backbone(state, args.output, author=args.command)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {len(state)} tensors, {size:.1f} MB")


def read(path: Path, trust: bool) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Read the tensors of a file and the configuration keys that it stores."""
    if trust:
        return read_trusted(path), {}
    content = read_checkpoint(path)
    return tensors_of(content, path), {key: str(value) for key, value in read_settings(path, content).items()}


def read_trusted(path: Path) -> Mapping[str, Tensor]:
    """Read a pickle that may run code, from a trusted source."""
    if path.suffix == ".safetensors":
        return read_state_dict(path)
    if not path.is_file():
        raise OvsegError(f"the weight file {path} does not exist: check the path")
    try:
        if is_plain_pickle(path):
            content = pickle.loads(path.read_bytes(), encoding="latin1")  # unsafe on purpose: --trust
        else:
            content = torch.load(path, map_location="cpu", weights_only=False)  # unsafe on purpose: --trust
    except ModuleNotFoundError as error:
        raise OvsegError(f"{path} needs the package {error.name}: install it, and convert again") from error
    except Exception as error:  # whatever the file's code raises
        raise OvsegError(f"{path} cannot be read even with --trust ({reason_of(error)})") from error
    content = {"model": content} if isinstance(content, nn.Module) else content
    if isinstance(content, Mapping):
        content = {key: value.state_dict() if isinstance(value, nn.Module) else value for key, value in content.items()}
    return tensors_of(content, path)


def show_comparison(differences: Mapping[str, float | None]) -> None:
    table = Table("CLIP tensor", "mean absolute difference")
    for name, value in differences.items():
        words = {None: "only in one of them", float("inf"): "other shape"}
        table.add_row(name, words.get(value) or f"{value:.3e}")
    Console(soft_wrap=True).print(table)
    found = [value for value in differences.values() if value is not None and value != float("inf")]
    equal = sum(value == 0 for value in found)
    print(
        f"{len(differences)} tensors: {equal} equal, {len(found) - equal} differ in value (at most {max(found):.3e}), "
        f"{len(differences) - len(found)} in shape or presence"
        if found
        else "no tensor of the same shape in both"
    )


if __name__ == "__main__":
    with user_errors():
        main()
