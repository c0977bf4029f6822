"""Search of MASK_THR and CLIP_ENSEMBLE_WEIGHT on a grid, at about the cost of one evaluation per threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from torch import nn

from ovseg.config.per_dataset import settings_of
from ovseg.config.systems import unread_keys
from ovseg.data.catalog import check_per_dataset
from ovseg.data.custom.names import folder_name
from ovseg.data.loader import build_test_loader
from ovseg.data.protocol import configured_protocol
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.dataset_settings import dataset_settings
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.tta import has_many_views

THRESHOLD, WEIGHT = "MODEL.CLIP_ADAPTER.MASK_THR", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT"
_REPORTED = ("val", "validation", "test", "minival")  # parts of names of splits whose results are published


@dataclass(frozen=True)
class Grid:
    """Scores at every setting of a grid.

    Attributes:
        dataset: name of the split.
        num_images: number of evaluated images.
        thresholds: MASK_THR values, (T,).
        weights: CLIP_ENSEMBLE_WEIGHT values, (W,).
        scores: ``scores[t][w]`` are the scores of an evaluation at that setting, by name, in percent.
    """

    dataset: str
    num_images: int
    thresholds: tuple[float, ...]
    weights: tuple[float, ...]
    scores: tuple[tuple[dict[str, float], ...], ...]

    def values(self, score: str = "mIoU") -> np.ndarray:
        """Return one score at all settings, float64 (T, W)."""
        return np.array([[cell[score] for cell in row] for row in self.scores])

    @property
    def best(self) -> tuple[float, float]:
        """Threshold and weight of the highest mIoU, the first of equals."""
        row, column = np.unravel_index(np.nanargmax(self.values()), (len(self.thresholds), len(self.weights)))
        return self.thresholds[row], self.weights[column]

    @property
    def best_opts(self) -> str:
        """The best setting as command-line options."""
        threshold, weight = self.best
        return f"{THRESHOLD} {threshold} {WEIGHT} {weight}"

    @property
    def is_reported_split(self) -> bool:
        """Whether results on this split are usually published, which settings tuned on it would bias."""
        return any(part in _REPORTED for part in folder_name(self.dataset).lower().replace("-", "_").split("_"))

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each setting: data set, images, both keys, mean IoUs and pixel accuracy."""
        return [
            {
                "tuned_on": self.dataset,
                "images": self.num_images,
                "MASK_THR": threshold,
                "CLIP_ENSEMBLE_WEIGHT": weight,
                **{
                    name: round(value, 4)
                    for name, value in cell.items()
                    if name.startswith(("mIoU", "hIoU")) or name == "pACC"
                },
            }
            for threshold, line in zip(self.thresholds, self.scores, strict=True)
            for weight, cell in zip(self.weights, line, strict=True)
        ]


