"""OVSegmentor's contract: requests, words, windows, losses, the teacher, weights of both stages."""

from __future__ import annotations

import copy
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
from ovseg.clip.bert import check_texts
from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.grounding.batch_norm import SharedBatchNorm
from ovseg.naming.group_embeddings import template_set
from ovseg.naming.windows import windows
from ovseg.proposals.views import PROPOSERS, Views
from ovseg.segmenter import Segmenter
from ovseg.vocabulary.templates import get_templates
from ovseg.vocabulary.wordpiece import SPECIAL, read_vocabulary
from tests.tiny_ovsegmentor import SIDE, request, tiny_cfg, tiny_model, training_batch

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"


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


def test_statistics_of_the_bridge(folder):
    norms = [tiny_model(folder, SYNC_BRIDGE=sync).bridge_projector.linear_hidden[1] for sync in (True, False)]
    assert [isinstance(norm, SharedBatchNorm) for norm in norms] == [True, False]


def test_matching_in_bfloat16(folder):
    model = tiny_model(folder, COST_TYPE="cosine").train()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(training_batch())["loss_mask"].isfinite()
