"""A copy of a frozen module that takes memory only for what differs."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose parameters are the very same objects."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def unshared(twin: nn.Module, module: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """The parameters that each has for itself, by name: the twin's and the module's."""
    own = dict(twin.named_parameters())
    return {name: (own[name], theirs) for name, theirs in module.named_parameters() if own[name] is not theirs}


def share(twin: nn.Module, module: nn.Module, wanted: Mapping[str, bool]) -> None:
    """Let parameters of a :func:`shared_copy` be the module's, or copies of its own; ``wanted`` by name."""
    apart = unshared(twin, module)
    theirs = dict(module.named_parameters())
    for name, shall_share in wanted.items():
        if shall_share == (name in apart):
            parameter = theirs[name]
            own = parameter if shall_share else nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            path, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(path), leaf, own)
