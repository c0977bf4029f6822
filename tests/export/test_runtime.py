"""The steps of ``runtime.py``, in NumPy, are those of the model, in PyTorch; its graphs are the modules themselves."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ovseg.clip.vit import squash
from ovseg.export import graphs as cuts
from ovseg.export.plan import Size, graphs_of
from ovseg.export.recipe import crops_of, described, fusion_of, numbers, recipe_of, regions_of, rendering_of
from ovseg.export.runtime import Runtime, resize
from ovseg.meta_arch.pixel_scores import AreaWeightedSum, ClassWinner, MaskSum
from ovseg.naming import GeometricMean, ObjectNormalizedMean, Scores, SeenUnseenMean, SingleNamer, TrainedRegions
from ovseg.naming.contextual_shift import ContextCrops, draw_patches, whole_images
from ovseg.naming.crops import has_pixel
from ovseg.naming.region_model import RegionModel
from ovseg.naming.selection import CropSelection
from ovseg.proposals.given_masks import GivenMasks
from ovseg.proposals.views import Masks
from ovseg.result.of_model import segmentation_of
from ovseg.vocabulary import Vocabulary
from tests.naming.test_pooled import random_state
from tests.tiny_clip import adapter_of, context_namer_of, convolutional_cfg, model_of, namer_of, tiny_cfg, views_of

pytest.importorskip("onnxruntime")
HEIGHT, WIDTH = 40, 56
TWO, ONE = Vocabulary.from_class_names(["cat", "dog"]), Vocabulary.from_class_names(["cat"])
MANY = Vocabulary.from_string("cat, kitty; dog; sofa").with_background(["sky"])
CHUNKS = Vocabulary.from_class_names([f"word {number}" for number in range(70)])
PLAIN = {"MASK_PROMPT_FWD": False}


class Session:
    """A module as a session of ONNX Runtime; ``order`` of its inputs, if their names are not those of arguments."""

    def __init__(self, module, order=(), outputs=()):
        self.module, self.order, self.outputs = module, order, outputs

    def get_outputs(self):
        return [SimpleNamespace(name=name) for name in self.outputs]

    @torch.no_grad()
    def run(self, _, inputs):
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        found = self.module(*(given[name] for name in self.order)) if self.order else self.module(**given)
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]


@pytest.fixture
def runtime_of(tmp_path):
    """Make a runtime of a recipe, whose graphs are modules."""

    def make(recipe, vocabulary=TWO, words=None, text=None, graphs=(), **modules):
        about = {
            "format": "onnx",
            "input": {"min_size": -1, "max_size": 0, "divisibility": 32, "size": None},
            "graphs": [],
            "text": "text.npy",
            "words": described(vocabulary, words or vocabulary),
            "recipe": recipe,
        }
        (tmp_path / "export.json").write_text(json.dumps(about))
        np.save(tmp_path / "text.npy", np.zeros((0, 16), np.float32) if text is None else text.numpy())
        runtime = Runtime(tmp_path)
        runtime.about["graphs"] = [{"name": graph.name, "inputs": described_inputs(graph)} for graph in graphs]
        runtime.sessions = {graph.name: Session(graph.module, list(graph.inputs), graph.outputs) for graph in graphs}
        runtime.sessions |= {name: Session(module) for name, module in modules.items()}
        return runtime

    return make


def described_inputs(graph):
    return {name: given.described for name, given in graph.inputs.items()}


def random_scores(masks, words, seed=0):
    """Probabilities whose sums are below 1."""
    return torch.randn(masks, words + 1, generator=torch.Generator().manual_seed(seed)).softmax(1)[:, :-1]


def random_masks(count=6, height=HEIGHT, width=WIDTH):
    """Smooth probabilities; the last mask has no pixel."""
    coarse = 3 * torch.randn(1, count, 4, 5, generator=torch.Generator().manual_seed(1))
    masks = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].sigmoid()
    masks[-1] = 0.1
    return masks


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return tiny_cfg(tmp_path_factory.mktemp("clip"))


def text_of(namer, vocabulary):
    return namer.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates).detach()


def same(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [TWO, ONE, MANY, CHUNKS], ids=["two", "one", "background", "chunks"])
@pytest.mark.parametrize("min_score", [None, 0.37])
@pytest.mark.parametrize(
    ("render", "granularity"),
    [
        (MaskSum(), None),
        (MaskSum(), 0.8),
        (ClassWinner(0.5), None),
        (ClassWinner(0.5, granularity=0.6), None),
        (AreaWeightedSum(), None),
    ],
)
def test_renderings(runtime_of, render, granularity, vocabulary, min_score):
    words = vocabulary.with_others() if len(vocabulary) == 1 else vocabulary
    scores, masks, size = random_scores(6, len(words)), random_masks(), (60, 70)
    scores[:2, :2] = torch.tensor([[0.9, 0.05], [0.02, 0.8]])
    asked = render if granularity is None else ClassWinner(0.5, granularity=granularity)
    result = asked(scores, masks, words, size, ("label_map",))
    expected = segmentation_of(result, vocabulary, np.zeros((*size, 3), np.uint8), None, min_score=min_score).label_map
    recipe = {"rendering": rendering_of(render, granularity, 0.5, min_score)}
    ours = runtime_of(recipe, vocabulary, words)._render(scores.numpy(), masks.numpy(), size)
    assert (ours == expected).mean() > 0.999
    if min_score is None:
        assert len(np.unique(expected)) > 1


def test_the_second_of_two_words_selects_a_mask(runtime_of):
    """It does not if it is "others"; words that are replaced in ``export.json`` count."""
    masks = torch.zeros(2, 4, 6)
    masks[0, :, :3] = masks[1, :, 3:] = 1
    scores = np.array([[0.6, 0.1], [0.2, 0.5]], np.float32)
    runtime = runtime_of({"rendering": rendering_of(ClassWinner(0.5), None, 0.5, None)})
    assert runtime._render(scores, masks.numpy(), (4, 6))[0].tolist() == [0, 0, 0, 1, 1, 1]
    runtime.about["words"] = described(ONE, ONE.with_others())
    assert runtime._render(scores, masks.numpy(), (4, 6))[0].tolist() == [0, 0, 0, -1, -1, -1]


@pytest.mark.parametrize(
    "fuse",
    [
        GeometricMean(0.3),
        GeometricMean(0.7, 0.5),
        GeometricMean(0.0),
        SeenUnseenMean(0.6),
        ObjectNormalizedMean(0.4, "plain"),
        ObjectNormalizedMean(0.4, "log", 0.8),
        ObjectNormalizedMean(0.0, "log"),
    ],
)
def test_fusions(runtime_of, fuse):
    own, clip, seen = random_scores(5, 4), random_scores(3, 4, 1), torch.tensor([True, False, True, True, False])
    own[0] = 0.0
    runtime = runtime_of({"fusion": fusion_of(fuse)})
    expected = fuse([Scores(own), Scores(clip, seen)])
    same(runtime._fuse(own.numpy(), clip.numpy(), seen.numpy()), expected)
    same(runtime._fuse(own.numpy(), None, seen.numpy()), fuse([Scores(own)]))


def test_a_single_namer(runtime_of):
    clip, seen = random_scores(3, 4), torch.tensor([True, False, True, True, False])
    runtime = runtime_of({"fusion": fusion_of(SingleNamer())})
    same(runtime._fuse(None, clip.numpy(), seen.numpy()), SingleNamer()([Scores(clip, seen)]))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_the_image_of_calibration(runtime_of, image, interpolation):
    mean, std = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 50.0, 40.0])
    crops = {"mean": numbers(mean), "std": numbers(std), "size": 24, "whole": interpolation}
    runtime = runtime_of({"crops": crops}, calibration=lambda embeddings, image: (embeddings, image))
    _, whole = runtime._calibrate(image.numpy(), np.zeros((1, 2, 3), np.float32))
    same(whole, squash([image.float()], 32, 24, mean[:, None, None], std[:, None, None], interpolation))


def test_drawn_patches(runtime_of, image):
    masks = torch.nn.functional.interpolate(random_masks()[:, None], (32, 32)).gt(0.5).float()
    visual = SimpleNamespace(conv1=SimpleNamespace(kernel_size=(8, 8)))
    source = ContextCrops.generator(SimpleNamespace(replace_seed=3), image)
    expected = draw_patches(visual, masks, 0.5, 2, source).transpose(0, 1)
    runtime = runtime_of({"crops": {"context": {"ratio": 0.5, "seed": 3, "blocks": 2}, "patch": 8}})
    assert expected.any() and np.array_equal(runtime._draw(image.numpy(), masks[:, 0].numpy()), expected.numpy())


@pytest.mark.parametrize(
    "keys",
    [
        PLAIN,
        PLAIN | {"MASK_MATTING": True, "MASK_FILL": "zero"},
        PLAIN | {"MASK_CROPS": False},
        {"MASK_PROMPT_FWD": True},
    ],
)
def test_scores_of_crops(runtime_of, cfg, image, keys):
    namer, masks = namer_of(cfg, **keys), random_masks(10)
    cut = cuts.CropCut if namer.mask_prompts else cuts.PlainCropCut
    _scores_are_the_same(runtime_of, namer, cut(namer=namer), image, masks)


def test_scores_of_crops_in_context(runtime_of, cfg, image):
    namer = context_namer_of(cfg, **PLAIN)
    tokens = whole_images(views_of(image), namer.clip_adapter).class_tokens[:, 0].detach().numpy()
    _scores_are_the_same(runtime_of, namer, cuts.ContextCropCut(namer=namer), image, random_masks(), tokens)


def _scores_are_the_same(runtime_of, namer, module, image, masks, tokens=None):
    with torch.no_grad():
        (expected,) = namer(views_of(image), [Masks(masks)], [MANY])
    runtime = runtime_of({"crops": crops_of(namer)}, MANY, text=text_of(namer, MANY), crops=module)
    scores, seen = runtime._of_crops(image.numpy(), masks.numpy(), tokens)
    assert seen.tolist() == expected.seen.tolist() and 1 < len(scores) < len(masks)
    same(scores, expected.probabilities)
    nothing, seen = runtime._of_crops(image.numpy(), np.zeros((2, HEIGHT, WIDTH), np.float32), tokens)
    assert nothing.shape == (0, len(MANY)) and not seen.any()


class SomeMasks(GivenMasks):
    def masks_of(self, request):
        return random_masks() > 0.5


def segmenter_of(model):
    """What a recipe reads of a segmenter."""
    return SimpleNamespace(model=model, many_views=None, antialias=True, image_format="RGB", min_score=None)


@pytest.mark.parametrize("vocabulary", [TWO, MANY], ids=["two", "background"])
def test_masks_from_elsewhere(runtime_of, cfg, image, vocabulary):
    model = model_of(cfg, **PLAIN).with_proposer(SomeMasks())
    recipe, reason = recipe_of(segmenter_of(model))
    namer, pixels = model.namers[0], np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    runtime = runtime_of(recipe, vocabulary, text=text_of(namer, vocabulary), crops=cuts.PlainCropCut(namer=namer))
    with torch.no_grad():
        (result,) = model([{"image": image, "class_names": vocabulary, "outputs": ("label_map",)}])
    expected = segmentation_of(result, vocabulary, pixels, None).label_map
    masks = SomeMasks().masks_of({}).float().numpy()
    assert not reason and len(np.unique(expected)) > 1
    assert (runtime(pixels, masks) == expected).mean() > 0.999
    with pytest.raises(ValueError, match="this model needs masks"):
        runtime(pixels)


def test_models_that_leave_out_crops_have_no_recipe(cfg):
    model = model_of(cfg, **PLAIN)
    for selection in (CropSelection(most=3), CropSelection(duplicate_iou=0.8)):
        model.namers[0].selection = selection
        recipe, reason = recipe_of(segmenter_of(model))
        assert recipe is None and "MODEL.NAMER.MAX_CROPS to 0 and DUPLICATE_IOU to 1" in reason


@pytest.mark.parametrize("scale", [1, 3])
def test_scores_of_trained_regions(runtime_of, tmp_path, scale):
    """The image is enlarged for the tower, or reduced."""
    clip = adapter_of(convolutional_cfg(tmp_path))
    namer, words = TrainedRegions(clip, RegionModel(random_state(clip))), Vocabulary.from_class_names(["cat", "others"])
    namer.size = 96
    size = (48 * scale, 64 * scale)
    image, masks = torch.randint(0, 256, (3, *size), dtype=torch.uint8), random_masks(5, *size)
    with torch.no_grad():
        (expected,) = namer(views_of(image), [Masks(masks)], [words])
        graphs = list(graphs_of(namer, Size(size, size[0]), (namer,)))
    runtime = runtime_of({"regions": regions_of(namer)}, words, text=text_of(namer, words), graphs=graphs)
    scores, seen = runtime._of_regions(image.numpy(), masks.numpy())
    assert seen.tolist() == has_pixel(masks, 0.5).tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(scores, expected.probabilities.numpy(), atol=1e-3)
    runtime.input["size"] = [32, 32]
    with pytest.raises(ValueError, match=r"and the graphs are for \(32, 32\)"):
        runtime._of_regions(image.numpy(), masks.numpy())


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_pytorchs(mode):
    maps = np.random.default_rng(0).random((2, 17, 31), np.float32)
    for size in ((40, 12), (17, 90), (5, 31)):
        expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size, mode=mode, align_corners=False)
        same(resize(maps, size, mode), expected[0])
