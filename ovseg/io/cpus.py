"""CPUs of this process, and how its threads share them."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def let_idle_threads_sleep() -> None:
    """Set OpenMP's policy for threads that wait, before PyTorch is imported; one of the environment is kept.

    By default they spin, and take the processor from threads that read and save images meanwhile.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
