"""Building a model whose weights will be overwritten, without drawing random numbers for them first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What draws random numbers in nn.init, fvcore and timm ends in one of these methods; some functions of nn.init give the
# mode their whole call.
_RANDOM_FILLS = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.log_normal_, Tensor.exponential_, Tensor.cauchy_, Tensor.geometric_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),
}


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
        if func in _RANDOM_FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_floating_point():
                return tensor if isinstance(tensor, nn.Parameter) else tensor.zero_()
        return func(*args, **kwargs)
