"""Segment Anything as a proposer: tiny random networks of all kinds, files of the original, and wrong folders."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovseg.checkpoint import load_model
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.io.files import file_digest
from ovseg.proposals.point_grid import PointGrid
from ovseg.proposals.sam import SAM
from ovseg.proposals.sam_files import load_sam, new_name
from ovseg.proposals.views import Views
from tests.tiny_sam import tiny_sam, tiny_sam_folder

ROOT = Path(__file__).parents[2]
ANY = PointGrid(4, 5, iou_threshold=0, stability_threshold=0.2, stability_offset=0.1, nms_threshold=0.99)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("sam")
    return {kind: tiny_sam_folder(place, kind) for kind in ("sam", "sam2", "sam3_tracker")}


@pytest.fixture
def image():
    y, x = torch.meshgrid(torch.linspace(0, 1, 45), torch.linspace(0, 1, 70), indexing="ij")
    return (torch.stack((x, y, (x * 9).sin())) * 200).clamp(0, 255)


@pytest.mark.parametrize("kind", ["sam", "sam2", "sam3_tracker"])
def test_every_kind_proposes(kind, folders, image, caplog):
    with caplog.at_level(logging.INFO, "ovseg"):
        proposer = SAM(str(folders[kind]), ANY)
    assert file_digest(folders[kind] / "model.safetensors") in caplog.text
    assert not proposer.state_dict() and not list(proposer.parameters())
    first, second = proposer(Views([{}, {}], [image, image[:, :, :30]]))
    assert first.probabilities.shape[1:] == (45, 70) and second.probabilities.shape[1:] == (45, 30)
    assert len(first.probabilities) > 0 and first.embeddings is None
    assert first.probabilities.dtype == torch.float32 and set(first.probabilities.unique().tolist()) <= {0.0, 1.0}
    assert first.probabilities.flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["sam", "sam2", "sam3_tracker"])
def test_it_is_what_transformers_computes(kind, folders, image):
    """The answer for one point equals that of the processor of transformers, which also scales points and masks."""
    import transformers

    names = {"sam": "SamProcessor", "sam2": "Sam2Processor", "sam3_tracker": "Sam3TrackerProcessor"}
    predictor = SAM(str(folders[kind]))._predictor
    kwargs = {"target_size": predictor.processor.size["height"]} if kind != "sam" else {}
    processor = getattr(transformers, names[kind])(predictor.processor, **kwargs)
    pixels = image.round().to(torch.uint8)
    points = [[[[20.0, 30.0]], [[61.0, 11.0]]]]
    inputs = processor(images=pixels, input_points=points, input_labels=[[[1], [1]]], return_tensors="pt")
    with torch.no_grad():
        expected = predictor.network(**{k: v for k, v in inputs.items() if not k.endswith("sizes")})
        logits, scores = predictor.decode(predictor.encode(image), torch.tensor(points)[0, :, 0])
    torch.testing.assert_close(logits, expected.pred_masks[0])
    torch.testing.assert_close(scores, expected.iou_scores[0])
    rest = [inputs["reshaped_input_sizes"]] if kind == "sam" else []
    large = processor.post_process_masks(expected.pred_masks, inputs["original_sizes"], *rest)[0]
    mine = predictor.enlarge(logits.flatten(0, 1), (45, 70)) > 0
    assert torch.equal(mine, large.flatten(0, 1) > 0)


def test_the_point_decoder_of_a_whole_sam3(tmp_path, image):
    whole = tiny_sam("sam3_video")
    whole.save_pretrained(tmp_path)
    network, _ = load_sam(str(tmp_path))
    state, prefixes = whole.state_dict(), ("", "tracker_model.", "detector_model.")
    assert type(network).__name__ == "Sam3TrackerModel"
    for name, tensor in network.state_dict().items():
        names = [prefix + name for prefix in prefixes] + [name.replace("vision_encoder.neck", "tracker_neck")]
        assert any(other in state and torch.equal(state[other], tensor) for other in names), name
    assert len(SAM(str(tmp_path), ANY)(Views([{}], [image]))[0].probabilities)


def original_names(state):
    """Return the state of a SamModel under the names of segment_anything, by the inverse of the map of names."""
    fixed = {
        **{f"{n}.{p}": f"{o}.{p}" for n, o in MODULES.items() for p in ("weight", "bias")},
        "shared_image_embedding.positional_embedding": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    }
    renamed = {}
    for name, tensor in state.items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            continue
        old = fixed.get(name) or name
        if name.startswith("vision_encoder.layers."):
            old = name.replace("vision_encoder.layers.", "image_encoder.blocks.").replace("layer_norm", "norm")
        elif name == "vision_encoder.pos_embed":
            old = "image_encoder.pos_embed"
        elif name.startswith("prompt_encoder.point_embed."):
            old = name.replace("point_embed.", "point_embeddings.")
        elif name.startswith("mask_decoder.transformer."):
            old = name.replace("layer_norm_final_attn", "norm_final_attn").replace("layer_norm", "norm")
        elif "hypernetworks" in name or "iou_prediction_head" in name:
            old = name.replace("layers.0", "layers.1").replace("proj_in", "layers.0").replace("proj_out", "layers.2")
        renamed[old] = tensor.clone()
    return renamed


MODULES = {
    "vision_encoder.patch_embed.projection": "image_encoder.patch_embed.proj",
    "vision_encoder.neck.conv1": "image_encoder.neck.0",
    "vision_encoder.neck.layer_norm1": "image_encoder.neck.1",
    "vision_encoder.neck.conv2": "image_encoder.neck.2",
    "vision_encoder.neck.layer_norm2": "image_encoder.neck.3",
    "prompt_encoder.mask_embed.conv1": "prompt_encoder.mask_downscaling.0",
    "prompt_encoder.mask_embed.layer_norm1": "prompt_encoder.mask_downscaling.1",
    "prompt_encoder.mask_embed.conv2": "prompt_encoder.mask_downscaling.3",
    "prompt_encoder.mask_embed.layer_norm2": "prompt_encoder.mask_downscaling.4",
    "prompt_encoder.mask_embed.conv3": "prompt_encoder.mask_downscaling.6",
    "mask_decoder.upscale_conv1": "mask_decoder.output_upscaling.0",
    "mask_decoder.upscale_layer_norm": "mask_decoder.output_upscaling.1",
    "mask_decoder.upscale_conv2": "mask_decoder.output_upscaling.3",
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_the_original(suffix, tmp_path, image):
    network = tiny_sam("sam", seed=1)
    state = original_names(network.state_dict())
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias" in state
    assert not any("layer_norm" in name or "proj_in" in name for name in state)
    assert {new_name(name) for name in state} | {"prompt_encoder.shared_embedding.positional_embedding"} == set(
        network.state_dict()
    )
    file = tmp_path / f"sam_vit_tiny.{suffix}"
    torch.save(state, file) if suffix == "pth" else save_file(state, file)
    read, processor = load_sam(str(file))
    assert processor.size["longest_edge"] == 64 and processor.pad_size["height"] == 64
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    network.save_pretrained(tmp_path / "folder")
    masks = [SAM(str(place), ANY)(Views([{}], [image]))[0].probabilities for place in (file, tmp_path / "folder")]
    assert len(masks[0]) and torch.equal(*masks)


def test_a_weight_file_in_its_folder_is_that_folder(folders, image):
    by_file, _ = load_sam(str(folders["sam2"] / "model.safetensors"))
    assert type(by_file).__name__ == "Sam2Model"


def test_settings_of_a_folder(folders, tmp_path):
    folder = tmp_path / "sam"
    folder.mkdir()
    for file in folders["sam"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = {
        "image_mean": [0.1, 0.2, 0.3],
        "size": {"longest_edge": 1024},
        "image_processor_type": "SamImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    _, processor = load_sam(str(folder))
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor.size["longest_edge"] == 64  # what the network takes, whatever the file says
    (folder / "preprocessor_config.json").write_text("[")
    with pytest.raises(OvsegError, match=r"preprocessor_config\.json cannot be read"):
        load_sam(str(folder))


def damaged(folder: Path, what: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if what == "no config":
        config.unlink()
    elif what == "bad config":
        config.write_text("{")
    elif what == "list":
        config.write_text("[]")
    elif what == "CLIP":
        config.write_text(json.dumps({"model_type": "clip"}))
    elif what == "no weights":
        weights.unlink()
    elif what == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "lacking":
        save_file(dict(list(load_file(weights).items())[:-3]), weights, {"format": "pt"})
    elif what == "other sizes":
        content = json.loads(config.read_text())
        content["mask_decoder_config"]["mlp_dim"] = 24
        config.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "has no config.json: give the folder of a SAM, SAM 2 or SAM 3"),
        ("bad config", r"config\.json cannot be read"),
        ("list", r"config\.json cannot be read"),
        ("CLIP", "is a model of the kind 'clip', not Segment Anything"),
        ("no weights", r"has no weights, \*\.safetensors"),
        ("pickle", r"has no weights, \*\.safetensors"),
        ("cut", "cannot be read as a model of sam"),
        ("lacking", "lacks 3 tensors, such as"),
        ("other sizes", "cannot be read as a model of sam|lacks"),
    ],
)
def test_damaged_folders(what, message, folders, tmp_path):
    folder = tmp_path / "sam"
    folder.mkdir()
    for file in folders["sam"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damaged(folder, what)
    with pytest.raises(OvsegError, match=message):
        load_sam(str(folder))


def test_what_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("", "nowhere", "./nowhere/at/all", str(tmp_path / "none")):
        with pytest.raises(OvsegError, match=r"MODEL\.PROPOSER\.SAM\.MODEL is .*there is no such file or folder: give"):
            load_sam(name)
    file = tmp_path / "clip.pth"
    torch.save({"visual.conv1.weight": torch.zeros(2)}, file)
    with pytest.raises(OvsegError, match="is not a weight file of segment_anything"):
        load_sam(str(file))
    state = original_names(tiny_sam("sam").state_dict())
    del state["mask_decoder.mask_tokens.weight"]
    torch.save(state, file)
    with pytest.raises(OvsegError, match="is not a complete SAM"):
        load_sam(str(file))


def test_names_on_the_hub(monkeypatch, folders):
    import huggingface_hub

    def fetch(name, allow_patterns):
        if name != "facebook/sam-vit-tiny":
            raise OSError("no network")
        return str(folders["sam"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert type(load_sam("facebook/sam-vit-tiny")[0]).__name__ == "SamModel"
    remedy = "run `hf download facebook/sam-vit-other --local-dir sam`, copy the folder here"
    with pytest.raises(OvsegError, match=re.escape(remedy)):
        load_sam("facebook/sam-vit-other")


def test_configuration(folders, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "MODEL:\n  META_ARCHITECTURE: ProposeAndName\n  DEVICE: cpu\n  NAMER: {NAME: [MaskedCrops]}\n"
        "  PROPOSER: {NAME: SAM, SAM: {MODEL: ./sam, POINTS_PER_SIDE: 3, MIN_AREA: 7}}\n"
        f"  CLIP_ADAPTER: {{CLIP_MODEL_NAME: {ROOT / 'configs/toy/clip.json'}, CLIP_WEIGHTS: none, "
        "MASK_PROMPT_DEPTH: 0}\nVERSION: 2\n"
    )
    (tmp_path / "sam").symlink_to(folders["sam"])
    cfg = load_cfg(config)
    assert Path(cfg.MODEL.PROPOSER.SAM.MODEL) == tmp_path / "sam"  # counts from the file
    model = load_model(cfg, complete=True)
    assert model.proposer.grid == PointGrid(3, min_area=7)
    assert all(name.startswith("clip_adapter.") for name in model.state_dict())
    with pytest.raises(OvsegError, match=r"POINTS_PER_SIDE is 0: give a whole number from 1 to 256"):
        load_cfg(config, ["MODEL.PROPOSER.SAM.POINTS_PER_SIDE", 0])
    with pytest.raises(OvsegError, match=r"the proposer SAM has nothing to train"):
        model.train()([{"image": torch.zeros(3, 8, 8)}])
