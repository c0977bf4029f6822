"""The automatic mask generator, on a hand-made decoder that returns known masks for each point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ovseg.proposals.point_grid import (
    PointGrid,
    crop_boxes,
    inclusive_boxes,
    point_grid,
    stability,
    touches_crop,
    without_small_parts,
)

HEIGHT, WIDTH = 40, 60
CANVAS = 300, 400
ALL = PointGrid(points_per_side=2, iou_threshold=0, stability_threshold=0, nms_threshold=1)


class Boxes:
    """Predictor of given boxes, of the full size: those that hold a point, in the order of the list, else nothing.

    Args:
        boxes: x0, y0, x1, y1 (ends exclusive), score, logit inside and outside.
    """

    masks_per_point = 2

    def __init__(self, *boxes):
        self.boxes, self.points, self.enlarged = boxes, [], []

    def encode(self, image):
        return tuple(int(value) for value in image[:2, 0, 0])  # the place of the first pixel

    def decode(self, encoded, points):
        left, top = encoded
        logits = torch.full((len(points), self.masks_per_point, *CANVAS), -9.0)
        scores = torch.zeros(len(points), self.masks_per_point)
        for row, (x, y) in enumerate((points + torch.tensor([left, top])).tolist()):
            self.points.append((x, y))
            hits = [box for box in self.boxes if box[0] <= x < box[2] and box[1] <= y < box[3]]
            for column, (x0, y0, x1, y1, score, inside, outside) in enumerate(hits[: self.masks_per_point]):
                logits[row, column] = outside
                logits[row, column, max(0, y0 - top) : max(0, y1 - top), max(0, x0 - left) : max(0, x1 - left)] = inside
                scores[row, column] = score
        return logits, scores

    def enlarge(self, logits, size):
        self.enlarged.append(len(logits))
        return logits[:, : size[0], : size[1]]


def place_image(height=HEIGHT, width=WIDTH):
    """Return an image whose first two channels are the place of each pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y, x)).float()


def boxes_of(masks):
    return [tuple(int(end) for end in box) for box in inclusive_boxes(masks) + torch.tensor([0, 0, 1, 1])]


def test_points_are_the_centres_of_cells_row_by_row():
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    predictor = Boxes()
    masks, scores = ALL.generate(predictor, place_image())
    assert predictor.points == [(15, 10), (45, 10), (15, 30), (45, 30)]
    assert masks.shape == (0, HEIGHT, WIDTH) and masks.dtype == torch.bool and len(scores) == 0


@pytest.mark.parametrize("at_a_time", [1, 3, 64])
def test_masks_come_by_descending_score_however_many_points_at_a_time(at_a_time):
    predictor = Boxes((0, 0, 30, 20, 0.5, 9, -9), (30, 0, 60, 20, 0.9, 9, -9), (0, 0, 60, 40, 0.7, 9, -9))
    grid = replace(ALL, points_at_a_time=at_a_time, nms_threshold=0.99)
    masks, scores = grid.generate(predictor, place_image())
    assert boxes_of(masks) == [(30, 0, 60, 20), (0, 0, 60, 40), (0, 0, 30, 20)]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.5]))
    assert masks[0].sum() == 30 * 20


def test_thresholds():
    # one mask in each quarter; the score must exceed its threshold
    scores = (0.88, 0.89, 0.95, 0.95)
    soft = (9, 9, 9, 0.5)  # the last one vanishes at a threshold of 1
    quarters = [(0, 0, 30, 20), (30, 0, 60, 20), (0, 20, 30, 40), (30, 20, 60, 40)]
    predictor = Boxes(*[(*box, s, inside, -9) for box, s, inside in zip(quarters, scores, soft, strict=True)])
    found = boxes_of(PointGrid(points_per_side=2).generate(predictor, place_image())[0])
    assert found == [quarters[2], quarters[1]]
    loose = PointGrid(points_per_side=2, stability_offset=0.25).generate(predictor, place_image())[0]
    assert set(boxes_of(loose)) == set(quarters[1:])
    assert len(boxes_of(ALL.generate(predictor, place_image())[0])) == 4
    assert predictor.enlarged[:2] == [3, 2]  # masks below the predicted IoU are never enlarged


def test_stability_is_the_iou_of_two_thresholds():
    logits = torch.tensor([[[3.0, 2, 1, -0.5], [-2, -2, -2, -2]], [[-5.0] * 4] * 2])
    found = stability(logits, 1.0)
    assert found[0] == 2 / 4  # above 1: two, above -1: four
    assert found[1].isnan()
    assert stability(logits[:1], 2.5).tolist() == [1 / 8]


