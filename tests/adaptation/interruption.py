"""A run over images that dies in the middle of a shard, and goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovseg.engine.launch import World, launch
from tests.processes import run_processes


def _run_and_die(kind: type, run: Callable[[Any], None], options: Any, image: str) -> None:
    original = kind.__call__

    def call(self, item):
        if item.path.name == image:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, item)

    kind.__call__ = call
    run(options)


def killed_at(image: str, kind: type, run: Callable[[Any], None], options: Any) -> None:
    """Run in a process that dies by SIGKILL when an instance of ``kind`` is called with an image."""
    assert run_processes(_run_and_die, (kind, run, options, image)) == [-signal.SIGKILL]


def continued_by_two(run: Callable[[Any], None], options: Any, shards: Callable, finished: Path) -> None:
    """Check that two processes go on, keep the shards that are there, and equal an uninterrupted run.

    ``shards`` returns the contents of the shards of a folder by their names.
    """
    output = options.output
    times = {name: (output / name).stat().st_mtime_ns for name in shards(output)}
    launch(run, World(processes_here=2), (options,))
    assert shards(output) == shards(finished)
    assert {name: (output / name).stat().st_mtime_ns for name in times} == times
    assert json.loads((output / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())
