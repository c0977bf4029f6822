from __future__ import annotations

import copy
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ovseg.clip.context_adapter import ContextClipAdapter
from safetensors.torch import save_file

from ovseg.clip.adapter import ClipAdapter, MaskedImage
from ovseg.clip.model import build_clip, find_clip, load_clip_weights
from ovseg.config import get_cfg
from ovseg.errors import OvsegError

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "clip.json").write_text(json.dumps(TINY))
    cfg = get_cfg()
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = str(tmp_path / "clip.json")
    cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = "none"
    cfg.MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR = "none"
    return cfg


def adapter_of(cfg, **keys) -> ClipAdapter:
    for key, value in keys.items():
        cfg.MODEL.CLIP_ADAPTER[key] = value
    torch.manual_seed(0)
    return ClipAdapter(cfg).eval()


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_chunks_do_not_change_the_result(cfg, chunk):
    adapter = adapter_of(cfg, REGION_CHUNK_SIZE=chunk, MASK_PROMPT_FWD=True)
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(3, 40, 50, generator=generator) * 255
    masks = torch.rand(5, 40, 50, generator=generator)
    masks[2] = 0.1  # below the threshold
    text = adapter.text_matrix(["cat", "dog"])
    logits, valid = adapter.classify_masks(image, masks, text)
    assert valid.tolist() == [True, True, False, True, True]
    expected = adapter_of(cfg, REGION_CHUNK_SIZE=100).classify_masks(image, masks, text)[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)


def test_crops_of_several_images_are_one_stream(cfg, monkeypatch):
    adapter = adapter_of(cfg, REGION_CHUNK_SIZE=4)
    images = [MaskedImage(torch.rand(3, *size) * 255, torch.rand(3, *size)) for size in ((40, 50), (30, 20), (25, 60))]
    images[1].probabilities.mul_(0.1)  # nothing above the threshold
    texts = [adapter.text_matrix(["cat", "dog"][:count]) for count in (1, 2, 2)]
    alone = [
        adapter.classify_masks(image.image, image.probabilities, text)
        for image, text in zip(images, texts, strict=True)
    ]
    seen, encode = [], adapter.encode_regions
    monkeypatch.setattr(adapter, "encode_regions", lambda crops, masks: seen.append(len(crops)) or encode(crops, masks))
    together = adapter.classify(images, texts)
    assert seen == [4, 2]
    for (logits, valid), (expected, expected_valid) in zip(together, alone, strict=True):
        assert torch.equal(valid, expected_valid)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    assert [logits.shape for logits, _ in together] == [(3, 2), (0, 3), (3, 3)]
    assert adapter.classify([], []) == []


def test_crops_at_a_time_suit_the_device(cfg):
    assert adapter_of(cfg).crops_at_a_time == 8
    assert adapter_of(cfg).to("meta").crops_at_a_time == 32  # what is no CPU
    assert adapter_of(cfg, REGION_CHUNK_SIZE=5).crops_at_a_time == 5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_close(cfg, precision):
    image, masks = torch.rand(3, 40, 50) * 255, torch.rand(3, 40, 50)
    adapter = adapter_of(cfg)
    text = adapter.text_matrix(["cat", "dog"])
    exact, _ = adapter.classify_masks(image, masks, text)
    reduced, _ = adapter_of(cfg, PRECISION=precision).classify_masks(image, masks, text)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    torch.testing.assert_close(reduced, exact, rtol=0, atol=2.0)  # of logits in -100 .. 100


def test_full_precision_ignores_the_callers_autocast(cfg):
    adapter = adapter_of(cfg)
    expected = adapter.text_matrix(["cat"])
    adapter.text._memory.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter.text_matrix(["cat"]), expected)


def test_prompts_replace_masked_patches_only(cfg):
    adapter = adapter_of(cfg, MASK_PROMPT_FWD=True)
    torch.nn.init.normal_(adapter.clip_model.visual.mask_embedding)
    crops = torch.randn(2, 3, 32, 32)
    all_kept = adapter.encode_regions(crops, torch.ones(2, 1, 32, 32))
    torch.testing.assert_close(all_kept, adapter.clip_model.encode_image(crops))
    masks = torch.ones(2, 1, 32, 32)
    masks[:, :, :8, :8] = 0  # one patch
    assert not torch.allclose(adapter.encode_regions(crops, masks), all_kept)
    masks[:, :, 0, 0] = 0.01  # any foreground keeps the patch
    torch.testing.assert_close(adapter.encode_regions(crops, masks), all_kept)


