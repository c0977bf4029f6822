"""OVSegmentor against recordings of the original: arrays of every stage, losses, gradients, one step.

The copy in tests/data is a part of them; OVSEGMENTOR_PARITY=FOLDER compares all arrays.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn import functional as F

from ovseg.engine.solver import build_optimizer
from ovseg.grounding.mask_consistency import cross_maps, maps_at, mask_consistency_loss, match_maps
from ovseg.meta_arch.image_text_losses import normalised_images
from tests.parity.ovsegmentor_case import Case, complete

only_complete = pytest.mark.skipif(not complete, reason="needs the complete recording, OVSEGMENTOR_PARITY")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    case = Case(tmp_path_factory.mktemp("ovsegmentor"))
    yield case
    largest = sorted(case.compared.items(), key=lambda item: -item[1])[:8]
    print(f"\nparity of OVSegmentor: {len(case.compared)} arrays, largest differences", largest)


@pytest.fixture(scope="module")
def model(case):
    return case.model()


def noted(module, found, name):
    """Note the output of a module."""
    return module.register_forward_hook(lambda module, inputs, output: found.setdefault(name, output))


@torch.no_grad()
def test_the_steps_of_the_encoder(case, model):
    encoder, found = model.img_encoder, {}
    block = encoder.layers[0].downsample
    watched = {
        "group_projected": block.norm_post_tokens,
        "group_pre_assign": block.pre_assign_attn,
        "stage0_patch_tokens": encoder.layers[0].blocks[-1],
        "assign_out": block.assign,
        "stage0_groups": block,
        "stage1_tokens": encoder.layers[1],
        "patch_embed": encoder.patch_embed,
    }
    hooks = [noted(module, found, name) for name, module in watched.items()]
    image = case["eval_image"]
    result = encoder(image)
    for hook in hooks:
        hook.remove()
    found = {name: output[0] if isinstance(output, tuple) else output for name, output in found.items()}
    tokens = found.pop("stage0_patch_tokens")
    patches = len(encoder.pos_embed)
    found |= {"stage0_patch_tokens": tokens[:, :patches], "stage0_group_tokens": tokens[:, patches:]}
    found["tokens_pos"] = found["patch_embed"] + encoder.pos_embed
    for name, array in found.items():
        case.check(f"eval_{name}", array)
    case.check("eval_assign_q", result.assignment.q)
    case.check("eval_assign_k", result.assignment.k)
    maps = result.maps(tuple(image.shape[2:]))
    case.check("seg_eval_attn_map", maps.movedim(1, -1))
    case.check("seg_eval_group_onehot_argmax", maps.argmax(1).int())


@pytest.mark.parametrize("name", ["eval", "rect", "odd"])
@torch.no_grad()
def test_images(case, model, name):
    found = model.encode_image(case[f"{name}_image"])
    for key in (
        "assign_raw",
        "assign_soft",
        "assign_hard",
        "group_feat",
        *(("group_emb", "image_emb") if complete else ()),
    ):
        case.check(f"{name}_{key}", found[key])
    case.check(f"{name}_image_x_before_proj", found["pooled"])


@torch.no_grad()
def test_texts(case, model):
    found = model.encode_text(*case.text("caption"))
    names = {"last_hidden": "text_last_hidden", "cls": "text_x_before_proj"}
    for key, name in (names | {"text_emb": "text_emb", "token_emb": "text_token_emb"}).items():
        case.check(name, found[key])


def test_the_tokenizer_gives_the_recorded_numbers(case, model):
    tokenize = model.text_encoder.tokenizer
    length = case.published["max_seq_len"]
    texts = {"caption": "captions", "question": "questions", "answer": "answers", "cross_entity": "cross_entities"}
    for name, key in texts.items():
        for actual, expected in zip(tokenize(case.published[key], length), case.text(name), strict=True):
            assert torch.equal(actual, expected), name
    prompts = [case.published["template"].format(word) for word in case.published["classes"]]
    for actual, expected in zip(tokenize(prompts), case.text("class_prompt"), strict=True):
        assert torch.equal(actual, expected)


@only_complete
@torch.no_grad()
def test_words(case, model):
    words = case.published["classes"]
    found = model.class_embeddings(words, [case.published["template"]])
    case.check("class_text_emb", found)
    case.check("class_text_emb_ens", model.class_embeddings(words, case.published["ensemble_templates"]))
    images = F.normalize(model.encode_image(case["images"])["image_emb"], dim=-1)
    case.check("zero_shot_cls_logits", images @ found.T)


@torch.no_grad()
def test_the_decoder(case, model):
    question = model.text_encoder(*case.text("question"))
    case.check("dec_question", model.align_proj_text(question))
    visual = torch.from_numpy(case.outputs["dec_visual"])
    case.check("dec_tokens", model.multimodal_groupingblock(model.align_proj_text(question), visual))


@only_complete
@torch.no_grad()
def test_the_decoder_and_its_ends(case, model):
    groups, question = model.img_encoder(case["images"]).features, model.text_encoder(*case.text("question"))
    case.check("dec_visual", model.align_proj_img(groups))
    found = model.decode_entities(groups, question)
    case.check("dec_tokens", found["tokens"])
    case.check("dec_bridge", found["bridge"])
    case.check("dec_answer_emb", model.encode_text(*case.text("answer"))["text_emb"])


class Recorded(torch.nn.Module):
    """Projection head that returns recorded embeddings, of groups and of images."""

    def __init__(self, *embeddings):
        super().__init__()
        self.by_length = {len(rows): torch.from_numpy(rows) for rows in embeddings}

    def forward(self, vectors):
        return self.by_length[len(vectors)]


WHOLE = ("MODEL.OVSEGMENTOR.WINDOW", [0, 0], "MODEL.OVSEGMENTOR.STRIDE", [0, 0])
SETTINGS = [
    ("eval", "bg095"),
    ("eval", "bg035"),
    ("eval", "bgauto"),
    ("eval", "nobg"),
    ("rect", "bgauto"),
    ("odd", "bgauto"),
]


@pytest.mark.parametrize(("image", "setting"), SETTINGS)
@torch.no_grad()
def test_segmentation_of_one_window(case, image, setting):
    about = case.published["seg"][setting]
    model = case.model(*WHOLE, "MODEL.OVSEGMENTOR.BG_THRESH", about.get("bg_thresh", 0.95))
    if not complete:  # it lacks the projection heads
        model.img_projector = Recorded(case.outputs[f"{image}_group_emb"][0], case.outputs[f"{image}_image_emb"])
        model.scorer.namer.img_projector = model.img_projector
        model.scorer.namer.class_embeddings = lambda *_: torch.from_numpy(case.outputs["class_text_emb"])
    words = ["background"] * about["with_bg"] + case.published["classes"]
    request = {"image": case.pixels(f"{image}_image")[0], "class_names": words, "outputs": ["sem_seg", "label_map"]}
    (found,) = model([request])
    case.check_scores(f"seg_{image}_{setting}_logits", found["sem_seg"][None])
    case.check(f"seg_{image}_{setting}_label", found["label_map"].int())


@only_complete
@torch.no_grad()
def test_segmentation_in_windows(case):
    about = case.published["seg"]["slide"]
    options = {"WINDOW": about["crop_size"], "STRIDE": about["stride"], "BG_THRESH": about["bg_thresh"]}
    model = case.model(*(word for key, value in options.items() for word in (f"MODEL.OVSEGMENTOR.{key}", value)))
    image, words = case.pixels("slide_image")[0], ["background", *case.published["classes"]]
    height, width = about["ori_shape"]
    request = {"image": image, "class_names": words, "outputs": ["sem_seg", "label_map"]}
    plain, resized = model([request, {**request, "height": height, "width": width}])
    case.check_scores("slide_logits", plain["sem_seg"][None])
    case.check_scores("slide_logits_ori", resized["sem_seg"][None])
    case.check("slide_label_ori", resized["label_map"].int())


def training_model(case, noise, *options):
    """Return a model in training mode with the recorded noise, or none."""
    model = case.model(*options).train()
    for encoder, name in ((model.img_encoder, "online"), (model.img_encoder_momentum, "momentum")):
        assign = encoder.layers[0].downsample.assign
        gumbel = case[f"gumbel_{name}"]
        assign.sample_gumbel = lambda raw, gumbel=gumbel: gumbel if noise else torch.zeros_like(raw)
    return model


def test_the_mask_loss_of_recorded_maps(case):
    names = ("map_anchor_on_cross", "map_cross_momentum")
    ours, theirs = (maps_at(torch.from_numpy(case.outputs[f"train_nonoise_{name}"]), 96) for name in names)
    case.check("train_nonoise_match_cross_idx", match_maps(ours, theirs).int())
    case.check("train_nonoise_mask", mask_consistency_loss(ours, theirs), atol=0, rtol=1e-4)


@only_complete
@pytest.mark.parametrize("run", ["nonoise", "noise"])
@torch.no_grad()
def test_maps_of_training(case, run):
    model = training_model(case, run == "noise")
    images, others = (normalised_images(model, case.batch(), name) for name in ("image", "cross_image"))
    online, momentum = model.img_encoder(images).assignment, model.img_encoder_momentum(others).assignment
    for name, assignment in (("online", online), ("momentum", momentum)):
        case.check(f"train_{run}_assign_raw_{name}", assignment.raw)
        case.check(f"train_{run}_assign_index_{name}", assignment.hard[:, 0].argmax(1).int())
    keys = momentum.k[:, 0]
    ours, theirs = cross_maps(online.q[:, 0], keys), cross_maps(momentum.q[:, 0], keys)
    case.check(f"train_{run}_map_anchor_on_cross", ours)
    case.check(f"train_{run}_map_cross_momentum", theirs)
    matched = match_maps(maps_at(ours, images.shape[-1]), maps_at(theirs, images.shape[-1]))
    case.check(f"train_{run}_match_anchor_idx", torch.arange(ours.shape[1]).expand(len(ours), -1).int())
    case.check(f"train_{run}_match_cross_idx", matched.int())


@only_complete
@pytest.mark.parametrize("run", ["nonoise", "noise"])
def test_losses(case, run):
    losses = training_model(case, run == "noise")(case.batch())
    check = functools.partial(case.check, atol=0, rtol=1e-4)
    check(f"train_{run}_matching", losses["loss_matching"])
    check(f"train_{run}_entity", losses["loss_entity"])
    check(f"train_{run}_mask", losses["loss_mask"] / 0.1)
    check(f"train_{run}_loss", sum(losses.values()))
    check(f"train_{run}_loss_stage1", losses["loss_matching"] + losses["loss_entity"])


@only_complete
def test_variants_of_the_mask_loss(case):
    check = functools.partial(case.check, atol=0, rtol=1e-4)
    dual = training_model(case, False, "MODEL.OVSEGMENTOR.DUAL_DICE", True)(case.batch())
    check("train_nonoise_mask_dual", dual["loss_mask"] / 0.1)
    options = ("MODEL.OVSEGMENTOR.USE_ENTITYLOSS", False, "MODEL.OVSEGMENTOR.MASKLOSS_NEEDS_ENTITYLOSS")
    losses = training_model(case, False, *options, True)(case.batch())
    check("train_nonoise_loss_mask_only_cfg", sum(losses.values()))
    assert losses.keys() == {"loss_matching"}
    assert training_model(case, False, *options, False)(case.batch()).keys() == {"loss_matching", "loss_mask"}


@only_complete
def test_gradients(case):
    model = training_model(case, False)
    losses = model(case.batch())
    losses["loss_mask"] = losses["loss_mask"] / 0.1
    names = list(case.outputs["grad_param_names"])
    parameters = dict(model.named_parameters())
    norms = {}
    for name, loss in losses.items():
        gradients = dict(zip(names, gradients_of(loss, [parameters[name] for name in names]), strict=True))
        norms[name] = torch.tensor([-1.0 if g is None else g.norm() for g in gradients.values()])
        if name == "loss_mask":
            query = gradients["img_encoder.layers.0.downsample.assign.q_proj.weight"]
            case.check("grad_mask_assign_q_weight", query, atol=1e-5)
    total = losses["loss_matching"] + losses["loss_entity"] + 0.1 * losses["loss_mask"]
    gradients = dict(zip(names, gradients_of(total, [parameters[name] for name in names]), strict=True))
    norms["loss_loss"] = torch.tensor([-1.0 if g is None else g.norm() for g in gradients.values()])
    sum_of_all = norms["loss_loss"].clamp_min(0).norm()
    case.check("grad_total_norm", sum_of_all, rtol=1e-4)
    for name, values in norms.items():
        case.check(f"grad_norm_{name.removeprefix('loss_')}", values, atol=1e-4 * float(sum_of_all))
    for name, key in {"group_token": "layers.0.group_token", "pos_embed": "pos_embed"}.items():
        case.check(f"grad_loss_{name}", gradients[f"img_encoder.{key}"], atol=1e-4)
    case.check("grad_loss_logit_scale", gradients["logit_scale"], atol=1e-5)


def gradients_of(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


@only_complete
def test_one_step_and_the_statistics(case):
    model = training_model(case, False)
    losses = model(case.batch())
    state = model.state_dict()
    for name in case.outputs.files:
        if name.startswith("bn_after."):
            case.check(name, state[name.removeprefix("bn_after.")])
    sum(losses.values()).backward()
    about = case.published["train"]["adamw"]
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    solver = ("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", about["lr"], "SOLVER.WEIGHT_DECAY", about["weight_decay"])
    rest = ("SOLVER.BETAS", about["betas"], "SOLVER.EPS", about["eps"])
    options = (*solver, *rest, *clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", about["clip_grad"])
    optimizer = build_optimizer(case.config(*options), model)
    for name, decays in (("step1_decay_group_size", True), ("step1_nodecay_group_size", False)):
        sizes = [len(group["params"]) for group in optimizer.param_groups if (group["weight_decay"] > 0) == decays]
        case.check(name, torch.tensor(sum(sizes), dtype=torch.int32))
    optimizer.step()
    model.update_teacher()
    state = model.state_dict()
    for name in case.outputs.files:
        if name.startswith("step1."):
            case.check(name, state[name.removeprefix("step1.")], atol=2e-5)
