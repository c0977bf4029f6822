"""Recall of true segments by proposals: of classes, panoptic segments, and masks that overlap."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.evaluation import runner, true_segments
from ovseg.evaluation.comparison import compare
from ovseg.evaluation.proposal_recall import ProposalRecallEvaluator
from ovseg.evaluation.proposals import segment_ious
from ovseg.evaluation.record import read_record
from ovseg.io.run_lengths import decode_mask


@contextlib.contextmanager
def registered(name, records, **metadata):
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255, **metadata)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def brute_force(proposals: np.ndarray, labels: np.ndarray, ignore: int) -> dict[int, float]:
    """Best IoU of each class's pixels, counted with sets."""
    best = {}
    for label in set(labels.ravel().tolist()) - {ignore}:
        truth = {tuple(p) for p in np.argwhere(labels == label)}
        best[label] = 0.0
        for proposal in proposals:
            found = {tuple(p) for p in np.argwhere(proposal & (labels != ignore))}
            best[label] = max(best[label], len(truth & found) / len(truth | found))
    return best


def test_against_brute_force(data_folder):
    rng = np.random.default_rng(1)
    evaluator = ProposalRecallEvaluator(standin.NAME)
    best: list[tuple[int, float]] = []
    for sample in DatasetCatalog.get(standin.NAME):
        labels = np.array(Image.open(sample["sem_seg_file_name"]))
        noise = rng.random((4, *labels.shape)) < 0.3
        proposals = np.stack([labels == label for label in range(4)]) ^ noise
        best += brute_force(proposals, labels, 255).items()
        evaluator.process([sample], [{"proposals": torch.from_numpy(proposals)}])
    scores = evaluator.evaluate()["proposals"]
    for suffix, classes in (("", range(5)), ("-base", [0, 1, 2]), ("-novel", [3, 4])):
        values = [iou for label, iou in best if label in classes]
        for threshold in (0.5, 0.7, 0.9):
            share = 100 * np.mean(np.array(values) >= threshold)
            assert scores[f"recall@{threshold}{suffix}"] == pytest.approx(share)
        assert scores[f"mean-best-IoU{suffix}"] == pytest.approx(100 * np.mean(values), abs=1e-6)
        assert scores[f"segments{suffix}"] == len(values)
    assert 0 < scores["recall@0.5"] < 100


def test_exact_beyond_one_chunk_of_pixels():
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(0, 3, (200_000,), generator=generator)
    proposals = torch.rand(2, 200_000, generator=generator) < 0.5
    ious = segment_ious(proposals, segments)
    for q in range(2):
        for s in range(3):
            inter = (proposals[q] & (segments == s)).sum().item()
            union = (proposals[q] | (segments == s)).sum().item()
            assert ious[q, s].item() == inter / union