def test_random_weights_are_said_aloud(cfg, caplog):
    adapter = adapter_of(cfg)
    with caplog.at_level(logging.WARNING):
        adapter.text_matrix(["cat"])
    assert "RANDOM WEIGHTS" in caplog.text


def test_prompts_of_zeros_are_said_aloud_once(cfg, tmp_path, caplog):
    plain, file = donor_of(cfg, tmp_path, 1)
    without = {name: t for name, t in plain.items() if name != "visual.mask_embedding"}
    save_file(without, tmp_path / "plain.safetensors")

    def warnings_of(adapter) -> int:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                adapter.ensure_weights()
        return caplog.text.count("HAS NO MASK PROMPTS")

    asks = {"CLIP_WEIGHTS": str(tmp_path / "plain.safetensors"), "MASK_PROMPT_FWD": True}
    adapter = adapter_of(cfg, **asks)
    assert warnings_of(adapter) == 1 and "Set the key to False" in caplog.text
    trained = copy.deepcopy(adapter.state_dict())  # zeros that are there: what training from a plain CLIP leaves
    adapter.load_state_dict({f"clip_model.{name}": t for name, t in plain.items()}, strict=False)
    assert warnings_of(adapter) == 0
    again = adapter_of(cfg, **asks)
    again.load_state_dict(trained)
    assert warnings_of(again) == 1
    assert warnings_of(adapter_of(cfg, **{**asks, "CLIP_WEIGHTS": file})) == 0
    assert warnings_of(adapter_of(cfg, **{**asks, "MASK_PROMPT_FWD": False})) == 0


def test_weights_from_a_file(cfg, tmp_path):
    donor, _ = build_clip(find_clip(cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME, "none"))
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(tmp_path / "donor.safetensors"))
    adapter.ensure_weights()
    assert torch.equal(adapter.clip_model.visual.proj, donor.visual.proj)


def test_a_checkpoint_makes_fetching_weights_needless(cfg, tmp_path):
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(b"rubbish")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(file))
    adapter.load_state_dict(adapter_of(cfg, CLIP_WEIGHTS="none").state_dict())
    adapter.ensure_weights()  # would raise if it read the file
    incomplete = {k: v for k, v in adapter.state_dict().items() if "ln_final" not in k}
    other = adapter_of(cfg, CLIP_WEIGHTS=str(file))
    other.load_state_dict(incomplete, strict=False)
    with pytest.raises(OvsegError, match=r"damaged\.safetensors is .*damaged"):
        other.ensure_weights()


def donor_of(cfg, tmp_path, seed: int, depth: int = 3):
    """A CLIP with other weights, prompts included, in a file of its own."""
    donor = adapter_of(cfg, MASK_PROMPT_DEPTH=depth).clip_model
    torch.manual_seed(seed)
    for tensor in donor.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) / 4)
    save_file(donor.state_dict(), tmp_path / f"donor{seed}.safetensors")
    return donor.state_dict(), str(tmp_path / f"donor{seed}.safetensors")


def test_a_checkpoint_with_the_image_tower_gets_the_text_tower_from_the_file(cfg, tmp_path):
    adapted, _ = donor_of(cfg, tmp_path, 1)
    plain, file = donor_of(cfg, tmp_path, 2)
    adapter = adapter_of(cfg, CLIP_WEIGHTS=file)
    visual = {f"clip_model.{name}": tensor for name, tensor in adapted.items() if name.startswith("visual.")}
    adapter.load_state_dict(visual, strict=False)
    words = adapter.text_matrix(["cat", "dog"])[:-1]
    for name, tensor in adapter.clip_model.state_dict().items():
        source = adapted if name.startswith("visual.") else plain
        assert torch.equal(tensor, source[name]), name
    whole = adapter_of(cfg, CLIP_WEIGHTS=file)
    assert torch.equal(whole.text_matrix(["cat", "dog"])[:-1], words)
    assert torch.equal(whole.clip_model.visual.mask_embedding, plain["visual.mask_embedding"])


