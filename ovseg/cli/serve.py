"""``ovseg serve``: a web page and a REST endpoint over a model."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ovseg
from ovseg.cli.segment import DEFAULT_MODEL, check_model, key_values
from ovseg.errors import OvsegError

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter
    from ovseg.web.limits import Limits
    from ovseg.web.service import Example

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module: package
TOY_SEEDS = (8, 9, 10)
WORDS_IN_MEMORY = ("MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none")
SAM_WEIGHTS = "MODEL.PROPOSER.SAM.MODEL"


def serve(
    model: Annotated[
        str,
        typer.Option(
            "--model", "--config-file", "-m", metavar="NAME|FILE", help="Name of a model, or a configuration file."
        ),
    ] = DEFAULT_MODEL,
    proposer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also offer the masks of BoundaryTree, or of SAM=FOLDER with the weights in a folder; repeatable.",
        ),
    ] = None,
    words: Annotated[str, typer.Option("--words", "-w", metavar="WORDS", help="Words that the page begins with.")] = "",
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: a GPU if any.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 makes the page reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 chooses a free one.")] = 7860,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which the page may be asked for, as by a proxy; repeatable."),
    ] = None,
    max_words: Annotated[
        int, typer.Option(metavar="N", min=1, help="Words and synonyms that a visitor may write in a request.")
    ] = 1000,
    queue: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that wait for the model; more are refused.")
    ] = 32,
    max_upload: Annotated[float, typer.Option(metavar="MB", min=0.01, help="Largest request.")] = 20.0,
    max_pixels: Annotated[float, typer.Option(metavar="MILLIONS", min=0.01, help="Largest image.")] = 25.0,
    keep: Annotated[
        float,
        typer.Option(metavar="MINUTES", min=0.1, help="Results of the page are kept so long after their last use."),
    ] = 30.0,
    memory: Annotated[
        float, typer.Option(metavar="MB", min=1, help="Memory of results that are kept; the oldest go first.")
    ] = 1000.0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
    ] = None,
) -> int:
    """Serve a web page and a REST endpoint over a model, on this machine.

    The page is at /, the description of the endpoint at /docs. Nothing is sent to other hosts.
    """
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise OvsegError(f"{', '.join(missing)} is not installed: run `pip install 'ovseg[web]'`")
    check_model(model)
    opts = key_values(set_ or [])
    proposers = [_proposer(value) for value in proposer or []]
    if pattern := next((name for name in allow_host or [] if "*" in name), None):
        raise typer.BadParameter(f"--allow-host {pattern!r} is not a name: write each name in full, without *")
    numbers = {"--max-upload": max_upload, "--max-pixels": max_pixels, "--keep": keep, "--memory": memory}
    for option, value in numbers.items():
        if not math.isfinite(value):
            raise typer.BadParameter(f"{option} is {value}: give a finite number")
    from ovseg.web.limits import MEGABYTE, Limits
    from ovseg.web.server import is_local, open_socket, run_server

    limits = Limits(
        upload=int(max_upload * MEGABYTE),
        pixels=int(max_pixels * MEGABYTE),
        texts=max_words,
        waiting=queue,
        idle=60 * keep,
        memory=int(memory * MEGABYTE),
    )
    if not is_local(host):
        print(
            f"warning: --host {host} makes this page reachable from other machines, without a password and encryption: "
            "put a proxy before it (docs/web_page.md)",
            file=sys.stderr,
        )
    with open_socket(host, port) as listening:  # before the model is loaded, which takes seconds
        ovseg.register()
        service = _service(model, opts, device, proposers, words, limits)
        return run_server(service, listening, host, allow_host or [])


def _proposer(value: str) -> tuple[str, dict[str, str]]:
    """Return name and keys of a value of ``--proposer``."""
    name, equals, folder = value.partition("=")
    if (name, bool(folder)) not in (("BoundaryTree", False), ("SAM", True)):
        raise typer.BadParameter(f"--proposer {value!r} is not a proposer: write BoundaryTree or SAM=FOLDER")
    return name, {SAM_WEIGHTS: folder} if equals else {}


def _service(
    model: str,
    opts: list[Any],
    device: str | None,
    proposers: list[tuple[str, dict[str, str]]],
    words: str,
    limits: Limits,
) -> Any:
    from ovseg.cli.segment_inputs import PHOTO_NOTE
    from ovseg.segmenter import Segmenter
    from ovseg.web.service import OWN, Service

    # a visitor's words stay in memory: a --set of the key comes later and wins
    own = Segmenter.from_name(model, [*WORDS_IN_MEMORY, *opts], device)
    segmenters = {OWN: own, **{name: own.with_proposer(name, keys) for name, keys in proposers}}
    if not words and own.vocabulary is not None:
        words = ", ".join(own.vocabulary.foreground)
    note = PHOTO_NOTE.partition(", ")[2].partition(";")[0] if model == DEFAULT_MODEL else ""
    return Service(segmenters, limits, _examples(own), words, note)


def _examples(segmenter: Segmenter) -> list[Example]:
    """Return photographs of installed packages; scenes of the toy world for its models, and without these packages."""
    from ovseg.io.photographs import WORDS, photographs
    from ovseg.web.service import Example

    if segmenter.config is None or not any(name.startswith("toy_") for name in segmenter.config.DATASETS.TEST):
        try:
            load = photographs()
        except OvsegError:
            pass
        else:
            return [Example(name, tuple(of), lambda name=name: load(name)) for name, of in WORDS.items()]
    from ovseg.toy import CLASS_NAMES, make_scene

    examples = []
    for scene in (make_scene(seed) for seed in TOY_SEEDS):
        present = tuple(CLASS_NAMES[k] for k in sorted(set(scene.labels.ravel().tolist())))
        examples.append(Example(f"scene-{scene.seed}", present, lambda image=scene.image: image))
    return examples
