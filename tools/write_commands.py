#!/usr/bin/env python3
"""Write docs/commands.md, the reference of the ``ovseg`` command and of all scripts, from their parsers.

python tools/write_commands.py            # write the page
python tools/write_commands.py --check    # exit with status 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

import typer

from ovseg.cli.generated import write_or_check
from ovseg.errors import user_errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

Every command with its options. `ovseg COMMAND --help` and `python SCRIPT --help` print the same. `KEY VALUE` are
keys of the [configuration](configuration.md).

This page is generated: edit the parsers, then run `python tools/write_commands.py`.
"""
GROUPS = {  # heading: scripts, as patterns of the repository
    "Scripts of the published systems": ("demo.py", "train_net.py", "main_*.py"),
    "Tools": ("tools/*.py",),
    "Preparation of data sets": ("datasets/*.py", "convert_dataset/*.py"),
}


class Parsed(BaseException):
    """Raised in place of parsing: carries the parser. No ``except Exception`` of a script stops it."""


def parser_of(run: Callable[[], object], argv: Sequence[str]) -> argparse.ArgumentParser | None:
    """Return the parser that a script uses, or None if it has none.

    Args:
        run: runs the script.
        argv: its command line, the name first.
    """

    def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise Parsed(parser)

    with mock.patch.multiple(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop):
        try:
            with mock.patch.object(sys, "argv", list(argv)):
                run()
        except Parsed as found:
            return found.args[0]
    return None


def script_parsers(patterns: Iterable[str]) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield (path, parser) of the scripts that patterns of the repository name."""
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        if 'if __name__ == "__main__"' not in path.read_text(encoding="utf-8"):
            continue  # data of another script
        parser = parser_of(lambda path=path: runpy.run_path(str(path), run_name="__main__"), [str(path)])
        if parser is not None:
            yield path.relative_to(ROOT).as_posix(), parser


def argparse_rows(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str]]:
    """Yield (names, default, meaning) of the arguments of a parser, without those of its sub-commands."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        dots = " ..." if action.nargs in ("+", "*") else ""
        value = "" if action.nargs == 0 else f" {_metavar(action)}{dots}"
        names = ", ".join(action.option_strings) + value if action.option_strings else _metavar(action) + dots
        meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
        meaning = re.sub(r" *\((?:default: )?(?:%\(default\)s|" + re.escape(str(action.default)) + r")\)", "", meaning)
        default = "*required*" if action.required and action.option_strings else _shown(action.default)
        yield names, default, meaning


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def typer_rows(command: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (names, default, meaning) of the arguments of a function that is a command of typer."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info = get_args(hints[name])[:2]
        if info.hidden:
            continue
        is_option = isinstance(info, typer.models.OptionInfo)
        metavar = info.metavar or (
            "{" + ",".join(get_args(kind)) + "}" if get_origin(kind) is Literal else name.upper()
        )
        first = [info.default] if isinstance(info.default, str) else []  # in Annotated, the first name is the default
        names = ", ".join([*first, *(info.param_decls or ())]) or "--" + name.replace("_", "-")
        shown = names if kind is bool else f"{names} {metavar}"
        needed = parameter.default is parameter.empty
        yield shown if is_option else metavar, "*required*" if needed else _shown(parameter.default), info.help or ""


def _shown(default: object) -> str:
    if default is None or default is False or default == argparse.SUPPRESS or default in ([], (), ""):
        return ""
    text = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
    return f"`{text.replace(f'{ROOT}{os.sep}', '').replace(os.sep, '/')}`"


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return arguments as a table, or nothing if there are none."""
    lines = [
        f"| `{names.replace('|', ' or ')}` | {_cell(default)} | {_cell(' '.join(meaning.split()))} |"
        for names, default, meaning in rows
    ]
    return "\n".join(["| argument | default | meaning |", "|---|---|---|", *lines, ""]) if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def typer_section(command: Callable[..., Any]) -> str:
    """Return the section of a command of ``ovseg``."""
    name = command.__name__.replace("_", "-")
    if typer.Context in get_type_hints(command).values():  # passes its arguments on to a parser of argparse
        from ovseg.cli.app import main as run

        return script_section(f"ovseg {name}", parser_of(lambda: run([name]), ["ovseg"])) + "\n"
    return f"### ovseg {name}\n\n{inspect.getdoc(command)}\n\n{table(typer_rows(command))}"


def script_section(path: str, parser: argparse.ArgumentParser, level: int = 3) -> str:
    """Return the section of a script: its description, a table, and its sub-commands."""
    summary, _, rest = (parser.description or "").strip().partition("\n\n")
    heading = f"{'#' * level} {path}\n\n{' '.join(summary.split())}\n"
    example = f"\n```text\n{rest.strip()}\n```\n" if rest.strip() else ""
    parts = [heading, example, "\n" + table(argparse_rows(parser))]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts += ["\n" + script_section(f"{path} {name}", sub, level + 1) for name, sub in action.choices.items()]
    return "".join(parts)


def reference() -> str:
    """Return the text of the page."""
    from ovseg.cli.app import COMMANDS

    parts = [HEAD, "## The ovseg command\n", *map(typer_section, COMMANDS)]
    for heading, patterns in GROUPS.items():
        parts += [f"## {heading}\n", *(script_section(*found) for found in script_parsers(patterns))]
    toy = parser_of(lambda: runpy.run_module("ovseg.toy", run_name="__main__", alter_sys=False), ["ovseg.toy"])
    parts += ["## The toy world\n", script_section("python -m ovseg.toy", toy)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or check it; exits with status 1 if it is out of date."""
    write_or_check(__doc__, "tools/write_commands.py", "page", lambda: {PAGE: reference()}, argv)


if __name__ == "__main__":
    with user_errors():
        main()
