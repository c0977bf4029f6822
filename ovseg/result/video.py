"""Segmentation of a video, frame by frame."""

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
from ovseg.io.files import atomic_path, write_text
from ovseg.result.drawing import colors_of

if TYPE_CHECKING:
    from ovseg.result.segmentation import Segmentation
    from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def segment_video(
    segmenter: Callable[[np.ndarray, Vocabulary], Segmentation],
    source: Path,
    vocabulary: Vocabulary,
    target: Path,
    on_frame: Callable[[int, int | None], None] = lambda done, total: None,
) -> tuple[Path, Path]:
    """Write a video with coloured and named regions (without sound), then a JSON summary next to it.

    Args:
        segmenter: segments an RGB frame, (H,W,3) uint8, such as :class:`~ovseg.segmenter.Segmenter`.
        source: video that OpenCV can read.
        vocabulary: words.
        target: ``.mp4`` file.
        on_frame: called after each frame with the number of finished frames and the total, if known.

    Returns:
        paths of the video and of the JSON file, which holds the names and the mean share of the frames of each word.

    Raises:
        OvsegError: the video cannot be read or has no frames, or OpenCV cannot write videos on this machine.
    """
    if not source.is_file():
        raise OvsegError(f"there is no video {source}")
    try:
        info = sv.VideoInfo.from_video_path(str(source))
    except Exception as error:  # supervision raises a bare Exception
        raise OvsegError(f"{source} is not a video that OpenCV can read, or it is damaged") from error
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
                raise OvsegError(f"OpenCV cannot write the video {target} on this machine") from error
            raise
        if frames == 0:
            raise OvsegError(f"{source} holds no frame that can be read")
        if cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT) < 1:  # OpenCV reports no errors
            raise CannotWrite(f"{target} could not be written completely, the disk may be full: free some space")
    if total is not None and frames < 0.9 * total:  # headers are often wrong by a few frames
        logger.warning("%s should have %d frames, but only %d can be read: is it complete?", source, total, frames)
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
    write_text(json_file, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return target, json_file
