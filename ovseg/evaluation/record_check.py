"""Validation of ``results.json``, which may be damaged or edited."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from typing import Any

from ovseg.evaluation.confusion import MIOU_CONVENTIONS
from ovseg.evaluation.differences import flatten

Check = Callable[[Any], bool]


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


def _is_any(value: Any) -> bool:
    return True


_CHECKS: dict[str, Check] = {
    "dataset": _is_text,
    "num_images": _is_count,
    "file_list_sha256": _is_text,
    "num_classes": _is_count,
    "class_names": _list_of(lambda value: isinstance(value, str)),
    "evaluation_set": _dict_of(_list_of(_is_count)),
    "protocol": _has(dataset=_is_text, ignore_label=_or_none(_is_count)),
    "miou_convention": lambda value: value in MIOU_CONVENTIONS,
    "oracle": _or_none(_has(oracle=_is_text)),
    "views": _dict_of(_is_any),
    "dataset_settings": _dict_of(_is_number),
    "sg_iou": _or_none(_has(fathers=_dict_of(_list_of(lambda value: isinstance(value, str))))),
    "results": _dict_of(_dict_of(_or_none(_is_number))),
    "weights": _dict_of(_is_any),
    "seed": lambda value: isinstance(value, int),
    "seconds_per_image": _has(total=_is_number),
    "num_processes": _is_count,
    "device": _is_text,
    "device_name": _or_none(_is_text),
    "finished": _is_date,
    "versions": _dict_of(_or_none(_is_text)),
    "git_commit": _or_none(_is_text),
    "fingerprint": _is_text,
    "config": _dict_of(_is_any),
}
COMPLETE = tuple(_CHECKS)
_SEMANTIC = ("mIoU", "mIoU-union", "mIoU-gt", "pACC", "mACC", "fwIoU")
_SG_TABLE = _has(pairs=_is_count, mutual_pairs=_is_count, origin=_is_text, threshold=_or_none(_is_number))


def damaged_entries(record: Mapping[str, Any], complete: bool) -> list[str]:
    """Return the names of the invalid entries of a record.

    Args:
        record: record with all required entries.
        complete: also check the entries that are shown but not compared.

    Raises:
        RecursionError: the record is nested too deeply.
    """
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
