"""Tables of parent classes ("fathers") for SG-IoU, from a file or from CLIP's text embeddings.

The file is JSON, ``{child: father}`` or ``{child: [father, ...]}``; a class is given by its index or its name. A file
may also be ``{data set: table}`` for several data sets.

Without a file, class f is a father of class c if the cosine of their text embeddings is at least
TEST.SG_IOU_THRESHOLD; of synonyms the highest cosine counts. Similarity has no direction, so such entries are mutual:
the rule finds words of nearly the same meaning, not that a dog is an animal. Scores by tables of different models
cannot be compared. The table is written next to the results, in the format of the file, so that it can be corrected and
used for all models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from torch import nn

from ovseg.data.protocol import Protocol
from ovseg.errors import OvsegError
from ovseg.evaluation.identity import short
from ovseg.evaluation.sg_iou import check_fathers

FROM_TEXT = "CLIP text embeddings"


@dataclass(frozen=True)
class FatherTable:
    """Checked table of parent classes.

    Attributes:
        fathers: class index -> indices of its fathers, ascending; classes without fathers are left out.
        class_names: K names.
        origin: path of the file, or :data:`FROM_TEXT`.
        threshold: the least cosine, for a table from text embeddings.
    """

    fathers: Mapping[int, tuple[int, ...]]
    class_names: tuple[str, ...]
    origin: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_fathers(self.fathers, len(self.class_names), self.origin)

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """Set of all (child, father)."""
        return {(child, father) for child, above in self.fathers.items() for father in above}

    @property
    def digest(self) -> str:
        """SHA-256 of the pairs, equal for equal tables."""
        return hashlib.sha256(json.dumps(sorted(self.pairs)).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the description of the table for ``results.json``; ``fathers`` is the table, see :meth:`named`."""
        pairs = self.pairs
        return {
            "origin": self.origin,
            "threshold": self.threshold,
            "classes_with_fathers": len(self.fathers),
            "pairs": len(pairs),
            "mutual_pairs": sum((father, child) in pairs for child, father in pairs),
            "sha256": self.digest,
            "fathers": self.named(),
        }

    def named(self) -> dict[str, list[str]]:
        """Return the table in the format of the file: by name, or by index if two classes have the same name."""
        unique = len(set(self.class_names)) == len(self.class_names)
        names = self.class_names if unique else [str(index) for index in range(len(self.class_names))]
        return {names[child]: [names[father] for father in above] for child, above in self.fathers.items()}


def build_table(cfg: CfgNode, model: nn.Module, protocol: Protocol) -> FatherTable:
    """Return the table of TEST.SG_IOU_TABLE, or by TEST.SG_IOU_THRESHOLD.

    Args:
        model: model with ``clip_adapter.text_matrix``, such as OVSeg; used only without a file.

    Raises:
        OvsegError: see :func:`read_table` and :func:`table_from_text`, or the model has no CLIP.
    """
    if cfg.TEST.SG_IOU_TABLE:
        return read_table(cfg.TEST.SG_IOU_TABLE, protocol)
    adapter = getattr(model, "clip_adapter", None)
    if adapter is None:
        raise OvsegError(
            f"METRIC SG-IoU: {type(model).__name__} has no CLIP to compare words by: give a table as TEST.SG_IOU_TABLE"
        )
    texts, classes = _texts(protocol)
    embeddings = adapter.text_matrix(texts)[:-1].detach().float().cpu().numpy()  # the last is "no object"
    return table_from_text(embeddings, classes, protocol.class_names, cfg.TEST.SG_IOU_THRESHOLD)


def table_from_text(
    embeddings: np.ndarray, classes: Sequence[int], class_names: Sequence[str], threshold: float
) -> FatherTable:
    """Return the table of parent classes by the similarity of text embeddings.

    Args:
        embeddings: (T, D) unit vectors.
        classes: (T,) the class in [0, K) of each.
        class_names: K names.
        threshold: least cosine, in (0, 1].

    Raises:
        OvsegError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise OvsegError(f"TEST.SG_IOU_THRESHOLD is {threshold}: it is a cosine, so use a number above 0, up to 1")
    similarity = np.full((len(class_names), len(class_names)), -np.inf)
    index = np.asarray(classes)
    np.maximum.at(similarity, (index[:, None], index[None, :]), embeddings.astype(np.float64) @ embeddings.T)
    np.fill_diagonal(similarity, -np.inf)
    fathers = {child: tuple(np.flatnonzero(row >= threshold).tolist()) for child, row in enumerate(similarity)}
    fathers = {child: above for child, above in fathers.items() if above}
    return FatherTable(fathers, tuple(class_names), FROM_TEXT, float(threshold))


def read_table(path: str | Path, protocol: Protocol) -> FatherTable:
    """Read the table of a data set's classes from a JSON file.

    Raises:
        OvsegError: the file cannot be read, is not JSON, repeats a key, or has no table for this data set, or the data
            set does not have a class.
    """
    content = _read_json(Path(path))
    if not isinstance(content, dict):
        raise OvsegError(f'{path} must hold {{"child": "father"}} or {{"child": ["father", ...]}}')
    if content and all(isinstance(value, dict) for value in content.values()):
        if protocol.dataset not in content:
            raise OvsegError(
                f"{path} holds tables for {short(', '.join(content))}, but none for {protocol.dataset}: add one, "
                f'"{protocol.dataset}": {{}} for no fathers at all'
            )
        content = content[protocol.dataset]
    fathers: dict[int, tuple[int, ...]] = {}
    for child, above in content.items():
        number = _class_index(child, protocol.class_names, path)
        if number in fathers:
            raise OvsegError(f"{path} holds class {number} ({protocol.class_names[number]!r}) twice: give it one entry")
        above = above if isinstance(above, list) else [above]
        fathers[number] = tuple(sorted(_class_index(father, protocol.class_names, path) for father in above))
    return FatherTable({child: above for child, above in fathers.items() if above}, protocol.class_names, str(path))


def _read_json(path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise OvsegError(f"{path} holds the key {short(repr(twice))} twice: remove one of them")
        return seen

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise OvsegError(f"there is no {path}: check TEST.SG_IOU_TABLE") from error
    except OSError as error:
        raise OvsegError(f"cannot read {path} ({error.strerror}): check TEST.SG_IOU_TABLE") from error
    except (ValueError, RecursionError) as error:
        raise OvsegError(f"TEST.SG_IOU_TABLE {path} is not valid JSON: {short(error)}") from error


def _class_index(entry: object, names: Sequence[str], path: str | Path) -> int:
    """Return the index of a class that is given by its name or index; keys of JSON are always texts."""
    if isinstance(entry, str) and (found := names.count(entry.strip())):
        if found > 1:
            raise OvsegError(f"{path} names {entry.strip()!r}, the name of {found} classes: give their indices")
        return names.index(entry.strip())
    if isinstance(entry, str) and entry.strip().isdecimal() and len(entry) < 10:
        entry = int(entry)
    if not isinstance(entry, int) or isinstance(entry, bool):
        raise OvsegError(
            f"{path} names the class {short(repr(entry))}, which the data set does not have: check the spelling"
        )
    return entry


def _texts(protocol: Protocol) -> tuple[list[str], list[int]]:
    """Return all texts of a data set, and the class of each."""
    texts, classes = [], []
    for word, synonyms in enumerate(protocol.vocabulary.synonyms):
        texts += synonyms
        classes += [word if protocol.to_class is None else protocol.to_class[word]] * len(synonyms)
    return texts, classes
