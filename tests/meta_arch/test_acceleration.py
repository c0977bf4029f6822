"""Compiled and recorded networks, and the transfers between a GPU and the host that a recording must not have."""

from __future__ import annotations

import copy
import pickle
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.meta_arch import acceleration, word_model
from ovseg.meta_arch.acceleration import accelerate, in_groups
from ovseg.naming import crops as crops_module
from ovseg.naming import pooled, scores

RANDOM = ["MODEL.WEIGHTS", "", "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none"]
RANDOM += ["MODEL.DEVICE", "cpu"]
POOLED = ["MODEL.META_ARCHITECTURE", "ProposeAndName", "MODEL.NAMER.NAME", ["QueryEmbedding", "PooledMap"]]


def toy_model(system: str, *opts: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(load_cfg(f"configs/toy/{system}_toy.yaml", [*RANDOM, *opts])).eval()


@pytest.mark.parametrize(("count", "given"), [(1, 8), (8, 8), (9, 16), (32, 32), (33, 64)])
def test_crops_come_in_few_sizes(count: int, given: int) -> None:
    def double(tower: nn.Module, rows: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
        assert rows.shape == (given, 3) and flags.shape == (given, 2, 5) and flags.dtype == torch.bool
        return 2 * rows

    rows = torch.randn(count, 3)
    assert torch.equal(in_groups(double, nn.Identity(), rows, torch.ones(count, 2, 5, dtype=torch.bool)), 2 * rows)


def test_accelerated_networks_give_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_it(function, **options):
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_it)
    monkeypatch.setattr(acceleration, "_require_compiler", lambda: None)
    model = toy_model("ovseg")
    image = torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(1))
    request = [{"image": image, "class_names": ["grass", "sand"], "outputs": ("sem_seg",)}]
    with torch.no_grad():
        expected = model(request)[0]["sem_seg"]
        model.accelerate(compiled=True, graphs=True)
        assert compiled == ["last_prediction", "run_tower"]
        torch.testing.assert_close(model(request)[0]["sem_seg"], expected)


def test_a_copy_has_networks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_require_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model = toy_model("ovseg")
    model.accelerate(compiled=True)
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert "last_prediction" in vars(model.proposer) and "last_prediction" not in vars(other.proposer)
    with torch.no_grad():
        for tensor in other.proposer.sem_seg_head.parameters():
            tensor.mul_(0.9)
        batch = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        assert not torch.equal(model.proposer.last_prediction(batch)[1], other.proposer.last_prediction(batch)[1])


def test_recordings_are_of_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            time.sleep(0.002)
            self.result.copy_(2 * self.own)

    def record(self, inputs):
        graph = Graph()
        graph.own, graph.result = inputs[0].clone(), inputs[0].clone()
        return graph, (graph.own,), graph.result

    monkeypatch.setattr(acceleration.CudaGraphs, "_record", record)
    double = acceleration.CudaGraphs(SimpleNamespace())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda value: double(torch.full((2,), float(value))), range(40)))
    assert [result[0].item() for result in results] == [2.0 * value for value in range(40)]


def test_a_model_without_networks_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_require_compiler", lambda: None)
    model = SimpleNamespace(device=torch.device("cpu"), proposer=nn.Identity(), mask_namer=None)
    accelerate(model, compiled=True)
    assert "have no effect" in caplog.text


def test_the_precision_of_a_proposer_that_is_no_network() -> None:
    with pytest.raises(OvsegError, match=r"PROPOSER\.PRECISION is bf16, but BoundaryTree does not read it"):
        build_model(load_cfg("photo", ["MODEL.DEVICE", "cpu", "MODEL.PROPOSER.PRECISION", "bf16"]))


def test_a_second_call_replaces_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(acceleration, "_require_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.append(function) or (lambda *_: None))
    model = toy_model("ovseg")
    own = [model.proposer.last_prediction, model.mask_namer.run_tower]
    for _ in range(2):
        model.accelerate(compiled=True)
    assert given == own * 2
    model.accelerate()
    assert [model.proposer.last_prediction, model.mask_namer.run_tower] == own


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("ovseg")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(OvsegError, match=r"no C\+\+ compiler.*install g\+\+ or set the key to False"):
        model.accelerate(compiled=True)


def test_graphs_are_left_out_on_other_devices() -> None:
    model = toy_model("ovseg")
    accelerate(model, graphs=True)
    assert "last_prediction" not in vars(model.proposer)


class Transfers(TorchDispatchMode):
    """Collects the places that wait for the GPU: values that the host reads, and copies that it waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name()
        read = name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
        if name == "aten::index.Tensor":
            read = any(index is not None and index.dtype == torch.bool for index in args[1])
        if name == "aten::_to_copy" and not kwargs.get("non_blocking"):
            read = torch.device(kwargs.get("device") or args[0].device).type != args[0].device.type
        if name == "aten::copy_":
            read = args[0].device.type != args[1].device.type
        if read:
            inside = [frame for frame in traceback.extract_stack() if "/ovseg/" in frame.filename]
            self.places.append(f"{name} {inside[-1].name}")
        return function(*args, **kwargs)


@pytest.fixture
def all_masks_have_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that the host reads, and without a GPU there are no values; nor is there page-locked memory."""

    def rows(masks, threshold):
        return [crops_module.has_pixel(of_image, threshold) for of_image in masks], [None] * len(masks)

    for module in (crops_module, pooled):
        monkeypatch.setattr(module, "rows_with_pixel", rows)
    for module in (word_model, scores, crops_module):
        monkeypatch.setattr(module, "to_device", lambda tensor, device: tensor.to(device, non_blocking=True))


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.usefixtures("all_masks_have_a_pixel")
@pytest.mark.parametrize(("system", "opts"), [("ovseg", []), ("simbaseline", []), ("ovseg", POOLED)])
def test_the_host_waits_for_the_gpu_only_for_which_masks_have_a_pixel(system: str, opts: list) -> None:
    model = toy_model(system, *opts)
    dim = model.clip_adapter.embed_dim
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), Transfers() as transfers:
        for part in (model, *model.parts):
            move(part)
        text = lambda texts, templates=None: torch.empty(len(texts), dim, device="cuda")  # noqa: E731
        object.__setattr__(model.clip_adapter, "text", text)
        request = {"image": torch.empty(3, 96, 128, dtype=torch.uint8), "class_names": ["grass", "sand"]}
        result = model([request | {"outputs": ("label_map",)}])
    assert result[0]["label_map"].device.type == "cuda" and transfers.places == []


def move(model: nn.Module) -> None:
    """Replace the tensors of a module by ones without values on a GPU."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type == "cpu":
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[name] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved


def test_recordings_are_kept_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            own, result = self.held
            result.copy_(2 * own)

    def record(self, inputs):
        graph, own = Graph(), inputs[1].clone()
        graph.held = own, torch.empty_like(own)
        made.append(own.shape)
        return graph, (inputs[0], own), graph.held[1]

    made: list = []
    monkeypatch.setattr(acceleration.CudaGraphs, "_record", record)
    monkeypatch.setattr(acceleration, "RECORDINGS", 2)
    double, tower = acceleration.CudaGraphs(SimpleNamespace()), object()
    first = double(tower, torch.ones(2))
    assert torch.equal(double(tower, torch.full((2,), 3.0)), torch.full((2,), 6.0)) and len(made) == 1
    assert torch.equal(first, torch.full((2,), 2.0))  # not overwritten
    double(object(), torch.ones(2))  # another tower
    double(tower, torch.ones(3))
    double(tower, torch.ones(2))  # was removed as the least recently used
    assert len(made) == 4
