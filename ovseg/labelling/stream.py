"""Segmentation of many images, with reading and saving in threads of their own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovseg.errors import CannotWrite, OvsegError, explain_system_error
from ovseg.io.images import pixel_count, read_image
from ovseg.io.inputs import is_video
from ovseg.io.pipeline import Outcome, Stages
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

logger = logging.getLogger(__name__)

Job = tuple[Path, Any]  # an image, and what its saving needs


def segment_stream(
    segmenter: Segmenter,
    jobs: Iterable[Job],
    vocabulary: Vocabulary,
    save: Callable[[Job, Segmentation], Any],
    *,
    options: Mapping[str, Any] | None = None,
    video: Callable[[Job], Any] | None = None,
    **stages: Any,
) -> Generator[Outcome[Job], None, None]:
    """Yield the outcome of each job, in order, while other images are read and saved.

    Args:
        segmenter: called in this thread.
        save: job and segmentation -> value of the outcome; called in threads.
        options: further arguments of the segmenter's calls.
        video: what is done with a video, in this thread; gives the value of the outcome.
        stages: of :class:`ovseg.io.pipeline.Stages`: ``batch``, ``savers``, ...

    Raises:
        CannotWrite: nothing more can be written.
    """
    options = dict(options or {})

    def read(job: Job) -> tuple[Job, np.ndarray | None]:
        return job, None if is_video(job[0]) else read_image(job[0])

    def segment(job: Job, pixels: np.ndarray | None) -> Any:
        if pixels is None:
            return video(job) if video else OvsegError(f"{job[0]} is a video: give images")
        return dataclasses.replace(segmenter(pixels, vocabulary, **options), source=str(job[0]))

    def compute(inputs: Sequence[tuple[Job, np.ndarray | None]]) -> list[Any]:
        if len(inputs) > 1 and all(pixels is not None for _, pixels in inputs):
            try:
                found = segmenter.batch([pixels for _, pixels in inputs], vocabulary, **options)
                return [
                    dataclasses.replace(one, source=str(job[0])) for one, (job, _) in zip(found, inputs, strict=True)
                ]
            except CannotWrite:
                raise
            except Exception as error:
                logger.warning("one image at a time after a batch that failed: %s", error or type(error).__name__)
        return [_caught(segment, *one) for one in inputs]

    def finish(job: Job, result: Any) -> Any:
        return save(job, result) if isinstance(result, Segmentation) else result

    def load(job: Job) -> int:
        return 1 if is_video(job[0]) else pixel_count(job[0])

    return Stages(read, compute, finish, load, **stages).run(jobs)


def _caught(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function, or its exception."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def reason_of_failure(source: Path, error: Exception) -> str:
    """Return the sentence on an image that failed; an unexpected error is logged with its traceback."""
    if isinstance(error, OvsegError):
        return str(error)
    if (reason := explain_system_error(error)) is None:  # a defect of ours, but other images must not be lost by it
        logger.error("unexpected error with %s", source, exc_info=error)
        reason = f"unexpected {type(error).__name__} (see above): please report it"
    return reason
