"""Evaluation of all pairs of proposers and namers alike (tools/matrix.py)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ovseg.checkpoint import load_model, save_safetensors, skip_initialisation
from ovseg.checkpoint.loading import CLIP_ADAPTER, CLIP_PREFIXES
from ovseg.checkpoint.state_dicts import read_checkpoint, tensors_of
from ovseg.config import DEFAULTS, load_cfg
from ovseg.config.files import by_content
from ovseg.config.limits import needs_checkpoint
from ovseg.config.systems import unread_keys
from ovseg.data.custom.names import folder_name
from ovseg.engine.setup import seed_everything
from ovseg.errors import OvsegError
from ovseg.evaluation.cells import Cell, score_names
from ovseg.evaluation.identity import digest_of, git_commit, versions
from ovseg.evaluation.record import read_record
from ovseg.evaluation.report import write_json
from ovseg.evaluation.runner import evaluate_all
from ovseg.evaluation.tower_count import TowerCount
from ovseg.io.files import file_digest, is_file, write_text
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.views import PROPOSERS

logger = logging.getLogger(__name__)
PAIR, NO_OBJECT = "ProposeAndName", f"{CLIP_ADAPTER}non_object_embedding"
CELLS_FILE, COUNT_FILE, IDENTITY_FILE = "cells.json", "clip_images.jsonl", "identity.txt"


@dataclass(frozen=True)
class MatrixPart:
    """A proposer or a namer of the matrix.

    Attributes:
        config: configuration file of a system that has the part: its weights and settings.
        keys: keys below ``MODEL`` that select the part.
        clip: of a namer, the weights of its CLIP: "adapted", those of the checkpoint of ``config``; "plain", those of
            ``MODEL.CLIP_ADAPTER.CLIP_WEIGHTS``; "proposer", those of the proposer's checkpoint.
    """

    config: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    clip: str = "plain"


@dataclass(frozen=True)
class Settings:
    """What all evaluations of a matrix share.

    Attributes:
        datasets: registered names.
        output: folder of the results, with a folder for each pair.
        images: of each data set, evenly spread; None for all.
        seed: of the evaluations.
        opts: keys and values for every configuration.
    """

    datasets: Sequence[str]
    output: Path
    images: int | None = None
    seed: int = 0
    opts: Sequence[Any] = ()


@dataclass(frozen=True)
class Job:
    """An evaluation of the matrix.

    Attributes:
        proposer, namer: see :class:`ovseg.evaluation.cells.Cell`.
        cfg: its configuration, with ``MODEL.WEIGHTS`` of the proposer.
        clip_weights: checkpoint whose CLIP replaces that of ``MODEL.WEIGHTS``; "" for that of
            ``MODEL.CLIP_ADAPTER.CLIP_WEIGHTS``; None to keep it.
    """

    proposer: str
    namer: str
    cfg: CfgNode
    clip_weights: str | None = None

    @property
    def name(self) -> str:
        return f"{self.proposer}-{self.namer}" if self.namer else self.proposer


def jobs_of(
    proposers: Mapping[str, MatrixPart], namers: Mapping[str, MatrixPart], systems: Sequence[str], settings: Settings
) -> list[Job]:
    """Return the evaluations of all pairs, and of systems given by their configuration files.

    Raises:
        OvsegError: a configuration or a checkpoint is missing, or two systems have the same name.
    """
    jobs = [_pair(*first, *second, settings) for first in proposers.items() for second in namers.items()]
    jobs += [Job(Path(name).stem, "", load_cfg(name, settings.opts)) for name in systems]
    names = [job.name for job in jobs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OvsegError(f"two rows of the matrix are called {twice[0]}: rename a configuration file, or leave one out")
    for job in jobs:
        if not job.namer and not job.cfg.MODEL.WEIGHTS and needs_checkpoint(job.cfg):
            raise OvsegError(f"{job.name}: MODEL.WEIGHTS is empty, without which results are random: name a file")
        for file in filter(None, (job.cfg.MODEL.WEIGHTS, job.clip_weights)):
            if not is_file(file):
                raise OvsegError(f"{job.name}: there is no weight file {file}; check the configuration files")
        job.cfg.OUTPUT_DIR = str(settings.output / "pairs" / job.name)
        job.cfg.merge_from_list(["SEED", settings.seed, "TEST.GROUNDING_MIOU", True, "TEST.PROPOSAL_RECALL", True])
        job.cfg.DATASETS.TEST = tuple(settings.datasets)
    return jobs


def _pair(proposer: str, first: MatrixPart, namer: str, second: MatrixPart, settings: Settings) -> Job:
    """Return the evaluation of a pair: the proposer with its settings, CLIP and the settings of crops of the namer.

    Settings of single data sets (``TEST.PER_DATASET``) are those of whole systems, and are left out, as are keys that
    only the proposer's system reads.
    """
    cfg, of_namer = load_cfg(first.config), load_cfg(second.config)
    cfg.TEST.PER_DATASET.clear()
    for key in unread_keys(PAIR).keys() - unread_keys(cfg.MODEL.META_ARCHITECTURE).keys():
        cfg.merge_from_list([key, DEFAULTS[key]])
    clip_weights = None
    if second.clip != "proposer":
        cfg.MODEL.CLIP_ADAPTER = of_namer.MODEL.CLIP_ADAPTER.clone()
        cfg.MODEL.NAMER = of_namer.MODEL.NAMER.clone()
        cfg.MODEL.DENSE = of_namer.MODEL.DENSE.clone()
        clip_weights = of_namer.MODEL.WEIGHTS if second.clip == "adapted" else ""
    keys = {"META_ARCHITECTURE": PAIR, "PROPOSER.NAME": proposer, **first.keys, **second.keys}
    cfg.merge_from_list([item for key, value in keys.items() for item in (f"MODEL.{key}", value)])
    cfg.merge_from_list(settings.opts)
    return Job(proposer, namer, cfg, clip_weights)


def evaluated(job: Job, settings: Settings) -> list[Cell]:
    """Return the cells of a job, one for each data set.

    They are read if the job was finished before with the same configuration, weights and images. An unfinished
    evaluation resumes. A pair that cannot be built gives cells with the reason.

    Raises:
        OvsegError: a system cannot be built, or an evaluation fails.
    """
    folder = settings.output / "pairs" / job.name
    identity = _identity(job, settings)
    if (found := _read_cells(folder / CELLS_FILE, identity)) is not None:
        logger.info("%s was evaluated before", job.name)
        return found
    if not (folder / IDENTITY_FILE).is_file() or (folder / IDENTITY_FILE).read_text() != identity:
        (folder / COUNT_FILE).unlink(missing_ok=True)  # of other settings
        write_text(folder / IDENTITY_FILE, identity)
    seed_everything(settings.seed)
    with TemporaryDirectory() as temporary:
        if job.namer:
            try:
                names = _names(job)
            except OvsegError as error:
                return [Cell(job.proposer, job.namer, dataset, reason=str(error)) for dataset in settings.datasets]
            job.cfg.MODEL.WEIGHTS = _weights(job, Path(temporary), names)
        model = load_model(job.cfg, complete=True)
    job.cfg.TEST.PROPOSAL_RECALL = hasattr(model, "proposer")
    with TowerCount(model, folder / COUNT_FILE) as count:
        evaluate_all(job.cfg, model, resume=True, limit=settings.images)
    cells = []
    for dataset in settings.datasets:
        record = read_record(folder / "inference" / folder_name(dataset, settings.datasets) / "results.json")
        scores = {name: value for task in record["results"].values() for name, value in task.items()}
        kept = {name: scores.get(name, math.nan) for name in score_names(record["evaluation_set"])}
        seconds = record["seconds_per_image"]["model"]
        cells.append(Cell(job.proposer, job.namer, dataset, kept, seconds, count.mean(dataset)))
    write_json(folder / CELLS_FILE, {"identity": identity, "cells": [vars(cell) for cell in cells]})
    return cells


def all_cells(jobs: Sequence[Job], settings: Settings) -> Iterator[list[Cell]]:
    """Yield the cells of each job, see :func:`evaluated`."""
    for job in jobs:
        yield evaluated(job, settings)


def _weights(job: Job, folder: Path, names: Mapping[str, torch.Size]) -> str:
    """Return the checkpoint of a pair, normally one written to a folder; "" if CLIP_WEIGHTS has all of its weights.

    Args:
        names: of the model's tensors, with their shapes.
    """
    if job.clip_weights is None:
        return job.cfg.MODEL.WEIGHTS
    proposer = PROPOSERS.get(job.proposer)
    is_network = isinstance(proposer, type) and issubclass(proposer, MaskNetwork)
    of_namer = CLIP_PREFIXES if is_network else (CLIP_ADAPTER,)
    tensors: dict[str, Tensor] = {}
    for path, is_namers in ((job.cfg.MODEL.WEIGHTS, False), (job.clip_weights, True)):
        found = tensors_of(read_checkpoint(path), path) if path else {}
        tensors |= {
            name: tensor for name, tensor in found.items() if name in names and name.startswith(of_namer) == is_namers
        }
    if not tensors:
        return ""
    if not is_network and NO_OBJECT in names:  # which only the class embeddings of a network are compared with
        tensors.setdefault(NO_OBJECT, torch.ones(names[NO_OBJECT]))
    save_safetensors(tensors, folder / "model.safetensors")
    return str(folder / "model.safetensors")


def _names(job: Job) -> Mapping[str, torch.Size]:
    """Return the names of the tensors of a pair's model, with their shapes.

    Raises:
        OvsegError: its parts do not fit together.
    """
    with skip_initialisation():
        return {name: tensor.shape for name, tensor in build_model(job.cfg).state_dict().items()}


def _identity(job: Job, settings: Settings) -> str:
    """Return the digest of everything that the cells of a job depend on."""
    values = yaml.safe_load(job.cfg.dump())
    del values["OUTPUT_DIR"]
    files = [file_digest(file) for file in (job.cfg.MODEL.WEIGHTS, job.clip_weights) if file]
    content = {"config": by_content(values), "files": files, "clip": job.clip_weights is None}
    return digest_of({**content, "images": settings.images, "versions": versions(), "commit": git_commit()})


def _read_cells(path: Path, identity: str) -> list[Cell] | None:
    """Return the cells in a file if they have the same identity; else None."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell(**cell) for cell in content["cells"]]
        same = content["identity"] == identity
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for cell in cells:
        cell.scores.update({name: math.nan for name, value in cell.scores.items() if value is None})
    return cells if same else None
