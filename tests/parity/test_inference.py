"""OVSeg in evaluation mode against the numbers of the original."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ovseg.clip.vit import encode_masked_image
from ovseg.naming.crops import mask_boxes

ENSEMBLE = "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE"
WEIGHT = "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT"
PROMPT = "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD"
THRESHOLD = "MODEL.CLIP_ADAPTER.MASK_THR"
DEMO = ("MODEL.META_ARCHITECTURE", "OVSegDEMO", WEIGHT, 0.0)
IMAGES = (0, 1)


def test_text(parity):
    adapter = parity.model().clip_adapter
    names = parity.names("test")
    tokens = torch.stack([adapter.text.tokenize([t.format(name) for t in adapter.text.templates]) for name in names])
    parity.check("text/tokens_test", tokens.int())
    for which in ("test", "train", "demo"):
        parity.check(f"text/features_{which}", adapter.text_matrix(parity.names(which)))
    for templates in ("imagenet", "predefined"):
        other = parity.model("MODEL.CLIP_ADAPTER.TEXT_TEMPLATES", templates).clip_adapter
        parity.check(f"text/features_test_{templates}", other.text(names))


@pytest.mark.parametrize("image", IMAGES)
def test_stages(parity, image):
    model = parity.model()
    parity.play_back(model, f"img{image}/backbone/res5")
    request = parity.request(image)
    views, network, namer = model.views([request]), model.proposer, model.mask_namer
    height, width = views.images[0].shape[1:]
    padded = F.pad(network.normalize(views.images[0]), (0, -width % 32, 0, -height % 32))[None]
    with torch.no_grad():
        features = network.backbone(padded)
        for name, feature in features.items():
            parity.check(f"img{image}/backbone/{name}", feature[0])
        mask_features, _ = model.sem_seg_head.pixel_decoder(features)
        parity.check(f"img{image}/mask_features", mask_features[0])
        embeddings, masks = model.sem_seg_head(features)[-1]
        parity.check(f"img{image}/pred_masks", masks[0])
        parity.check(f"img{image}/pred_embed", embeddings[0])
        adapter = model.clip_adapter
        text = adapter.text_matrix(parity.names("test"))
        parity.check(f"img{image}/class_logits", adapter.similarity(embeddings[0], text))
        found = network(views)
        probabilities = found[0].probabilities
        parity.check(f"img{image}/mask_prob", probabilities)
        (scores,) = namer(views, found, [model.words_of(request)])
        valid = scores.seen
        parity.check(f"img{image}/valid", valid)
        (features,) = namer.features(views, [(0, probabilities[valid])])
        logits = adapter.similarity(features, text)
        parity.check(f"img{image}/clip_logits_prompt", logits)
        torch.testing.assert_close(scores.probabilities, logits[:, :-1].softmax(-1))
        parity.check(f"img{image}/boxes", mask_boxes(probabilities[valid] > namer.mask_threshold))
        crops, regions = map(torch.cat, zip(*namer.inputs(views, 0, probabilities[valid]), strict=True))
        parity.check(f"img{image}/crops_stride8", crops[..., ::8, ::8])
        parity.check(f"img{image}/crops_mean", crops.mean((2, 3)))
        if image == 0 and "img0/crop_full" in parity.outputs:
            parity.check("img0/crop_full", crops[int(parity.outputs["img0/crop_full_index"])])
        if f"img{image}/region_masks" in parity.outputs:
            expected = torch.from_numpy(parity.outputs[f"img{image}/region_masks"])
            assert (regions[:, 0] != expected).float().mean() <= 1e-4
        parity.check(f"img{image}/clip_feat_prompt", encode_masked_image(adapter.clip_model.visual, crops, regions))
        parity.check(f"img{image}/clip_feat_plain", adapter.clip_model.encode_image(crops))
        plain = adapter.similarity(adapter.clip_model.encode_image(crops), text)
        parity.check(f"img{image}/clip_logits_plain", plain)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(
    ("opts", "name", "stride"),
    [
        ((), "sem_seg/w07_prompt", 1),
        ((PROMPT, False), "sem_seg_s2/w07_plain", 2),
        ((WEIGHT, 0.0), "sem_seg_s2/w00_prompt", 2),
        ((WEIGHT, 0.0, PROMPT, False), "sem_seg_s2/w00_plain", 2),
        ((ENSEMBLE, False), "sem_seg_s2/no_ensemble", 2),
        ((THRESHOLD, 1.0), "no_valid/sem_seg_s2_w07", 2),
        (
            ("MODEL.CLIP_ADAPTER.MASK_EXPAND_RATIO", 1.5, "MODEL.CLIP_ADAPTER.MASK_FILL", "zero"),
            "variant_expand15_zero/sem_seg_s4",
            4,
        ),
        (("MODEL.CLIP_ADAPTER.MASK_MATTING", True), "variant_matting/sem_seg_s4", 4),
    ],
)
def test_semantic_map(parity, image, opts, name, stride):
    parity.check(f"img{image}/{name}", parity.segment(parity.model(*opts), image)[:, ::stride, ::stride])


@pytest.mark.parametrize("image", IMAGES)
def test_one_valid_mask(parity, image):
    threshold = float(parity.outputs[f"img{image}/one_valid/mask_thr"])
    for prompt, name in ((True, "prompt"), (False, "plain")):
        scores = parity.segment(parity.model(THRESHOLD, threshold, PROMPT, prompt), image)
        parity.check(f"img{image}/one_valid/sem_seg_s2_w07_{name}", scores[:, ::2, ::2])


@pytest.mark.parametrize("image", IMAGES)
def test_no_valid_mask_and_clip_only_gives_zeros(parity, image):
    assert not parity.segment(parity.model(THRESHOLD, 1.0, WEIGHT, 0.0), image).any()
    assert not parity.segment(parity.model(*DEMO, THRESHOLD, 1.0), image, "demo").any()


@pytest.mark.parametrize("image", IMAGES)
def test_demo_painting(parity, image):
    parity.check(f"img{image}/sem_seg/demo_prompt", parity.segment(parity.model(*DEMO), image, "demo"))
    plain = parity.segment(parity.model(*DEMO, PROMPT, False), image, "demo")
    parity.check(f"img{image}/sem_seg_s2/demo_plain", plain[:, ::2, ::2])
    single = parity.segment(parity.model(*DEMO), image, "demo_single")
    assert len(single) == 2  # "others" is added
    parity.check(f"img{image}/sem_seg/demo_single", single)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("opts", [(WEIGHT, 0.7), (ENSEMBLE, False)])
def test_demo_painting_works_where_the_original_crashes(parity, image, opts):
    scores = parity.segment(parity.model(*DEMO, *opts), image, "demo")
    assert len(scores) == 3
    assert scores.isfinite().all()
    assert scores.any()


def test_single_word(parity):
    for weight, name in ((0.7, "w07"), (0.0, "w00")):
        scores = parity.segment(parity.model(WEIGHT, weight), 0, "demo_single")
        parity.check(f"img0/single_vocab/sem_seg_s2_{name}_prompt", scores[:, ::2, ::2])


def test_batch(parity):
    model = parity.model()
    parity.play_back(model, "batch/backbone/res5")
    with torch.no_grad():
        results = model([parity.request(image) for image in IMAGES])
    for image, result in enumerate(results):
        parity.check(f"batch/sem_seg_s2_w07_prompt_{image}", result["sem_seg"][:, ::2, ::2])


def test_label_map_is_the_argmax_of_the_scores(parity):
    model = parity.model("MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE", 2)
    parity.play_back(model, "img0/backbone/res5")
    outputs = {"outputs": ("sem_seg", "label_map", "proposals")}
    with torch.no_grad():
        result = model([parity.request(0) | outputs])[0]
    best, labels = result["sem_seg"].max(0)
    assert torch.equal(result["label_map"], labels)
    assert torch.equal(result["score_map"], best)
    assert result["proposals"].shape == (12, *labels.shape)
    assert labels.unique().numel() > 1
