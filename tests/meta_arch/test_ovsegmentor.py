"""OVSegmentor's contract: requests, words, windows, losses, the teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch.nn import functional as F

from ovseg.checkpoint import load_model
from ovseg.clip.bert import check_texts
from ovseg.errors import OvsegError
from ovseg.grounding.batch_norm import SharedBatchNorm
from ovseg.naming.group_embeddings import template_set
from ovseg.naming.windows import windows
from ovseg.proposals.views import PROPOSERS, Views
from ovseg.segmenter import Segmenter
from ovseg.vocabulary.templates import get_templates
from ovseg.vocabulary.wordpiece import SPECIAL, read_vocabulary
from tests.tiny_ovsegmentor import SIDE, request, tiny_cfg, tiny_model, training_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ovsegmentor")


@pytest.fixture(scope="module")
def model(folder):
    return tiny_model(folder)


@torch.no_grad()
def test_requests(model):
    wide, tall = request(40, 56), request(64, 40, seed=1, height=20, width=30)
    before = copy.deepcopy([wide, tall])
    outputs = ("sem_seg", "label_map", "group_maps")
    both = model([{**wide, "outputs": outputs}, {**tall, "outputs": outputs}])
    alone = model([wide])[0] | model([tall])[0]
    assert both[0]["sem_seg"].shape == (4, 40, 56) and both[1]["sem_seg"].shape == (4, 20, 30)
    assert both[0]["group_maps"].shape == (4, 40, 56) and both[1]["group_maps"].shape == (4, 20, 30)
    assert torch.allclose(both[0]["group_maps"].sum(0), torch.ones(40, 56), atol=1e-5)
    assert torch.equal(both[1]["sem_seg"], alone["sem_seg"]) and both[1]["sem_seg"].dtype == torch.float32
    for result in both:
        assert (
            torch.equal(result["label_map"], result["sem_seg"].argmax(0)) and result["label_map"].dtype == torch.int64
        )
    for given, kept in zip([wide, tall], before, strict=True):
        assert torch.equal(given.pop("image"), kept.pop("image")) and given == kept
    assert model([request(outputs=["group_maps"])])[0].keys() == {"group_maps"}
    assert model([request(5, 3)])[0]["sem_seg"].shape == (4, 5, 3)  # less than a patch


@torch.no_grad()
def test_the_background_is_the_first_word_alone(model):
    plain = model([request(class_names=["cat", "dog", "tree"])])[0]["sem_seg"]
    with_background = model([request()])[0]["sem_seg"]
    assert torch.equal(with_background[1:], plain) and not torch.equal(plain[0], with_background[0])
    elsewhere = model([request(class_names=["cat", "background", "dog"])])[0]["sem_seg"]
    assert 0 < elsewhere[1].max() < 1  # a word like others
    with pytest.raises(OvsegError, match="only word"):
        model([request(class_names=["background"])])


@torch.no_grad()
def test_the_threshold_is_at_most_the_best_score_of_the_window(folder):
    model = tiny_model(folder, BG_THRESH=1.0, WINDOW=[0, 0], STRIDE=[0, 0])
    scores = model([request()])[0]["sem_seg"]
    best = scores[1:].amax(0)
    assert torch.equal(scores[0] == 1, best < best.max()) or best.max() < 1  # unless a group without pixels is best
    model = tiny_model(folder, BG_THRESH=0.0, WINDOW=[0, 0], STRIDE=[0, 0])
    assert not model([request()])[0]["sem_seg"][0].any()


@torch.no_grad()
def test_the_best_synonym_counts_and_takes_part_in_the_gate(folder):
    model = tiny_model(folder, WINDOW=[0, 0], STRIDE=[0, 0], TOP_CLASSES=2)
    words = ["cat", "dog", "tree", "sky"]
    each = model([request(class_names=words)])[0]["sem_seg"]
    joined = model([request(class_names=[("cat", "tree"), "dog", "sky"])])[0]["sem_seg"]
    assert torch.allclose(joined, torch.stack((torch.maximum(each[0], each[2]), each[1], each[3])), atol=1e-6)
    assert (each.flatten(1).amax(1) > 0).sum() == 2  # those that the image may show


@torch.no_grad()
def test_one_window_as_the_formulas_say(folder):
    model = tiny_model(folder, WINDOW=[0, 0], STRIDE=[0, 0])
    sample = request(SIDE, SIDE, class_names=["cat", "dog", "tree"])
    found = model.encode_image(model.scorer.proposer.normalise(sample["image"][None]))
    texts, scale = model.class_embeddings(["cat", "dog", "tree"], "simple"), model.logit_scale.exp()
    first = (scale * F.normalize(found["group_emb"][0], dim=-1) @ texts.T).softmax(1)
    maps = F.interpolate(found["assign_soft"][:, 0].unflatten(-1, (4, 4)), (SIDE, SIDE), mode="bilinear")[0]
    expected = (first * first)[maps.argmax(0)].movedim(-1, 0)  # three words pass the gate of five
    assert torch.allclose(model([sample])[0]["sem_seg"], expected, atol=1e-5)


@torch.no_grad()
def test_words_are_means_of_prompts_and_follow_the_weights(model):
    prompts = ["a photo of the {}.", "the red {}."]
    ids, mask = model.text_encoder.tokenizer([prompt.format("cat") for prompt in prompts])
    expected = F.normalize(model.encode_text(ids, mask)["text_emb"].mean(0), dim=-1)
    assert torch.allclose(model.class_embeddings(["cat", "dog"], prompts)[0], expected, atol=1e-6)
    before = model.class_embeddings(["cat"], prompts)
    model.text_projector.linear_out.bias.add_(1)
    assert not torch.allclose(before, model.class_embeddings(["cat"], prompts))
    model.text_projector.linear_out.bias.sub_(1)
    with pytest.raises(OvsegError, match="simple, subset"):
        template_set("vild")
    assert len(template_set("full")) == 80 and len(template_set("subset")) == 7
    assert set(template_set("subset")) - set(get_templates("imagenet")) == set()


def test_windows():
    covered = torch.zeros(50, 20)
    places = list(windows((50, 20), (16, 32), (8, 8)))
    for place in places:
        covered[place] += 1
    assert covered.min() == 1 and len(places) == 6 and places[-1] == (slice(34, 50), slice(0, 20))
    assert list(windows((50, 20), (0, 0), (0, 0))) == [(slice(0, 50), slice(0, 20))]


@torch.no_grad()
def test_groups_are_proposals_of_other_systems(folder):
    cfg = tiny_cfg(folder)
    model = tiny_model(folder)
    images = [request()["image"], request(64, 40)["image"]]
    proposer = PROPOSERS.get("GroupTokens")(cfg).eval()
    proposer.img_encoder.load_state_dict(model.img_encoder.state_dict())
    for image, masks in zip(images, proposer(Views([{}, {}], images)), strict=True):
        assert masks.probabilities.shape == (4, *image.shape[1:])
        assert torch.equal(masks.probabilities.sum(0), torch.ones(image.shape[1:])) and masks.embeddings is None
        maps = model([{**request(), "image": image, "outputs": ["group_maps"]}])[0]["group_maps"]
        assert torch.equal(maps.argmax(0), masks.probabilities.argmax(0))


def test_the_segmenter(folder, tmp_path):
    cfg = tiny_cfg(folder, stage=0)
    cfg.INPUT.MIN_SIZE_TEST = 48
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    model = tiny_model(folder)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    segment = Segmenter.from_config(tmp_path / "tiny.yaml", tmp_path / "model.safetensors", device="cpu")
    pixels = (request(48, 60)["image"]).byte().movedim(0, -1).numpy()
    result = segment(pixels, ["background", "cat", "dog"])
    assert result.label_map.shape == (48, 60) and set(result.label_map.flatten().tolist()) <= {0, 1, 2}
    with torch.no_grad():
        sample = {"image": torch.from_numpy(pixels).movedim(-1, 0), "class_names": ["background", "cat", "dog"]}
        expected = model([sample])[0]["sem_seg"].argmax(0)
    assert torch.equal(torch.from_numpy(result.label_map).long(), expected)
    with pytest.raises(OvsegError, match="no masks"):
        segment.propose(pixels)
    with pytest.raises(OvsegError, match="no embeddings of pixels"):
        segment.features(pixels)


def test_losses_of_the_stages(folder):
    batch = training_batch()
    for stage, names in ((0, {"matching"}), (1, {"matching", "entity"}), (2, {"matching", "entity", "mask"})):
        model = tiny_model(folder, stage=stage).train()
        losses = model(batch)
        assert losses.keys() == {f"loss_{name}" for name in names}
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert model.img_encoder.layers[0].group_token.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.img_encoder_momentum.parameters())
    with pytest.raises(OvsegError, match=r"SOLVER\.IMS_PER_BATCH"):
        model(batch[:1])
    with pytest.raises(OvsegError, match="lack cross_image"):
        model([{name: value for name, value in sample.items() if name != "cross_image"} for sample in batch])
    with pytest.raises(OvsegError, match=r"INPUT\.IMG_AUG\.IMG_SIZE"):
        model([{**sample, "image": torch.zeros(3, 40, 40)} for sample in batch])


def test_switches_of_the_training(folder):
    batch = training_batch()

    def losses(**options):
        model = tiny_model(folder, IMG_ENCODER__DROP_PATH_RATE=0.0, **options).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for encoder in (model.img_encoder, model.img_encoder_momentum):
            encoder.layers[0].downsample.assign.sample_gumbel = torch.zeros_like
        return model(batch), model

    plain, model = losses()
    lean, other = losses(EXTRA_HEAD_RUNS=False)
    for name, value in plain.items():
        assert torch.allclose(value, lean[name], rtol=1e-5), name
    runs = [int(m.text_projector.linear_hidden[1].num_batches_tracked) for m in (model, other)]
    assert runs == [8, 3]
    assert [int(m.img_projector.linear_hidden[1].num_batches_tracked) for m in (model, other)] == [4, 2]
    assert not torch.allclose(losses(MASK_PADDING=True)[0]["loss_entity"], plain["loss_entity"])
    by_image = losses(MASKLOSS_PER_GROUP=False)[0]["loss_mask"]
    assert torch.allclose(by_image * len(batch), plain["loss_mask"] * 4, rtol=1e-5)
    model = tiny_model(folder, USE_ENTITYLOSS=False, MASKLOSS_NEEDS_ENTITYLOSS=True).train()
    assert model(batch).keys() == {"loss_matching"}
    assert torch.isfinite(losses(COST_TYPE="cosine", DUAL_DICE=True)[0]["loss_mask"])


def test_the_teacher_follows(folder):
    model = tiny_model(folder, MOMENTUM=0.75)
    with torch.no_grad():
        model.img_encoder.pos_embed.add_(1)
    before = model.img_encoder_momentum.pos_embed.clone()
    model.update_teacher()
    assert torch.allclose(model.img_encoder_momentum.pos_embed, before + 0.25, atol=1e-6)


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_other_text_encoders(folder, kind):
    model = tiny_model(folder, kind=kind)
    assert model([request()])[0]["sem_seg"].shape == (4, 40, 56)
    assert model.train()(training_batch())["loss_entity"].isfinite()


def test_texts_must_fit_the_text_encoder(folder, tmp_path):
    keys = tiny_cfg(folder).MODEL.OVSEGMENTOR.TEXT_ENCODER
    check_texts(keys, 24)
    with pytest.raises(OvsegError, match=r"INPUT\.TEXT_AUG\.MAX_SEQ_LEN is 25, .* up to 24 tokens: set it to that"):
        check_texts(keys, 25)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *(f"word{index}" for index in range(28))]))
    with pytest.raises(OvsegError, match=r"vocab\.txt has 33 tokens, the text encoder 32: correct .*\.VOCAB"):
        check_texts(
            tiny_cfg(folder, TEXT_ENCODER__VOCAB=str(tmp_path / "vocab.txt")).MODEL.OVSEGMENTOR.TEXT_ENCODER, 24
        )


def test_each_line_is_a_token(tmp_path):
    (tmp_path / "lines.txt").write_bytes("\r\n".join([*SPECIAL, "a\u2028b", "c\u0085", "d", ""]).encode())
    tokenizer = read_vocabulary(tmp_path / "lines.txt")
    assert tokenizer.vocab_size == len(SPECIAL) + 3
    assert tokenizer(["d"])[0].tolist() == [[2, len(SPECIAL) + 2, 3]]


def test_no_words(folder):
    with pytest.raises(OvsegError, match="no words to embed"):
        tiny_model(folder).class_embeddings([], "simple")


def test_mistakes(folder, tmp_path):
    for options, message in (
        ({"IMG_ENCODER__DEPTHS": [1, 1, 1]}, "give 2 numbers"),
        ({"IMG_ENCODER__NUM_HEADS": [5, 2]}, "divisors of 24"),
        ({"TEXT_ENCODER__WIDTH": 20}, "has 16 channels"),
        ({"TEXT_ENCODER__CONFIG": str(tmp_path / "absent.json")}, "TEXT_ENCODER.CONFIG"),
        ({"WINDOW": [32, 32], "STRIDE": [64, 64]}, "STRIDE"),
    ):
        with pytest.raises(OvsegError, match=message):
            build_model(tiny_cfg(folder, **options))
    absent = str(tmp_path / "absent.pth")
    for options in (
        {"STAGE1_CHECKPOINT": absent},
        {"IMG_ENCODER__IMGNET_PRETRAINED": "dino", "IMG_ENCODER__IMGNET_PRETRAINED_CHECKPOINT": absent},
        {"TEXT_ENCODER__WEIGHTS": absent},
        {"IMG_ENCODER__FIXED": True},
    ):
        with pytest.raises(OvsegError, match=next(reversed(options)).replace("__", ".")):
            load_model(tiny_cfg(folder, **options))
    model = tiny_model(folder, TEXT_ENCODER__VOCAB=str(tmp_path / "absent.txt"))
    with pytest.raises(OvsegError, match=r"TEXT_ENCODER\.VOCAB"):
        model([request()])


def test_the_multi_label_loss(folder):
    batch = training_batch()
    for sample in batch:
        captions = [other["caption"] for other in batch[:2]]
        sample["labels"] = {key: torch.stack([caption[key] for caption in captions]) for key in captions[0]}
    model = tiny_model(folder, MULTI_LABEL=2, MULTI_LABEL_LOSS_WEIGHT=0.5).train()
    loss = model(batch)["loss_labels"]
    loss.backward()
    assert loss > 0 and model.multi_label_logit_scale.grad != 0 and model.logit_scale.grad is None
    shared = tiny_model(folder, MULTI_LABEL=2, SHARE_TEMPERATURE=True).train()
    shared(batch)["loss_labels"].backward()
    assert shared.logit_scale.grad != 0 and "multi_label_logit_scale" not in shared.state_dict()
    with pytest.raises(OvsegError, match="lack labels"):
        model(training_batch())


def test_statistics_of_the_bridge(folder):
    norms = [tiny_model(folder, SYNC_BRIDGE=sync).bridge_projector.linear_hidden[1] for sync in (True, False)]
    assert [isinstance(norm, SharedBatchNorm) for norm in norms] == [True, False]


def test_matching_in_bfloat16(folder):
    model = tiny_model(folder, COST_TYPE="cosine").train()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(training_batch())["loss_mask"].isfinite()
