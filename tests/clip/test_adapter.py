"""The CLIP of all parts of a model: loaded weights, towers, text features."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from ovseg.checkpoint import load_weights
from ovseg.clip import adapter as module
from ovseg.clip.adapter import ClipAdapter, load_clip
from ovseg.clip.model import build_clip, find_clip
from ovseg.errors import OvsegError
from tests.tiny_clip import CLIP, ORIGINAL, RESNET, TINY, TUNED, adapter_of, donor_of, model_of, tiny_cfg


@pytest.fixture
def cfg(tmp_path):
    return tiny_cfg(tmp_path)


@pytest.fixture
def two(cfg):
    """Return a configuration whose CLIP also has the original tower."""
    cfg.MODEL.NAMER.NAME = ["ContextCrops"]
    return cfg


@pytest.fixture
def asked(monkeypatch):
    """Return a list to which each reading of CLIP's file adds the names of its tensors."""
    names, load = [], module.load_clip_weights
    monkeypatch.setattr(
        module, "load_clip_weights", lambda model, source, wanted: names.append(wanted) or load(model, source, wanted)
    )
    return names


def test_full_precision_ignores_the_callers_autocast(cfg):
    adapter = adapter_of(cfg)
    expected = adapter.text_matrix(["cat"])
    adapter.text._memory.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter.text_matrix(["cat"]), expected)


def test_random_weights_are_warned_of(cfg, caplog):
    adapter_of(cfg)
    assert caplog.text.count("HAS RANDOM WEIGHTS") == 1


def test_prompts_of_zeros_are_warned_of_once(cfg, tmp_path, caplog):
    state, with_prompts = donor_of(cfg, tmp_path, 1)
    plain = str(tmp_path / "plain.safetensors")
    save_file({name: t for name, t in state.items() if name != "visual.mask_embedding"}, plain)

    def warnings_of(weights: str, forward: bool, checkpoint=None) -> int:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model_of(cfg, checkpoint, CLIP_WEIGHTS=weights, MASK_PROMPT_FWD=forward)
        return caplog.text.count("HAS NO MASK PROMPTS")

    assert warnings_of(plain, True) == 1 and "Set the key to False" in caplog.text
    trained = model_of(cfg, CLIP_WEIGHTS=plain).state_dict()  # prompts of zeros: training from a plain CLIP
    assert not trained[f"{CLIP}visual.mask_embedding"].any()
    assert warnings_of("none", True, trained) == 1
    assert warnings_of("none", False, trained) == 0
    assert warnings_of("none", True, trained | {CLIP + name: t for name, t in state.items()}) == 0
    assert warnings_of(with_prompts, True) == 0
    assert warnings_of(plain, False) == 0


def test_weights_from_a_file(cfg, tmp_path):
    donor, _ = build_clip(find_clip(cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME, "none"))
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(tmp_path / "donor.safetensors"))
    assert torch.equal(adapter.clip_model.visual.proj, donor.visual.proj)


def test_a_checkpoint_makes_fetching_weights_needless(cfg, tmp_path):
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(b"rubbish")
    state = model_of(cfg).state_dict()
    model_of(cfg, state, CLIP_WEIGHTS=str(file))  # would raise if it read the file
    incomplete = {name: tensor for name, tensor in state.items() if "ln_final" not in name}
    with pytest.raises(OvsegError, match=r"damaged\.safetensors is .*damaged"):
        model_of(cfg, incomplete, CLIP_WEIGHTS=str(file))


def test_a_checkpoint_with_the_image_tower_gets_the_text_tower_from_the_file(cfg, tmp_path, asked):
    adapted, _ = donor_of(cfg, tmp_path, 1)
    plain, file = donor_of(cfg, tmp_path, 2)
    visual = {CLIP + name: tensor for name, tensor in adapted.items() if name.startswith("visual.")}
    model = model_of(cfg, visual, CLIP_WEIGHTS=file)
    assert asked == [{name for name in plain if not name.startswith("visual.")}]
    for name, tensor in model.clip_adapter.clip_model.state_dict().items():
        source = adapted if name.startswith("visual.") else plain
        assert torch.equal(tensor, source[name]), name
    whole = model_of(cfg, CLIP_WEIGHTS=file).clip_adapter
    words = model.clip_adapter.text_matrix(["cat", "dog"])[:-1]
    assert torch.equal(whole.text_matrix(["cat", "dog"])[:-1], words)
    assert torch.equal(whole.clip_model.visual.mask_embedding, plain["visual.mask_embedding"])


