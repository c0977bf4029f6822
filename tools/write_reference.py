#!/usr/bin/env python3
"""Write docs/configuration.md, the reference of ovseg's configuration keys, from the files of ovseg/config/.

python tools/write_reference.py            # write the page
python tools/write_reference.py --check    # exit with status 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from ovseg.errors import user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do not write; exit with status 1 if the page differs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported

from ovseg.config import defaults, ovsegmentor
from ovseg.io.files import atomic_path

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration keys

Every key that ovseg adds to [Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html), with its
default. A configuration file sets keys in YAML and names the file that it extends as `_BASE_`; `train_net.py`,
`demo.py --opts` and the tools override keys by `KEY VALUE` on the command line. Names and defaults are those of the
published systems; keys marked *new* are ovseg's own. Keys marked *fixed* are accepted for the published files' sake:
any value other than the default is refused.

This page is generated: edit the comments in `ovseg/config/defaults.py` or `ovsegmentor.py`, then run
`python tools/write_reference.py`.
"""
SECTION = re.compile(r"# --- (.*?) -+$")


def described_keys(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield (section, key, comment) for each key of the dict DEFAULTS in the source text of a file of ovseg/config/.

    The comment of a key is the text of the comment lines before it and of the comment on its own line.
    """
    section, comments, key, inside = "", [], None, False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        starts_line = not token.line[: token.start[1]].strip()
        if token.type == tokenize.NAME and token.string == "DEFAULTS" and starts_line:
            inside = True
        elif not inside:
            continue
        elif token.type == tokenize.OP and token.string == "}" and starts_line:
            return
        elif token.type == tokenize.COMMENT and (heading := SECTION.match(token.string)):
            section, comments = heading[1], []
        elif token.type == tokenize.COMMENT:
            comments.append(token.string.removeprefix("#").strip())
        elif token.type == tokenize.STRING and starts_line:
            key = token.string.strip('"')
        elif token.type == tokenize.NL and key:
            yield section, key, " ".join(comments)
            comments, key = [], None


def reference() -> str:
    """Return the text of the page."""
    lines, current = [HEAD], None
    sources = (inspect.getsource(module) for module in (defaults, ovsegmentor))
    for section, key, comment in chain.from_iterable(map(described_keys, sources)):
        if section != current:
            lines.append(f"\n## {section[0].upper()}{section[1:]}\n\n| key | default | meaning |\n|---|---|---|\n")
            current = section
        new = re.match(r"ours(?:[:,] |$)", comment)
        text = comment[new.end() :] if new else comment
        notes = ["*new*"] if new else []
        if key in defaults.WITHOUT_EFFECT:
            notes.append(f"*fixed*: {defaults.WITHOUT_EFFECT[key]}")
        cell = ". ".join([*notes[:1], text, *notes[1:]] if new else [text, *notes]).replace("|", "\\|")
        lines.append(f"| `{key}` | `{_shown(defaults.DEFAULTS[key])}` | {cell} |\n")
    return "".join(lines)


def _shown(default: object) -> str:
    text = repr(default).replace("'", '"')
    return f"{default:.4g}" if isinstance(default, float) and len(text) > 8 else text


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    text = reference()
    if args.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is out of date: run python tools/write_reference.py")
        return
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        main()
