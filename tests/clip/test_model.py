"""Names of CLIP: resolution, preprocessing and errors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN
from safetensors.torch import save_file

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.model import CONFIG, build_clip, find_clip, load_clip_weights
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.naming import ContextCrops, MaskedCrops
from ovseg.naming.contextual_shift import whole_images
from tests.tiny_clip import TINY as CLIP
from tests.tiny_clip import model_of, tiny_cfg, views_of

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 16, "heads": 1, "layers": 1},
}
GREY = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1.0], "interpolation": "bilinear", "resize_mode": "squash"}
LAION = "laion2b_s32b_b82k"  # of ViT-L-14, whose images were normalised with 0.5


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Return the current folder, with clip.json, clip.safetensors, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("clip.json").write_text(json.dumps(TINY))
    torch.manual_seed(0)
    save_file(build_clip(find_clip("clip.json", "none"))[0].state_dict(), "clip.safetensors")
    Path("folder").mkdir()
    return tmp_path


def write(path: str, **content: object) -> str:
    Path(path).write_text(json.dumps(TINY | content))
    return path


def adapter_of(**keys: object) -> ClipAdapter:
    cfg = get_cfg()
    keys = {"CLIP_MODEL_NAME": "clip.json", "CLIP_WEIGHTS": "none", "TEXT_CACHE_DIR": "none"} | keys
    for key, value in keys.items():
        cfg.MODEL.CLIP_ADAPTER[key] = value
    return ClipAdapter(cfg, original_depths=(2,)).eval()


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("clip.json", "clip", "'clip' is not a file, and only open_clip's names have tags"),
        ("clip.json", "laion2b_s32b_b82k", "is not a file, and only open_clip's names have tags"),
        ("clip.json", "./clip", "the weight file ./clip does not exist.*; did you mean clip.safetensors"),
        ("clip.json", "clip.safetensor", "'clip.safetensor' is not a file"),
        ("clip.json", "clip.pt", "the weight file clip.pt does not exist"),
        ("clip.json", "nowhere/clip", "the weight file nowhere/clip does not exist"),
        ("clip.json", "folder", "is a folder: give the file in it"),
        ("clip.json", "x" * 300, "is not a file"),
        ("clp.json", "clip.safetensors", "cannot read the CLIP configuration clp.json"),
        ("ViT-L-14", "clip", "open_clip has no weights 'clip' for ViT-L-14, and there is no file of this name"),
        ("ViT-L-14", "./clip.safetensor", "the weight file ./clip.safetensor does not exist"),
        ("ViT-L-14", "laion2b_s32b_b83k", "did you mean laion2b_s32b_b82k"),
        ("ViT-L-14:laion2b_s32b_b83k", "none", "did you mean laion2b_s32b_b82k"),
        ("ViT-L-14:laion2b_s32b_b82k", "datacomp_xl_s13b_b90k", "name two tags"),
        ("ViT-L-14-336", "laion2b_s32b_b82k", "its tags are openai"),
        ("vit-l-14", "none", "is not a CLIP .*; did you mean ViT-L-14"),
        ("clip", "none", "is not a CLIP of open_clip, nor a .json file: give"),
        ("folder", "none", "is a folder: write local-dir: before it"),
        ("local-dir:folder", "", "cannot read the CLIP configuration folder/open_clip_config.json"),
        ("local-dir:nowhere", "clip", "is not a file"),
        ("hf-hub:nobody/nothing", "nowhere.pt", "the weight file nowhere.pt does not exist"),
    ],
)
def test_what_is_named_must_exist(files, name, weights, message):
    with pytest.raises(OvsegError, match=message):
        find_clip(name, weights)


def test_clips_of_transformers_are_called_by_their_name(files):
    save_file({"logit_scale": torch.ones(1), "vision_model.pre_layrnorm.weight": torch.ones(1)}, "hf.safetensors")
    with pytest.raises(OvsegError, match="is a CLIP of Hugging Face's transformers"):
        load_clip_weights(torch.nn.Module(), find_clip("clip.json", "hf.safetensors"))


@pytest.mark.parametrize("weights", ["", "openai"])
def test_random_weights_are_for_those_who_say_none(files, weights):
    source = find_clip("clip.json", weights)
    with pytest.raises(OvsegError, match=r"CLIP clip\.json is a configuration without weights: give"):
        source.fetch_weights()
    assert find_clip("clip.json", "none").fetch_weights is None
    assert find_clip("clip.json", "clip.safetensors").fetch_weights() == "clip.safetensors"


def test_a_source_can_be_sent_to_another_process(files):
    for source in (find_clip("clip.json", "clip.safetensors"), find_clip("ViT-B/32"), find_clip("clip.json")):
        again = pickle.loads(pickle.dumps(source))
        assert (again.name, again.architecture, again.preprocessing) == (
            source.name,
            source.architecture,
            source.preprocessing,
        )


def test_every_published_weight_has_its_own_preprocessing():
    other = 0
    for name, tag in open_clip.list_pretrained():
        theirs = open_clip.get_pretrained_cfg(name, tag)
        ours = find_clip(name, tag).preprocessing
        assert (ours.mean, ours.std) == (tuple(theirs["mean"]), tuple(theirs["std"])), (name, tag)
        assert (ours.interpolation, ours.resize_mode) == (theirs["interpolation"], theirs["resize_mode"])
        other += ours.mean != OPENAI_DATASET_MEAN
    assert other >= 50
    published = (("ViT-L/14", "openai"), ("ViT-B/16", "openai"), ("ViT-L-14", "datacomp_xl_s13b_b90k"))
    assert all(find_clip(*names).preprocessing == OPENAI for names in published)


def test_where_the_preprocessing_of_a_file_is_from(files):
    grey, file = Preprocessing.of(GREY, ""), "clip.safetensors"
    own = write("own.json", preprocess_cfg=GREY)
    hub = Path("hub.json")
    hub.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": GREY | {"size": 32, "mode": "RGB"}}))
    assert find_clip(own, file).preprocessing == find_clip("hub.json", "none").preprocessing == grey
    assert find_clip("clip.json", file).preprocessing == find_clip("ViT-L-14", file).preprocessing == OPENAI
    assert find_clip(f"ViT-L-14:{LAION}", file).preprocessing.mean == (0.5, 0.5, 0.5)
    assert find_clip("ViT-B-16-SigLIP", file).preprocessing.mean == (0.5, 0.5, 0.5)  # all its weights agree

    config = {"model_cfg": TINY | {"quick_gelu": True}, "preprocess_cfg": {"mean": 0.25}}
    Path(CONFIG).write_text(json.dumps(config))
    for name in ("clip.json", "ViT-L-14"):
        found = find_clip(name, file).preprocessing
        assert (found.mean, found.std) == ((0.25, 0.25, 0.25), OPENAI.std)
    assert find_clip("ViT-L-14", file).architecture["quick_gelu"]
    assert find_clip(own, file).preprocessing == grey
    assert find_clip(f"ViT-L-14:{LAION}", file).preprocessing.mean == (0.5, 0.5, 0.5)
    Path("open_clip_model.safetensors").write_bytes(Path(file).read_bytes())
    assert find_clip("local-dir:.").preprocessing.mean == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "preprocess_cfg in .*clip.json is not a mapping"),
        ({"mean": [0.5, 0.5]}, "mean of preprocess_cfg in .*: give three numbers from 0 to 1"),
        ({"mean": [123.7, 116.3, 103.5]}, "give three numbers from 0 to 1"),
        ({"std": [0.5, 0.0, 0.5]}, "give numbers above 0"),
        ({"std": "0.5"}, "give three numbers"),
        ({"std": [0.5, float("nan"), 0.5]}, "give three numbers"),
        ({"interpolation": "lanczos"}, "'lanczos': choose one of bicubic, random, bilinear"),
        ({"resize_mode": ["squash"]}, "choose one of shortest, longest, squash"),
    ],
)
def test_bad_preprocessing(files, config, message):
    with pytest.raises(OvsegError, match=message):
        find_clip(write("clip.json", preprocess_cfg=config), "none")


@pytest.mark.parametrize("kind", [MaskedCrops, ContextCrops])
def test_pixels_are_prepared_as_the_model_wants(files, kind):
    write("grey.json", preprocess_cfg=GREY)
    namer, plain = kind(adapter_of(CLIP_MODEL_NAME="grey.json")), kind(adapter_of())
    image, masks = torch.rand(3, 40, 50) * 255, (torch.rand(2, 40, 50) > 0.5).float()
    crops = next(namer.inputs(views_of(image), 0, masks))[0]
    box = image[:, :, :] * masks[0] + 127.5 * (1 - masks[0])
    expected = torch.nn.functional.interpolate(
        ((box / 255 - 0.5) / torch.tensor(GREY["std"]).view(3, 1, 1))[None], (32, 32), mode="bilinear"
    )
    torch.testing.assert_close(crops[:1], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(next(plain.inputs(views_of(image), 0, masks))[0], crops, atol=0.1)


def test_whole_images_are_prepared_as_the_model_wants(files, monkeypatch):
    write("grey.json", preprocess_cfg=GREY)
    seen = []
    monkeypatch.setattr("ovseg.clip.adapter.look_at_whole", lambda visual, images, depths: seen.append(images))
    image = torch.rand(3, 64, 64) * 255
    for name in ("grey.json", "clip.json"):
        whole_images(views_of(image), adapter_of(CLIP_MODEL_NAME=name))
    normalised = (image / 255 - 0.5) / torch.tensor(GREY["std"]).view(3, 1, 1)
    expected = torch.nn.functional.interpolate(normalised[None], (32, 32), mode="bilinear")
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-4)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI.mean, OPENAI.std))
    published = torch.nn.functional.interpolate(((image / 255 - mean) / std)[None], (32, 32), mode="nearest")
    torch.testing.assert_close(seen[1], published, rtol=0, atol=1e-4)


def test_a_checkpoint_does_not_change_the_preprocessing(files, caplog):
    cfg = tiny_cfg(files)
    Path("grey.json").write_text(json.dumps(CLIP | {"preprocess_cfg": GREY}))
    old = model_of(cfg).state_dict()
    model_of(cfg, {name: t.half() if "pixel" in name else t for name, t in old.items()})
    assert "which holds" not in caplog.text
    model = model_of(cfg, old, CLIP_MODEL_NAME=str(files / "grey.json"))
    assert model.clip_adapter.pixel_mean.flatten().tolist() == [127.5] * 3
    assert f"pixel_mean [122.8, 116.7, 104.1] of CLIP's input, but {files}/grey.json has [127.5" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_cfg": {"hf_model_name": "xlm-roberta-base"}}, "needs the package transformers, .*pip install"),
        (
            {"text_cfg": TINY["text_cfg"] | {"hf_tokenizer_name": "t5"}},
            "tokenizer t5 .* needs the package transformers",
        ),
        ({"text_cfg": TINY["text_cfg"] | {"vocab_size": 32000}}, "has a vocabulary of 32000 tokens"),
        ({"multimodal_cfg": {}}, "is a CoCa captioner: choose a CLIP of an image tower"),
        ({"vision_cfg": TINY["vision_cfg"] | {"image_size": [32, 64]}}, "32 x 64 pixels: crops are squares"),
        ({"vision_cfg": {"timm_model_name": "no_such_model", "image_size": 32}}, "is not a usable CLIP configuration"),
        ({"vision_cfg": TINY["vision_cfg"] | {"head_width": 0}}, "is not a usable CLIP configuration"),
        ({"vision_cfg": 3}, "vision_cfg in the CLIP configuration .* is not a mapping"),
        ({"surprise": 1}, "is not a usable CLIP configuration"),
        (
            {"text_cfg": TINY["text_cfg"] | {"vocab_size": "49408"}},
            "vocab_size of its text_cfg is '49408': give a whole",
        ),
    ],
)
def test_what_cannot_be_built_is_one_sentence(files, monkeypatch, change, message):
    monkeypatch.setattr("open_clip.hf_model.transformers", None)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(OvsegError, match=message) as error:
        build_clip(find_clip(write("clip.json", **change), "none"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ImportError("\nT5Tokenizer requires the SentencePiece library"), "needs the package sentencepiece"),
        (ValueError("Cannot instantiate this tokenizer: you need to have sentencepiece"), "pip install sentencepiece"),
        (OSError("We couldn't connect to the hub\nsee transformers/installation"), "copy the model's repository"),
    ],
)
def test_a_tokenizer_that_cannot_be_had(files, monkeypatch, raised, message):
    def fail(*_: object, **__: object) -> None:
        raise raised

    lacking = ("sentencepiece",)
    monkeypatch.setattr("ovseg.clip.tokenizer.find_spec", lambda name: None if name in lacking else name)
    monkeypatch.setattr("ovseg.clip.tokenizer._HuggingFaceTokenizer.__init__", fail)
    name = write("clip.json", text_cfg=TINY["text_cfg"] | {"hf_tokenizer_name": "t5"})
    with pytest.raises(OvsegError, match=message):
        build_clip(find_clip(name, "none"))


def test_a_short_context_length(files):
    name = write("short.json", text_cfg=TINY["text_cfg"] | {"context_length": 16})
    adapter = adapter_of(CLIP_MODEL_NAME=name)
    assert adapter.text_matrix(["a cat"], ["{}"]).shape == (2, 16)
    with pytest.raises(OvsegError, match="CLIP reads 14"):
        adapter.text_matrix([" ".join(["cat"] * 15)], ["{}"])
