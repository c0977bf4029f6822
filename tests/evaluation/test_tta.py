from __future__ import annotations

import math

import evaluation_standin as standin
import pytest
import torch
from detectron2.modeling import DatasetMapperTTA
from torch import nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.evaluation.tta import SlidingWindow, TestTimeAugmentation, augmented_model


class PixelModel(nn.Module):
    """Scores = the channels of the image, resized; notes every size that it is asked for."""

    def __init__(self, gain: bool = False) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []
        self.words: list[object] = []
        self.gain = gain

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        assert len(batched_inputs) == 1  # one forward pass per view
        (sample,) = batched_inputs
        self.sizes.append(tuple(sample["image"].shape[-2:]))
        self.words.append((sample.get("class_names"), sample.get("meta")))
        scores = sample["image"].float()
        if self.gain:
            scores = scores * len(self.sizes)
        size = (sample["height"], sample["width"])
        if "proposals" in sample.get("outputs", ("sem_seg",)):
            return [{"proposals": torch.ones(2, *size, dtype=torch.bool)}]
        return [{"sem_seg": F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]}]


def make_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(height)).to(torch.uint8)


def test_mean_over_sizes_and_mirror_images():
    model = PixelModel()
    image = make_image(20, 30)
    wrapped = TestTimeAugmentation(model, DatasetMapperTTA([20, 40], 400, True))
    result = wrapped([{"image": image, "height": 25, "width": 37, "class_names": ["a", "b", "c"]}])[0]
    assert model.sizes == [(20, 30), (20, 30), (40, 60), (40, 60)]
    assert model.words == [(["a", "b", "c"], None)] * 4
    assert set(result) == {"sem_seg"}
    views = DatasetMapperTTA([20, 40], 400, True)({"image": image, "height": 25, "width": 37})
    expected = torch.zeros(3, 25, 37)
    for index, view in enumerate(views):
        scores = F.interpolate(view["image"][None].float(), size=(25, 37), mode="bilinear", align_corners=False)[0]
        expected += (scores.flip(-1) if index % 2 else scores) / 4
    torch.testing.assert_close(result["sem_seg"], expected)


def test_mirror_image_is_turned_back():
    image = make_image(16, 24)
    wrapped = TestTimeAugmentation(PixelModel(), DatasetMapperTTA([16], 400, True))
    torch.testing.assert_close(wrapped([{"image": image}])[0]["sem_seg"], image.float())


def test_outputs_that_were_asked_for():
    image = make_image(16, 24)
    wrapped = TestTimeAugmentation(SlidingWindow(PixelModel(), 8, 0.5), DatasetMapperTTA([16], 400, False))
    answer = wrapped([{"image": image, "outputs": ("label_map", "proposals")}])[0]
    assert set(answer) == {"label_map", "score_map", "proposals"}
    torch.testing.assert_close(answer["label_map"], image.float().argmax(0))
    torch.testing.assert_close(answer["score_map"], image.float().amax(0))
    assert answer["proposals"].shape == (2, 16, 24)


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [(20, 31, 8, 0.667), (20, 31, 8, 0), (5, 31, 8, 0.5)])
def test_sliding_window_covers_every_pixel_and_averages(height, width, tile, overlap):
    image = make_image(height, width).float()
    model = PixelModel(gain=True)  # the n-th tile answers n times the image
    result = SlidingWindow(model, tile, overlap)([{"image": image}])[0]["sem_seg"]
    stride = math.ceil(tile * (1 - overlap))
    number, total, count = 0, torch.zeros(3, height, width), torch.zeros(height, width)
    top = -stride
    while top + tile < height or top < 0:
        top = min(top + stride, max(height - tile, 0))
        left = -stride
        while left + tile < width or left < 0:
            left = min(left + stride, max(width - tile, 0))
            number += 1
            total[:, top : top + tile, left : left + tile] += number * image[:, top : top + tile, left : left + tile]
            count[top : top + tile, left : left + tile] += 1
    assert len(model.sizes) == number
    assert set(model.sizes) == {(min(tile, height), min(tile, width))}
    torch.testing.assert_close(result, total / count)


def test_sliding_window_resizes_to_the_output():
    image = make_image(20, 31)
    result = SlidingWindow(PixelModel(), 8, 0.5)([{"image": image, "height": 41, "width": 50}])[0]["sem_seg"]
    expected = F.interpolate(image[None].float(), size=(41, 50), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(result, expected)


def test_sliding_window_refuses_what_it_cannot_do():
    with pytest.raises(OvsegError, match="SLIDING_TILE_SIZE is 0"):
        SlidingWindow(PixelModel(), 0, 0.5)
    with pytest.raises(OvsegError, match=r"SLIDING_OVERLAP is 1\.0"):
        SlidingWindow(PixelModel(), 8, 1.0)


def test_configuration_decides(tmp_path):
    model = PixelModel()
    assert augmented_model(standin.configuration(tmp_path), model) is model
    window = augmented_model(standin.configuration(tmp_path, "TEST.SLIDING_WINDOW", True), model)
    assert isinstance(window, SlidingWindow)
    assert (window.tile_size, window.stride) == (224, 75)
    both = augmented_model(
        standin.configuration(tmp_path, "TEST.SLIDING_WINDOW", True, "TEST.AUG.ENABLED", True), model
    )
    assert isinstance(both, TestTimeAugmentation)
    assert isinstance(both.model, SlidingWindow)
