from __future__ import annotations

import gc
import tracemalloc
import warnings
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator as Detectron2Evaluator
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.evaluation.predictions import RlePredictions, WorstImages
from ovseg.evaluation.sem_seg import SemSegEvaluator


def random_outputs(seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Inputs of the stand-in data set and, for each, random scores that never prefer class 3."""
    generator = torch.Generator().manual_seed(seed)
    inputs = DatasetCatalog.get(standin.NAME)
    outputs = []
    for sample in inputs:
        scores = torch.rand(len(standin.CLASSES), sample["height"], sample["width"], generator=generator)
        scores[3] = -1
        outputs.append({"sem_seg": scores})
    return inputs, outputs


def test_equals_detectron2s_evaluator(data_folder):
    """Detectron2 main divides by the classes with ground truth, 0.6 by the union: find out which one is here."""
    inputs, outputs = random_outputs()
    theirs = Detectron2Evaluator(standin.NAME, distributed=False)
    theirs.reset()
    ours = SemSegEvaluator(standin.NAME, convention="ground_truth")
    for sample, output in zip(inputs, outputs, strict=True):
        theirs.process([sample], [output])
        ours.process([sample], [output])
    their_scores, our_scores = theirs.evaluate()["sem_seg"], ours.evaluate()["sem_seg"]
    np.testing.assert_array_equal(ours.confusion, theirs._conf_matrix)
    for name, value in their_scores.items():
        clean = "-".join(part.strip() for part in name.split("-", 1))
        if name != "mIoU" and clean in our_scores:
            assert our_scores[clean] == pytest.approx(value, nan_ok=True), name
    assert {"fwIoU", "mACC", "pACC", "IoU-bus"} <= their_scores.keys()
    present = [value for name, value in their_scores.items() if name.startswith("IoU-") and not np.isnan(value)]
    assert our_scores["mIoU"] == pytest.approx(np.mean(present))
    assert any(our_scores[name] == pytest.approx(their_scores["mIoU"]) for name in ("mIoU-union", "mIoU-gt"))
    assert our_scores["mIoU-union"] < our_scores["mIoU-gt"]  # "water" is predicted and never true


def test_label_map_and_scores_give_the_same(data_folder):
    inputs, outputs = random_outputs()
    by_scores, by_labels = SemSegEvaluator(standin.NAME), SemSegEvaluator(standin.NAME)
    by_scores.process(inputs, outputs)
    by_labels.process(inputs, [{"label_map": output["sem_seg"].argmax(0)} for output in outputs])
    assert by_scores.evaluate()["sem_seg"] == pytest.approx(by_labels.evaluate()["sem_seg"], nan_ok=True)
    assert by_scores.confusion.sum() == sum(sample["height"] * sample["width"] for sample in inputs)


def test_post_process_comes_before_the_arg_max(data_folder):
    inputs, outputs = random_outputs()
    evaluator = SemSegEvaluator(standin.NAME, post_process=lambda sample, scores: -scores)
    evaluator.process(inputs, outputs)
    scores = evaluator.evaluate()["sem_seg"]
    assert scores["ACC-bus"] == pytest.approx(100)  # class 3 had the lowest scores everywhere
    assert scores["ACC-sky"] == 0


def test_memory_does_not_grow_with_the_number_of_images(data_folder):
    inputs, outputs = random_outputs()
    size = len(standin.CLASSES)
    rle = RlePredictions(data_folder / "out.json", data_folder / "out.jsonl", {})
    keepers = [rle, WorstImages(data_folder / "worst.npz", size, count=3)]
    evaluator = SemSegEvaluator(standin.NAME, keepers=keepers)
    held = []
    tracemalloc.start()
    for round_ in range(25):
        evaluator.process(inputs, outputs)
        if round_ in (4, 24):
            gc.collect()  # Pillow's files are in cycles
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    rle.close()
    assert evaluator.num_images == 25 * len(inputs)
    assert held[1] - held[0] < 30_000  # bytes; the 140 label maps of the last rounds alone are 1.5 MB


def test_sixteen_bit_tif_labels(tmp_path):
    Image.fromarray(np.array([[0, 300], [299, 65535]], dtype=np.uint16)).save(tmp_path / "a.tif")
    name = "evaluation_sixteen_bit"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(stuff_classes=[f"class {i}" for i in range(301)], ignore_label=65535)
    try:
        evaluator = SemSegEvaluator(name)
        sample = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.tif")}
        evaluator.process([sample], [{"label_map": torch.tensor([[0, 300], [300, 7]])}])
        scores = evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert scores["pACC"] == pytest.approx(100 * 2 / 3)
    assert (scores["IoU-class 300"], scores["IoU-class 299"]) == (pytest.approx(50), 0)


def break_labels(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "not an image":
        path.write_text("<html>404</html>")
    elif how == "colour":
        Image.new("RGB", (40, 24)).save(path)
    elif how == "out of range":
        labels = np.array(Image.open(path))
        labels[3, 3] = 77
        Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing"),
        ("truncated", "cannot be read"),
        ("not an image", "cannot be read"),
        ("colour", "single-channel"),
        ("out of range", "holds the label 77"),
    ],
)
def test_bad_label_files_are_named(data_folder, how, message):
    inputs, outputs = random_outputs()
    break_labels(Path(inputs[0]["sem_seg_file_name"]), how)
    with pytest.raises(OvsegError, match=message) as error, warnings.catch_warnings():
        SemSegEvaluator(standin.NAME).process(inputs[:1], outputs[:1])
    assert inputs[0]["sem_seg_file_name"] in str(error.value)


def test_other_errors(data_folder):
    inputs, outputs = random_outputs()
    with pytest.raises(OvsegError, match=r"0\.png has shape \(5, 6\)"):
        SemSegEvaluator(standin.NAME).process(inputs[:1], [{"label_map": torch.zeros(5, 6, dtype=torch.int64)}])
    with pytest.raises(OvsegError, match=r"elsewhere\.jpg is not part of data set 'evaluation_standin'"):
        SemSegEvaluator(standin.NAME).process([{"file_name": "elsewhere.jpg"}], outputs[:1])
    with pytest.raises(OvsegError, match="is empty"):
        SemSegEvaluator(standin.NAME).evaluate()
    with pytest.raises(OvsegError, match="no stuff_classes"):
        SemSegEvaluator("evaluation_no_such_data_set")