def test_prompts_of_one_tower_do_not_go_to_another(cfg, tmp_path):
    adapted, _ = donor_of(cfg, tmp_path, 1)
    _, file = donor_of(cfg, tmp_path, 2, depth=1)  # another depth, too: not looked at
    adapter = adapter_of(cfg, CLIP_WEIGHTS=file, MASK_PROMPT_DEPTH=3)
    del adapted["visual.mask_embedding"]
    visual = {f"clip_model.{name}": tensor for name, tensor in adapted.items() if name.startswith("visual.")}
    adapter.load_state_dict(visual, strict=False)
    adapter.ensure_weights()
    assert not adapter.clip_model.visual.mask_embedding.any()
    with pytest.raises(OvsegError, match="MASK_PROMPT_DEPTH to 1"):
        adapter_of(cfg, CLIP_WEIGHTS=file).ensure_weights()


def test_text_remembered_on_disk_follows_the_completed_weights(cfg, tmp_path):
    """The same adapter gets one text tower from the file, then another from a checkpoint."""
    plain, file = donor_of(cfg, tmp_path, 2)
    other, _ = donor_of(cfg, tmp_path, 3)
    cache = str(tmp_path / "cache")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=file, TEXT_CACHE_DIR=cache)
    first = adapter.text_matrix(["cat"])[0]
    adapter.load_state_dict({f"clip_model.{name}": t for name, t in other.items()}, strict=False)
    second = adapter.text_matrix(["cat"])[0]
    assert not torch.allclose(first, second, atol=1e-2)
    text = {f"clip_model.{name}": t for name, t in plain.items() if not name.startswith("visual.")}
    again = adapter_of(cfg, CLIP_WEIGHTS=file, TEXT_CACHE_DIR=cache)
    again.load_state_dict(text, strict=False)
    assert again.lacking_weights
    assert torch.equal(again.text_matrix(["cat"])[0], first)


@pytest.mark.parametrize("prefix", ["", "module.", "clip_model.", "module.clip_model.", "clip_adapter.clip_model."])
def test_wrapped_names_in_a_file_of_clip(cfg, tmp_path, prefix):
    state, _ = donor_of(cfg, tmp_path, 1)
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    if "clip_model" in prefix:
        wrapped["module.original_clip_visual.proj"] = torch.zeros(2)
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pt")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(tmp_path / "wrapped.pt"))
    adapter.ensure_weights()
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.clip_model.state_dict().items())


def test_unmasked_crops_are_the_boxes_with_their_background(cfg):
    image, masks = torch.rand(3, 40, 50) * 255, torch.zeros(1, 40, 50)
    masks[0, 5:20, 10:40] = torch.eye(30)[:15]
    (crops, shown), *_ = adapter_of(cfg, MASK_CROPS=False).regions(image, masks)
    box = torch.zeros_like(masks)
    box[0, 5:20, 10:25] = 1
    (expected, _), *_ = adapter_of(cfg, MASK_CROPS=True).regions(image, box)
    assert torch.equal(crops, expected)
    assert shown.all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MASK_FILL": "black"}, "MASK_FILL is 'black'; choose one of mean, zero"),
        ({"PRECISION": "int8"}, "PRECISION is 'int8'"),
        ({"MASK_PROMPT_DEPTH": 0, "MASK_PROMPT_FWD": True}, "there are no prompts to use"),
        ({"MASK_PROMPT_DEPTH": 9}, "the image tower has 3 blocks"),
        ({"REGION_CHUNK_SIZE": -1}, "REGION_CHUNK_SIZE must be at least 1"),
        ({"CLIP_MODEL_NAME": "ViT-L/15"}, "did you mean ViT-L-16, ViT-L-14"),
        ({"CLIP_MODEL_NAME": "ViT-L-14:openia"}, "has no weights 'openia'"),
        ({"CLIP_MODEL_NAME": "nowhere.json"}, "cannot read the CLIP configuration nowhere.json"),
        ({"CLIP_MODEL_NAME": "ViT-L-14.pt"}, "is a weight file"),
        ({"CLIP_MODEL_NAME": "local-dir:nowhere"}, "nowhere/open_clip_config.json"),
        ({"CLIP_MODEL_NAME": "hf-hub:nobody/nothing"}, "set MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME to local-dir:FOLDER"),
        ({"TEXT_TEMPLATES": "vold"}, "TEXT_TEMPLATES is 'vold'"),
    ],
)
def test_wrong_keys(cfg, keys, message):
    with pytest.raises(OvsegError, match=message.replace("(", r"\(")):
        adapter_of(cfg, **keys)


