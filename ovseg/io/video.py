"""Frames of video files, cameras and streams."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import supervision as sv

from ovseg.errors import OvsegError
from ovseg.io.inputs import live_name

PATIENCE = 10.0  # seconds in which a camera or stream must answer, and give each further frame
HIGHEST_RATE = 30.0  # frames a second of a recording


class Frames(Protocol):
    """What is known of a video, and its frames.

    Attributes:
        name: for messages and summaries.
        fps: frames per second.
        size: height, width.
        total: number of frames, if known.
        live: the video has no end of its own: Ctrl-C ends it.
    """

    name: str
    fps: float
    size: tuple[int, int]
    total: int | None
    live: bool

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield time (seconds from the first frame) and pixels, (H,W,3) uint8 in BGR order, of each frame."""
        ...


class VideoFile:
    """All frames of a file that OpenCV can read; see :class:`Frames`.

    Raises:
        OvsegError: the file is missing or cannot be read.
    """

    live = False

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        if not path.is_file():
            raise OvsegError(f"there is no video {path}")
        try:
            info = sv.VideoInfo.from_video_path(str(path))
        except Exception as error:  # supervision raises a bare Exception
            raise OvsegError(f"{path} is not a video that OpenCV can read, or it is damaged") from error
        if info.width <= 0 or info.height <= 0:
            raise OvsegError(f"{path} is damaged: it has no size")
        self.fps = info.fps if 0 < info.fps < 1000 else 25.0
        self.size = info.height, info.width
        self.total = info.total_frames if info.total_frames and info.total_frames > 0 else None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        for number, frame in enumerate(sv.get_video_frames_generator(str(self.path))):
            yield number / self.fps, frame


class LiveVideo:
    """The newest frames of a camera or a stream; see :class:`Frames`.

    A thread reads all frames, and iterating gives the newest one that was not given yet: a slow model leaves frames out
    instead of falling behind.

    Args:
        source: index of a camera, or address of a stream that OpenCV can read, such as ``rtsp://...``.
        seconds: after which the video ends; None for no end.

    Raises:
        OvsegError: the camera or stream cannot be opened, or gives no frame.
    """

    total = None
    live = True

    def __init__(self, source: int | str, seconds: float | None = None):
        self.name, self.seconds = live_name(source), seconds
        self.ended = ""  # why there are no more frames
        with _quiet_opencv():
            self._capture = _open(source)
            got, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        if not got or frame is None:
            self.close()
            remedy = "is it connected, and does no other program use it" if isinstance(source, int) else "is it running"
            raise OvsegError(f"the {self.name} gives no frame: {remedy}?")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = min(rate, HIGHEST_RATE) if rate >= 1 else 25.0
        self.size = frame.shape[0], frame.shape[1]
        self._start = time.monotonic()
        self._newest: tuple[float, np.ndarray] | None = (0.0, frame)
        self._changed = threading.Condition()
        self._stopped = False
        self._reader = threading.Thread(target=self._read, name="ovseg camera", daemon=True)

    def _read(self) -> None:
        with _quiet_opencv():
            while not self._stopped:
                got, frame = self._capture.read()
                with self._changed:
                    if not got or frame is None:
                        self.ended = f"the {self.name} gives no more frames"
                    else:
                        self._newest = time.monotonic() - self._start, frame
                    self._changed.notify()
                if self.ended:
                    return

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        self._reader.start()
        try:
            while (newest := self._take()) is not None:
                if self.seconds is not None and newest[0] >= self.seconds:
                    return
                yield newest
        finally:
            self._stopped = True
            self._reader.join(PATIENCE)
            if not self._reader.is_alive():  # otherwise it waits in the driver, whose memory must stay
                self.close()

    def close(self) -> None:
        """Release the camera or stream."""
        self._capture.release()

    def _take(self) -> tuple[float, np.ndarray] | None:
        """Return the newest frame that was not given yet, or None if there is none any more."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._newest is not None or self.ended, PATIENCE):
                self.ended = f"the {self.name} has given no frame for {PATIENCE:.0f} seconds"
            newest, self._newest = self._newest, None
            return newest


def _open(source: int | str) -> cv2.VideoCapture:
    if isinstance(source, int):
        return cv2.VideoCapture(source)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet, too
    limit = int(PATIENCE * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what becomes one sentence of ours."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
