"""Building a model whose weights will be overwritten, without drawing random numbers for them first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

# What draws random numbers in nn.init, fvcore, timm and transformers ends in one of these methods. Some functions of
# nn.init give the mode their whole call, and transformers puts its own in their place: hence names, not functions.
_RANDOM_FILLS = ("uniform_", "normal_", "log_normal_", "exponential_", "cauchy_", "geometric_", "kaiming_uniform_")


class skip_initialisation(TorchFunctionMode):
    """Context manager in which the random fills of module constructors do nothing.

    Parameters keep whatever was in their memory: use it only where a complete checkpoint is loaded afterwards. Other
    floating-point tensors become zeros, since code may look at them (:func:`torch.nn.init.trunc_normal_` draws until
    all values are in its range). Constant fills (``zeros``, ``ones_``, ``arange``, ``linspace``) and functions that
    return new random tensors (``torch.randn``) are as usual, and so are buffers that are computed from them.

    It is for construction only: within it, random fills in a ``forward`` would do nothing, too.

    Example::

        with skip_initialisation():
            model = build_model(cfg)
        load_weights(model, path, complete=True)
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in _RANDOM_FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_floating_point():
                return tensor if isinstance(tensor, nn.Parameter) else tensor.zero_()
        return func(*args, **kwargs)