def test_failing_download_names_the_file(cfg):
    source = find_clip("ViT-B/32", "openai")
    assert source.architecture["quick_gelu"]
    adapter = adapter_of(cfg)
    adapter.source = source
    with pytest.raises(OvsegError, match=r"on a machine with network\s+fetch .*CLIP_WEIGHTS to its path"):
        adapter.ensure_weights()


def test_names_of_clip():
    assert find_clip("ViT-L/14@336px", "none").architecture["vision_cfg"]["image_size"] == 336
    assert find_clip("ViT-L-14-quickgelu", "none").architecture["quick_gelu"]
    assert not find_clip("ViT-B-32:laion2b_s34b_b79k", "openai").architecture.get("quick_gelu")


def test_folder_with_weights(cfg, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(OvsegError, match="has no weights"):
        find_clip(f"local-dir:{tmp_path}", "openai")
    donor, _ = build_clip(find_clip(cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME, "none"))
    save_file(donor.state_dict(), tmp_path / "open_clip_model.safetensors")
    adapter = adapter_of(cfg, CLIP_MODEL_NAME=f"local-dir:{tmp_path}", CLIP_WEIGHTS="")
    adapter.ensure_weights()
    assert torch.equal(adapter.clip_model.token_embedding.weight, donor.token_embedding.weight)


def test_resnet_clip_has_no_prompts(cfg, tmp_path):
    architecture = TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
    (tmp_path / "resnet.json").write_text(json.dumps(architecture))
    with pytest.raises(OvsegError, match="MASK_PROMPT_DEPTH to 0"):
        adapter_of(cfg, CLIP_MODEL_NAME=str(tmp_path / "resnet.json"))
    adapter = adapter_of(cfg, MASK_PROMPT_DEPTH=0)
    assert not adapter.train().clip_model.training  # its batch norms keep their statistics
    logits, valid = adapter.classify_masks(torch.rand(3, 40, 50) * 255, torch.rand(3, 40, 50), torch.randn(3, 16))
    assert logits.shape == (3, 3)
    assert valid.all()


@pytest.mark.parametrize("kind", [ClipAdapter, ContextClipAdapter])
def test_eight_threads_answer_as_one(cfg, tmp_path, monkeypatch, kind):
    """All are the first to need CLIP's weights, and all ask for new words."""
    _, file = donor_of(cfg, tmp_path, 1)
    cfg.MODEL.SELECT_ORI_CLIP_ID = [2]
    cfg.MODEL.CLIP_ADAPTER.merge_from_list(["CLIP_WEIGHTS", file, "TEXT_CACHE_DIR", str(tmp_path / "cache")])
    image, masks = torch.rand(3, 40, 50) * 255, torch.rand(3, 40, 50)
    words = [[f"thing {k}", f"thing {k + 1}"] for k in range(8)]

    def answer(adapter: ClipAdapter, part: list[str]) -> torch.Tensor:
        return adapter.classify_masks(image, masks, adapter.text_matrix(part)[:-1])[0]

    alone = kind(cfg).eval()
    expected = [answer(alone, part) for part in words]
    adapter, loads, barrier = kind(cfg).eval(), [], threading.Barrier(8)

    def load(*args: object) -> None:
        loads.append(args)
        time.sleep(0.05)  # others come meanwhile
        load_clip_weights(*args)

    def ask(part: list[str]) -> torch.Tensor:
        barrier.wait()
        return answer(adapter, part)

    for module in ("adapter", "context_adapter"):
        monkeypatch.setattr(f"ovseg.clip.{module}.load_clip_weights", load)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, words))
    assert len(loads) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
