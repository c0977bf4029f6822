#!/usr/bin/env python3
"""Install Detectron2 into the environment of the running Python, as ``ovseg install-detectron2`` does.

    python tools/install_detectron2.py                   # like --source pypi, unless `import detectron2` works
    python tools/install_detectron2.py --source pypi     # Detectron2 0.6 in pure Python, no compiler needed
    python tools/install_detectron2.py --sdist FILE      # the same from a downloaded file
    python tools/install_detectron2.py --source git      # the official repository, compiled on this machine

If a source is named and another build is installed, that build is replaced. This script works before ovseg and its
requirements are installed; it needs torch, and for --source git setuptools and wheel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ovseg need not be installed

from ovseg.environment.detectron2 import install
from ovseg.errors import user_errors


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("pypi", "git"), help="default: the installed one, else pypi")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="the downloaded pb1-detectron2-0.6.tar.gz")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_args()
    with user_errors():
        install(arguments.source, arguments.sdist)
