"""A stream on this machine: frames, the newest ones, its ends."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import demo
from ovseg.cli.app import main
from ovseg.errors import OvsegError
from ovseg.io import video
from ovseg.io.inputs import live_name, live_source
from ovseg.io.video import LiveVideo
from ovseg.result.video import segment_video
from ovseg.vocabulary import Vocabulary
from tests.test_demo import Halves, names

PAUSE = 0.02  # seconds between two frames of a stream


class Camera(http.server.BaseHTTPRequestHandler):
    """A stream of Motion JPEG, as cameras in networks give; its path is the number of frames."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for k in range(int(self.path[1:])):
                side = 32 if k < 40 else 64  # a camera may change its size
                content = cv2.imencode(".jpg", np.full((side, side, 3), 5 * (k % 50), np.uint8))[1].tobytes()
                header = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                self.wfile.write(header.encode() + content + b"\r\n")
                time.sleep(PAUSE)
        except OSError:
            pass  # nobody looks any more

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def camera():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def halves(monkeypatch):
    for maker in ("from_config", "from_pretrained"):
        monkeypatch.setattr(f"ovseg.segmenter.Segmenter.{maker}", classmethod(lambda cls, *a, **k: Halves()))


WORDS = Vocabulary.from_words(["cat", "dog"])


def test_a_slow_reader_gets_the_newest_frames(camera):
    stream = LiveVideo(f"{camera}/60")
    times = []
    for seconds, frame in stream:
        assert frame.dtype == np.uint8 and frame.shape[2] == 3
        times.append(seconds)
        time.sleep(10 * PAUSE)
    assert stream.ended == "the stream 127.0.0.1 gives no more frames"
    assert 2 <= len(times) <= 20 and times == sorted(set(times))  # of 60 frames; each once


def test_a_recording_lasts_as_long_as_the_stream(camera, tmp_path):
    stream = LiveVideo(f"{camera}/100")
    start, ends = time.monotonic(), []
    segment_video(Halves(), stream, WORDS, tmp_path / "a.mp4", lambda *_: ends.append(time.monotonic()))
    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary["frames"] == len(ends) and summary["mean_fractions"] == [0.5, 0.5]
    recorded = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    shown = recorded.get(cv2.CAP_PROP_FRAME_COUNT) / recorded.get(cv2.CAP_PROP_FPS)
    assert shown == pytest.approx(ends[-1] - start, abs=1.0) and summary["seconds"] == pytest.approx(shown, abs=0.2)
    assert recorded.get(cv2.CAP_PROP_FRAME_WIDTH) == stream.size[1]


def test_ctrl_c_ends_a_recording_and_keeps_it(camera, here, monkeypatch, capfd):
    class Interrupted(Halves):
        def __call__(self, image, vocabulary):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(image, vocabulary)

    monkeypatch.setattr("ovseg.segmenter.Segmenter.from_config", classmethod(lambda cls, *a, **k: Interrupted()))
    assert demo.main(["--class-names", "cat", "dog", "--input", f"{camera}/500", "--output", "out"]) == 0
    summary, recording = names(here / "out")
    assert recording.startswith("stream-127.0.0.1-2") and recording.endswith(".mp4")
    assert json.loads((here / "out" / summary).read_text())["frames"] == 3
    assert cv2.VideoCapture(str(here / "out" / recording)).get(cv2.CAP_PROP_FRAME_COUNT) >= 1
    assert "Ctrl-C" in capfd.readouterr().err


def test_a_recording_of_some_seconds(camera, here, halves):
    command = ["segment", f"{camera}/5000", "--words", "cat, dog", "--model", "toy", "--output", "a.mp4"]
    main([*command, "--seconds", "0.5"])
    assert names(here) == ["a.json", "a.mp4"]


def test_a_silent_stream_ends(camera, monkeypatch):
    stream = LiveVideo(f"{camera}/5000")
    monkeypatch.setattr(video, "PATIENCE", 0.1)
    monkeypatch.setattr(stream, "_read", lambda: None)
    stream._reader = threading.Thread(target=stream._read)
    assert len(list(stream)) == 1 and "given no frame for" in stream.ended


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rtsp://anna:secret@127.0.0.1:9/x"], "the stream 127.0.0.1 gives no frame: is it running?"),
        (["987"], "the camera 987 gives no frame: is it connected"),
        (["rtsp://[::1/x"], "'rtsp://[::1/x' is not a valid address"),
        (["987", "--explain"], "--explain is for files, and the camera 987 is none: leave it out"),
        (["987", "a.png"], "the camera 987 has no end: give it as the only input"),
        (["https://example.org/a.jpg"], "is a web address, and nothing is downloaded"),
        (["demo", "--seconds", "3"], "--seconds is the length of a recording, but"),
    ],
)
def test_what_cannot_be_recorded(here, halves, capfd, arguments, said):
    (here / "demo").mkdir()
    cv2.imwrite("demo/a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(SystemExit) as stop:
        main(["segment", *arguments, "--words", "cat", "--output", "out"])
    err = capfd.readouterr().err
    assert stop.value.code == 2 and said in err.splitlines()[-1] and "secret" not in err and "Traceback" not in err
    assert not Path("out").exists()


def test_cameras_and_streams_among_inputs(here):
    (here / "7").mkdir()
    found = {"0": 0, "7": None, "12345": None, "a.png": None, "rtsp://h/x": "rtsp://h/x", "http://h/x.mp4": None}
    assert {given: live_source(given) for given in found} == found
    assert (live_name(3), live_name("rtsp://u:p@h:1/x?key=1")) == ("camera 3", "stream h")
    with pytest.raises(OvsegError, match="there is no video"):
        video.VideoFile(here / "x.mp4")
