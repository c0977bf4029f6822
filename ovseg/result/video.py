"""Segmentation of a video, a camera or a stream, frame by frame."""

from __future__ import annotations

import contextlib
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
from ovseg.io.video import Frames
from ovseg.result.drawing import colors_of

if TYPE_CHECKING:
    from ovseg.result.segmentation import Segmentation
    from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def segment_video(
    segmenter: Callable[[np.ndarray, Vocabulary], Segmentation],
    source: Frames,
    vocabulary: Vocabulary,
    target: Path,
    on_frame: Callable[[int, int | None, Segmentation], None] = lambda done, total, result: None,
) -> tuple[Path, Path]:
    """Write a video with coloured and named regions (without sound), then a JSON summary next to it.

    Each frame is shown until the time of the next one, so that a video of the frames that a slow model takes from a
    camera lasts as long as they did. Ctrl-C ends a live video, and what there is so far is written.

    Args:
        segmenter: segments an RGB frame, (H,W,3) uint8, such as :class:`~ovseg.segmenter.Segmenter`.
        source: a file, or a camera or stream.
        vocabulary: words.
        target: ``.mp4`` file.
        on_frame: called after each frame with the number of finished frames, the total, if known, and the result.

    Returns:
        paths of the video and of the JSON file, which holds the names and the mean share of the frames of each word.

    Raises:
        OvsegError: the video has no frames, or OpenCV cannot write videos on this machine.
    """
    height, width = source.size
    info = sv.VideoInfo(width=width, height=height, fps=source.fps)
    shares = np.zeros(len(vocabulary.foreground))
    colors: dict[int, sv.Color] = {}  # a word keeps its colour from frame to frame
    frames = written = 0
    drawing, last = None, 0.0  # last: time of the last frame
    with atomic_path(target) as temporary:
        try:
            with sv.VideoSink(str(temporary), info) as sink, contextlib.closing(iter(source)) as stream:
                try:
                    for last, frame in stream:
                        while drawing is not None and written < max(round(last * source.fps), 1):
                            sink.write_frame(drawing)
                            written += 1
                        if frame.shape[:2] != source.size:  # some streams change their size
                            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
                        result = segmenter(np.ascontiguousarray(frame[:, :, ::-1]), vocabulary)
                        colors = colors_of(result.found, colors)
                        drawing = np.ascontiguousarray(result.overlay(colors=colors)[:, :, ::-1])
                        shares += result.fractions
                        frames += 1
                        on_frame(frames, source.total, result)
                except KeyboardInterrupt:
                    if not source.live or drawing is None:
                        raise
                if drawing is not None:
                    sink.write_frame(drawing)
        except (RuntimeError, cv2.error) as error:
            if not temporary.exists():
                raise OvsegError(f"OpenCV cannot write the video {target} on this machine") from error
            raise
        if frames == 0:
            raise OvsegError(f"{source.name} holds no frame that can be read")
        if cv2.VideoCapture(str(temporary)).get(cv2.CAP_PROP_FRAME_COUNT) < 1:  # OpenCV reports no errors
            raise CannotWrite(f"{target} could not be written completely, the disk may be full: free some space")
    if source.total is not None and frames < 0.9 * source.total:  # headers are often wrong by a few frames
        logger.warning(
            "%s should have %d frames, but only %d can be read: is it complete?", source.name, source.total, frames
        )
    summary = {
        "video": source.name,
        "frames": frames,
        "fps": source.fps,
        "seconds": round(last + 1 / source.fps, 3),
        "height": height,
        "width": width,
        "names": list(vocabulary.foreground),
        "background": list(vocabulary.background),
        "mean_fractions": [float(share) for share in shares / frames],
    }
    json_file = target.with_suffix(".json")
    write_text(json_file, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return target, json_file
