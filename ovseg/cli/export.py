"""``ovseg export``: graphs of a model that run without this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

import ovseg
from ovseg.cli.segment import DEFAULT_MODEL, check_model, key_values
from ovseg.cli.words import Background, LabelSetName, Words, read_words
from ovseg.errors import OvsegError

FORMATS = ("onnx", "torch-export")
OPSETS = (18, 23)  # lowest and highest
SIDES = (32, 8192)  # pixels


def export(
    words: Words = None,
    label_set: LabelSetName = None,
    background: Background = "",
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="New, or one of the same export, which is replaced."),
    ] = Path("exported"),
    model: Annotated[
        str,
        typer.Option(
            "--model", "--config-file", "-m", metavar="NAME|FILE", help="Name of a model, or a configuration file."
        ),
    ] = DEFAULT_MODEL,
    format: Annotated[
        Literal["onnx", "torch-export"], typer.Option("--format", "-f", help="ONNX, or PyTorch's exported programs.")
    ] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Height and width of images, such as 640x640; default: as --dynamic."),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Images of any height and width.")] = False,
    opset: Annotated[
        int, typer.Option(metavar="N", min=OPSETS[0], max=OPSETS[1], help="Version of ONNX's operators.")
    ] = OPSETS[0],
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Eight-bit weights of CLIP's tower of crops, for onnx: smaller, faster on CPUs."),
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
    ] = None,
) -> int:
    """Export the networks of a model, to run without PyTorch or from other languages.

    Each graph is compared with the model on random inputs of two shapes. OUTPUT also gets the text embeddings of the
    words, export.json, which states shapes, normalisation and how to combine the graphs, and for onnx runtime.py, which
    does.
    """
    vocabulary = read_words(words, label_set, background, model)
    check_model(model)
    if size is not None and dynamic:
        raise OvsegError("--size and --dynamic exclude each other: give one of them")
    if int8 and format != "onnx":
        raise OvsegError(f"--int8 is for --format onnx, not {format}: leave one of them out")
    sides, opts = None if size is None else read_size(size), key_values(set_ or [])
    ovseg.register()
    from ovseg.cli.export_report import run_export  # imports slowly: after the arguments are checked

    settings = {"format": format, "size": sides, "opset": opset, "int8": int8}
    return run_export(model, vocabulary, output, opts=opts, **settings)


def read_size(text: str) -> tuple[int, int]:
    """Return height and width of the value of ``--size``.

    Raises:
        OvsegError: it is not HxW, or a side is out of range.
    """
    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    sides = tuple(int(side) for side in found.groups()) if found else ()
    if not sides or not all(SIDES[0] <= side <= SIDES[1] for side in sides):
        raise OvsegError(f"--size {text!r} is not HxW: give height and width from {SIDES[0]} to {SIDES[1]}, as 640x640")
    return sides[0], sides[1]
