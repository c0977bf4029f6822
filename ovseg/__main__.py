"""``python -m ovseg``: the ``ovseg`` command."""

import sys

from ovseg.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
