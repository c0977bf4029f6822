"""``ovseg label``: label files of a folder of images, to train on or to correct."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ovseg
from ovseg.cli.segment import DEFAULT_MODEL, check_model, key_values
from ovseg.cli.words import Background, LabelSetName, Words, read_words
from ovseg.errors import OvsegError, argument_names
from ovseg.hub.table import is_model
from ovseg.io.cpus import let_idle_threads_sleep
from ovseg.io.ray_options import GPUS_HELP, RAY_HELP, WORKERS_HELP, ray_options
from ovseg.result.formats import FORMATS

FLAGS = {"min_area": "--min-area", "min_score": "--min-region-score", "tolerance": "--tolerance"}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def label(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Images, folders, or patterns such as 'photos/**/*.jpg'.")
    ],
    words: Words = None,
    label_set: LabelSetName = None,
    background: Background = "",
    format: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", metavar="FORMAT", help=f"{', '.join(FORMATS)}; repeatable, or with commas."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Label files in it are replaced.")
    ] = Path("labels"),
    model: Annotated[
        str,
        typer.Option(
            "--model", "--config-file", "-m", metavar="NAME|FILE", help="Name of a model, or a configuration file."
        ),
    ] = DEFAULT_MODEL,
    min_score: Annotated[
        float | None, typer.Option(metavar="S", help="Pixels whose best score is lower are unlabelled.")
    ] = None,
    min_region_score: Annotated[
        float | None, typer.Option(metavar="S", help="Regions whose mean score is lower are left out.")
    ] = None,
    min_area: Annotated[
        float,
        typer.Option(metavar="A", help="Smaller regions are left out: pixels; or below 1, a share of the image."),
    ] = 0.001,
    tolerance: Annotated[
        float, typer.Option(metavar="PIXELS", help="Polygons may be so far from the edges of masks; 0 is exact.")
    ] = 1.0,
    granularity: Annotated[
        float | None, typer.Option(metavar="G", min=0, max=1, help="From 0 (coarse) to 1 (precise).")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: a GPU if any.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the model takes at a time.")] = 1,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Each has a model of its own; and a GPU of its own if there are.")
    ] = 1,
    ray: Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help=_sentence(RAY_HELP))] = None,
    ray_workers: Annotated[int | None, typer.Option(metavar="N", help=_sentence(WORKERS_HELP))] = None,
    ray_gpus: Annotated[float | None, typer.Option(metavar="G", help=_sentence(GPUS_HELP))] = None,
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="For yolo-seg and fiftyone: copy images in place of links to them.")
    ] = False,
    sheet_images: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images of the contact sheet; 0 for no sheet.")
    ] = 24,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
    ] = None,
) -> int:
    """Label images with words, in the formats of other programs.

    Regions are connected parts of a word's pixels: objects of one word that touch are one region. OUTPUT also gets a
    manifest and a contact sheet. Run the same command again to resume, or with another --format, --min-area,
    --min-region-score or --tolerance, which takes seconds.
    """
    vocabulary = read_words(words, label_set, background, model)
    check_model(model)
    opts = key_values(set_ or [])
    if granularity is not None:
        opts = ["MODEL.RENDERING.GRANULARITY", granularity, *opts]
    if min_score is not None:
        opts = ["TEST.BACKGROUND_THRESHOLD", min_score, *opts]
    if not format:
        raise OvsegError(f"--format is missing: give one or more of {', '.join(FORMATS)}")
    by_ray = ray_options(ray, ray_workers, ray_gpus, device)
    if by_ray is not None and processes > 1:
        raise OvsegError("--processes and --ray are two ways to use several models: leave out one of them")
    let_idle_threads_sleep()
    from ovseg.labelling.options import Model, Target, find_images, read_formats

    with argument_names(FLAGS):  # all checks that need no model come before one is fetched
        target = Target(output, read_formats(format), min_area, min_region_score, tolerance, copy_images, sheet_images)
        images = find_images(inputs, output)
        from ovseg.labelling.run import run_labelling

        config = model
        if is_model(model):
            from ovseg.hub.opening import located  # imports Detectron2

            ovseg.register()
            config, opts = located(model, opts, device)
        of_run = Model(config, tuple(opts), device, vocabulary, batch_size, processes, name=model, ray=by_ray)
        return run_labelling(images, of_run, target)
