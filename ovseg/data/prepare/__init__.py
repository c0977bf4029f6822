"""Common parts of the scripts in ``datasets/``: archives -> raw labels -> label files of class indices -> checks.

Every script gives :func:`run` its :class:`Conversion` objects; unpacking archives, converting with several threads,
going on after an interruption and checking the result are the same for all.
"""

from ovseg.data.prepare.command import parser, run
from ovseg.data.prepare.conversion import Conversion, Item, Output, convert
from ovseg.data.prepare.facts import expected_files
from ovseg.data.prepare.id_maps import IdMap, class_table, label_output, look_up, read_labels_of
from ovseg.data.prepare.sources import BadFile, NothingFound, find_files, find_splits, raw_labels, read_names

__all__ = [
    "BadFile",
    "Conversion",
    "IdMap",
    "Item",
    "NothingFound",
    "Output",
    "class_table",
    "convert",
    "expected_files",
    "find_files",
    "find_splits",
    "label_output",
    "look_up",
    "parser",
    "raw_labels",
    "read_labels_of",
    "read_names",
    "run",
]
