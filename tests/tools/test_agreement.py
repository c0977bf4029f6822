from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ovseg.data.protocol import Protocol
from ovseg.errors import OvsegError
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary
from tests.scripts import load_script
from tests.tiny_model import make_tiny_model

WORDS = Vocabulary.from_words(["cat", "dog", "sky"])


def test_settings_are_compared(tmp_path, capsys):
    config, weights = make_tiny_model(tmp_path)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    command = ["--config", str(config), "--input", str(tmp_path), "--images", "2", "--words", "cat, dog"]
    command += ["--change", "MODEL.NAMER.MAX_CROPS 1000", "--change", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE False"]
    load_script("tools/agreement.py").main([*command, "--opts", "MODEL.WEIGHTS", str(weights), "--device", "cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["settings", "as configured", *command[-3::2]]
    assert cells[1][1] == cells[2][1] == "100.00" and 0 <= float(cells[3][1]) < 100
    assert cells[1][3] == "1.00" and "mIoU" not in " ".join(cells[0])


class Answers:
    """Stands in for a segmenter: one label map."""

    def __init__(self, labels, score: float = 1.0):
        self.labels, self.scores = np.array(labels), np.full(np.shape(labels), score, np.float32)

    def __call__(self, pixels, vocabulary):
        return Segmentation.from_maps(self.labels, self.scores, vocabulary.foreground, pixels)


class Truth:
    class_names, ignore_label = ("background", "animal"), 255

    def labels(self, sample):
        return np.array([[0, 1, 1, 255]]), "labels.png"


def test_classes_and_scores_of_a_data_set(tmp_path):
    """Words that are no classes, a threshold, an ignored pixel; and pixels without a class."""
    tool, sample = load_script("tools/agreement.py"), {"file_name": str(tmp_path / "a.png")}
    Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(sample["file_name"])
    protocol = Protocol(
        "d", "t", "names", WORDS, Truth.class_names, (1, 1, 0), 255, "threshold", threshold=0.5, background_id=0
    )
    rows = [
        tool.Row("right", Answers([[2, 0, 1, 0]])),
        tool.Row("other", Answers([[0, 0, 1, 0]])),
        tool.Row("low", Answers([[0, 1, 1, 1]], 0.1)),
    ]
    tool._segment(rows, sample, WORDS, protocol, Truth())
    assert [row.equal for row in rows] == [4, 3, 1]
    assert [row.confusion[:2, :2].tolist() for row in rows] == [[[1, 0], [0, 2]], [[0, 0], [1, 2]], [[1, 2], [0, 0]]]
    with pytest.raises(OvsegError, match=r"^none: .*a.png has unlabelled pixels, which have no class"):
        tool._segment([tool.Row("none", Answers([[0, -1, 0, 0]]))], sample, WORDS, protocol, Truth())
