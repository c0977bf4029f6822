"""Maps of class scores, and the loss of pixels."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Instances
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.naming.pixel_classes import CLASSES_AT_A_TIME, batch_labels, best_text, enlarged, pixel_loss
from ovseg.vocabulary import Vocabulary


def test_the_best_text_of_a_class_counts():
    words = Vocabulary.from_class_names([("cat", "kitten"), "dog", ("car", "van", "bus")])
    maps = torch.randn(2, 6, 4, 5)
    best = best_text(maps, words)
    expected = torch.stack((maps[:, :2].amax(1), maps[:, 2], maps[:, 3:].amax(1)), dim=1)
    assert torch.equal(best, expected)
    assert torch.equal(best_text(maps[0], words), expected[0])
    assert best_text(maps, Vocabulary.from_class_names(list("abcdef"))) is maps


def test_maps_are_enlarged_and_cut():
    maps = torch.randn(CLASSES_AT_A_TIME + 3, 4, 5)
    expected = F.interpolate(maps[None], (16, 20), mode="bilinear", align_corners=False)[0, :, :13, :17]
    assert torch.equal(enlarged(maps, (16, 20), (13, 17)), expected)


def test_labels_from_label_maps_and_from_instances():
    labels = torch.tensor([[0, 0, 255], [2, 2, 255]])
    truth = Instances((2, 3))
    truth.gt_classes = torch.tensor([0, 2])
    truth.gt_masks = torch.stack((labels == 0, labels == 2))
    image = torch.zeros(3, 2, 3)
    batch = batch_labels([{"image": image, "sem_seg": labels}, {"image": image, "instances": truth}], (4, 5), 255)
    assert batch.shape == (2, 4, 5)
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[0, :2, :3], labels)
    assert (batch[:, 2:] == 255).all() and (batch[:, :, 3:] == 255).all()
    with pytest.raises(OvsegError, match="neither sem_seg nor instances"):
        batch_labels([{"image": image}], (2, 3), 255)
    with pytest.raises(OvsegError, match=r"2 x 3 pixels but labels of \[3, 3\]"):
        batch_labels([{"image": image, "sem_seg": torch.zeros(3, 3)}], (4, 4), 255)


def test_loss():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    labels = torch.randint(-1, 3, (2, 4, 5))
    loss = pixel_loss(logits, labels, -1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, ignore_index=-1))
    nothing = pixel_loss(logits, torch.full_like(labels, 255), 255)  # F.cross_entropy would return NaN
    nothing.backward()
    assert nothing == 0 and (logits.grad == 0).all()
    with pytest.raises(OvsegError, match="a label is 3: give 0 to 2, or the ignore label 255"):
        pixel_loss(logits, torch.full_like(labels, 3), 255)
