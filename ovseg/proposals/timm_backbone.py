"""Image networks of timm as backbones of Detectron2, such as the EfficientNet-B7 of OpenSeg."""

from __future__ import annotations

import difflib

import timm
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor

from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.errors import OvsegError

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
# batch normalisation of each process, over all processes, or with constant statistics, scale and shift
NORMS = {"BN": lambda network: network, "SyncBN": convert_sync_batchnorm, "FrozenBN": freeze_batch_norm_2d}


class TimmBackbone(Backbone):
    """Backbone whose features ``res2`` .. ``res5`` are those of a timm network at the strides 4, 8, 16 and 32.

    Args:
        name: of a network of timm with feature maps at these strides: ``tf_efficientnet_b7``, ``resnet101``,
            ``convnext_base``, ...
        weights: file of the network's weights, with or without its classifier; "" for random ones.
        norm: of its batch normalisation, a key of :data:`NORMS`.
        drop_path: stochastic depth, the probability of dropping the last block; 0 for none.

    Raises:
        OvsegError: the name is unknown, the network lacks such maps, or the file is not one of its weights.
    """

    def __init__(self, name: str, weights: str = "", norm: str = "BN", drop_path: float = 0.0):
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ", see timm.list_models()"
            raise OvsegError(f"MODEL.TIMM.NAME is {name!r}, which timm does not have{hint}")
        try:
            depth = {"drop_path_rate": drop_path} if drop_path else {}  # some networks have no such argument
            self.network = timm.create_model(name, pretrained=False, features_only=True, **depth)
            strides, channels = self.network.feature_info.reduction(), self.network.feature_info.channels()
        except Exception as error:  # any type: networks of timm without feature maps differ in what they raise
            raise OvsegError(f"MODEL.TIMM.NAME {name} has no feature maps ({error}): choose another network") from error
        last = {stride: place for place, stride in enumerate(strides)}  # networks may have several maps of a stride
        self.places = {feature: last[stride] for feature, stride in STRIDES.items() if stride in last}
        if self.places.keys() != STRIDES.keys() or getattr(self.network, "output_fmt", "NCHW") != "NCHW":
            raise OvsegError(
                f"MODEL.TIMM.NAME {name} has maps of strides {list(strides)}: choose a network with maps "
                "(B, C, h, w) of 4, 8, 16 and 32, such as tf_efficientnet_b7"
            )
        self.channels = {feature: channels[place] for feature, place in self.places.items()}
        if weights:
            self._load(weights, name)
        self.network = NORMS[norm](self.network)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the maps (B, C, H / stride, W / stride) by name."""
        maps = self.network(image)
        return {feature: maps[place] for feature, place in self.places.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=self.channels[name], stride=stride) for name, stride in STRIDES.items()}

    @property
    def size_divisibility(self) -> int:
        return STRIDES["res5"]

    def _load(self, weights: str, name: str) -> None:
        state, own = read_state_dict(weights), self.network.state_dict()
        wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
        wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
        if wrong:
            raise OvsegError(f"{weights} holds no weights of timm's {name} ({wrong[0]} is missing): check MODEL.TIMM")
        self.network.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Return the backbone of ``MODEL.TIMM``, with its weights unless a checkpoint, ``MODEL.WEIGHTS``, has some."""
    keys = cfg.MODEL.TIMM
    return TimmBackbone(keys.NAME, "" if cfg.MODEL.WEIGHTS else keys.WEIGHTS, keys.NORM, keys.DROP_PATH_RATE)