def test_prompts_of_one_tower_do_not_go_to_another(cfg, tmp_path):
    adapted, _ = donor_of(cfg, tmp_path, 1)
    _, file = donor_of(cfg, tmp_path, 2, depth=1)  # another depth: not read
    del adapted["visual.mask_embedding"]
    visual = {CLIP + name: tensor for name, tensor in adapted.items() if name.startswith("visual.")}
    model = model_of(cfg, visual, CLIP_WEIGHTS=file, MASK_PROMPT_DEPTH=3)
    assert not model.clip_adapter.clip_model.visual.mask_embedding.any()
    with pytest.raises(OvsegError, match="MASK_PROMPT_DEPTH to 1"):
        model_of(cfg, CLIP_WEIGHTS=file, MASK_PROMPT_DEPTH=3)


def test_text_cached_on_disk_follows_the_weights(cfg, tmp_path):
    """One model has the text tower of a file, then that of a state."""
    plain, file = donor_of(cfg, tmp_path, 2)
    other, _ = donor_of(cfg, tmp_path, 3)
    keys = {"CLIP_WEIGHTS": file, "TEXT_CACHE_DIR": str(tmp_path / "cache")}
    model = model_of(cfg, **keys)
    first = model.clip_adapter.text_matrix(["cat"])[0]
    model.load_state_dict({CLIP + name: t for name, t in other.items()}, strict=False)
    assert not torch.allclose(first, model.clip_adapter.text_matrix(["cat"])[0], atol=1e-2)
    # entries do not depend on the image tower
    mixed = {name: (other if name.startswith("visual.") else plain)[name] for name in plain}
    again = model_of(cfg, {CLIP + name: t for name, t in mixed.items()}, **keys).clip_adapter
    assert torch.equal(again.text_matrix(["cat"])[0], first)


@pytest.mark.parametrize("prefix", ["", "module.", "clip_model.", "module.clip_model.", "clip_adapter.clip_model."])
def test_wrapped_names_in_a_file_of_clip(cfg, tmp_path, prefix):
    state, _ = donor_of(cfg, tmp_path, 1)
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    if "clip_model" in prefix:
        wrapped["module.original_clip_visual.proj"] = torch.zeros(2)
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "wrapped.pt")
    adapter = adapter_of(cfg, CLIP_WEIGHTS=str(tmp_path / "wrapped.pt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.clip_model.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MASK_FILL": "black"}, "MASK_FILL is 'black'; choose one of mean, zero"),
        ({"PRECISION": "int8"}, "PRECISION is 'int8'"),
        ({"MASK_PROMPT_DEPTH": 0, "MASK_PROMPT_FWD": True}, "there are no prompts to use"),
        ({"MASK_PROMPT_DEPTH": 9}, "the image tower has 4 blocks"),
        ({"REGION_CHUNK_SIZE": -1}, "REGION_CHUNK_SIZE (must be at least|is -1: give a whole number from)"),
        ({"REPLACE_RATIO": 1.5}, "REPLACE_RATIO is 1.5: give a number from 0 to 1"),
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
    with pytest.raises(OvsegError, match=message):
        model_of(cfg, **keys)


@pytest.mark.parametrize("depths", [[5], [-1, 2]])
def test_depths_that_the_tower_does_not_have(cfg, depths):
    with pytest.raises(OvsegError, match=r"SELECT_ORI_CLIP_ID is \[.*\]: give numbers of the 4 blocks"):
        adapter_of(cfg, depths=depths)


def test_a_long_prompt_names_the_key(cfg):
    with pytest.raises(OvsegError, match=r"shorten the word, or set MODEL\.CLIP_ADAPTER\.TRUNCATE_PROMPTS to True"):
        adapter_of(cfg).text_matrix(["very " * 200])


def test_failing_download_names_the_file(cfg):
    source = find_clip("ViT-B/32", "openai")
    assert source.architecture["quick_gelu"]
    adapter = adapter_of(cfg)
    adapter.source = source
    message = r"on a machine with network\s+fetch .*MODEL\.CLIP_ADAPTER\.CLIP_WEIGHTS to its path"
    with pytest.raises(OvsegError, match=message):
        adapter.require_weights()
    with pytest.raises(OvsegError, match=message):  # of a checkpoint that has no CLIP
        load_clip(source, held=())


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
    assert torch.equal(adapter.clip_model.token_embedding.weight, donor.token_embedding.weight)


def test_resnet_clip_has_no_prompts_and_no_tokens_to_replace(cfg, tmp_path):
    (tmp_path / "resnet.json").write_text(json.dumps(RESNET))
    keys = {"CLIP_MODEL_NAME": str(tmp_path / "resnet.json")}
    with pytest.raises(OvsegError, match="MASK_PROMPT_DEPTH to 0"):
        adapter_of(cfg, **keys)
    with pytest.raises(OvsegError, match="needs a plain CLIP vision transformer"):
        adapter_of(cfg, depths=(1,), MASK_PROMPT_DEPTH=0, **keys)
    adapter = adapter_of(cfg, MASK_PROMPT_DEPTH=0, **keys)
    assert not adapter.train().clip_model.training  # its batch norms keep their statistics


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B/16"])
def test_the_published_clip_of_scan_is_datacomps_with_exact_gelu(name):
    datacomp = "datacomp_xl_s13b_b90k"  # default_weights in ovseg/meta_arch/scan.py
    source = find_clip(name, "", default=datacomp)
    assert not source.architecture.get("quick_gelu")
    assert "DataComp" in source.weights_hint
    assert not find_clip(name, "none", default=datacomp).architecture.get("quick_gelu")
    # OpenAI's weights have the activation of their training
    assert find_clip(name, "openai", default=datacomp).architecture["quick_gelu"]


