"""Weights of OVSegmentor: both stages, published files, what training starts from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch.nn import functional as F

from ovseg.checkpoint import load_model, load_weights
from ovseg.checkpoint.first_weights import vit_in_stages
from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from tests.tiny_ovsegmentor import SIDE, request, tiny_cfg, tiny_model

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ovsegmentor")


@pytest.mark.parametrize("stage", [1, 2])
def test_manifest(stage):
    expected = json.loads(gzip.decompress((MANIFESTS / f"ovsegmentor_vitB_bert_stage{stage}.json.gz").read_bytes()))
    cfg = get_cfg()
    keys = {"USE_ENTITYLOSS": True, "USE_MASKLOSS": stage == 2, "TEXT_ENCODER.FIXED": stage == 2}
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "OVSegmentor", "MODEL.DEVICE", "meta"])
    cfg.merge_from_list([word for key, value in keys.items() for word in (f"MODEL.OVSEGMENTOR.{key}", value)])
    with torch.device("meta"):
        model = build_model(cfg)
    own = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()}
    assert expected.pop("text_encoder.transformer.embeddings.position_ids") == [[1, 512], "int64"]
    assert own == expected
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    totals = {1: (238_698_633, 238_698_633), 2: (338_751_762, 129_216_394)}
    assert (sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)) == totals[stage]


def published(model, path, **changes):
    """Write the model as the original does, with settings and a constant of its text encoder; return the path."""
    from omegaconf import OmegaConf

    state = model.state_dict() | {"text_encoder.transformer.embeddings.position_ids": torch.arange(24)[None]} | changes
    config = OmegaConf.create({"model": {"depths": [1, 1], "rate": 0.1, "type": "x"}, "name": "${model.type}"})
    torch.save({"model": state, "config": config, "epoch": 3, "metrics": {"max_miou": 1.5}}, path)
    return path


def test_published_files_and_both_stages(folder, tmp_path):
    first, second = tiny_model(folder, stage=1, seed=1), tiny_model(folder, seed=2)
    file = published(first, tmp_path / "stage1.pth", **{"img_encoder.pos_embed": first.img_encoder.pos_embed[None]})
    report = load_weights(second, file, complete=True)
    assert not report.unexpected and not report.missing
    for name, tensor in first.img_encoder.state_dict().items():
        assert torch.equal(tensor, second.img_encoder_momentum.state_dict()[name]), name
        assert torch.equal(tensor, second.img_encoder.state_dict()[name]), name
    with torch.no_grad():
        second.img_encoder_momentum.pos_embed.add_(1)
    file = published(second, tmp_path / "stage2.pth")
    plain = tiny_model(folder, stage=0, seed=3)
    assert not load_weights(plain, file, complete=True).unexpected
    assert torch.equal(plain([request()])[0]["sem_seg"], first([request()])[0]["sem_seg"])
    again = tiny_model(folder, seed=4)
    load_weights(again, file)
    assert torch.equal(again.img_encoder_momentum.pos_embed, second.img_encoder_momentum.pos_embed)
    cfg = tiny_cfg(folder, STAGE1_CHECKPOINT=str(tmp_path / "stage1.pth"))
    started = load_model(cfg)
    assert torch.equal(started.img_encoder_momentum.pos_embed, first.img_encoder.pos_embed)
    with pytest.raises(OvsegError, match=r"MODEL\.WEIGHTS is empty"):
        load_model(cfg, complete=True)


def dino(model, depth=2):
    """Return the tensors of a plain vision transformer with the sizes of the model's encoder."""
    encoder = model.img_encoder.state_dict()
    stages = [stage.blocks[0].state_dict() for stage in model.img_encoder.layers[:depth]]
    blocks = {f"blocks.{index}.{name}": t for index, stage in enumerate(stages) for name, t in stage.items()}
    rest = {name: encoder[name] for name in encoder if name.startswith(("patch_embed.", "norm."))}
    positions = torch.cat((torch.zeros(1, 24), encoder["pos_embed"]))[None]
    return (
        {"cls_token": torch.zeros(1, 1, 24), "pos_embed": positions, "head.weight": torch.zeros(3, 24)} | rest | blocks
    )


def test_weights_that_training_starts_from(folder, tmp_path):
    source = tiny_model(folder, stage=0, seed=5)
    file, words = tmp_path / "dino.safetensors", tmp_path / "bert.safetensors"
    save_file(dino(source), file)
    save_file({f"bert.{name}": t for name, t in source.text_encoder.transformer.state_dict().items()}, words)
    options = {
        "IMG_ENCODER__IMGNET_PRETRAINED": "dino",
        "IMG_ENCODER__IMGNET_PRETRAINED_CHECKPOINT": str(file),
        "IMG_ENCODER__FIXED": True,
        "TEXT_ENCODER__WEIGHTS": str(words),
        "TEXT_ENCODER__PRETRAINED": True,
    }
    model = load_model(tiny_cfg(folder, **options))
    new = model.img_encoder.state_dict()
    for name, tensor in source.img_encoder.state_dict().items():
        random = name.startswith(("layers.0.downsample.", "layers.0.group_token"))
        assert torch.equal(tensor, new[name]) != (random and tensor.std() > 0), name
        assert torch.equal(new[name], model.img_encoder_momentum.state_dict()[name])
    trained = {name for name, p in model.img_encoder.named_parameters() if p.requires_grad}
    assert "pos_embed" in trained and "layers.0.group_token" in trained and "norm.weight" not in trained
    assert not any(".blocks." in name for name in trained)
    assert torch.equal(
        model.text_encoder.transformer.embeddings.word_embeddings.weight,
        source.text_encoder.transformer.embeddings.word_embeddings.weight,
    )
    save_file(dino(source, depth=1), file)
    with pytest.raises(OvsegError, match="IMGNET_PRETRAINED_CHECKPOINT"):
        load_model(tiny_cfg(folder, **options))
    with pytest.raises(OvsegError, match="IMGNET_PRETRAINED to none"):
        load_model(tiny_cfg(folder, IMG_ENCODER__IMGNET_PRETRAINED="dino"))


