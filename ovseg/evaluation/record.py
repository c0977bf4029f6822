"""The record of an evaluation, ``results.json``: the scores, and everything needed to compare them."""

from __future__ import annotations

import datetime
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ovseg.data.protocol import Protocol
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import MIOU_CONVENTIONS, denominators
from ovseg.evaluation.grounding import PresentWords
from ovseg.evaluation.identity import digest_of, flatten, git_commit, short, versions
from ovseg.evaluation.oracle_model import describe_oracle
from ovseg.evaluation.proposal_recall import ProposalRecallEvaluator, earlier_description
from ovseg.evaluation.sem_seg import SemSegEvaluator
from ovseg.evaluation.sg_table import FatherTable
from ovseg.evaluation.true_segments import SEGMENT_KINDS
from ovseg.io.files import file_digest, is_file

RECORD_FILE = "results.json"
SCHEMA = 2  # 1 had neither a number nor a protocol
logger = logging.getLogger(__name__)

_NEEDED = ("dataset", "num_images", "file_list_sha256", "protocol", "miou_convention", "results", "config")
Check = Callable[[Any], bool]


def results_record(
    cfg: CfgNode,
    semantic: SemSegEvaluator,
    results: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    fingerprint: Mapping[str, Any],
    iteration: int | None = None,
    dataset_settings: Mapping[str, float] | None = None,
    sg_table: FatherTable | None = None,
    grounding: PresentWords | None = None,
    recall: ProposalRecallEvaluator | None = None,
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
        grounding: how words were restricted, if Grounding mIoU was computed.
        recall: evaluator of the proposals, if their recall was computed.
    """
    test = cfg.TEST
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
        "denominators": denominators(semantic.confusion),
        "oracle": describe_oracle(cfg),
        "background_threshold": _background_threshold(cfg, semantic.protocol),
        "grounding": None if grounding is None else {"words": "of the classes of each image", "how": grounding.how},
        "proposal_recall": None if recall is None else recall.describe(),
        "views": {
            "augmentation": sorted(test.AUG.MIN_SIZES) if test.AUG.ENABLED else None,
            "sliding_window": [test.SLIDING_TILE_SIZE, test.SLIDING_OVERLAP] if test.SLIDING_WINDOW else None,
            "dense_crf": test.DENSE_CRF,
            **({"multi_scale": _multi_scale(test.MULTI_SCALE)} if test.MULTI_SCALE.ENABLED else {}),
        },
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
    patterns = (
        (RECORD_FILE, f"*/{RECORD_FILE}") if run.name == "inference" else (RECORD_FILE, f"inference/*/{RECORD_FILE}")
    )
    files = [run] if run.is_file() else [file for pattern in patterns for file in sorted(run.glob(pattern))]
    if not files:
        raise OvsegError(f"no inference/<data set>/{RECORD_FILE} in {run}: evaluate with OUTPUT_DIR {run} first")
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
    _complete_earlier(content)
    if lacking := [key for key in (COMPLETE if complete else _NEEDED) if key not in content]:
        raise OvsegError(f"{path} lacks {', '.join(lacking)}: evaluate again")
    try:
        damaged = [f"{name} ({short(content[name])})" for name in _damaged_entries(content, complete)]
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
        content = read_record(folder / RECORD_FILE, complete=True)
    except OvsegError as error:
        if (folder / RECORD_FILE).exists():
            logger.warning("%s; evaluating again", error)
        return None
    return content if content["fingerprint"] == digest_of(fingerprint) else None


def _complete_earlier(content: dict[str, Any]) -> None:
    """Add the entries that records of this schema had not at first, with what they were."""
    protocol = content.get("protocol")
    if isinstance(protocol, dict):
        several = "synonyms" in (protocol.get("variant"), protocol.get("background"))
        protocol.setdefault("synonyms", "region" if several else "none")
        oracle = content.get("oracle")
        restricted = isinstance(oracle, dict) and oracle.get("oracle") == "words"
        protocol.setdefault("words", "present" if restricted else "all")
    for name in ("background_threshold", "grounding", "denominators"):
        content.setdefault(name, None)
    content.setdefault("proposal_recall", earlier_description(content["results"]))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _background_threshold(cfg: CfgNode, protocol: Protocol) -> float | None:
    """Return the threshold of the protocol, or of the model where this one decides what is background."""
    return cfg.MODEL.OVSEGMENTOR.BG_THRESH if protocol.background == "window threshold" else protocol.threshold


def _multi_scale(settings: CfgNode) -> dict[str, Any]:
    return {name.lower(): value for name, value in settings.items() if name != "ENABLED"}


def _weights(cfg: CfgNode, iteration: int | None) -> dict[str, Any]:
    if iteration is not None:
        return {"iteration": iteration}
    files = {"model": cfg.MODEL.WEIGHTS, "clip": cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS}  # the latter may be a tag
    return {
        name: {"name": file, "sha256": file_digest(file) if is_file(file) else None} for name, file in files.items()
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_date(value: Any) -> bool:
    try:
        return bool(datetime.datetime.fromisoformat(value))
    except (ValueError, TypeError):
        return False


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _has(**checks: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(k in value and check(value[k]) for k, check in checks.items())


_CHECKS: dict[str, Check] = {
    "dataset": _is_text,
    "num_images": _is_count,
    "file_list_sha256": _is_text,
    "num_classes": _is_count,
    "class_names": _list_of(lambda value: isinstance(value, str)),
    "evaluation_set": _dict_of(_list_of(_is_count)),
    "protocol": _has(dataset=_is_text, ignore_label=_or_none(_is_count)),
    "miou_convention": lambda value: value in MIOU_CONVENTIONS,
    "denominators": _or_none(_dict_of(_is_count)),
    "oracle": _or_none(_has(oracle=_is_text)),
    "background_threshold": _or_none(_is_number),
    "grounding": _or_none(_has(how=_is_text)),
    "proposal_recall": _or_none(_has(segments=lambda value: value in tuple(SEGMENT_KINDS))),
    "views": _has(),
    "dataset_settings": _dict_of(_is_number),
    "sg_iou": _or_none(_has(fathers=_dict_of(_list_of(lambda value: isinstance(value, str))))),
    "results": _dict_of(_dict_of(_or_none(_is_number))),
    "weights": _has(),
    "seed": lambda value: isinstance(value, int),
    "seconds_per_image": _has(total=_is_number),
    "num_processes": _is_count,
    "device": _is_text,
    "device_name": _or_none(_is_text),
    "finished": _is_date,
    "versions": _dict_of(_or_none(_is_text)),
    "git_commit": _or_none(_is_text),
    "fingerprint": _is_text,
    "config": _has(),
}
COMPLETE = tuple(_CHECKS)
_SEMANTIC = ("mIoU", "mIoU-union", "mIoU-gt", "pACC", "mACC", "fwIoU")
_SG_TABLE = _has(pairs=_is_count, mutual_pairs=_is_count, origin=_is_text, threshold=_or_none(_is_number))


def _damaged_entries(record: Mapping[str, Any], complete: bool) -> list[str]:
    """Return the names of the invalid entries of a record; with ``complete``, also of those that are only shown."""
    wrong = [name for name, check in _CHECKS.items() if name in record and not check(record[name])]
    flatten(record)
    if complete and not wrong:
        scores, table, classes = record["results"].get("sem_seg", {}), record["sg_iou"], len(record["class_names"])
        if not set(_SEMANTIC) <= scores.keys():
            wrong.append("results")
        if table is not None and not (_SG_TABLE(table) and "sg_iou" in record["results"]):
            wrong.append("sg_iou")
        if classes != record["num_classes"]:
            wrong.append("class_names")
        if any(member >= classes for members in record["evaluation_set"].values() for member in members):
            wrong.append("evaluation_set")
    return wrong
