"""Files of graphs: ONNX, which ONNX Runtime runs, and exported programs of PyTorch."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from ovseg.errors import OvsegError, reason_of
from ovseg.export.graphs import Graph

LARGEST_FILE = 1.8e9  # bytes; an ONNX file of 2 GB or more needs its weights in another file
Run = Callable[[Sequence[Tensor]], Sequence[np.ndarray]]


def write_onnx(graph: Graph, folder: Path, opset: int) -> Run:
    """Write a graph as ONNX and return a function that runs it in ONNX Runtime, with one thread."""
    path = folder / f"{graph.name}.onnx"
    with explained(graph), _quiet():
        traced = _program(graph)
        size = sum(weight.nbytes for weight in traced.state_dict.values())
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
        program.save(path, external_data=size > LARGEST_FILE)
        del program, traced
    return _session(graph, path)


def _session(graph: Graph, path: Path) -> Run:
    """Return a function that runs a graph in ONNX Runtime, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with explained(graph):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(
        list(graph.outputs), {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
    )


def quantise(graph: Graph, folder: Path) -> Run:
    """Replace the ONNX file of a graph by one with weights of eight bits, and return a function that runs it.

    It is ONNX Runtime's dynamic quantisation: activations are quantised when the graph runs.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path, fewer = folder / f"{graph.name}.onnx", folder / f"{graph.name}.int8.onnx"
    with explained(graph), _quiet():
        quantize_dynamic(path, fewer, weight_type=QuantType.QInt8)
    os.replace(fewer, path)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # the weights of a large graph
    return _session(graph, path)


def write_program(graph: Graph, folder: Path, opset: int) -> Run:
    """Write a graph as an exported program of PyTorch and return a function that runs the file."""
    path = folder / f"{graph.name}.pt2"
    with explained(graph), _quiet():
        torch.export.save(_program(graph), path)
        module = torch.export.load(path).module()
    return lambda inputs: [tensor.numpy() for tensor in outputs_of(module, inputs)]


def _program(graph: Graph) -> torch.export.ExportedProgram:
    """Trace a graph, without the weights that it does not use, such as those of a text tower, and the examples."""
    shapes = graph.dynamic_shapes()
    program = torch.export.export(graph.module, graph.examples(0), dynamic_shapes=shapes, strict=False)
    program.example_inputs = None
    inputs, nodes = program.graph_signature.input_specs, {node.name: node for node in program.graph.nodes}
    for given in [given for given in inputs if given.kind != InputKind.USER_INPUT and not nodes[given.arg.name].users]:
        program.graph.erase_node(nodes[given.arg.name])
        inputs.remove(given)
        for weights in (program.state_dict, program.constants):
            weights.pop(given.target, None)
    program.graph_module.recompile()
    return program


def outputs_of(module: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = module(*inputs)
    return found if isinstance(found, tuple) else (found,)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and warnings from the terminal."""
    loggers = [logging.getLogger(name) for name in (None, "torch", "onnxscript", "onnx_ir")]  # None: the root
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def explained(graph: Graph) -> Iterator[None]:
    """Raise OvsegError, which names the graph, for an error of an exporter or a runtime."""
    try:
        yield
    except (OvsegError, OSError, MemoryError):
        raise
    except Exception as error:  # exporters raise almost anything
        raise OvsegError(
            f"the graph {graph.name} cannot be exported ({reason_of(error)}): give --size HxW without --dynamic, or "
            "another --opset or --format"
        ) from error
