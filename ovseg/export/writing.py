"""Writing of the graphs of a model to a folder, each checked against the model before it is kept."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ovseg
from ovseg.errors import OvsegError
from ovseg.export import runtime
from ovseg.export.formats import Run, explained, outputs_of, quantise, write_onnx, write_program
from ovseg.export.graphs import Graph
from ovseg.export.plan import Plan, Size, plan_of
from ovseg.export.recipe import input_of, recipe_of, words_of
from ovseg.io.files import explained_writing, locked_folder, temporary_name, write_text
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import Vocabulary

ABOUT, TEXT = "export.json", "text_embeddings.npy"
TOLERANCE = 1e-4  # largest difference from the model
INT8_TOLERANCE = 0.03  # of unit vectors, with quantised weights
CROPS = "crops"  # the graph whose weights can be quantised
RUNS = 7  # of which the shortest counts


@dataclass(frozen=True)
class Checked:
    """A graph that was written and compared with the model.

    Attributes:
        name: of the graph.
        difference: largest absolute difference of any output on random inputs of two shapes.
        eager, exported: processor time, which depends least on other programs, of a run of the first shape by the model
            and by the graph; seconds, one thread each.
        size: of the files, bytes.
    """

    name: str
    difference: float
    eager: float
    exported: float
    size: int


def export(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    folder: str | Path,
    *,
    format: str = "onnx",
    size: tuple[int, int] | None = None,
    opset: int = 18,
    int8: bool = False,
    report: Callable[[Checked], None] = lambda checked: None,
) -> Plan:
    """Write the graphs of a model, the text embeddings of words, and ``export.json``, which says how to combine them.

    Args:
        segmenter: the model, on the CPU.
        vocabulary: words; any others can be given to the graphs, which take text embeddings or end before them.
        folder: new, or one of an earlier export of the same model in the same format, which is replaced.
        format: "onnx" or "torch-export".
        size: height and width of images; None for any.
        opset: version of ONNX's operators.
        int8: quantise the weights of CLIP's tower of crops, see :func:`quantise`; for "onnx" only.
        report: called with each graph that is kept.

    Returns:
        The graphs, and what is not exported.

    Raises:
        OvsegError: a package is missing; the folder has something else; a graph cannot be exported, or differs from
            the model by more than :data:`TOLERANCE`; or the folder cannot be written. Nothing is kept then.
    """
    folder = Path(folder)
    check_packages(format)
    check_folder(folder, segmenter.name, format)
    shorter = segmenter.min_size if segmenter.min_size > 0 else 224
    plan = plan_of(segmenter.model, Size(size, shorter))
    if not plan.graphs:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.left_out.items())
        raise OvsegError(f"no part of {segmenter.name} can be exported ({reasons}): choose another model")
    if int8 and (format != "onnx" or CROPS not in [graph.name for graph in plan.graphs]):
        raise OvsegError("--int8 is for the graph of crops and --format onnx, which this export lacks: leave it out")
    with _replaced(folder) as new, torch.no_grad():
        words, text = words_of(segmenter, vocabulary)
        if text is not None:
            np.save(new / TEXT, text, allow_pickle=False)
        rows = []
        for graph in plan.graphs:
            run = (write_onnx if format == "onnx" else write_program)(graph, new, opset)
            files = sorted(path.name for path in new.glob(f"{graph.name}.*"))
            checked = check(graph, run, sum((new / name).stat().st_size for name in files))
            quantised = int8 and graph.name == CROPS
            if quantised:
                run = quantise(graph, new)
                checked = check(graph, run, (new / f"{CROPS}.onnx").stat().st_size, INT8_TOLERANCE)
            report(checked)
            rows.append(_described(graph, checked, files) | {"weights": "int8" if quantised else "float32"})
        recipe, reason = recipe_of(segmenter)
        about = {
            "format": format,
            "model": segmenter.name,
            "versions": _versions(format),
            "opset": opset if format == "onnx" else None,
            "input": input_of(segmenter, _padded(plan, size)),
            "graphs": rows,
            "not_exported": plan.left_out,
            "words": words,
            "text": None if text is None else TEXT,
            "recipe": recipe,
            "no_recipe": reason,
        }
        if format == "onnx":
            shutil.copyfile(runtime.__file__, new / "runtime.py")
        write_text(new / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return plan


def check_packages(format: str) -> None:
    """Raise OvsegError if a package that the format needs is not installed, or PyTorch is too old."""
    names = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise OvsegError(f"--format onnx needs {', '.join(missing)}: run `pip install 'ovseg[export]'`")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 5):
        raise OvsegError(f"exports need PyTorch 2.5, and {torch.__version__} is installed: run `pip install -U torch`")


def check_folder(folder: Path, model: str | None = None, format: str = "") -> None:
    """Raise OvsegError unless a folder is new, empty, or of an earlier export of the model (None: any)."""
    if folder.exists() and not folder.is_dir():
        raise OvsegError(f"{folder} is a file: give a folder as --output")
    if not folder.is_dir() or not any(path.name != ".lock" for path in folder.iterdir()):
        return
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        found = about["model"], about["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OvsegError(f"{folder} has files of something else: give another folder as --output") from None
    if model is not None and found != (model, format):
        raise OvsegError(f"{folder} has the export of {found[0]} as {found[1]}: give another folder as --output")


def check(graph: Graph, run: Run, size: int, tolerance: float | None = None) -> Checked:
    """Compare a graph with the model on random inputs of two shapes, and measure both.

    Raises:
        OvsegError: they differ by more than ``tolerance``; default :data:`TOLERANCE`.
    """
    difference, tolerance = 0.0, TOLERANCE if tolerance is None else tolerance
    with _one_thread(), explained(graph):
        for which in (1, 0):
            inputs = graph.examples(which)
            for name, ours, theirs in zip(graph.outputs, outputs_of(graph.module, inputs), run(inputs), strict=True):
                if tuple(ours.shape) != theirs.shape:
                    raise OvsegError(f"output {name} of the graph {graph.name} has shape {theirs.shape}")
                apart = float(np.abs(ours.numpy() - theirs).max(initial=0.0))
                difference = max(difference, apart if np.isfinite(apart) else float("inf"))
        if difference > tolerance:
            raise OvsegError(
                f"the graph {graph.name} differs from the model by {difference:.1e}, more than {tolerance:.0e}: it is "
                "not kept; give another --opset, or another --size"
            )
        times = [_seconds(lambda: outputs_of(graph.module, inputs)), _seconds(lambda: run(inputs))]
    return Checked(graph.name, difference, *times, size)


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def _described(graph: Graph, checked: Checked, files: Sequence[str]) -> dict[str, Any]:
    return {
        "name": graph.name,
        "file": next(name for name in files if name.endswith((".onnx", ".pt2"))),
        "about": graph.about,
        "inputs": {name: given.described for name, given in graph.inputs.items()},
        "outputs": list(graph.outputs),
        "max_abs_difference": checked.difference,
        "seconds": {"eager": round(checked.eager, 6), "exported": round(checked.exported, 6)},
    }


def _padded(plan: Plan, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the height and width of the first graph's image, if they are fixed."""
    image = plan.graphs[0].inputs.get("image")
    if size is None or image is None or plan.graphs[0].name in ("maps", "pooled"):
        return size
    return tuple(int(side) for side in image.shape[-2:])


def _versions(format: str) -> dict[str, str]:
    names = ("torch", *(("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()))
    return {"ovseg": ovseg.__version__} | {name: importlib.metadata.version(name) for name in names}


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a new folder next to ``folder``, which takes its place if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder), temporary_name(folder) as new, explained_writing(folder):
        try:
            new.mkdir()
            yield new
            with temporary_name(folder) as old:
                os.replace(folder, old)
                os.replace(new, folder)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