def test_one_half_counts_as_found_and_ignored_pixels_do_not_count(tmp_path):
    Image.fromarray(np.array([[0, 0, 255, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    sample = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    with registered("evaluation_half", []) as name:
        evaluator = ProposalRecallEvaluator(name)
        evaluator.process([sample], [{"proposals": torch.tensor([[[True, False, True, True]]])}])
        none = {"recall@0.7": 0, "recall@0.9": 0, "segments": 1}
        assert evaluator.evaluate()["proposals"] == {"recall@0.5": 100, "mean-best-IoU": 50, **none}
        evaluator.reset()
        evaluator.process([sample], [{"proposals": torch.zeros(0, 1, 4, dtype=torch.bool)}])
        assert evaluator.evaluate()["proposals"] == {"recall@0.5": 0, "mean-best-IoU": 0, **none}


def test_panoptic_segments_are_instances_without_crowds_and_void(tmp_path):
    """Ids 1 and 256 + 2 are two cats, 3 a crowd of cats, 65536 sky; 0 is void, and one pixel is ignored."""
    ids = np.array([[1, 1, 258, 258], [3, 3, 0, 65536], [65536, 65536, 65536, 65536]])
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "segments.png")
    labels = np.array([[1, 1, 1, 1], [1, 1, 255, 0], [0, 0, 0, 255]], dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    segments = [{"id": number, "iscrowd": int(number == 3)} for number in (1, 258, 3, 65536)]
    record = {
        "file_name": str(tmp_path / "a.jpg"),
        "sem_seg_file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "segments.png"),
        "segments_info": segments,
    }
    # exactly the second cat with crowd, void and ignored pixels; nothing finds the first one; half of the sky and more
    proposals = np.stack(
        [(ids == 258) | (ids == 3) | (ids == 0) | (labels == 255), (ids == 65536) & (np.arange(4) < 3)]
    )
    (tmp_path / "list.json").write_text(
        json.dumps({"annotations": [{"file_name": "a.png", "segments_info": segments}]})
    )
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "segments.png", tmp_path / "folder" / "a.png")
    places = {"panoptic_root": str(tmp_path / "folder"), "panoptic_json": str(tmp_path / "list.json")}
    plain = {key: record[key] for key in ("file_name", "sem_seg_file_name")}
    for of_image, metadata in ((record, {}), (plain, places)):
        with registered("evaluation_panoptic", [of_image], evaluation_set={"cats": [1]}, **metadata) as name:
            evaluator = ProposalRecallEvaluator(name)
            assert evaluator.describe() == {"segments": "panoptic", "thresholds": [0.5, 0.7, 0.9]}
            evaluator.process([of_image], [{"proposals": torch.from_numpy(proposals)}])
            scores = evaluator.evaluate()["proposals"]
            assert (scores["segments"], scores["segments-cats"]) == (3, 2)
            found = [scores[f"recall@{threshold}"] for threshold in (0.5, 0.7, 0.9)]
            assert found == pytest.approx([200 / 3, 200 / 3, 100 / 3]) and scores["recall@0.9-cats"] == 50
            assert scores["mean-best-IoU-cats"] == 50
    with registered("evaluation_panoptic", [plain], **(places | {"panoptic_root": "gone"})) as name:
        assert ProposalRecallEvaluator(name).describe()["segments"] == "classes"
    Image.fromarray(rgb).save(tmp_path / "lossy.png", "JPEG")
    lossy = {**record, "pan_seg_file_name": str(tmp_path / "lossy.png")}
    with (
        registered("evaluation_panoptic", [lossy]) as name,
        pytest.raises(OvsegError, match=r"lossy\.png is a JPEG file with lossy compression"),
    ):
        ProposalRecallEvaluator(name).process([lossy], [{"proposals": torch.from_numpy(proposals)}])


def test_true_masks_may_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr(true_segments, "PIXELS_AT_A_TIME", 7 * 20 * 30)
    whole, part, crowd = np.zeros((3, 20, 30), bool)
    whole[:10, :20] = part[2:6, 5:9] = crowd[15:, 25:] = True
    Image.fromarray(np.where(whole, 1, 0).astype(np.uint8)).save(tmp_path / "a.png")

    def annotation(mask, iscrowd=0):
        changes = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.reshape(-1), [False]]).astype(int)))
        counts = np.diff([0, *changes.tolist(), mask.size]).tolist()
        return {"segmentation": {"size": list(mask.shape), "counts": counts}, "iscrowd": iscrowd}

    record = {
        "file_name": "a.jpg",
        "sem_seg_file_name": str(tmp_path / "a.png"),
        "annotations": [annotation(whole), annotation(part), annotation(crowd, 1)],
    }
    assert (decode_mask(record["annotations"][0]["segmentation"]["counts"], 20, 30) == whole).all()
    rng = np.random.default_rng(0)
    proposals = np.stack([whole | crowd, *(part ^ (rng.random((18, 20, 30)) < 0.01))])  # more than are taken at a time
    without = {"file_name": "b.jpg", "sem_seg_file_name": str(tmp_path / "a.png"), "annotations": []}
    with registered("evaluation_overlap", [without, record]) as name:
        evaluator = ProposalRecallEvaluator(name)
        for image in (without, record):
            evaluator.process([image], [{"proposals": torch.from_numpy(proposals)}])
        scores = evaluator.evaluate()["proposals"]
        expected = [max(iou(mask & ~crowd, one & ~crowd) for one in proposals) for mask in (whole, part)]
        assert expected[0] == 1 and 0.5 < expected[1] < 1 and evaluator.describe()["segments"] == "masks"
        assert scores["mean-best-IoU"] == pytest.approx(50 * sum(expected)) and scores["recall@0.5"] == 100
        damaged = {**record, "annotations": [{"segmentation": {"size": [20, 30], "counts": [1]}}]}
        with pytest.raises(OvsegError, match=r"a\.jpg has an annotation without a usable run-length code"):
            evaluator.process([damaged], [{"proposals": torch.from_numpy(proposals)}])


def test_earlier_records_are_read_and_not_mixed_with_new_ones(data_folder):
    results = data_folder / "out" / "inference" / standin.NAME / "results.json"
    cfg = standin.configuration(data_folder / "out")
    runner.evaluate_all(cfg, standin.StandIn())
    written = json.loads(results.read_text())
    assert written["proposal_recall"] == {"segments": "classes", "thresholds": [0.5, 0.7, 0.9]}
    earlier = copy.deepcopy(written)
    del earlier["proposal_recall"], earlier["results"]["proposals"]["recall@0.7"]
    results.write_text(json.dumps(earlier))
    assert read_record(results, complete=True)["proposal_recall"] == {"segments": "classes", "thresholds": [0.5]}
    other = data_folder / "other.json"
    written["proposal_recall"]["segments"] = "panoptic"
    other.write_text(json.dumps(written))
    with pytest.raises(OvsegError, match=r"must not be compared: proposal_recall\.segments is classes / panoptic"):
        compare([results, other])
    earlier["fingerprint"] = "of another ovseg"
    results.write_text(json.dumps(earlier))
    scores = runner.evaluate_all(cfg, standin.StandIn(), resume=True)[standin.NAME]["proposals"]
    assert {"recall@0.5", "recall@0.7", "recall@0.9-base", "recall@0.9-novel"} <= scores.keys()


def test_errors_name_the_file(data_folder: Path):
    sample = DatasetCatalog.get(standin.NAME)[0]
    with pytest.raises(OvsegError, match=r"0\.png have size \(3, 4\)"):
        ProposalRecallEvaluator(standin.NAME).process([sample], [{"proposals": torch.ones(2, 3, 4).bool()}])
