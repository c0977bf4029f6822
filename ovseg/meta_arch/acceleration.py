"""Compilation of a model's networks, and their recording as CUDA graphs, for evaluation."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.naming import MaskedCrops

logger = logging.getLogger(__name__)

# Networks by the path of their owner in a model and the method that runs them; a model may lack some.
NETWORKS = (("proposer", "last_prediction"), ("mask_namer", "run_tower"), ("mask_namer", "run_map"))
COMPILERS = ("g++", "clang++", "cl")
LEAST_ROWS = 8  # of the crops of CLIP's image tower
RECORDINGS = 8  # CUDA graphs of a network in memory, each of one size of its inputs
WARM_UP = 3  # runs before a recording, in which kernels are chosen and compiled
Result = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def accelerate(model: nn.Module, compiled: bool = False, graphs: bool = False) -> None:
    """Replace the networks of a model by faster ones: the proposal network and CLIP's image tower; or put them back.

    Crops are filled up to groups of 8, 16, 32, ..., so that there are few sizes to compile and record. A copy or a
    pickle of the model has the networks as they were, see :class:`ovseg.proposals.views.Part`.

    Args:
        model: in evaluation mode, on its device.
        compiled: compile them (torch.compile), which takes minutes at their first use. Results are rounded differently.
        graphs: record them as CUDA graphs, for each size of their inputs; without effect on other devices.

    Raises:
        OvsegError: to compile for a CPU, there is no C++ compiler.
    """
    if compiled and model.device.type == "cpu":
        _require_compiler()
    graphs = graphs and model.device.type == "cuda"
    replaced = 0
    for path, method in NETWORKS:
        owner = getattr(model, path, None)
        if not hasattr(owner, method):
            continue
        vars(owner).pop(method, None)  # of an earlier call
        if not (compiled or graphs):
            continue
        function = getattr(owner, method)
        crops = isinstance(owner, MaskedCrops)
        if compiled:
            function = torch.compile(function, dynamic=False if crops or graphs else None)
        if graphs:
            function = CudaGraphs(function)
        setattr(owner, method, functools.partial(in_groups, function) if crops else function)
        replaced += 1
    if (compiled or graphs) and not replaced:
        logger.warning("MODEL.COMPILE and MODEL.CUDA_GRAPHS have no effect: this model has no network to make faster")


def _require_compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS)):
        raise OvsegError(
            "MODEL.COMPILE is True, but there is no C++ compiler, with which PyTorch compiles for a CPU: install g++ "
            "or set the key to False"
        )


def in_groups(function: Callable[..., Tensor], tower: nn.Module, *rows: Tensor) -> Tensor:
    """Call ``function(tower, *rows)`` with rows (n, ...) filled up by zeros; return the results of the n rows."""
    count = len(rows[0])
    missing = max(LEAST_ROWS, 1 << (count - 1).bit_length()) - count
    return function(tower, *(F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x for x in rows))[:count]


class CudaGraphs:
    """Function whose kernels are recorded once for each size of its inputs, and then replayed by one launch.

    Args:
        function: of tensors on a GPU and other objects; its result is a tensor, or a tuple or dictionary of tensors. It
            must not copy between the host and the GPU.
    """

    def __init__(self, function: Callable[..., Result]):
        self.function = function
        self._lock = threading.Lock()  # all calls share the recorded inputs and results
        self._recorded: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, tuple, Result]] = OrderedDict()

    def __call__(self, *inputs: Any) -> Result:
        with self._lock:
            return self._call(inputs)

    def _call(self, inputs: tuple) -> Result:
        key = tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else id(x) for x in inputs)
        if key not in self._recorded:
            while len(self._recorded) >= RECORDINGS:
                self._recorded.popitem(last=False)
            self._recorded[key] = self._record(inputs)
        self._recorded.move_to_end(key)
        graph, own, result = self._recorded[key]
        for held, given in zip(own, inputs, strict=True):
            if isinstance(held, Tensor):
                held.copy_(given)
        graph.replay()
        return _each(result, Tensor.clone)  # the next replay overwrites the recorded ones

    @torch.inference_mode(False)  # tensors of inference mode could not be written to outside of it
    @torch.no_grad()
    def _record(self, inputs: tuple) -> tuple[torch.cuda.CUDAGraph, tuple, Result]:
        own = tuple(x.contiguous().clone() if isinstance(x, Tensor) else x for x in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.function(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.function(*own)
        return graph, own, result


def _each(result: Result, change: Callable[[Tensor], Tensor]) -> Result:
    if isinstance(result, Tensor):
        return change(result)
    if isinstance(result, dict):
        return {name: change(tensor) for name, tensor in result.items()}
    return tuple(map(change, result))
