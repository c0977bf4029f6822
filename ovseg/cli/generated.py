"""The command line of scripts that write files of the repository, or check that they are up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ovseg.io.files import write_text


def write_or_check(
    doc: str | None, script: str, kind: str, texts: Callable[[], Mapping[Path, str]], argv: Sequence[str] | None
) -> None:
    """Write files, or with ``--check`` exit with status 1 if one of them is out of date.

    Args:
        doc: description of the command.
        script: its path, for the message.
        kind: of the files, for the help, such as "page".
        texts: returns the content of each file; called after the arguments are read.
        argv: words after the command's name; None for this process's.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help=f"do not write; exit with status 1 if the {kind} differs")
    args = parser.parse_args(argv)
    for path, text in texts().items():
        if not args.check:
            write_text(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is out of date: run python {script}")
