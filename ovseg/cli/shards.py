"""What the tools that fill a folder with shards, from images, have in common."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError
from ovseg.io.ray_options import GPUS_HELP, RAY_HELP, WORKERS_HELP, ray_options


def add_images(parser: ArgumentParser, title: str, **data: Any) -> None:
    """Add the options that say which images are used; ``data`` is of the option ``--data``."""
    add = parser.add_argument_group(title).add_argument
    add("--data", required=True, **data)
    add("--image-root", type=Path, help="folder that image names start from; default: that of --data")
    add("--image-column", help="column of a table with the image files; default: the usual names are tried")
    add("--caption-column", help="column of a table with the captions")
    add("--delimiter", help="between the columns of a table; default: tab, for .csv a comma")
    add("--max-images", type=int, help="number of images to use, the first ones; default: all")
    add("--allow-bad", action="store_true", help="continue with more than 1 %% unusable images or captions")


def add_output(parser: ArgumentParser) -> Callable[..., Any]:
    """Add the options of the output folder; return what adds another one to their group."""
    add = parser.add_argument_group("output and processes").add_argument
    add("--output", type=Path, required=True, help="folder; an interrupted run in it is resumed")
    add("--shard-size", type=int, help="images of one shard; default: 5 to 250, by the number of images")
    add("--device", help="cpu, cuda; default: cuda if there is one, one GPU for each process")
    add("--ray", metavar="ADDRESS", help=RAY_HELP)
    add("--ray-workers", type=int, metavar="N", help=WORKERS_HELP)
    add("--ray-gpus", type=float, metavar="G", help=GPUS_HELP)
    return add


def values_of(args: Namespace) -> dict[str, Any]:
    """Return the parsed options, with those of Ray as one.

    Raises:
        OvsegError: Ray's cannot work.
    """
    values = vars(args)
    of_ray = [values.pop(name) for name in ("ray", "ray_workers", "ray_gpus")]
    return values | {"ray": ray_options(*of_ray, device=values["device"])}


def launch_here(run: Callable[[Any], Any], options: Any) -> Any:
    """Run a function of the options in this process, as one of those of torchrun if it started this one.

    Raises:
        OvsegError: there is no such device, or Ray is asked for within torchrun.
    """
    import torch

    from ovseg.engine.launch import World, launch, started_by_torchrun
    from ovseg.io.devices import find_device

    if options.ray is not None:
        if started_by_torchrun():
            raise OvsegError("--ray within torchrun would work on everything several times: leave out one of them")
        return run(options)
    if options.device:
        find_device(options.device, "--device")
    cuda = torch.cuda.is_available() and options.device != "cpu"
    return launch(run, World(processes_here=1, cuda=cuda), (options,))
