"""Zero-shot naming of masked crops: what is counted."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from ovseg.adaptation.validation import Crops, ValidationSet, _WorldRegions, zero_shot
from ovseg.data.worlds import find_world
from ovseg.toy import CLASS_NAMES


class _Crops(torch.utils.data.Dataset):
    """Crops that hold their own features; class 2 is never asked for."""

    ranks = [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]]  # names in the order that each crop prefers
    labels = [0, 0, 1, 1]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int):
        rows = slice(2 * index, 2 * index + 2)
        features = torch.zeros(2, 3)
        for feature, rank in zip(features, self.ranks[rows], strict=True):
            feature[rank] = torch.tensor([3.0, 2.0, 1.0])
        return features.view(2, 3, 1, 1), torch.ones(2, 1, 1, 1).byte(), torch.tensor(self.labels[rows])


def test_accuracies_of_all_and_of_groups():
    data = ValidationSet(("a", "b", "c"), _Crops(), {"base": range(1), "novel": range(1, 3)})
    result = zero_shot(lambda crops, masks: crops.flatten(1), torch.eye(3), data, workers=0)
    assert result["crops"] == 4 and result["top1"] == 50 and result["top5"] == 100
    assert result["base_top1"] == 50 and result["novel_top1"] == 50
    assert result["mean_class_top1"] == pytest.approx(50), "over the two classes that are there"


def test_toy_regions_are_all_things_and_grounds():
    regions = _WorldRegions(find_world("toy"), "val", 2)
    for record, (crops, masks, labels) in zip(regions.records, Crops(regions, 16), strict=False):
        things = [thing["category_id"] for thing in record["things"]]
        assert labels.tolist()[: len(things)] == things
        pixels = cv2.imread(record["sem_seg_file_name"], cv2.IMREAD_UNCHANGED)
        instances = cv2.imread(record["instance_file_name"], cv2.IMREAD_UNCHANGED)
        assert sorted(labels.tolist()[len(things) :]) == np.unique(pixels[instances == 0]).tolist()
        assert crops.shape == (len(labels), 3, 16, 16) and masks.shape == (len(labels), 1, 16, 16)
        assert labels.max() < len(CLASS_NAMES) and masks.flatten(1).any(1).all()
