"""Dataset dicts of captioned images before they are trained on: pseudo-masks are joined, and what lacks is named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ovseg.data.pseudo_joining import join_pseudo_masks
from ovseg.data.record_masks import has_masks
from ovseg.errors import OvsegError, shown

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]


def captioned_records(cfg: CfgNode, sets: Sequence[Records]) -> list[Records]:
    """Return the dataset dicts of each data set of ``DATASETS.TRAIN``, ready for :class:`CaptionMapper`.

    Images without masks get those of ``DATASETS.PSEUDO_MASKS``. Those that still have none train the grounding of
    captions alone, and images without captions the masks alone. The log counts them.

    Args:
        cfg: the configuration.
        sets: dataset dicts of each data set of ``DATASETS.TRAIN``; not changed.

    Raises:
        OvsegError: captions are no list of texts; a data set has neither captions nor masks; or a loss of the
            configuration finds no captions, or no masks, in any data set; or pseudo-masks do not fit the images.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise OvsegError("DATASETS.TRAIN is empty: name the data sets to train on")
    ready = [[_ready(name, record) for record in records] for name, records in zip(names, sets, strict=True)]
    if folders := cfg.DATASETS.PSEUDO_MASKS:
        join_pseudo_masks([record for records in ready for record in records if not has_masks(record)], folders)
    captions, masks = 0, 0
    for name, records in zip(names, ready, strict=True):
        with_captions = sum(bool(record["captions"]) for record in records)
        with_masks = sum(map(has_masks, records))
        message = "data set %s: %d images, %d with captions, %d with masks"
        logger.info(message, name, len(records), with_captions, with_masks)
        if not with_captions and not with_masks:
            raise OvsegError(
                f"the images of data set {name!r} have neither captions nor masks: train on one that has, or name the "
                "folder of its pseudo-masks as DATASETS.PSEUDO_MASKS"
            )
        captions, masks = captions + with_captions, masks + with_masks
    own, named = cfg.MODEL.OPENSEG, ", ".join(names)
    if own.GROUNDING_LOSS_WEIGHT > 0 and not captions:
        raise OvsegError(
            f"no image of DATASETS.TRAIN ({named}) has captions: add a data set with captions, or set "
            "MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT 0 to train masks alone"
        )
    if own.SEG_LOSS_WEIGHT > 0 and not masks:
        raise OvsegError(
            f"no image of DATASETS.TRAIN ({named}) has masks: add a data set with masks or DATASETS.PSEUDO_MASKS, or "
            "set MODEL.OPENSEG.SEG_LOSS_WEIGHT 0 to train on captions alone"
        )
    return ready


def captions_in(name: str, record: Mapping[str, Any]) -> list[str]:
    """Return the captions of a dataset dict, without blank ones.

    Args:
        name: of the data set, for messages.
        record: ``captions``, a list of str, may be empty, None or missing.

    Raises:
        OvsegError: they are no list of texts.
    """
    captions = record.get("captions") or ()
    texts = isinstance(captions, Iterable) and not isinstance(captions, str)
    if not texts or not all(isinstance(caption, str) for caption in captions):
        raise OvsegError(
            f"captions of {record['file_name']} in data set {name!r} are {shown(captions)}: give a list of texts"
        )
    return [caption for caption in captions if caption.strip()]


def _ready(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    ready = {**record, "captions": captions_in(name, record)}
    if (ignore_label := MetadataCatalog.get(name).get("ignore_label")) is not None:
        ready["ignore_label"] = ignore_label
    return ready
