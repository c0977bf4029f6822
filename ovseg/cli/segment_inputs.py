"""The work of ``ovseg segment`` and ``demo.py``: segment files, print what is found, keep going when an input fails."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import ovseg
from ovseg.errors import CannotWrite, OvsegError
from ovseg.io.files import check_writable
from ovseg.io.inputs import choose_outputs, find_inputs, is_video, live_name, live_source
from ovseg.io.progress import progress_bar
from ovseg.labelling.stream import Job, reason_of_failure, segment_stream
from ovseg.result.segmentation import PNG_LEVEL, Segmentation, output_files
from ovseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

WORDS_IN_A_LINE = 5
DRAWINGS = ("png", "jpg", "webp")  # formats
DRAWING = DRAWINGS[0]
PHOTO_NOTE = (
    "model: photo, a small demonstration that knows 119 names of COCO; for any words, choose one of those that "
    "`ovseg models` lists"
)


def segment_inputs(
    inputs: Sequence[str],
    vocabulary: Vocabulary,
    *,
    output: str,
    config_file: str,
    device: str | None = None,
    opts: Sequence[Any] = (),
    explain: bool = False,
    skip_existing: bool = False,
    is_photo: bool = False,
    batch_size: int = 1,
    drawing: str = DRAWING,
    png_level: int = PNG_LEVEL,
    seconds: float | None = None,
) -> int:
    """Segment every input of a command line, and print what is found.

    Args:
        inputs: images, videos, folders and patterns; or one camera or stream.
        vocabulary: the words.
        output: a folder, or for one input a file.
        config_file: name of a model or its folder, or a configuration file.
        device, opts: see :meth:`ovseg.segmenter.Segmenter.from_config`.
        explain: also print and save the best words of each mask.
        skip_existing: leave out inputs that have results for the same words.
        is_photo: the model is the small one for photographs, whose limits are printed.
        batch_size: images that the model segments at a time.
        drawing: format of drawings in a folder, one of :data:`DRAWINGS`.
        png_level: compression of PNG files, 0 to 9.
        seconds: length of the recording of a camera or stream; None: until Ctrl-C.

    Returns:
        0, or 1 when an input failed.

    Raises:
        OvsegError: nothing can run, or no more results can be written.
    """
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    load = functools.partial(_load, config_file, vocabulary, opts, device, explain)
    if (source := only_live(inputs)) is not None:
        if explain or skip_existing:
            option = "--explain" if explain else "--skip-existing"
            raise OvsegError(f"{option} is for files, and the {live_name(source)} is none: leave it out")
        if is_photo:
            errors.print(PHOTO_NOTE, markup=False)
        return _segment_live(source, seconds, vocabulary, output, load, console, errors)
    files, failures = find_inputs(inputs)
    jobs = list(zip(files, choose_outputs(files, output, inputs, f".{drawing}"), strict=True))
    if skip_existing:
        waiting = [job for job in jobs if not _is_done(*job, vocabulary, explain)]
        if len(waiting) < len(jobs):
            console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} inputs have results already", markup=False)
        jobs = waiting
    done, stopped = 0, None
    if jobs:
        check_writable(jobs[0][1])
        if is_photo:
            errors.print(PHOTO_NOTE, markup=False)
        segmenter = load()
        stages = {"options": {"explain": True} if explain else {}, "batch": batch_size, "ahead": max(4, batch_size)}
        arguments = segmenter, vocabulary, png_level, stages, failures, console, errors
        done, stopped = _segment_all(jobs, *arguments)
        console.print(f"{done} of {done + len(failures)} done; results in {output}", markup=False)
    if failures:
        errors.print(f"{len(failures)} could not be segmented:", markup=False)
        for name, reason in failures:
            errors.print(f"  {name}: {reason}", markup=False)
    if stopped is not None:
        raise stopped
    return 1 if failures else 0


def only_live(inputs: Sequence[str]) -> int | str | None:
    """Return the camera or stream that is the only input; None if there is none.

    Raises:
        OvsegError: there are other inputs, too.
    """
    sources = [source for given in inputs if (source := live_source(given)) is not None]
    if sources and len(inputs) > 1:
        raise OvsegError(f"the {live_name(sources[0])} has no end: give it as the only input")
    return sources[0] if sources else None


def _load(
    config_file: str, vocabulary: Vocabulary, opts: Sequence[Any], device: str | None, explain: bool
) -> Segmenter:
    """Return the model with its embedded words; it takes seconds: only once words and inputs are known to be good."""
    ovseg.register()
    from ovseg.segmenter import Segmenter

    segmenter = Segmenter.from_name(config_file, opts, device)
    if explain:
        segmenter.require_one_view()
    segmenter.prepare(vocabulary)
    return segmenter


def _segment_live(
    source: int | str,
    seconds: float | None,
    vocabulary: Vocabulary,
    output: str,
    load: Callable[[], Segmenter],
    console: Console,
    errors: Console,
) -> int:
    """Record a camera or stream to a new file until Ctrl-C or its end; return 0."""
    from ovseg.io.video import LiveVideo
    from ovseg.result.video import segment_video

    name = live_name(source)
    stem = re.sub(r"[^\w.-]+", "-", f"{name} {time.strftime('%Y-%m-%d %H-%M-%S')}")
    (target,) = choose_outputs([Path(f"{stem}.mp4")], output, [])
    check_writable(target)
    LiveVideo(source).close()  # whether it can be opened is known before the model takes its seconds
    segmenter = load()
    stop = "Ctrl-C" if seconds is None else f"after {seconds:g} s, or by Ctrl-C"
    errors.print(f"segmenting the {name}; it ends {'by ' if seconds is None else ''}{stop}", markup=False)
    video = LiveVideo(source, seconds)
    with progress_bar("{task.fields[found]}", console=errors, transient=True) as progress:
        task = progress.add_task("frames", total=None, found="")

        def show(done: int, total: int | None, result: Segmentation) -> None:
            progress.update(task, completed=done, found=escape(_words(result)))

        segment_video(segmenter, video, vocabulary, target, show)
    if video.ended:
        errors.print(video.ended, markup=False)
    console.print(f"{name} -> {target}", markup=False)
    return 0


def _segment_all(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    png_level: int,
    stages: Mapping[str, Any],
    failures: list[tuple[str, str]],
    console: Console,
    errors: Console,
) -> tuple[int, CannotWrite | None]:
    """Segment every job; add what fails to ``failures``.

    Returns:
        The number of inputs that succeeded, and the error that prevents writing any more results, if any.
    """
    done = 0
    single = len(jobs) == 1 and not is_video(jobs[0][0])

    def save(job: Job, result: Segmentation) -> Segmentation:
        result.save(job[1], png_level)
        return result

    with progress_bar(console=errors, show=not single, transient=True) as progress:
        overall = progress.add_task("inputs", total=len(jobs))

        def video(job: Job) -> None:
            _segment_video(segmenter, job[0], vocabulary, job[1], progress)

        with contextlib.closing(segment_stream(segmenter, jobs, vocabulary, save, video=video, **stages)) as outcomes:
            try:
                for outcome in outcomes:
                    source, target = outcome.item
                    if outcome.error is not None:
                        failures.append((str(source), reason_of_failure(source, outcome.error)))
                    elif is_video(source):
                        console.print(f"{source} -> {target}", markup=False)
                    else:
                        _show(outcome.value, target, console, as_table=single)
                    done += outcome.error is None
                    progress.advance(overall)
            except CannotWrite as error:
                return done, error
    return done, None


def _segment_video(
    segmenter: Segmenter, source: Path, vocabulary: Vocabulary, target: Path, progress: Progress
) -> None:
    from ovseg.io.video import VideoFile
    from ovseg.result.video import segment_video

    task = progress.add_task(escape(f"frames of {source.name}"), total=None)
    try:
        segment_video(
            segmenter,
            VideoFile(source),
            vocabulary,
            target,
            on_frame=lambda count, total, result: progress.update(task, completed=count, total=total),
        )
    finally:
        progress.remove_task(task)


def _show(result: Segmentation, target: Path, console: Console, as_table: bool) -> None:
    if not as_table:
        console.print(f"{result.source} -> {target}: {_words(result)}", markup=False)
        return
    table = Table("word", "share", "score")
    for k in result.found:
        table.add_row(Text(result.names[k]), f"{result.fractions[k]:.1%}", f"{result.scores[k]:.3f}")
    unlabelled = 1 - result.fractions.sum()
    if unlabelled > 0:
        table.add_row("(unlabelled)", f"{unlabelled:.1%}", "", style="dim")
    console.print(table)
    if result.mask_scores is not None:
        console.print(result.explain())
    console.print(f"{result.source} -> {', '.join(map(str, output_files(target)))}", markup=False)


def _words(result: Segmentation) -> str:
    """Return the largest words of a result in one line."""
    shares = [f"{result.names[k]} {result.fractions[k]:.0%}" for k in result.found[:WORDS_IN_A_LINE]]
    more = len(result.found) - len(shares)
    return ", ".join(shares) + (f" and {more} more" if more else "") or "nothing found"


def _is_done(source: Path, target: Path, vocabulary: Vocabulary, explain: bool) -> bool:
    """Return whether the results of an input and its words are complete, by the JSON, which is written last."""
    json_file = output_files(target)[2]
    try:
        written = json.loads(json_file.read_text(encoding="utf-8"))
        image = written.get("image") or written.get("video")
        same = Path(image).resolve() == source.resolve() and written["names"] == list(vocabulary.foreground)
        same = same and written.get("background", []) == list(vocabulary.background)
        return same and (not explain or "explanation" in written or is_video(source))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return False
