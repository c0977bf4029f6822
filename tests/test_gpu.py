"""Models on a GPU give what they give on a CPU, and the host seldom waits for it; nothing is tested without a GPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from ovseg.config import load_cfg
from ovseg.segmenter import Segmenter
from ovseg.toy.scene import make_scene

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
TOY = Path(__file__).parents[1] / "configs" / "toy"
WORDS = ["red circle", "blue square", "grass", "sand", "water", "green triangle"]
SYNCHRONISATIONS = {"ovseg_toy.yaml": 1, "scan_toy.yaml": 2}  # of an image; SCAN draws patches on the host


def segmenter(config: str, device: str, *opts: object) -> Segmenter:
    return Segmenter.from_config(str(TOY / config), device=device, opts=list(opts))


@pytest.mark.parametrize("config", sorted(path.name for path in TOY.glob("*_toy.yaml")))
def test_the_gpu_gives_the_labels_of_the_cpu(config: str) -> None:
    if not Path(load_cfg(str(TOY / config)).MODEL.WEIGHTS).is_file():
        pytest.skip("no weights")
    image = make_scene(3).image
    expected, found = (segmenter(config, device)(image, WORDS).label_map for device in ("cpu", "cuda"))
    assert (found == expected).mean() > 0.995


@pytest.mark.parametrize("config", SYNCHRONISATIONS)
@pytest.mark.parametrize("opts", [(), ("MODEL.CUDA_GRAPHS", True)], ids=["plain", "graphs"])
def test_synchronisations(config: str, opts: tuple) -> None:
    model = segmenter(config, "cuda", *opts).model
    image = torch.from_numpy(make_scene(3).image.copy()).permute(2, 0, 1)
    request = {"image": image, "class_names": WORDS, "outputs": ("label_map",)}
    with torch.inference_mode():
        expected = model([request])[0]["label_map"].cpu()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                found = model([request])[0]["label_map"]
            finally:
                torch.cuda.set_sync_debug_mode("default")
    places = [f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)]
    assert len(places) <= SYNCHRONISATIONS[config], places
    assert torch.equal(found.cpu(), expected)


def test_recorded_networks_give_equal_labels() -> None:
    image, other = make_scene(3).image, make_scene(4).image[:200]
    plain, recorded = (segmenter("ovseg_toy.yaml", "cuda", "MODEL.CUDA_GRAPHS", graphs) for graphs in (False, True))
    for pixels in (image, other, image):
        assert (recorded(pixels, WORDS).label_map == plain(pixels, WORDS).label_map).mean() > 0.999
