"""Several views of one image, one averaged answer: test-time augmentation and sliding windows (spec section 10.2).

Both are models around a model: they take and give what every meta-architecture takes and gives, so they combine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from detectron2.modeling.postprocessing import sem_seg_postprocess
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

from ovseg.errors import OvsegError


def augmented_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model`` with the sliding window and the test-time augmentation that ``cfg.TEST`` asks for, or as it is."""
    if cfg.TEST.SLIDING_WINDOW:
        model = SlidingWindow(model, cfg.TEST.SLIDING_TILE_SIZE, cfg.TEST.SLIDING_OVERLAP)
    if cfg.TEST.AUG.ENABLED:
        model = TestTimeAugmentation(model, DatasetMapperTTA(cfg))
    return model


class _ManyViews(nn.Module):
    """Answers a request from scores that a subclass averages; proposals come from the plain, whole image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Same input and output as the wrapped model's inference; ``outputs`` may ask for all it can give.

        Args:
            batched_inputs: dicts with ``image`` (3,H,W), optional ``height``, ``width``, and the words.

        Returns:
            for each input ``sem_seg`` (K,height,width) float32, or ``label_map`` (height,width) int64 and
            ``score_map`` (height,width) float32, and/or ``proposals`` (Q,height,width) bool. The averaged
            scores are held in full: K x height x width float32.
        """
        return [self._answer(sample) for sample in batched_inputs]

    def average_scores(self, sample: dict) -> Tensor:
        """(K,height,width) float32 scores of one input that has ``height`` and ``width``."""
        raise NotImplementedError

    def _answer(self, sample: dict) -> dict:
        size = sample["image"].shape[-2:]
        sample = {**sample, "height": sample.get("height", size[0]), "width": sample.get("width", size[1])}
        asked = sample.get("outputs", ("sem_seg",))
        answer: dict[str, Tensor] = {}
        if "proposals" in asked:
            plain = self.model.model if isinstance(self.model, _ManyViews) else self.model
            answer["proposals"] = plain([{**sample, "outputs": ("proposals",)}])[0]["proposals"]
        if "sem_seg" in asked or "label_map" in asked:
            scores = self.average_scores(sample)
            if "sem_seg" in asked:
                answer["sem_seg"] = scores
            if "label_map" in asked:
                answer["score_map"], answer["label_map"] = scores.max(dim=0)
        return answer

    def _scores_of_view(self, sample: dict, image: Tensor, height: int, width: int) -> Tensor:
        """(K,height,width) scores of the wrapped model for another image with the sample's words."""
        view = {**sample, "image": image, "height": height, "width": width, "outputs": ("sem_seg",)}
        return self.model([view])[0]["sem_seg"]


class TestTimeAugmentation(_ManyViews):
    """Mean of the scores over resized and mirrored views, at output size; one forward pass per view.

    Args:
        model: a meta-architecture, or a :class:`SlidingWindow`.
        mapper: Detectron2's ``DatasetMapperTTA``: one view per size, and its mirror image.
    """

    __test__ = False  # not a test case, whatever its name makes pytest think

    def __init__(self, model: nn.Module, mapper: DatasetMapperTTA) -> None:
        super().__init__(model)
        self.mapper = mapper

    def average_scores(self, sample: dict) -> Tensor:
        """See :class:`_ManyViews`; views are added to a running sum, one at a time."""
        height, width = sample["height"], sample["width"]
        views = self.mapper({"image": sample["image"].cpu(), "height": height, "width": width})
        total: Tensor | None = None
        for view in views:
            scores = self._scores_of_view(sample, view["image"], height, width)
            if any(isinstance(transform, HFlipTransform) for transform in view["transforms"].transforms):
                scores = scores.flip(-1)
            total = scores.clone() if total is None else total.add_(scores)
        return total.div_(len(views))


class SlidingWindow(_ManyViews):
    """Scores from overlapping square tiles, averaged where they overlap, then resized to the output size.

    Args:
        model: a meta-architecture.
        tile_size: side of a tile in pixels of the model's input; an image that is smaller is one tile.
        overlap: share of a tile, in [0, 1), that the next one covers again; the stride is
            ``ceil(tile_size * (1 - overlap))``, and the last tile of a row or column is shifted inside.

    Raises:
        OvsegError: ``tile_size`` is not positive, or ``overlap`` out of range.
    """

    def __init__(self, model: nn.Module, tile_size: int, overlap: float) -> None:
        super().__init__(model)
        if tile_size <= 0:
            raise OvsegError(
                f"TEST.SLIDING_TILE_SIZE is {tile_size}: give the side of a tile in pixels (the original has a "
                "table of sizes for values <= 0, which is not documented and not offered here)"
            )
        if not 0 <= overlap < 1:
            raise OvsegError(f"TEST.SLIDING_OVERLAP is {overlap}: use a share of the tile from 0 to below 1")
        self.tile_size = tile_size
        self.stride = math.ceil(tile_size * (1 - overlap))

    def average_scores(self, sample: dict) -> Tensor:
        """See :class:`_ManyViews`."""
        image = sample["image"]
        height, width = image.shape[-2:]
        total: Tensor | None = None
        count: Tensor | None = None
        for rows in self._spans(height):
            for columns in self._spans(width):
                tile = image[:, rows, columns]
                scores = self._scores_of_view(sample, tile, tile.shape[1], tile.shape[2])
                if total is None or count is None:
                    total = scores.new_zeros(scores.shape[0], height, width)
                    count = scores.new_zeros(height, width)
                total[:, rows, columns] += scores
                count[rows, columns] += 1
        return sem_seg_postprocess(total.div_(count), (height, width), sample["height"], sample["width"])

    def _spans(self, length: int) -> Iterator[slice]:
        """Where the tiles of one row or column lie in [0, length)."""
        last = max(length - self.tile_size, 0)
        for start in [*range(0, last, self.stride), last]:
            yield slice(start, min(start + self.tile_size, length))
