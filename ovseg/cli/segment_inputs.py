"""The work of ``ovseg segment`` and ``demo.py``: segment files, print what is found, keep going when an input fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import ovseg
from ovseg.errors import CannotWrite, OvsegError, explain_system_error
from ovseg.io.files import check_writable
from ovseg.io.inputs import choose_outputs, find_inputs, is_video
from ovseg.io.progress import progress_bar
from ovseg.result.segmentation import Segmentation, output_files
from ovseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

logger = logging.getLogger("ovseg.demo")

WORDS_IN_A_LINE = 5
PHOTO_NOTE = (
    "model: photo, a small demonstration that knows 119 names of COCO; for any words, give published weights with "
    "--config-file (README.md, Published models)"
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
) -> int:
    """Segment every input of a command line, and print what is found.

    Args:
        inputs: images, videos, folders and patterns.
        vocabulary: the words.
        output: a folder, or for one input a file.
        config_file, device, opts: see :meth:`ovseg.segmenter.Segmenter.from_config`.
        explain: also print and save the best words of each mask.
        skip_existing: leave out inputs that have results for the same words.
        is_photo: the model is the small one for photographs, whose limits are printed.

    Returns:
        0, or 1 when an input failed.

    Raises:
        OvsegError: nothing can run, or no more results can be written.
    """
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    files, failures = find_inputs(inputs)
    jobs = list(zip(files, choose_outputs(files, output, inputs), strict=True))
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
        ovseg.register()
        from ovseg.segmenter import Segmenter  # takes seconds: only once words and inputs are known to be good

        segmenter = Segmenter.from_config(config_file, opts=opts, device=device)
        if explain:
            segmenter.refuse_to_explain_views()
        segmenter.prepare(vocabulary)
        done, stopped = _segment_all(jobs, segmenter, vocabulary, explain, failures, console, errors)
        console.print(f"{done} of {done + len(failures)} done; results in {output}", markup=False)
    if failures:
        errors.print(f"{len(failures)} could not be segmented:", markup=False)
        for name, reason in failures:
            errors.print(f"  {name}: {reason}", markup=False)
    if stopped is not None:
        raise stopped
    return 1 if failures else 0


def _segment_all(
    jobs: Sequence[tuple[Path, Path]],
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    explain: bool,
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
    with progress_bar(console=errors, show=not single, transient=True) as progress:
        overall = progress.add_task("inputs", total=len(jobs))
        for source, target in jobs:
            try:
                if is_video(source):
                    _segment_video(segmenter, source, vocabulary, target, progress)
                    console.print(f"{source} -> {target}", markup=False)
                else:
                    result = segmenter(source, vocabulary, **({"explain": True} if explain else {}))
                    result.save(target)
                    _show(result, target, console, as_table=single)
                done += 1
            except CannotWrite as error:
                return done, error
            except OvsegError as error:
                failures.append((str(source), str(error)))
            except Exception as error:  # a defect of ours, but hours of other inputs must not be lost by it
                if (reason := explain_system_error(error)) is None:
                    logger.exception("unexpected error with %s", source)
                    reason = f"unexpected {type(error).__name__} (see above): please report it"
                failures.append((str(source), reason))
            progress.advance(overall)
    return done, None


def _segment_video(
    segmenter: Segmenter, source: Path, vocabulary: Vocabulary, target: Path, progress: Progress
) -> None:
    from ovseg.result.video import segment_video

    task = progress.add_task(escape(f"frames of {source.name}"), total=None)
    try:
        segment_video(
            segmenter,
            source,
            vocabulary,
            target,
            on_frame=lambda count, total: progress.update(task, completed=count, total=total),
        )
    finally:
        progress.remove_task(task)


def _show(result: Segmentation, target: Path, console: Console, as_table: bool) -> None:
    if not as_table:
        shares = [f"{result.names[k]} {result.fractions[k]:.0%}" for k in result.found[:WORDS_IN_A_LINE]]
        more = len(result.found) - len(shares)
        words = ", ".join(shares) + (f" and {more} more" if more else "") or "nothing found"
        console.print(f"{result.source} -> {target}: {words}", markup=False)
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
