"""``TowerCount``: how many images CLIP's image towers encode for an image, crops and whole images alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from ovseg.errors import OvsegError
from ovseg.io.files import explained_writing

TOWERS = (VisionTransformer, TimmModel, ModifiedResNet)


class TowerCount:
    """Count of the images that go through the first convolution of CLIP's image towers, by image file.

    The counts are kept in a file, one line for each call of the model, so that those of an interrupted run are not
    lost. Of several calls for one image, such as the second pass of Grounding mIoU, the one with the most counts.

    Args:
        model: called with a list of requests that have ``file_name`` and ``meta``.
        path: file of the counts.
    """

    def __init__(self, model: nn.Module, path: Path) -> None:
        self.path, self._count = path, 0
        convolutions = [_first_convolution(module) for module in model.modules() if isinstance(module, TOWERS)]
        self._hooks = [
            *(convolution.register_forward_hook(self._add) for convolution in dict.fromkeys(convolutions)),
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
        ]
        with explained_writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed in __exit__

    def __enter__(self) -> TowerCount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._file.close()

    def mean(self, dataset: str) -> float | None:
        """Return the mean over the images of a data set; None if there are none in the file."""
        most: dict[str, float] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                of, names, count = json.loads(line)
            except ValueError:  # the last line of a killed process
                continue
            for name in names if of == dataset else ():
                most[name] = max(most.get(name, 0.0), count / len(names))
        return sum(most.values()) / len(most) if most else None

    def _add(self, convolution: nn.Module, arguments: Sequence[Any], output: Any) -> None:
        self._count += len(output)

    def _begin(self, model: nn.Module, arguments: Sequence[Any]) -> None:
        self._count = 0

    def _end(self, model: nn.Module, arguments: Sequence[Any], output: Any) -> None:
        requests: Sequence[Mapping[str, Any]] = arguments[0]
        names = [str(request["file_name"]) for request in requests]
        self._file.write(json.dumps([requests[0]["meta"]["dataset_name"], names, self._count]) + "\n")


def _first_convolution(tower: nn.Module) -> nn.Module:
    found = next((module for module in tower.modules() if isinstance(module, nn.Conv2d)), None)
    if found is None:
        raise OvsegError(f"the image tower {type(tower).__name__} has no convolution: its images cannot be counted")
    return found
