"""``ovseg segment``: masks of words in images and videos."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ovseg.cli.words import Background, LabelSetName, Words, read_words
from ovseg.config.files import check_file
from ovseg.errors import OvsegError
from ovseg.hub.table import is_model
from ovseg.io.cpus import let_idle_threads_sleep
from ovseg.io.inputs import find_inputs, live_source

DEFAULT_MODEL = "photo"


def segment(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, videos, folders, or patterns such as 'photos/**/*.jpg'; or the index of a camera, or the "
            "address of a stream, such as rtsp://...",
        ),
    ],
    words: Words = None,
    label_set: LabelSetName = None,
    background: Background = "",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="Folder; or, for one input, a file.")
    ] = "predictions",
    model: Annotated[
        str,
        typer.Option(
            "--model", "--config-file", "-m", metavar="NAME|FILE", help="Name of a model, or a configuration file."
        ),
    ] = DEFAULT_MODEL,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: a GPU if any.")
    ] = None,
    granularity: Annotated[
        float | None,
        typer.Option(
            metavar="G",
            min=0,
            max=1,
            help="From 0 (coarse) to 1 (precise): each word keeps the masks with a score above G times its best one.",
        ),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(metavar="S", help="Pixels whose best score is lower are unlabelled.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also print each mask's best words by each classifier.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out inputs that have results for the same words.")
    ] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the model takes at a time.")] = 1,
    drawing: Annotated[
        Literal["png", "jpg", "webp"], typer.Option(help="Format of the drawings; jpg and webp are faster to write.")
    ] = "png",
    png_level: Annotated[
        int, typer.Option(metavar="N", min=0, max=9, help="Compression of PNG files: 1 is fast, 9 is small.")
    ] = 4,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="T", min=0, help="Length of the recording of a camera or stream; default: until Ctrl-C."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
    ] = None,
) -> int:
    """Segment images, videos, a camera or a stream into words: a drawing, a label map and JSON for each."""
    vocabulary = read_words(words, label_set, background, model)
    check_model(model)
    if not any(live_source(given) is not None for given in inputs):
        files, missing = find_inputs(inputs)
        if not files:
            raise OvsegError("; ".join(f"{name}: {reason}" for name, reason in missing))
        if seconds is not None:
            raise OvsegError("--seconds is the length of a recording, but the input is no camera or stream")
    opts = key_values(set_ or [])
    if granularity is not None:
        opts = ["MODEL.RENDERING.GRANULARITY", granularity, *opts]
    if min_score is not None:
        opts = ["TEST.BACKGROUND_THRESHOLD", min_score, *opts]
    let_idle_threads_sleep()
    from ovseg.cli.segment_inputs import segment_inputs  # imports slowly: after the arguments are checked

    return segment_inputs(
        inputs,
        vocabulary,
        output=output,
        config_file=model,
        device=device,
        opts=opts,
        explain=explain,
        skip_existing=skip_existing,
        is_photo=model == DEFAULT_MODEL,
        batch_size=batch_size,
        drawing=drawing,
        png_level=png_level,
        seconds=seconds,
    )


def check_model(model: str) -> None:
    """Check ``--model`` where it names a configuration file, before what imports slowly is imported.

    Raises:
        OvsegError: the file is missing or cannot be read.
    """
    if not is_model(model):
        check_file(model)


def key_values(pairs: list[str]) -> list[str | float]:
    """Return ``[KEY, VALUE, ...]`` of the values of ``--set``.

    Raises:
        OvsegError: one is not KEY=VALUE.
    """
    opts: list[str | float] = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"--set {pair!r} is not KEY=VALUE: write --set INPUT.MIN_SIZE_TEST=512")
        opts += [key.strip(), value]
    return opts
