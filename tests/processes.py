"""Processes of tests, forked from a server that has imported the package once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ovseg.engine.run", "ovseg.adaptation.finetune", "ovseg.adaptation.mining_run"])


def run_processes(function: Callable[..., Any], *arguments: tuple[Any, ...], timeout: float = 300) -> list[int]:
    """Run a function in as many processes as there are tuples of arguments; return their exit codes."""
    started = [CONTEXT.Process(target=function, args=of_one) for of_one in arguments]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout)
    return [process.exitcode for process in started]