def test_a_vision_transformer_with_other_patches(folder, tmp_path):
    """The tokens are those that its own patches have of the enlarged image."""
    torch.manual_seed(0)
    source, file = tiny_model(folder, stage=0, seed=5), tmp_path / "vit.safetensors"
    kernel = torch.randn(24, 3, 16, 16)
    state = {name: tensor for name, tensor in dino(source).items() if name != "patch_embed.proj.bias"}
    save_file(state | {"patch_embed.proj.weight": kernel, "pos_embed": torch.ones(1, 1 + 4, 24)}, file)
    options = {"IMG_ENCODER__IMGNET_PRETRAINED": "vit", "IMG_ENCODER__IMGNET_PRETRAINED_CHECKPOINT": str(file)}
    encoder = load_model(tiny_cfg(folder, stage=0, **options)).img_encoder
    image = torch.randn(1, 3, SIDE, SIDE)
    enlarged = F.conv2d(image.repeat_interleave(2, 2).repeat_interleave(2, 3), kernel, stride=16)
    torch.testing.assert_close(encoder.patch_embed(image)[0], enlarged.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert encoder.pos_embed.shape == (16, 24) and torch.allclose(encoder.pos_embed, torch.ones(16, 24), atol=1e-5)
    with pytest.raises(OvsegError, match="not a vision transformer of this size"):
        load_model(tiny_cfg(folder, **options | {"IMG_ENCODER__IMGNET_PRETRAINED": "imgnet"}))


def test_the_names_of_clip():
    block = (
        "ln_1.weight",
        "attn.in_proj_weight",
        "attn.out_proj.bias",
        "ln_2.bias",
        "mlp.c_fc.weight",
        "mlp.c_proj.bias",
    )
    names = [f"transformer.resblocks.{index}.{name}" for index in (0, 1, 2) for name in block]
    rest = ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_post.bias", "proj")
    visual = {f"visual.{name}": torch.full((3, 2), float(index)) for index, name in enumerate((*rest, *names))}
    text = {name: torch.zeros(1) for name in (*names, "positional_embedding", "token_embedding.weight", "logit_scale")}
    found = vit_in_stages(visual | text, first_depth=2)
    parts = ("norm1.weight", "attn.qkv.weight", "attn.proj.bias", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias")
    blocks = [f"layers.{stage}.blocks.{index}.{part}" for stage, index in ((0, 0), (0, 1), (1, 0)) for part in parts]
    assert found.keys() == {"pos_embed", "patch_embed.proj.weight", "norm.bias", "proj", *blocks}
    assert found["pos_embed"].shape == (2, 2) and found["layers.1.blocks.0.mlp.fc2.bias"][0, 0] == 23


def test_what_first_weights_lack(folder, tmp_path):
    source, words = tiny_model(folder, stage=1, seed=5), tmp_path / "bert.safetensors"
    save_file({f"bert.{name}": t for name, t in source.text_encoder.transformer.state_dict().items()}, words)
    state, file = source.state_dict(), tmp_path / "part.safetensors"

    def start(lacking: str, key: str, **options):
        save_file({name: tensor for name, tensor in state.items() if not name.startswith(lacking)}, file)
        cfg = tiny_cfg(folder, stage=2 if key else 1, **options, **({key: str(file)} if key else {}))
        if not key:
            cfg.MODEL.WEIGHTS = str(file)
        return load_model(cfg)

    text = {"TEXT_ENCODER__WEIGHTS": str(words), "TEXT_ENCODER__PRETRAINED": True}
    started = start("text_encoder.", "", **text)
    table = "text_encoder.transformer.embeddings.word_embeddings.weight"
    assert torch.equal(started.state_dict()[table], state[table])
    for lacking, key, message in (
        ("img_encoder.layers.1.", "", "lacks .* image encoder"),
        ("text_encoder.transformer.encoder.layer.1.", "STAGE1_CHECKPOINT", "STAGE1_CHECKPOINT .* lacks"),
        ("bridge_projector.", "STAGE1_CHECKPOINT", "bridge_projector"),
    ):
        with pytest.raises(OvsegError, match=message):
            start(lacking, key, **text)
    save_file(tiny_model(folder, stage=2).state_dict(), file)
    with pytest.raises(OvsegError, match="is a checkpoint of stage 2"):
        load_model(tiny_cfg(folder, STAGE1_CHECKPOINT=str(file)))


def test_what_evaluation_needs_is_enough(folder, tmp_path):
    """Section 13: both encoders, both heads and the temperature."""
    source, file = tiny_model(folder, stage=1, seed=5), tmp_path / "weights.safetensors"
    parts = ("img_encoder.", "text_encoder.", "img_projector.", "text_projector.", "logit_scale")
    save_file({name: tensor for name, tensor in source.state_dict().items() if name.startswith(parts)}, file)
    cfg = tiny_cfg(folder, stage=2)
    cfg.MODEL.WEIGHTS = str(file)
    found = load_model(cfg, complete=True).eval()([request()])[0]["sem_seg"]
    assert torch.equal(found, source([request()])[0]["sem_seg"])
