"""How much of the machine this process may use."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """CPUs that this process may run on: fewer than the machine has where it was given a part of them."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
