"""Zero-shot evaluation of the toy world's CLIP: retrieval, words of scenes, names of crops."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional as F

from ovseg.toy.classes import CLASS_NAMES, SPLITS
from ovseg.toy.clip.batches import ViewRecipe, load_views, normalise
from ovseg.toy.scene import Scene, make_scene
from ovseg.vocabulary.templates import get_templates


def encode_words(model: CLIP, tokenizer: SimpleTokenizer, words: tuple[str, ...]) -> Tensor:
    """Return (K, D) unit vectors: the mean over the ``vild`` templates, as at test time."""
    templates = get_templates("vild")
    tokens = tokenizer([template.format(word) for word in words for template in templates])
    features = model.encode_text(tokens, normalize=True).unflatten(0, (len(words), len(templates)))
    return F.normalize(features.mean(dim=1), dim=-1)


def thing_crops(scenes: Sequence[Scene], side: int, masked: bool) -> tuple[Tensor, Tensor]:
    """Return crops of the things of scenes, on CLIP's mean colour if masked: (M, 3, side, side) and class (M,)."""
    mean = np.array(OPENAI_DATASET_MEAN) * 255
    crops, classes = [], []
    for scene in scenes:
        for index, thing in enumerate(scene.things, 1):
            mask = scene.instances == index
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            window = (slice(y, y + height), slice(x, x + width))
            shown = mask[window][..., None] if masked else True
            crop = np.where(shown, scene.image[window], mean).astype(np.float32)
            crops.append(cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC))
            classes.append(CLASS_NAMES.index(thing.name))
    return normalise(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)), torch.tensor(classes)


@torch.no_grad()
def evaluate(model: CLIP, tokenizer: SimpleTokenizer, side: int) -> dict[str, float]:
    """Return shares in 0 .. 1 on the val split, by name; the model is left in training mode."""
    model.eval()
    first, count = SPLITS["val"]
    scenes = [make_scene(seed) for seed in range(first, first + count)]
    words = encode_words(model, tokenizer, CLASS_NAMES)
    images, captions = load_views(first, count, ViewRecipe())
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    image_features = model.encode_image(normalise(small), normalize=True)
    text_features = model.encode_text(tokenizer([row[0] for row in captions]), normalize=True)
    similarity, target = image_features @ text_features.T, torch.arange(count)
    result = {
        "image_to_text_recall_at_1": (similarity.argmax(1) == target).float().mean(),
        "text_to_image_recall_at_1": (similarity.argmax(0) == target).float().mean(),
        "scene_words_mean_average_precision": _average_precision(image_features @ words.T, scenes),
    }
    for kind in ("masked", "unmasked"):
        crops, classes = thing_crops(scenes, side, masked=kind == "masked")
        named = _names_of_crops(model.encode_image(crops, normalize=True) @ words.T, classes)
        result |= {f"{kind}_crop_{name}": value for name, value in named.items()}
    model.train()
    return {key: round(float(value), 4) for key, value in result.items()}


def _average_precision(similarity: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Return the mean average precision of the words of scenes among all words, by similarities (N, K)."""
    present = torch.zeros(similarity.shape, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        present[row, torch.from_numpy(np.unique(scene.labels)).long()] = True
    hits = present.gather(1, similarity.argsort(dim=1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum(1) / hits.sum(1)).mean()


def _names_of_crops(scores: Tensor, classes: Tensor) -> dict[str, float | Tensor]:
    """Return accuracies of crops with their classes, (M, K) and (M,), and of colour and shape among the pairs."""
    colours, shapes = (np.array([name.split()[end] for name in CLASS_NAMES]) for end in (0, -1))
    is_pair = torch.tensor([" " in name for name in CLASS_NAMES])
    pair = scores.masked_fill(~is_pair, -torch.inf).argmax(dim=1)
    return {
        "top1": (scores.argmax(dim=1) == classes).float().mean(),
        "top5": (scores.topk(5).indices == classes[:, None]).any(1).float().mean(),
        "colour_among_pairs": (colours[pair] == colours[classes]).mean(),
        "shape_among_pairs": (shapes[pair] == shapes[classes]).mean(),
    }
