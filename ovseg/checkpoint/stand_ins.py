"""Stand-ins for the names of NumPy and PyTorch in a pickle: functions that validate all values before they use them."""

from __future__ import annotations

import difflib
import math
import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.checkpoint.pickles import Call, Damaged, NeedsCode, StandIn, plain_key

# A tensor may repeat its storage (stride 0): up to this size, or this many times.
_REPEATED_BYTES, _REPEATED_TIMES = 1 << 30, 16
_NUMPY_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
_OTHER_NUMPY_TYPES = re.compile(r"[USVOMm]\d{0,6}|f16|c32")  # texts, objects, dates, and so on
_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.Metadata", "base.ContainerMetadata"),
    *(f"nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Path", "Bytes")),
)
_TORCH_TYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@dataclass(frozen=True)
class StorageKind:
    """A class of storages, given by its data type."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _NumpyType:
    code: str


def rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
    """Return the view of a storage, a one-dimensional tensor, that a tensor's size and stride describe.

    Args:
        rest: whether it requires a gradient, hooks, and "conj" and "neg" for lazily evaluated views.

    Raises:
        Damaged: the view exceeds the storage.
    """
    if not isinstance(storage, Tensor) or storage.dim() != 1:
        raise Damaged("a tensor has no storage")
    size, stride = _counts(size), _counts(stride)
    (offset,) = _counts((offset,))
    if len(size) != len(stride) or len(size) > 64:
        raise Damaged("a tensor's size and stride do not agree")
    count = math.prod(size)
    if not count:
        return storage.new_empty(size)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise Damaged("a tensor is larger than its storage")
    if count * storage.itemsize > max(_REPEATED_BYTES, _REPEATED_TIMES * storage.nbytes):
        raise Damaged(f"a tensor repeats {storage.nbytes} bytes to {count * storage.itemsize}")
    tensor = storage.as_strided(size, stride, offset)
    views = rest[2] if len(rest) > 2 and isinstance(rest[2], dict) else {}
    tensor = tensor.conj() if views.get("conj") else tensor
    return torch._neg_view(tensor) if views.get("neg") else tensor  # the storage may be filled later


def _rebuild_tensor_v3(storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
    """Rebuild a tensor of a type without a storage class: the storage holds bytes, the type is given last."""
    dtype = next(value for value in rest if isinstance(value, torch.dtype))
    torch.zeros(1).to(dtype)  # PyTorch has types without any operation, such as uint1
    return rebuild_tensor(storage.view(dtype), offset, size, stride)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Damaged("a parameter has no tensor")
    return data


def _rebuild_with_attributes(rebuild: Any, kind: Any, arguments: tuple, _: Any) -> Tensor:
    if kind is not None or not isinstance(rebuild, Call):
        raise Damaged("a tensor is of an unknown kind")
    return _rebuild_parameter(rebuild.function(*arguments))


def _ordered_dict(items: Any = ()) -> dict:
    return {plain_key(key): value for key, value in items}


def _dict_of_dicts(kind: Any = None) -> dict:
    if kind != "dict":  # that of OmegaConf
        raise NeedsCode("collections.defaultdict")
    return {}


def _set(values: Any = ()) -> set:
    return set(map(plain_key, values))


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise Damaged("a size, a stride or an offset is not a count")
    return tuple(values)


def _bytearray(text: str = "", encoding: str = "latin1") -> bytearray:
    return bytearray(text if isinstance(text, bytes | bytearray) else _latin1(text, encoding))


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Damaged("bytes are not encoded as in pickles")
    return text.encode("latin1")


def _numpy_type(code: Any, *_: Any) -> StandIn:
    if isinstance(code, str) and _OTHER_NUMPY_TYPES.fullmatch(code):
        raise NeedsCode(f"numpy.{np.dtype(code).type.__name__}")
    if code not in _NUMPY_TYPES:
        raise Damaged(f"NumPy values of type {str(code)[:20]!r} are not numbers")

    def finish(state: Any) -> _NumpyType:
        # (version, byte order, subarray, names of fields, fields, size, alignment, flags)
        if type(state) is not tuple or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise Damaged("a NumPy type is not a type of numbers")
        return _NumpyType(state[1] + code)

    return StandIn(finish)


def _array_of(state: Any) -> np.ndarray:
    _, shape, dtype, fortran, data = state
    return _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: Any, shape: tuple, order: str, axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, _NumpyType):
        raise Damaged("an array has no type")
    if isinstance(data, str):  # written by Python 2
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise Damaged("an array holds objects")
    kind, shape = np.dtype(dtype.code), _counts(shape)
    if math.prod(shape) * kind.itemsize != len(data):
        raise Damaged("an array's size is not that of its data")
    array = np.frombuffer(data if isinstance(data, bytearray) else bytearray(data), kind)
    array = array if kind.isnative else array.astype(kind.newbyteorder("="))
    array = array.reshape(shape, order="F" if order == "F" else "C")
    return array.transpose(_counts(axes)) if order == "K" and axes is not None else array


STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": Call(_ordered_dict),
    "collections.Counter": Call(lambda counts=(): _ordered_dict(dict(counts).items())),  # schedulers' milestones
    # settings next to the weights in files of PyTorch Lightning, whose attributes are not read
    "argparse.Namespace": Call(lambda: {}),
    "pytorch_lightning.utilities.parsing.AttributeDict": Call(lambda: {}),
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": "ModelCheckpoint",  # a key
    # settings of OmegaConf next to the weights of GroupViT and OVSegmentor, which are not read
    **{f"omegaconf.{name}": Call(lambda *_: StandIn(lambda state: None)) for name in _OMEGACONF},
    **{f"builtins.{name}": name for name in ("dict", "list", "tuple", "str", "int", "long", "float", "bool")},
    "collections.defaultdict": Call(_dict_of_dicts),
    "typing.Any": "Any",
    "builtins.set": Call(_set),
    "builtins.frozenset": Call(lambda values=(): frozenset(_set(values))),
    "builtins.bytes": Call(lambda: b""),
    "builtins.bytearray": Call(_bytearray),
    "builtins.complex": Call(complex),
    "_codecs.encode": Call(_latin1),
    "torch._utils._rebuild_tensor": Call(rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Call(rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": Call(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": Call(_rebuild_parameter),
    "torch._tensor._rebuild_from_type_v2": Call(_rebuild_with_attributes),
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    "torch.Size": Call(lambda values=(): torch.Size(_counts(values))),
    "torch.storage._load_from_bytes": None,  # plain pickles have one that can be called
    "torch.device": Call(torch.device),
    "numpy.dtype": Call(_numpy_type),
    "numpy.ndarray": None,  # the first argument of _reconstruct, which is always the same
    **{f"torch.{name}": dtype for name, dtype in _TORCH_TYPES.items()},
    **{
        f"torch.{name}Storage": StorageKind(dtype)
        for name, dtype in {
            **{"Double": torch.double, "Float": torch.float, "Half": torch.half, "BFloat16": torch.bfloat16},
            **{"Long": torch.long, "Int": torch.int, "Short": torch.short, "Char": torch.int8, "Byte": torch.uint8},
            **{"Bool": torch.bool, "ComplexFloat": torch.cfloat, "ComplexDouble": torch.cdouble},
        }.items()
    },
    **{f"torch.storage.{name}": StorageKind(torch.uint8) for name in ("UntypedStorage", "_UntypedStorage")},
    **{
        f"numpy.{core}.{name}": Call(function)
        for core in ("core", "_core")
        for name, function in {
            "multiarray._reconstruct": lambda *_: StandIn(_array_of),
            "multiarray.scalar": lambda dtype, data: _filled(data, dtype, (), "C")[()],
            "numeric._frombuffer": _filled,
        }.items()
    },
}


def stand_in(name: str) -> Any:
    """Return the stand-in of a global name.

    Raises:
        KeyError: there is none.
        Damaged: the name does not exist and resembles one of the table, as in a file with damaged letters.
    """
    module, _, leaf = name.rpartition(".")
    exists = name in STAND_INS or leaf in vars(sys.modules.get(module, object))
    if not exists and difflib.get_close_matches(name, STAND_INS, n=1, cutoff=0.8):
        raise Damaged(f"{name} is miswritten")
    return STAND_INS[name]
