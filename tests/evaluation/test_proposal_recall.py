from __future__ import annotations

from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.evaluation.proposal_recall import ProposalRecallEvaluator
from ovseg.evaluation.proposals import segment_ious


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
        assert scores[f"recall@0.5{suffix}"] == pytest.approx(100 * np.mean(np.array(values) >= 0.5))
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
    name = "evaluation_half"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
    sample = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "a.png")}
    try:
        evaluator = ProposalRecallEvaluator(name)
        evaluator.process([sample], [{"proposals": torch.tensor([[[True, False, True, True]]])}])
        assert evaluator.evaluate()["proposals"] == {"recall@0.5": 100, "mean-best-IoU": 50, "segments": 1}
        evaluator.reset()
        evaluator.process([sample], [{"proposals": torch.zeros(0, 1, 4, dtype=torch.bool)}])
        assert evaluator.evaluate()["proposals"] == {"recall@0.5": 0, "mean-best-IoU": 0, "segments": 1}
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_errors_name_the_file(data_folder: Path):
    sample = DatasetCatalog.get(standin.NAME)[0]
    with pytest.raises(OvsegError, match=r"0\.png have size \(3, 4\)"):
        ProposalRecallEvaluator(standin.NAME).process([sample], [{"proposals": torch.ones(2, 3, 4).bool()}])
