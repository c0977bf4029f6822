"""Segmenting a film, frame by frame."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import supervision as sv

from ovseg.errors import CannotWrite, OvsegError
from ovseg.io.files import atomic_path
from ovseg.result.colors import colors_of

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter
    from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def segment_video(
    segmenter: Segmenter,
    source: Path,
    vocabulary: Vocabulary,
    target: Path,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
) -> tuple[Path, Path]:
    """Write a film with its regions coloured and named (no sound), and a JSON summary beside it, last.

    Args:
        segmenter: see :class:`~ovseg.segmenter.Segmenter`.
        source: film that OpenCV reads.
        vocabulary: words.
        target: ``.mp4`` file.
        on_frame: called after each frame with how many are done and how many there will be, if known.

    Returns:
        Paths of the film and of the JSON, which holds names and, per word, its mean share of the frames.

    Raises:
        OvsegError: the film cannot be read or holds no frame, or OpenCV cannot write one here.
    """
    if not source.is_file():
        raise OvsegError(f"there is no film {source}")
    try:
        info = sv.VideoInfo.from_video_path(str(source))
    except Exception as error:  # supervision raises a bare Exception
        raise OvsegError(f"{source} is not a film that OpenCV can read, or it is damaged") from error
    if info.width <= 0 or info.height <= 0:
        raise OvsegError(f"{source} is damaged: it has no size")
    info.fps = info.fps if 0 < info.fps < 1000 else 25
    total = info.total_frames if info.total_frames and info.total_frames > 0 else None
    shares = np.zeros(len(vocabulary.foreground))
    colors: dict[int, sv.Color] = {}  # a word keeps its colour from frame to frame
    frames = 0
    with atomic_path(target) as temporary:
        try:
            with sv.VideoSink(str(temporary), info) as sink:
                for frame in sv.get_video_frames_generator(str(source)):
                    result = segmenter(np.ascontiguousarray(frame[:, :, ::-1]), vocabulary)
                    colors = colors_of(result.found, colors)
                    sink.write_frame(np.ascontiguousarray(result.overlay(colors=colors)[:, :, ::-1]))
                    shares += result.fractions
                    frames += 1
                    on_frame(frames, total)
        except (RuntimeError, cv2.error) as error:
            if not temporary.exists():
                raise OvsegError(f"OpenCV cannot write the film {target} on this machine") from error
            raise
        if frames == 0:
            raise OvsegError(f"{source} holds no frame that can be read")
        if cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT) < 1:  # OpenCV writes on and says nothing
            raise CannotWrite(f"{target} could not be written to its end, the disk may be full: free some space")
    if total is not None and frames < 0.9 * total:  # what a file says of itself is often a few frames off
        logger.warning("%s says that it holds %d frames, but only %d can be read: is it whole?", source, total, frames)
    summary = {
        "video": str(source),
        "frames": frames,
        "fps": info.fps,
        "height": info.height,
        "width": info.width,
        "names": list(vocabulary.foreground),
        "background": list(vocabulary.background),
        "mean_fractions": [float(share) for share in shares / frames],
    }
    json_file = target.with_suffix(".json")
    with atomic_path(json_file) as temporary:
        text = json.dumps(summary, ensure_ascii=False, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names that are not text
    return target, json_file
