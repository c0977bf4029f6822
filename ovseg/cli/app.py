"""The ``ovseg`` command: ``ovseg segment photo.jpg --words "cat, sofa"``.

Each command is a function in a file of its own, whose top imports nothing that takes long: ``ovseg --help`` and wrong
arguments are answered at once. To add one, write it and name it in :data:`COMMANDS`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import ovseg
from ovseg.cli.check import check
from ovseg.cli.doctor import doctor
from ovseg.cli.export import export
from ovseg.cli.install_detectron2 import install_detectron2
from ovseg.cli.label import label
from ovseg.cli.models import models
from ovseg.cli.segment import segment
from ovseg.cli.serve import serve
from ovseg.cli.train import PARSED_HERE, evaluate, train
from ovseg.errors import user_errors

COMMANDS = (segment, label, serve, export, models, train, evaluate, check, doctor, install_detectron2)
PASSED_ON = (train, evaluate)  # argparse reads their arguments

app = typer.Typer(
    name="ovseg",
    help="Segment any image into any words.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:  # in the order of the help; install_detectron2 is `ovseg install-detectron2`
    app.command(context_settings=PARSED_HERE if command in PASSED_ON else None)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ovseg {ovseg.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the entry point of the ``ovseg`` command.

    Args:
        argv: words after the command's name; None for this process's.

    Returns:
        0, or 1 if the command could do a part of its work only. Errors that prevent a run exit with status 2.
    """
    with user_errors():
        try:
            status = app(argv, prog_name="ovseg", standalone_mode=False)
        except typer.TyperException as error:  # a wrong argument; or none, which prints the help
            return _explain(error)
        if status == 130:  # typer's form of Ctrl-C
            print("interrupted", file=sys.stderr)
        return status or 0


def _explain(error: typer.TyperException) -> int:
    """Print what is wrong with the arguments in one sentence, and where their help is; return the exit status."""
    message = error.format_message().replace("Value error, ", "").replace("Input should", "it should")
    context = getattr(error, "ctx", None)
    if not message:
        return error.exit_code
    where = f" ({context.command_path} --help lists what there is)" if context else ""
    print(f"error: {message[0].lower()}{message[1:].rstrip('.')}{where}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
