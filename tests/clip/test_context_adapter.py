from __future__ import annotations

import json
import logging
import random

import pytest
import torch
from ovseg.clip.context_adapter import ContextClipAdapter
from safetensors.torch import save_file

from ovseg.config import get_cfg
from ovseg.errors import OvsegError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 16, "heads": 1, "layers": 1},
}
TUNED, ORIGINAL = "clip_model.visual.", "original_clip."


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "clip.json").write_text(json.dumps(TINY))
    cfg = get_cfg()
    cfg.MODEL.SELECT_ORI_CLIP_ID = [2, 4]
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = str(tmp_path / "clip.json")
    cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = "none"
    cfg.MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR = "none"
    cfg.MODEL.CLIP_ADAPTER.REPLACE_RATIO = 0.5
    return cfg


def adapter_of(cfg, **keys) -> ContextClipAdapter:
    for key, value in keys.items():
        cfg.MODEL.CLIP_ADAPTER[key] = value
    torch.manual_seed(0)
    return ContextClipAdapter(cfg).eval()


def two_towers(cfg) -> dict[str, torch.Tensor]:
    """A state whose towers differ."""
    state = {name: tensor.clone() for name, tensor in adapter_of(cfg).state_dict().items()}
    generator = torch.Generator().manual_seed(9)
    for name, tensor in state.items():
        if name.startswith((TUNED, ORIGINAL)):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return state


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(3)
    image = (torch.rand(3, 40, 50, generator=generator) * 255).to(torch.uint8)
    masks = torch.zeros(5, 40, 50)
    for mask, (y, x) in zip(masks, ((0, 0), (5, 9), (20, 3), (11, 30), (30, 40)), strict=True):
        mask[y : y + 10, x : x + 3] = 0.9  # a bar and a foot, so that its crop has background
        mask[y + 9, x : x + 10] = 0.8
    masks[2] *= 0.1  # below the threshold
    return image, masks


def classify(adapter, image, masks):
    text = adapter.text_matrix(["cat", "dog"])
    context = adapter.context(adapter.look([image.float()], 32), 0, image)
    return adapter.classify_masks(image.float(), masks, text, context)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("seed", [0, -1])
def test_chunks_change_neither_draws_nor_result(cfg, scene, chunk, seed):
    random.seed(4)
    logits, valid = classify(adapter_of(cfg, REPLACE_SEED=seed, REGION_CHUNK_SIZE=chunk), *scene)
    random.seed(4)
    expected, _ = classify(adapter_of(cfg, REPLACE_SEED=seed, REGION_CHUNK_SIZE=100), *scene)
    assert valid.tolist() == [True, True, False, True, True]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_context_matters_and_draws_do(cfg, scene):
    image, masks = scene
    adapter = adapter_of(cfg)
    text = adapter.text_matrix(["cat", "dog"])
    plain, _ = adapter.classify_masks(image.float(), masks, text)
    shifted, _ = classify(adapter, image, masks)
    assert not torch.allclose(plain, shifted, atol=1e-2)
    assert not torch.allclose(classify(adapter_of(cfg, REPLACE_SEED=1), *scene)[0], shifted, atol=1e-2)
    torch.testing.assert_close(classify(adapter_of(cfg, REPLACE_RATIO=0.0), *scene)[0], plain)


def test_an_image_is_seeded_by_itself(cfg, scene):
    """Whatever came before it, and whatever type its pixels have."""
    image, masks = scene
    adapter = adapter_of(cfg)
    first = classify(adapter, image, masks)[0]
    state = random.getstate()
    classify(adapter, image.flip(2), masks)
    assert torch.equal(classify(adapter, image.double(), masks)[0], first)
    assert random.getstate() == state
    seen = adapter.look([image.float()], 32)
    assert adapter.context(seen, 0, image).seed != adapter.context(seen, 0, image.flip(2)).seed


def test_the_global_stream_goes_on(cfg, scene):
    adapter = adapter_of(cfg, REPLACE_SEED=-1)
    random.seed(1)
    first, second = (classify(adapter, *scene)[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)
    random.seed(1)
    assert torch.equal(classify(adapter, *scene)[0], first)


def test_no_valid_mask(cfg, scene):
    logits, valid = classify(adapter_of(cfg), scene[0], torch.zeros(4, 40, 50))
    assert logits.shape == (0, 3) and not valid.any()


@pytest.mark.parametrize("first", [True, False])
def test_whose_context_a_batch_has(cfg, scene, first):
    image = scene[0]
    other = image.flip(2)
    adapter = adapter_of(cfg, CONTEXT_OF_FIRST_IMAGE=first)
    together = adapter.look([image.float(), other.float()], 32)
    alone = adapter.look([(image if first else other).float()], 32)
    torch.testing.assert_close(adapter.context(together, 1, other).class_tokens, alone.class_tokens)


def numbers_in_memory(adapter) -> int:
    return sum({tensor.data_ptr(): tensor.numel() for tensor in adapter.state_dict().values()}.values())


def test_equal_towers_are_in_memory_once(cfg):
    adapter = adapter_of(cfg)
    tower = sum(p.numel() for p in adapter.original_clip.parameters())
    once = numbers_in_memory(adapter)
    state = adapter.state_dict()
    assert all(torch.equal(state[TUNED + name], state[ORIGINAL + name]) for name in adapter.original_clip.state_dict())
    different = two_towers(cfg)
    adapter.load_state_dict(different)
    assert numbers_in_memory(adapter) == once + tower
    assert all(torch.equal(tensor, different[name]) for name, tensor in adapter.state_dict().items())
    equal = {name: state_value.clone() for name, state_value in adapter_of(cfg).state_dict().items()}
    adapter.load_state_dict(equal)
    assert numbers_in_memory(adapter) == once
    assert all(torch.equal(tensor, equal[name]) for name, tensor in adapter.state_dict().items())
    assert not any(p.requires_grad for name, p in adapter.named_parameters() if name.startswith((TUNED, ORIGINAL)))


def test_one_differing_tensor_is_all_that_is_added(cfg):
    adapter = adapter_of(cfg)
    once, state = numbers_in_memory(adapter), {n: t.clone() for n, t in adapter.state_dict().items()}
    state[f"{TUNED}proj"] += 1
    adapter.load_state_dict(state)
    assert numbers_in_memory(adapter) == once + state[f"{TUNED}proj"].numel()
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.state_dict().items())


