"""The record of an evaluation, ``results.json``: the scores, and everything needed to compare them."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ovseg.errors import OvsegError
from ovseg.evaluation.differences import short
from ovseg.evaluation.identity import digest_of, file_digest
from ovseg.evaluation.oracle_model import describe_oracle
from ovseg.evaluation.record_check import COMPLETE, damaged_entries
from ovseg.evaluation.sem_seg import SemSegEvaluator
from ovseg.evaluation.sg_table import FatherTable
from ovseg.evaluation.versions import git_commit, versions

FILE = "results.json"
SCHEMA = 2  # 1 had neither a number nor a protocol
logger = logging.getLogger(__name__)

_NEEDED = ("dataset", "num_images", "file_list_sha256", "protocol", "miou_convention", "results", "config")


def results_record(
    cfg: CfgNode,
    semantic: SemSegEvaluator,
    results: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    fingerprint: Mapping[str, Any],
    iteration: int | None = None,
    dataset_settings: Mapping[str, float] | None = None,
    sg_table: FatherTable | None = None,
) -> dict[str, Any]:
    """Return the content of ``results.json``.

    Args:
        cfg: configuration of the evaluation, with the data set's own settings.
        semantic: evaluator after :meth:`~ovseg.evaluation.sem_seg.SemSegEvaluator.evaluate` on the main process.
        results: scores in percent by task; NaN for undefined scores.
        seconds: time by activity, summed over all processes.
        fingerprint: see :func:`ovseg.evaluation.identity.fingerprint`.
        iteration: training iteration of the evaluated model; None for the weight files that ``cfg`` names.
        dataset_settings: the settings that are specific to this data set.
        sg_table: table of SG-IoU, if that metric was computed.
    """
    per_image = {part: value / semantic.num_images for part, value in seconds.items()}
    return {
        "schema": SCHEMA,
        "dataset": semantic.ground_truth.dataset_name,
        "num_images": semantic.num_images,
        "file_list_sha256": fingerprint["data"]["file_list_sha256"],
        "num_classes": len(semantic.ground_truth.class_names),
        "class_names": semantic.ground_truth.class_names,
        "evaluation_set": semantic.ground_truth.evaluation_set,
        "protocol": semantic.protocol.record(),
        "miou_convention": semantic.convention,
        "oracle": describe_oracle(cfg),
        "views": _views(cfg),
        "dataset_settings": dict(dataset_settings or {}),
        "sg_iou": None if sg_table is None else sg_table.describe(),
        "results": results,
        "weights": {"model_sha256": fingerprint["model"], **_weights(cfg, iteration)},
        "seed": cfg.SEED,
        "seconds_per_image": {**per_image, "total": sum(per_image.values())},
        "num_processes": comm.get_world_size(),
        "device": cfg.MODEL.DEVICE,
        "device_name": torch.cuda.get_device_name(cfg.MODEL.DEVICE) if cfg.MODEL.DEVICE.startswith("cuda") else None,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": git_commit(),
        "fingerprint": digest_of(fingerprint),
        "config": yaml.safe_load(cfg.dump()),
    }


def record_files(run: Path) -> list[Path]:
    """Return the paths of the ``results.json`` files of a run.

    Args:
        run: an ``OUTPUT_DIR``, its ``inference`` folder, the folder of one data set in it, or a ``results.json``.

    Raises:
        OvsegError: no file is found.
    """
    patterns = (FILE, f"*/{FILE}") if run.name == "inference" else (FILE, f"inference/*/{FILE}")
    files = [run] if run.is_file() else [file for pattern in patterns for file in sorted(run.glob(pattern))]
    if not files:
        raise OvsegError(f"no inference/<data set>/{FILE} in {run}: evaluate with OUTPUT_DIR {run} first")
    return files


def read_record(path: str | Path, *, complete: bool = False) -> dict[str, Any]:
    """Read ``results.json``; scores that are null in it become NaN.

    Args:
        path: the file.
        complete: require all entries that :func:`results_record` writes, not only those needed for a comparison.

    Raises:
        OvsegError: the file is missing, damaged, not a record, or of another schema; the message names damaged entries.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise OvsegError(f"there is no {path}: evaluate first, with train_net.py --eval-only") from error
    except (OSError, ValueError, RecursionError) as error:
        raise OvsegError(f"{path} cannot be read ({error}): evaluate again") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict) or "dataset" not in content:
        raise OvsegError(f"{path} is not a results.json of train_net.py --eval-only")
    if (schema := content.get("schema", 1)) != SCHEMA:
        how = f"has schema {short(repr(schema))}"
        how = "lacks protocol and data: it was written by an older ovseg" if schema == 1 else how
        raise OvsegError(f"{path} {how}; evaluate again (this ovseg reads schema {SCHEMA})")
    if lacking := [key for key in (COMPLETE if complete else _NEEDED) if key not in content]:
        raise OvsegError(f"{path} lacks {', '.join(lacking)}: evaluate again")
    try:
        damaged = [f"{name} ({short(content[name])})" for name in damaged_entries(content, complete)]
    except RecursionError as error:
        raise OvsegError(f"{path} is damaged: its entries are nested too deeply; evaluate again") from error
    if damaged:
        raise OvsegError(f"{path} is damaged, its {', '.join(damaged[:3])} cannot be right: evaluate again")
    content["results"] = {
        task: {name: float("nan") if value is None else value for name, value in scores.items()}
        for task, scores in content["results"].items()
    }
    return content


def finished_record(folder: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record in a folder if it is complete and has the same fingerprint, else None."""
    try:
        content = read_record(folder / FILE, complete=True)
    except OvsegError as error:
        if (folder / FILE).exists():
            logger.warning("%s; evaluating again", error)
        return None
    return content if content["fingerprint"] == digest_of(fingerprint) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _views(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings of test-time augmentation, sliding window and CRF."""
    test = cfg.TEST
    return {
        "augmentation": sorted(test.AUG.MIN_SIZES) if test.AUG.ENABLED else None,
        "sliding_window": [test.SLIDING_TILE_SIZE, test.SLIDING_OVERLAP] if test.SLIDING_WINDOW else None,
        "dense_crf": test.DENSE_CRF,
    }


def _weights(cfg: CfgNode, iteration: int | None) -> dict[str, Any]:
    if iteration is not None:
        return {"iteration": iteration}
    files = {"model": cfg.MODEL.WEIGHTS, "clip": cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS}
    return {name: {"name": file, "sha256": file_digest(file)} for name, file in files.items()}