def numbers_in_memory(adapter: ClipAdapter) -> int:
    return sum({tensor.data_ptr(): tensor.numel() for tensor in adapter.state_dict().values()}.values())


def two_towers(cfg) -> dict[str, torch.Tensor]:
    """Return a state of the model in which both towers have new, different values."""
    state = model_of(cfg).state_dict()
    random = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(t.shape, generator=random) / 4 if name.startswith((TUNED, ORIGINAL)) else t
        for name, t in state.items()
    }


def is_equal(model, state) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def test_equal_towers_are_in_memory_once(two, tmp_path):
    model = model_of(two)
    adapter, same = model.clip_adapter, {name: t.clone() for name, t in model.state_dict().items()}
    tower = sum(p.numel() for p in adapter.original_clip.parameters())
    once = numbers_in_memory(adapter)
    assert all(torch.equal(same[TUNED + name], same[ORIGINAL + name]) for name in adapter.original_clip.state_dict())
    different = two_towers(two)
    for state, numbers in ((different, once + tower), (same, once)):
        file = tmp_path / "state.safetensors"
        save_file(state, file)
        load_weights(model, file)
        assert numbers_in_memory(adapter) == numbers and is_equal(model, state)
    assert numbers_in_memory(model_of(two, same).clip_adapter) == once
    model.load_state_dict(different)  # as for a resumed training
    assert is_equal(model, different)
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith((TUNED, ORIGINAL)))


def test_one_differing_tensor_is_all_that_is_added(two):
    once = numbers_in_memory(model_of(two).clip_adapter)
    state = {name: t.clone() for name, t in model_of(two).state_dict().items()}
    state[f"{TUNED}proj"] += 1
    model = model_of(two, state)
    assert numbers_in_memory(model.clip_adapter) == once + state[f"{TUNED}proj"].numel()
    assert is_equal(model, state)


@pytest.mark.parametrize(("given", "lacking"), [(TUNED, ORIGINAL), (ORIGINAL, TUNED)])
def test_a_tower_that_the_checkpoint_lacks_comes_from_clips_weights(two, tmp_path, asked, given, lacking):
    plain, file = donor_of(two, tmp_path, 1)
    state = two_towers(two)
    without = {name: t for name, t in state.items() if not name.startswith(lacking)}
    model = model_of(two, without, CLIP_WEIGHTS=file)
    (names,) = asked
    assert all(name.startswith("visual.") for name in names)
    for name, tensor in model.clip_adapter.original_clip.state_dict().items():
        towers = {TUNED: model.state_dict()[TUNED + name], ORIGINAL: tensor}
        assert torch.equal(towers[given], state[given + name])
        if name != "mask_embedding":
            assert torch.equal(towers[lacking], plain[f"visual.{name}"])


def test_without_a_checkpoint_both_are_clips_weights_once(two, tmp_path):
    plain, file = donor_of(two, tmp_path, 1)
    adapter = model_of(two, CLIP_WEIGHTS=file).clip_adapter
    assert numbers_in_memory(adapter) == numbers_in_memory(model_of(two).clip_adapter)
    assert torch.equal(adapter.original_clip.proj, plain["visual.proj"])


def test_a_random_original_is_warned_of(two, caplog):
    state = {name: t for name, t in two_towers(two).items() if not name.startswith(ORIGINAL)}
    caplog.clear()
    model_of(two, state)
    assert caplog.text.count("HAS RANDOM WEIGHTS") == 1


def test_a_state_of_two_towers_that_a_wrapper_loads(two):
    """Values of the original tower must not overwrite the other one, which it shares tensors with."""
    adapter = model_of(two).clip_adapter
    ours, theirs = (dict(tower.named_parameters()) for tower in (adapter.clip_model.visual, adapter.original_clip))
    assert all(ours[name] is theirs[name] for name in ours)
    state = {f"0.{name}": tensor.clone() for name, tensor in adapter.state_dict().items()}
    for name in state:
        if name.startswith("0.original_clip."):
            state[name] += 1
    torch.nn.Sequential(adapter).load_state_dict(state)
    assert all(torch.equal(state[f"0.{name}"], tensor) for name, tensor in adapter.state_dict().items())
