"""Every registered proposer with every registered namer, on a scene of the toy world with the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as coco_mask

from ovseg.checkpoint import load_model, save_safetensors
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.naming import NAMERS
from ovseg.proposals.views import PROPOSERS
from ovseg.toy import CLASS_NAMES, make_scene
from tests.tiny_sam import tiny_sam_folder

ROOT = Path(__file__).parents[2]
NETWORKS = {"MaskFormer": "ovseg", "Mask2Former": "scan"}  # by the toy configuration that has such a network
NAMINGS = {  # namers and their keys
    "QueryEmbedding": (["QueryEmbedding"], False),
    "MaskedCrops": (["MaskedCrops"], False),
    "MaskedCrops with prompts": (["MaskedCrops"], True),
    "ContextCrops": (["ContextCrops"], False),
    "own and crops": (["QueryEmbedding", "MaskedCrops"], True),
    "AlignedCrops": (["AlignedCrops"], False),
    "own and aligned": (["QueryEmbedding", "AlignedCrops"], False),
    "own and context": (["QueryEmbedding", "ContextCrops"], False),
    "PooledMap": (["PooledMap"], False),
    "own and pooled": (["QueryEmbedding", "PooledMap"], False),
}
CONVOLUTIONAL = {"TrainedRegions"}  # needs another CLIP than the toy's: tests/naming/test_pooled.py
# they have random weights here: test_masks_without_classes, tests/meta_arch/test_ovsegmentor.py
UNTRAINED = {"RegionQueries", "GroupTokens"}
OURS = [name for name, proposer in PROPOSERS if proposer.__module__.startswith("ovseg.") and name not in UNTRAINED]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Return a folder with the true masks as run-length codes and as a label map, a request, and the truth (H, W)."""
    folder, scene = tmp_path_factory.mktemp("masks"), make_scene(8)
    records = []
    for value in np.unique(scene.labels):
        code = coco_mask.encode(np.asfortranarray(scene.labels == value, dtype=np.uint8))
        code["counts"] = code["counts"].decode("ascii")
        records.append({"file_name": "scene.jpg", "segmentation": code})
    (folder / "masks.json").write_text(json.dumps(records))
    (folder / "maps").mkdir()
    Image.fromarray(scene.labels).save(folder / "maps" / "scene.png")
    words = [CLASS_NAMES[index] for index in np.unique(scene.labels)]
    request = {
        "image": torch.from_numpy(scene.image).permute(2, 0, 1),
        "file_name": "elsewhere/scene.jpg",
        "sem_seg": torch.from_numpy(scene.labels.astype(np.int64)),
        "class_names": words,
        "outputs": ("sem_seg", "label_map", "proposals", "explanations"),
    }
    truth = np.searchsorted(np.unique(scene.labels), scene.labels)
    return folder, request, truth


def configuration(proposer, naming, masks="", *opts):
    """Return the configuration of a combination, based on the toy configuration with that network.

    Args:
        masks: file of MaskFiles, or folder of SAM.
    """
    namers, prompts = NAMINGS[naming]
    config = ROOT / "configs" / "toy" / f"{NETWORKS.get(proposer, 'ovseg')}_toy.yaml"
    settings = {
        "MODEL.META_ARCHITECTURE": "ProposeAndName",
        "MODEL.PROPOSER.NAME": proposer,
        "MODEL.PROPOSER.MASKS": str(masks) if proposer != "SAM" else "",
        "MODEL.PROPOSER.SAM.MODEL": str(masks),
        "MODEL.PROPOSER.SAM.POINTS_PER_SIDE": 4,
        "MODEL.PROPOSER.SAM.IOU_THRESHOLD": 0,
        "MODEL.PROPOSER.SAM.STABILITY_THRESHOLD": 0,
        "MODEL.PROPOSER.BOUNDARY_TREE.BOUNDARY": "gradient",
        "MODEL.PROPOSER.BOUNDARY_TREE.RANKING": "tree",
        "MODEL.NAMER.NAME": namers,
        "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": prompts,
        "MODEL.CLIP_ADAPTER.REPLACE_LAYER": [1, 3],
        "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none",
        "MODEL.DEVICE": "cpu",
    }
    return load_cfg(config, [*(item for pair in settings.items() for item in pair), *opts])