@pytest.mark.parametrize(("given", "lacking"), [(TUNED, ORIGINAL), (ORIGINAL, TUNED)])
def test_a_tower_that_the_checkpoint_lacks_comes_from_clips_weights(cfg, tmp_path, given, lacking):
    plain = {n: t.clone() + 1 for n, t in adapter_of(cfg).clip_model.state_dict().items()}
    save_file(plain, tmp_path / "plain.safetensors")
    state = two_towers(cfg)
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(tmp_path / "plain.safetensors"))
    adapter.load_state_dict({name: t for name, t in state.items() if not name.startswith(lacking)}, strict=False)
    adapter.ensure_weights()
    for name, tensor in adapter.original_clip.state_dict().items():
        towers = {TUNED: adapter.clip_model.visual.state_dict()[name], ORIGINAL: tensor}
        assert torch.equal(towers[given], state[given + name])
        assert torch.equal(towers[lacking], plain[f"visual.{name}"])


def test_without_a_checkpoint_both_are_clips_weights_once(cfg, tmp_path):
    plain = {n: t.clone() + 1 for n, t in adapter_of(cfg).clip_model.state_dict().items()}
    save_file(plain, tmp_path / "plain.safetensors")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(tmp_path / "plain.safetensors"))
    before = numbers_in_memory(adapter)
    adapter.ensure_weights()
    assert numbers_in_memory(adapter) == before
    assert torch.equal(adapter.original_clip.proj, plain["visual.proj"])


def test_a_random_original_is_said_aloud(cfg, caplog):
    adapter = adapter_of(cfg, CLIP_WEIGHTS="none")
    state = {name: t for name, t in two_towers(cfg).items() if not name.startswith(ORIGINAL)}
    adapter.load_state_dict(state, strict=False)
    with caplog.at_level(logging.WARNING):
        adapter.look([torch.rand(3, 40, 50)], 32)
        adapter.look([torch.rand(3, 40, 50)], 32)
    assert caplog.text.count("the original CLIP") == 1


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B/16"])
def test_the_published_clip_is_datacomps_with_exact_gelu(name):
    cfg = get_cfg()
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = name
    source = ContextClipAdapter.from_config(cfg)["source"]
    assert not source.architecture.get("quick_gelu")
    assert "DataComp" in source.weights_hint
    cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = "none"
    assert not ContextClipAdapter.from_config(cfg)["source"].architecture.get("quick_gelu")
    cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = "openai"  # who asks for OpenAI's gets what they were trained with
    assert ContextClipAdapter.from_config(cfg)["source"].architecture["quick_gelu"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_close(cfg, scene, precision):
    exact, _ = classify(adapter_of(cfg), *scene)
    reduced, _ = classify(adapter_of(cfg, PRECISION=precision), *scene)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, exact, rtol=0, atol=2.0)  # of logits in -100 .. 100


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"REPLACE_RATIO": 1.5}, "REPLACE_RATIO is 1.5: give a number from 0 to 1"),
        ({"REPLACE_LAYER": [0]}, "REPLACE_LAYER has 0"),
        ({"MASK_PROMPT_FWD": True}, "has no mask prompts: set it to False"),
    ],
)
def test_wrong_keys(cfg, keys, message):
    with pytest.raises(OvsegError, match=message):
        adapter_of(cfg, **keys)


@pytest.mark.parametrize("depths", [[], [5], [-1, 2]])
def test_depths_that_the_tower_does_not_have(cfg, depths):
    cfg.MODEL.SELECT_ORI_CLIP_ID = depths
    with pytest.raises(OvsegError, match=r"SELECT_ORI_CLIP_ID is \[.*\]: give numbers of the 4 blocks"):
        adapter_of(cfg)


def test_a_resnet_has_no_tokens_to_replace(cfg, tmp_path):
    architecture = TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
    (tmp_path / "resnet.json").write_text(json.dumps(architecture))
    with pytest.raises(OvsegError, match="needs a plain CLIP vision transformer"):
        adapter_of(cfg, CLIP_MODEL_NAME=str(tmp_path / "resnet.json"))
