"""The command line of the preparation scripts."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath

from ovseg.data.benchmarks import README, dataset_root
from ovseg.data.prepare.archives import unpack
from ovseg.data.prepare.conversion import Conversion, convert
from ovseg.data.prepare.facts import FOLDERS
from ovseg.data.prepare.sources import NothingFound
from ovseg.data.prepare.verify import verify
from ovseg.errors import OvsegError
from ovseg.io.cpus import usable_cpus
from ovseg.io.files import locked_folder


def parser(
    description: str, tree: str, splits: Sequence[str], default_splits: str = "those that are there"
) -> argparse.ArgumentParser:
    """Return the options that all preparation scripts have; a script adds its own.

    Args:
        description: of the script.
        tree: what should lie below the root, a line each.
        splits: what ``--splits`` may name.
        default_splits: what the help says is done without it.
    """
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"below the root:\n{tree.strip()}",
    )
    made.add_argument("--root", type=Path, default=dataset_root(), help="default: $DETECTRON2_DATASETS, else datasets")
    made.add_argument("--splits", nargs="+", choices=splits, help=f"default: {default_splits}")
    made.add_argument(
        "--workers", type=_count, default=min(8, usable_cpus()), help="threads; 0 or 1: none (default: %(default)s)"
    )
    made.add_argument("--archives", nargs="+", type=Path, default=[], metavar="FILE", help="unpack these first")
    made.add_argument("--any-checksum", action="store_true", help="unpack archives whose checksum is not the published")
    made.add_argument("--verify", action="store_true", help="convert nothing: check what is there; status 1 if wrong")
    made.add_argument("--partial", action="store_true", help="with --verify: a part of the data set is enough")
    return made


def run(
    args: argparse.Namespace,
    key: str,
    tree: str,
    conversions: Callable[[argparse.Namespace], Iterable[Conversion]],
    checks: Sequence[Callable[[Path], Iterable[str]]] = (),
) -> int:
    """Unpack, then convert or verify, according to the options of :func:`parser`.

    Args:
        args: the parsed options.
        key: of the data set in :data:`ovseg.data.prepare.facts.FOLDERS`.
        tree: as for :func:`parser`.
        conversions: finds the raw files and says what to do; called after archives are unpacked.
        checks: more to verify; each gets the root and yields faults.

    Returns:
        Exit status: 1 if ``--verify`` found something, else 0.

    Raises:
        OvsegError: whatever the user can correct; where files are missing, with the expected tree.
    """
    try:
        unpack(args.archives, args.root, check=not args.any_checksum)
        if args.verify:
            return verify(args.root, FOLDERS[key], args.workers, args.partial, checks)
        folder = args.root / tree.split()[0]
        writable = os.access(folder, os.W_OK)  # a complete one need not be
        with locked_folder(folder, "give another --root") if writable else contextlib.nullcontext():
            for conversion in conversions(args):
                convert(conversion, args.workers)
    except NothingFound as error:
        refusal = OvsegError(_explain(error, args.root, tree))
        refusal.args = (f"{refusal}\n{tree.strip()}",)  # the one message that has several lines
        raise refusal from error
    return 0


def _explain(error: NothingFound, root: Path, tree: str) -> str:
    data_set = PurePath(tree.split()[0]).parts
    advice = f"unpack the archives there (--archives does it, see {README}), or give another --root"
    for length in range(1, len(data_set) + 1):
        if root.absolute().parts[-length:] == data_set[:length]:  # people often give the data set's own folder
            advice = f"give the folder that holds {data_set[0]}: --root {root.absolute().parents[length - 1]}"
    return f"{error}. The root is {root}; {advice}. What should lie below it:"


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError
    return value