def test_all_are_here():
    """Every registered proposer and namer is in the tables of this file; proposers of other tests are not counted."""
    assert set(OURS) == {*NETWORKS, "BoundaryTree", "GroundTruth", "MaskFiles", "SAM"}
    assert {name for name, _ in NAMERS} - CONVOLUTIONAL == {name for names, _ in NAMINGS.values() for name in names}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("proposer", OURS)
def test_combination(proposer, naming, scene, tmp_path):
    folder, request, truth = scene
    masks = folder / "masks.json" if proposer == "MaskFiles" else ""
    if proposer == "SAM":
        masks = tiny_sam_folder(folder, "sam")
    given = proposer not in NETWORKS
    cfg = configuration(proposer, naming, masks)
    if given and "QueryEmbedding" in NAMINGS[naming][0]:
        with pytest.raises(OvsegError, match=r"no class embeddings .* set MODEL.NAMER.NAME to MaskedCrops"):
            load_model(cfg, complete=True)
        return
    model = load_model(cfg, complete=True).eval()
    with torch.no_grad():
        result = model([request])[0]
    words, size = len(request["class_names"]), request["image"].shape[1:]
    assert result["sem_seg"].shape == (words, *size)
    assert torch.equal(result["label_map"], result["sem_seg"].argmax(0))
    assert result["proposals"].shape[1:] == size
    assert torch.isfinite(result["explanations"]["fused"]).all()
    right = (result["label_map"].numpy() == truth).mean()
    if proposer == "SAM":  # its weights here are random
        assert len(result["proposals"]) >= 1
    else:
        assert right > 0.5, f"{right:.2f} of the pixels are right"  # chance is below 0.2
    if proposer == "BoundaryTree":
        assert 1 < len(result["proposals"]) <= 100
    elif given and proposer != "SAM":
        assert len(result["proposals"]) == words

    # saving and loading: the same bits
    save_safetensors(model.state_dict(), tmp_path / "model.safetensors")
    again = load_model(configuration(proposer, naming, masks, "MODEL.WEIGHTS", str(tmp_path / "model.safetensors")))
    with torch.no_grad():
        assert torch.equal(again.eval()([request])[0]["sem_seg"], result["sem_seg"])

    if given or NAMINGS[naming][0][0] != "QueryEmbedding":
        with pytest.raises(OvsegError, match="nothing to train" if given else "must begin with QueryEmbedding"):
            model.train()([request])
        return
    cfg = configuration(proposer, naming, "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(CLASS_NAMES))
    model = load_model(cfg, complete=True).train()
    losses = model([{**request, "class_names": CLASS_NAMES}])
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient for {without[:3]}"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("naming", ["QueryEmbedding", "MaskedCrops", "PooledMap"])
def test_masks_without_classes(naming, scene):
    """The proposer of OpenSeg with other namers."""
    _, request, _ = scene
    small = {"CANVAS": 64, "NUM_PROPOSALS": 5, "HEAD_DIM": 64, "FFN_DIM": 64, "NUM_BLOCKS": 1, "MASK_LOGIT_SCALE": 1.0}
    opts = [item for key, value in small.items() for item in (f"MODEL.OPENSEG.{key}", value)]
    cfg = configuration("RegionQueries", naming, "", "MODEL.WEIGHTS", "", *opts)
    if naming == "QueryEmbedding":
        with pytest.raises(OvsegError, match=r"no class embeddings .* set MODEL.NAMER.NAME to MaskedCrops"):
            build_model(cfg)
        return
    model = build_model(cfg).eval()
    with torch.no_grad():
        result = model([request])[0]
    assert result["sem_seg"].shape == (len(request["class_names"]), *request["image"].shape[1:])
    assert torch.equal(result["label_map"], result["sem_seg"].argmax(0))
    assert len(result["proposals"]) == model.num_proposals == 5
    assert not model.scores_are_independent
    with pytest.raises(OvsegError, match=r"no classes, and .* train it in OpenSeg"):
        model.train()([request])


def test_masks_from_a_folder_of_label_maps(scene):
    folder, request, _ = scene
    of_records, of_maps = (
        load_model(configuration("MaskFiles", "MaskedCrops", path), complete=True).eval()
        for path in (folder / "masks.json", folder / "maps")
    )
    with torch.no_grad():
        assert torch.equal(of_records([request])[0]["sem_seg"], of_maps([request])[0]["sem_seg"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"masks": []}', "is not a list of masks"),
        ('[{"file_name": "other.jpg", "segmentation": {"size": [2, 2], "counts": [4]}}]', "holds no masks of"),
        ('[{"file_name": "scene.jpg", "segmentation": [[1, 2, 3, 4]]}]', "not a run-length code"),
        ('[{"file_name": "scene.jpg", "segmentation": {"size": [2, 2], "counts": [3]}}]', "damaged mask"),
        ('[{"file_name": "scene.jpg", "segmentation": {"size": [2, 90], "counts": [180]}}]', "do not fit its image"),
    ],
)
def test_bad_files(content, message, scene, tmp_path):
    (tmp_path / "masks.json").write_text(content)
    with pytest.raises(OvsegError, match=message):
        load_model(configuration("MaskFiles", "MaskedCrops", tmp_path / "masks.json"), complete=True).eval()([scene[1]])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.PROPOSER.NAME", "Box"), "MODEL.PROPOSER.NAME is 'Box': choose one of"),
        (("MODEL.NAMER.NAME", "['Crops']"), "MODEL.NAMER.NAME is 'Crops': choose one of"),
        (("MODEL.NAMER.NAME", "['MaskedCrops', 'QueryEmbedding']"), "QueryEmbedding and another"),
        (("MODEL.FUSION.NAME", "Sum"), "MODEL.FUSION.NAME is 'Sum': choose one of"),
        (("MODEL.RENDERING", "best"), "MODEL.RENDERING.NAME is 'best': choose one of"),
        (("MODEL.PROPOSER.NAME", "Mask2Former"), "set that to OpenVocaMask2FormerHead"),
        (("MODEL.PROPOSER.NAME", "MaskFiles", "MODEL.NAMER.NAME", "['MaskedCrops']"), "MODEL.PROPOSER.MASKS is ''"),
    ],
)
def test_bad_combinations(opts, message):
    with pytest.raises(OvsegError, match=message):
        load_model(configuration("MaskFormer", "own and crops", "", *opts))


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        ({"outputs": "label_map"}, "outputs is 'label_map': give a list"),
        ({"outputs": ("labels",)}, "outputs is .*labels.*: give a list of names out of sem_seg, label_map"),
        ({"templates": "a {} thing"}, "templates must be a list"),
        ({"templates": []}, "templates must be a list"),
        ({"templates": ["a thing"]}, "must contain {}"),
        ({"class_names": [3]}, "class_names is not a list of words"),
        ({"class_names": None}, "class_names is not a list of words"),
    ],
)
def test_bad_requests(request_of, message, scene):
    model = load_model(configuration("GroundTruth", "MaskedCrops", ""), complete=True).eval()
    with pytest.raises(OvsegError, match=message):
        model([{**scene[1], **request_of}])


def test_systems_refuse_parts_that_they_ignore():
    opts = ["MODEL.META_ARCHITECTURE", "OVSeg", "MODEL.PROPOSER.NAME", "GroundTruth", "MODEL.DEVICE", "cpu"]
    with pytest.raises(OvsegError, match=r"MODEL\.PROPOSER\.NAME = 'GroundTruth' has no effect .* its own parts"):
        load_model(load_cfg(ROOT / "configs" / "toy" / "ovseg_toy.yaml", opts))


def test_void_by_clip_needs_two_namers():
    cfg = configuration("MaskFormer", "MaskedCrops", "", "MODEL.FUSION.VOID_BY_CLIP", 0.5)
    with pytest.raises(OvsegError, match=r"MODEL\.FUSION\.VOID_BY_CLIP is 0\.5, but SingleNamer does not read it: set"):
        load_model(cfg, complete=True)
