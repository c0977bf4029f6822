"""Training of the projection of CLIP ``photo``: a linear map from the features of masked crops to text embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.adaptation.regions import SMALLEST
from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.dense_towers import dense_tower
from ovseg.data.custom.source import Source
from ovseg.io.images import read_image
from ovseg.naming.crops import MaskedCrops
from ovseg.proposals.views import Views

RIDGE = 0.3  # regularisation, relative to the mean squared length of the features
PROJECTION = "visual.head.proj"


@torch.inference_mode()
def train_projection(clip: ClipAdapter, source: Source) -> dict[str, Tensor]:
    """Return the tensors of CLIP ``photo`` that its base weights lack, in float16.

    The map is a ridge regression of the features of the segments' crops, filled with the mean colour, to the embeddings
    of their names, both without their means. Since embeddings have unit length, the order of words by cosine does not
    depend on the mean of the names.

    Args:
        clip: whose image tower has the projection; the values of the projection are not used.
        source: photographs with panoptic labels, as :func:`ovseg.adaptation.regions.read_regions` takes them.
    """
    dense_tower(clip.clip_model.visual, clip.source.name)
    crops, vocabulary = MaskedCrops(clip), source.classes.vocabulary
    texts, classes = clip.text(vocabulary.texts, ["{}"]), torch.tensor(vocabulary.classes)
    names = torch.stack([F.normalize(texts[classes == k].mean(0), dim=0) for k in range(len(vocabulary))])
    features, targets = [], []
    for pair in source.pairing.pairs:
        segments = [(index, mask) for index, mask in source.reader.masks(pair) if mask.sum() >= SMALLEST]
        if not segments:
            continue
        image = torch.from_numpy(read_image(pair.image)).permute(2, 0, 1).float()
        masks = torch.from_numpy(np.stack([mask for _, mask in segments])).float()
        for cut, _ in crops.inputs(Views([{}], [image], 32), 0, masks):
            features.append(clip.clip_model.visual.trunk(cut))
        targets += [index for index, _ in segments]
    x, y = torch.cat(features).double(), names[targets].double()
    mean = x.mean(0)
    gram = (x - mean) @ (x - mean).T
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    weight = torch.linalg.solve(gram, y - names.mean(0)).T @ (x - mean)  # (E, C)
    scale = clip.clip_model.logit_scale.detach().clone()
    return {f"{PROJECTION}.weight": weight.half(), f"{PROJECTION}.bias": (-weight @ mean).half(), "logit_scale": scale}
