"""LSeg against its recording: every stage, the options, multi-scale evaluation and a training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovseg.clip.text import encode_text
from ovseg.evaluation.tta import MultiScale
from ovseg.naming.language_pixels import SCALE
from ovseg.vocabulary import Vocabulary
from tests.parity.fixture import load_lseg

IMAGES = (0, 1)  # those with all stages; image 2 has logits only


@pytest.fixture(scope="module")
def parity():
    recording = load_lseg()
    yield recording
    print(recording.report())


@pytest.fixture(scope="module")
def model(parity):
    return parity.model()


def logits(model, request):
    with torch.no_grad():
        return model([request])[0]["sem_seg"]


def test_text(parity, model):
    scorer = model.scorer
    assert parity.outputs["logit_scale"][0] == pytest.approx(SCALE)
    for names, suffix in (("labels", ""), ("alternative", "_alternative")):
        tokens = scorer.text.tokenize(parity.names(names))
        if not suffix:
            parity.check("text/tokens", tokens.to(torch.int32))
        with torch.no_grad():
            parity.check(f"text/features{suffix}", encode_text(scorer.clip_pretrained, tokens, tokens.shape[1]))


@pytest.mark.parametrize("image", IMAGES)
def test_stages(parity, model, image):
    scorer, found = model.scorer, {}
    vit, decoder = scorer.pretrained, scorer.scratch

    def keep(name, module, before=False):
        def hook(_, inputs, output=None):
            found[name] = (inputs[0] if before else output)[0]

        return module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)

    hooks = [keep("tokens", vit.model.blocks[0], before=True), keep("pixel_embedding_s16", decoder.head1)]
    for index in range(1, 5):
        hooks.append(keep(f"hook{index}", vit.model.blocks[vit.hooks[index - 1]]))
        name = f"reassembled{index}" + ("_s2" if index == 1 else "")
        hooks.append(keep(name, getattr(vit, f"act_postprocess{index}")))
        name = f"refinenet{index}" + {1: "_s4", 2: "_s2"}.get(index, "")
        hooks.append(keep(name, getattr(decoder, f"refinenet{index}")))
    with torch.no_grad():
        decoder(vit(scorer.pad([parity.request(image)["image"].float()])))
    for hook in hooks:
        hook.remove()
    found["refinenet2"] = found.pop("refinenet2_s2")[..., ::2, ::2]
    for name, value in found.items():
        step = int(name.partition("_s")[2] or 1)
        parity.check(f"img{image}/{name}", value[..., ::step, ::step])


@pytest.mark.parametrize("image", [0, 1, 2])
def test_logits(parity, model, image):
    request, scorer = parity.request(image), model.scorer
    with torch.no_grad():
        words = Vocabulary.from_class_names(request["class_names"])
        half = scorer.half_logits(scorer.pad([request["image"].float()]), words)[0]
    parity.check(f"img{image}/logits_half", half)
    found = logits(model, request)
    assert found.shape[1:] == request["image"].shape[1:]
    name, step = ("logits", 1) if image == 0 else ("logits_s2", 2)
    parity.check(f"img{image}/{name}", found[:, ::step, ::step])
    if image in IMAGES:
        other = logits(model, parity.request(image, "alternative"))
        parity.check(f"img{image}/logits_alternative_s2", other[:, ::2, ::2])


VARIANTS = [
    *[(0, option, depth, activation) for option in (1, 2) for depth in (0, 1, 3) for activation in ("lrelu",)],
    *[(0, option, 3, activation) for option in (1, 2) for activation in ("tanh", "relu")],
    *[(1, option, depth, "lrelu") for option in (1, 2) for depth in (0, 1, 3)],
]


@pytest.mark.parametrize(("image", "option", "depth", "activation"), VARIANTS)
def test_spatial_regularisation(parity, image, option, depth, activation):
    model = parity.model(arch_option=option, block_depth=depth, activation=activation)
    name = f"img{image}/arch{option}_depth{depth}_{activation}_s4"
    recorded = name in parity.outputs or f"{name}@8" in parity.outputs
    if not recorded and not parity.reduced:
        pytest.skip("not recorded")
    parity.check(name, logits(model, parity.request(image))[:, ::4, ::4])


@pytest.mark.parametrize("readout", ["ignore", "add"])
def test_readouts(parity, readout):
    model = parity.model(vit={"readout": readout})
    parity.check(f"img0/readout_{readout}_s4", logits(model, parity.request(0))[:, ::4, ::4])


def test_batch(parity, model):
    with torch.no_grad():
        results = model(parity.training_batch())
    parity.check("batch/logits_s4", torch.stack([result["sem_seg"] for result in results])[..., ::4, ::4])


def test_multi_scale(parity, model):
    settings, request = parity.arch["slide"], parity.request("slide")
    base, crop, scales = settings["base_size"], settings["crop_size"], settings["scales"]
    every, last = (
        MultiScale(model, base, crop, scales, settings["flip"]),
        MultiScale(model, base, crop, scales[-1:], False),
    )
    parity.check("slide/scores", logits(every, request) * len(scales) * 2)  # the original's are sums
    parity.check("slide/scores_last_scale_no_flip_s2", logits(last, request)[:, ::2, ::2])


def test_training(parity):
    model = parity.model().train()
    scorer, seen = model.scorer, []
    compute = scorer.logits
    scorer.logits = lambda *arguments: seen.append(compute(*arguments)) or seen[-1]
    losses = model(parity.training_batch())
    sum(losses.values()).backward()
    parity.check("train/logits_s4", seen[0][..., ::4, ::4])
    parity.check("train/loss", losses["loss_pixel"])
    prefix = "train/after/"
    model(parity.training_batch())  # the recorded statistics are those after two passes: 0.81 of the old ones remain
    for name in [name for name in parity.outputs if name.startswith(prefix)]:
        parity.check(name, model.state_dict()[name.removeprefix(prefix)])

    parameters = dict(model.named_parameters())
    names, norms, reliable = (parity.outputs[f"train/grad_{part}"] for part in ("names", "norms", "reliable"))
    compared = 0
    for name, norm, trusted in zip(names.tolist(), norms, reliable, strict=True):
        if name not in parameters or name.startswith("clip_pretrained."):
            continue  # unused, or CLIP, which gets gradients in the original that nothing reads
        gradient = parameters[name].grad
        assert (gradient is None) == (norm == -1), name
        if gradient is not None and trusted:
            assert float(gradient.norm()) == pytest.approx(float(norm), rel=1e-3), name
            compared += 1
    assert compared > 100
    assert all(p.grad is None for name, p in parameters.items() if name.startswith("clip_pretrained."))


def test_a_second_training_step(parity):
    """The original raises here, since its scale stays in the graph (behaviour.json)."""
    model = parity.model().train()
    for _ in range(2):
        sum(model(parity.training_batch()).values()).backward()


@pytest.mark.parametrize("size", [(50, 64), (80, 96), (100, 96), (1, 1), (1, 200), (33, 31)])
def test_any_size(parity, model, size):
    """The original raises, or returns a smaller map, for sides that are no multiples of 32."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
    found = logits(model, {"image": image, "class_names": parity.names("labels")})
    assert found.shape == (4, *size)
    assert torch.isfinite(found).all()


def test_checkpoint_of_lightning(parity, tmp_path):
    """The published files have the weights as ``state_dict``, with ``net.`` before each name."""
    from ovseg.checkpoint import load_weights

    state = {f"net.{name}": tensor for name, tensor in parity.weights.items()}
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"a": 1}}, tmp_path / "demo.ckpt")
    model = parity.empty_model()
    report = load_weights(model, tmp_path / "demo.ckpt")
    assert not report.missing and not report.unexpected
    first, second = (logits(m, parity.request(2)) for m in (model, parity.model()))
    assert torch.equal(first, second)


def test_every_recorded_array_was_compared(parity, request):
    """Of the full recording, when one process runs all tests of this file."""
    if parity.reduced or request.config.getoption("keyword") or hasattr(request.config, "workerinput"):
        pytest.skip("not all arrays are here, or were compared by this process")
    others = {"logit_scale", "text/tokens", *(f"train/grad_{part}" for part in ("names", "norms", "reliable"))}
    assert {name for name, _ in parity.compared} | others == set(parity.outputs.files)