def test_duplicates_by_their_boxes():
    predictor = Boxes((0, 0, 20, 20, 0.8, 9, -9), (0, 0, 20, 16, 0.9, 9, -9), (2, 2, 60, 40, 0.6, 9, -9))
    masks, _ = PointGrid(2, 64, 0, 0).generate(predictor, place_image())
    assert boxes_of(masks) == [(0, 0, 20, 16), (2, 2, 60, 40)]  # the box with IoU 0.8 and the lower score is gone
    masks, _ = PointGrid(2, 64, 0, 0, nms_threshold=0.85).generate(predictor, place_image())
    assert boxes_of(masks) == [(0, 0, 20, 16), (0, 0, 20, 20), (2, 2, 60, 40)]


def test_crops_of_the_paper():
    boxes = list(crop_boxes(300, 400, 2, 0.5))
    assert boxes[0] == (0, (0, 0, 400, 300))
    assert [layer for layer, _ in boxes] == [0] + [1] * 4 + [2] * 16
    # layer 1: overlap 0.5 x 300 = 150; width ceil((150 + 400) / 2) = 275, height 225
    assert [box for _, box in boxes[1:5]] == [
        (0, 0, 275, 225),
        (0, 75, 275, 300),
        (125, 0, 400, 225),
        (125, 75, 400, 300),
    ]
    # layer 2: overlap 75; width ceil((3 x 75 + 400) / 4) = 157, height ceil(525 / 4) = 132
    assert boxes[5][1] == (0, 0, 157, 132) and boxes[-1][1] == (246, 171, 400, 300)


def test_touching_the_edge_of_a_crop():
    boxes = torch.tensor([[30.0, 30, 60, 60], [15, 30, 60, 60], [30, 30, 95, 60], [30, 0, 60, 60]])
    assert touches_crop(boxes, (0, 0, 100, 100), (0, 0, 200, 200)).tolist() == [False, False, True, False]
    assert not touches_crop(boxes, (0, 0, 100, 100), (0, 0, 100, 100)).any()
    assert touches_crop(boxes + 100, (100, 100, 200, 200), (0, 0, 200, 200)).tolist() == [False, True, False, True]


def test_masks_of_crops():
    """Crops find a small object that the grid of the image misses; what they cut is dropped, and so are duplicates."""
    small, large = (260, 190, 290, 220, 0.7, 9, -9), (30, 40, 350, 260, 0.9, 9, -9)
    grid = PointGrid(3, 64, 0, 0, crop_layers=1)
    predictor = Boxes(small, large)
    assert boxes_of(replace(grid, crop_layers=0).generate(predictor, place_image(300, 400))[0]) == [large[:4]]
    predictor = Boxes(small, large)
    masks, _ = grid.generate(predictor, place_image(300, 400))
    assert boxes_of(masks) == [small[:4], large[:4]]  # of the smallest crop first
    assert masks[0].sum() == 900 and masks[1].sum() == 320 * 220
    assert len(predictor.points) == 5 * 9
    coarse = Boxes(small, large)
    replace(grid, crop_downscale=2).generate(coarse, place_image(300, 400))
    assert len(coarse.points) == 9 + 4  # one point in each crop


def test_memory_is_bounded_by_a_few_enlarged_masks():
    predictor = Boxes((0, 0, 60, 40, 0.9, 9, -9), (0, 0, 59, 40, 0.9, 9, -9))
    replace(ALL, points_per_side=16, nms_threshold=0.5).generate(predictor, place_image())
    assert max(predictor.enlarged) == 16
    assert predictor.enlarged[-1] == 1  # one is left, and it alone is enlarged at the end


def test_small_parts_and_holes():
    mask = np.zeros((10, 10), bool)
    mask[1:7, 1:7] = True
    mask[3, 3] = mask[4, 4] = False  # one hole of two pixels, by a corner
    mask[9, 9] = True
    same, changed = without_small_parts(mask, 1)
    assert not changed and (same == mask).all()
    without_part, changed = without_small_parts(mask, 2)
    assert changed and not without_part[9, 9] and not without_part[3, 3]
    clean, changed = without_small_parts(mask, 3)
    assert changed and clean.sum() == 36
    only, changed = without_small_parts(mask, 50)  # the background, and so the hole, too
    assert changed and only.sum() in (36, 98, 100)
    lone = np.zeros((10, 10), bool)
    lone[5, 5:7] = True
    kept, changed = without_small_parts(lone, 4)
    assert not changed and kept.sum() == 2


def test_unchanged_masks_come_before_cleaned_ones():
    class Holed(Boxes):
        def decode(self, encoded, points):
            logits, scores = super().decode(encoded, points)
            logits[:, 0, 10, 10] = -9  # a hole in the first answer
            return logits, scores

    predictor = Holed((5, 5, 55, 35, 0.9, 9, -9), (5, 5, 54, 35, 0.5, 9, -9))
    masks, scores = replace(ALL, nms_threshold=0.99).generate(predictor, place_image())
    assert len(masks) == 2 and not masks[0, 10, 10]
    masks, scores = replace(ALL, nms_threshold=0.99, min_area=4).generate(predictor, place_image())
    assert boxes_of(masks) == [(5, 5, 54, 35), (5, 5, 55, 35)] and masks[:, 10, 10].all()
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.9]))
