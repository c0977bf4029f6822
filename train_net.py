#!/usr/bin/env python3
"""Train and evaluate, with Detectron2's command line: see ``--help``."""

from __future__ import annotations

import logging

from ovseg.cli.train import run, train_parser
from ovseg.errors import user_errors

if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with user_errors():
        run(train_parser())