@torch.no_grad()
def search(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    thresholds: Sequence[float],
    weights: Sequence[float],
    *,
    limit: int | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Grid:
    """Evaluate every setting of the grid, image by image.

    The proposer runs once for each image, CLIP once for each threshold, and only the rendering for each weight. The
    scores equal those of :func:`ovseg.evaluation.runner.evaluate_dataset` at each setting; TEST.PER_DATASET applies to
    other keys.

    Args:
        model: a :class:`ovseg.meta_arch.propose_and_name.ProposeAndName` with two namers; unchanged after.
        thresholds: in [0, 1).
        weights: at most 1; not positive means CLIP alone.
        limit: number of images to use, evenly spread over the split; None for all.
        on_image: called with the numbers of finished and of all images.

    Raises:
        OvsegError: a value is out of range, options exclude each other, or the data cannot be used.
    """
    _check(cfg, model, thresholds, weights, limit)
    truth, protocol = GroundTruth(dataset_name), configured_protocol(cfg, dataset_name)
    num_classes = len(truth.class_names)
    loader = build_test_loader(cfg, dataset_name, ("label_map",), limit)
    counts = np.zeros((len(thresholds), len(weights), num_classes + 1, num_classes + 1), dtype=np.int64)
    done, total = 0, sum(map(len, loader.batch_sampler))
    settings = settings_of(cfg, dataset_name) | {"MASK_THR": thresholds[0]}
    with inference_context(model), dataset_settings(model, settings):
        own_namer, crop_namer = model.namers
        for inputs in loader:
            views = model.views(inputs)
            masks, words = model.proposer(views), [model.words_of(sample) for sample in inputs]
            own = own_namer(views, masks, words)
            by_threshold = []
            for threshold in thresholds:
                with dataset_settings(model, {"MASK_THR": threshold}):
                    by_threshold.append(crop_namer(views, masks, words))
            for index, sample in enumerate(inputs):
                labels, label_file = truth.labels(sample)
                for row, column in np.ndindex(len(thresholds), len(weights)):
                    setting = {"MASK_THR": thresholds[row], "CLIP_ENSEMBLE_WEIGHT": weights[column]}
                    with dataset_settings(model, setting):
                        scores = (own[index], by_threshold[row][index])
                        rendered = model.render_request(sample, masks[index], words[index], scores, ("label_map",))
                        counts[row, column] += confusion_matrix(
                            protocol.classes_of(rendered["label_map"].cpu().numpy()),
                            labels,
                            num_classes,
                            truth.ignore_label,
                            pred_source=str(sample["file_name"]),
                            gt_source=label_file,
                        )
                done += 1
                on_image(done, total)
    scores = tuple(
        tuple(scores_from_confusion(c, truth.class_names, truth.evaluation_set, cfg.TEST.MIOU_CONVENTION) for c in row)
        for row in counts
    )
    grid = Grid(dataset_name, total, tuple(thresholds), tuple(weights), scores)
    if np.isnan(grid.values()).all():
        raise OvsegError(f"no pixel of the {total} images of {dataset_name} has a class: search on labelled images")
    return grid


def draw_heat_map(grid: Grid, path: str | Path) -> None:
    """Draw the mIoU at every setting to an image file, with the best one framed and the split in the title."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    from matplotlib.patches import Rectangle

    values = grid.values()
    figure = Figure(figsize=(2.5 + 0.75 * len(grid.weights), 2 + 0.5 * len(grid.thresholds)), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    row, column = grid.thresholds.index(grid.best[0]), grid.weights.index(grid.best[1])
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    axes.set_xticks(range(len(grid.weights)), [f"{weight:g}" for weight in grid.weights])
    axes.set_yticks(range(len(grid.thresholds)), [f"{threshold:g}" for threshold in grid.thresholds])
    axes.set_xlabel("CLIP_ENSEMBLE_WEIGHT")
    axes.set_ylabel("MASK_THR")
    axes.set_title(f"mIoU %, tuned on {grid.dataset} ({grid.num_images} images)", fontsize=9)
    figure.colorbar(shown)
    figure.savefig(path, dpi=120)


def _check(cfg: CfgNode, model: nn.Module, thresholds, weights, limit: int | None) -> None:
    for name, values, low, high in (("thresholds", thresholds, 0, 1), ("weights", weights, -1, 1)):
        if not values or any(not low <= value <= high for value in values):
            raise OvsegError(f"--{name} must be numbers from {low} to {high}, not {list(values)}")
        if len(set(values)) < len(values):
            raise OvsegError(f"--{name} holds a value twice ({list(values)}): remove one of them")
    check_per_dataset(cfg)
    if limit is not None and limit < 1:
        raise OvsegError(f"--limit must be at least 1, not {limit}")
    if not cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE:
        raise OvsegError("MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE is False: neither key would have an effect; set it to True")
    if len(getattr(model, "namers", ())) != 2:
        raise OvsegError(
            f"{cfg.MODEL.META_ARCHITECTURE} does not have two namers, whose weight and threshold are searched: give a "
            "configuration of OVSeg or SCAN, or set MODEL.NAMER.NAME to ['QueryEmbedding', 'MaskedCrops']"
        )
    for key, remedy in unread_keys(cfg.MODEL.META_ARCHITECTURE).items():
        if key in (THRESHOLD, WEIGHT):
            raise OvsegError(f"{cfg.MODEL.META_ARCHITECTURE} does not read {key}, which is searched: {remedy}")
    test = cfg.TEST
    if has_many_views(cfg) or test.DENSE_CRF or test.ORACLE != "none":
        raise OvsegError(
            "the search evaluates plain views: set TEST.AUG.ENABLED, TEST.SLIDING_WINDOW, TEST.MULTI_SCALE.ENABLED and "
            "TEST.DENSE_CRF to False, and TEST.ORACLE to none"
        )
    if test.BACKGROUND_THRESHOLD is not None:
        raise OvsegError("the search has no threshold of background: set TEST.BACKGROUND_THRESHOLD to None")
