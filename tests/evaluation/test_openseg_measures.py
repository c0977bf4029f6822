"""Measures of OpenSeg's evaluation that are functions of tensors."""

import numpy as np
import pytest
import torch

from ovseg.data.protocol import protocol_of
from ovseg.errors import OvsegError
from ovseg.evaluation.background import fold_background
from ovseg.evaluation.grounding import present_only
from ovseg.evaluation.proposals import best_ious, recall_at, segment_ious


def test_best_ious_of_masks_that_overlap():
    proposals = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 1, 1]]]).bool()
    masks = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]]).bool()
    assert best_ious(proposals, masks).tolist() == [0.75, 1.0, 0.0]
    ignore = torch.tensor([[0, 0, 1, 1]]).bool()
    found = best_ious(proposals, masks, ignore)
    assert found.tolist() == [1.0, 1.0, 0.0] and found.dtype == torch.float64
    assert best_ious(proposals[:0], masks).tolist() == [0.0, 0.0, 0.0]
    assert best_ious(proposals, masks[:0]).shape == (0,)


def test_best_ious_are_those_of_disjoint_segments():
    torch.manual_seed(0)
    proposals, segments = torch.rand(5, 9, 11) > 0.5, torch.randint(0, 4, (9, 11))
    masks = segments == torch.arange(4)[:, None, None]
    expected = segment_ious(proposals.flatten(1), segments.flatten()).amax(0)
    assert torch.equal(best_ious(proposals, masks), expected)


def test_more_pixels_than_are_counted_at_a_time():
    proposals = torch.zeros(1, 300, 300, dtype=torch.bool)
    proposals[0, :299] = True
    assert best_ious(proposals, torch.ones_like(proposals)).item() == 299 / 300


def test_recall_counts_an_exact_hit():
    assert recall_at(torch.tensor([0.5, 0.49, 0.95, 0.7]), [0.5, 0.9]) == [75.0, 25.0]
    assert np.isnan(recall_at(torch.zeros(0), [0.5])).all()


def test_classes_that_an_image_lacks_are_never_the_argmax():
    scores, labels = torch.arange(24.0).reshape(4, 2, 3), torch.tensor([[0, 0, 2], [255, 2, 2]])
    found = present_only(scores, labels, 255)
    assert found[[1, 3]].eq(-torch.inf).all() and torch.equal(found[[0, 2]], scores[[0, 2]])
    assert torch.equal(present_only(scores, torch.full((2, 3), 255), 255), scores)
    with pytest.raises(OvsegError, match="label 4"):
        present_only(scores, labels + 4, None)


def test_background_is_folded_as_by_the_protocol():
    protocol = protocol_of("pascalvoc20b_sem_seg_val")
    labels = torch.arange(len(protocol.vocabulary))
    assert len(labels) == 59
    assert fold_background(labels, 20).tolist() == protocol.classes_of(labels.numpy()).tolist()
    assert labels.tolist() == list(range(59))
