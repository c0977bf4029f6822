"""MaskCLIP against the numbers of the original, and the behaviour of the model that reads its files."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ovseg.checkpoint import load_weights, save_torch
from ovseg.clip.dense_vit import KEY_PART, QUERY, as_maps, self_projection, value_path
from ovseg.errors import OvsegError
from ovseg.meta_arch.mask_sums import resize
from ovseg.meta_arch.maskclip import build_maskclip
from ovseg.naming.dense import cosine_map

REFINED = 1e-3  # tolerance where thresholds of a softmax of 100 x cosine decide (README of the recording)
IMAGES = range(3)


@functools.cache
def model_of(recording):
    return recording.model()


def settings(recording) -> dict[str, tuple[dict[str, float], float]]:
    """Return the keyword arguments and the tolerance of each recorded setting."""
    smoothing, denoising = recording.arch["ks_thresh"], recording.arch["pd_thresh"]
    return {
        "plain": ({}, 1e-4),
        "key_smoothing": ({"key_smoothing": smoothing}, REFINED),
        "denoising": ({"denoising": denoising}, REFINED),
        "both": ({"key_smoothing": smoothing, "denoising": denoising}, REFINED),
        "smoothing_all": ({"key_smoothing": recording.arch["ks_thresh_all"]}, REFINED),
    }


def texts(recording) -> Tensor:
    return torch.from_numpy(recording.inputs["text_embeddings"])


def test_every_recorded_array(maskclip_parity):
    maskclip_parity.compared.clear()
    for image in IMAGES:
        check_scores(maskclip_parity, image)
        check_features(maskclip_parity, image)
    check_convolutional_head(maskclip_parity)
    names = [name for name, _ in maskclip_parity.compared]
    assert sorted(names) == sorted(maskclip_parity.outputs.files)


def check_scores(recording, image):
    model, pixels = model_of(recording), recording.image(image)
    for setting, (arguments, tolerance) in settings(recording).items():
        scores = model.score_map(pixels, texts(recording), **arguments)
        recording.check(f"img{image}/{setting}/output", scores, tolerance)
        if setting in ("plain", "both"):
            resized = resize(scores, tuple(pixels.shape[1:]))[:, ::2, ::2]
            recording.check(f"img{image}/{setting}/resized_s2", resized, tolerance)
    weak = model.score_map(pixels, texts(recording), mode="last_tokens")
    recording.check(f"img{image}/tokens_only/output", weak)
    recording.check(f"img{image}/last_attention_and_cls/output", weak)


@torch.no_grad()
def check_features(recording, image):
    model, pixels = model_of(recording), recording.image(image)
    pixels = ((pixels - model.pixel_mean) / model.pixel_std)[None]
    backbone, last = model.backbone, model.backbone.layers[-1]
    recording.check(f"img{image}/last_feature", backbone(pixels, "last_tokens")[0][0])
    recording.check(f"img{image}/v", backbone(pixels)[0][0])
    x, grid = backbone.before_last(pixels)
    for name, part in (("q", QUERY), ("k", KEY_PART)):
        recording.check(f"img{image}/{name}", self_projection(last.attn["attn"], last.ln1(x), part)[0, 1:])
    # the original's option skip_last_attn leaves out the final norm
    tokens = value_path(x, last.ln1, last.attn["attn"], last.ln2, last.ffn)
    scores = cosine_map(model.decode_head.proj(as_maps(tokens, grid))[0], texts(recording))
    recording.check(f"img{image}/skip_last_attn/output", scores)


def check_convolutional_head(recording):
    head, features = recording.head(), torch.from_numpy(recording.inputs["cnn/feature"])

    def scores(**arguments) -> Tensor:
        return torch.stack([head.score_map(of_image, texts(recording), **arguments) for of_image in features])

    for setting, (arguments, tolerance) in settings(recording).items():
        recording.check(f"cnn/{setting}/output", scores(**arguments), tolerance)
    recording.check("cnn/attention_pooling/output", scores(attention_pooling=True))


def test_files_of_mmsegmentation(maskclip_parity, tmp_path):
    """Their text embeddings are used by default; the mean and the deviation of images are not in them."""
    arch = maskclip_parity.arch | {"text_categories": 5}
    state = dict(model_of(maskclip_parity).state_dict()) | {"decode_head.text_embeddings": texts(maskclip_parity)}
    save_torch({"meta": {}, "state_dict": state}, tmp_path / "model.pth")
    model = build_maskclip(arch)
    report = load_weights(model, tmp_path / "model.pth")
    assert not report.missing
    assert not report.unexpected
    maskclip_parity.check("img0/plain/output", model.score_map(maskclip_parity.image(0)))
    maskclip_parity.compared.pop()


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({"vit": None}, r"arch lacks vit\.image_size, .*vit\.heads: give"),
        ({"text_channels": ...}, "arch lacks text_channels: give"),
        ({"activation": "quick_gelu"}, r"vit\.activation is 'quick_gelu': give gelu \(exact\), or use DenseCLIP"),
        ({"heads": 5}, r"vit\.width is 48: give a multiple of vit\.heads, 5"),
        ({"text_channels": None}, "arch has a value that cannot be used"),
        ({"pixel_mean": 0}, "arch has a value that cannot be used"),
        ({"layers": 0}, r"vit\.layers is 0: give a whole number from 1"),
    ],
)
def test_bad_sizes(maskclip_parity, arch, message):
    given = {**maskclip_parity.arch, "vit": dict(maskclip_parity.arch["vit"])}
    for key, value in arch.items():
        (given if key in given else given["vit"])[key] = value
    given = {key: value for key, value in given.items() if value is not ...}
    with pytest.raises(OvsegError, match=message):
        build_maskclip(given)
    with pytest.raises(OvsegError, match=r"arch is 'arch\.json': give a dict"):
        build_maskclip("arch.json")


def test_bad_input(maskclip_parity):
    model, image, text = model_of(maskclip_parity), maskclip_parity.image(0), texts(maskclip_parity)
    with pytest.raises(OvsegError, match=r"image has the shape \[1, 3, 64, 64\]: give one of shape \(3, H, W\)"):
        model.score_map(image[None], text)
    with pytest.raises(OvsegError, match=r"text has the shape \[5, 23\]: give one of shape \(K, 24\)"):
        model.score_map(image, text[:, 1:])
    with pytest.raises(OvsegError, match="no text embeddings: give text"):
        model.score_map(image)
    with pytest.raises(OvsegError, match="mode is 'values': choose one of value, "):
        model.score_map(image, text, mode="values")
    assert torch.equal(model(image, text), model.score_map(image, text))
    with pytest.raises(OvsegError, match="nothing to train"):
        maskclip_parity.model().train()(image, text)
