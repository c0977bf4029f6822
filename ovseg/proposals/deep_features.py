"""Deep features of a photograph, of EfficientNet-Lite0 with its ImageNet weights."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.packaged import packaged_state
from ovseg.checkpoint.skip_init import skip_initialisation

PACKAGE = "efficientnet-lite0"
BLOCKS = (2, 4, 6)  # stages whose outputs are taken, at strides 8, 16 and 32
LONGEST = 640  # pixels of the longer side


class DeepFeatures(nn.Module):
    """EfficientNet-Lite0 without its classifier, of the installed package, without gradients."""

    def __init__(self) -> None:
        super().__init__()
        with skip_initialisation():
            network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        network.load_state_dict(packaged_state(PACKAGE, list(network.state_dict())))
        self.network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return features of an image (3, H, W), RGB, 0 .. 255: float32 (C, y, x) each, C = 40, 112, 320 and 1280."""
        scale = min(1.0, LONGEST / max(image.shape[1:]))
        size = [-(-max(1, round(side * scale)) // 32) * 32 for side in image.shape[1:]]
        x = F.interpolate((image[None] - 127) / 128, size, mode="bilinear", align_corners=False)
        x = x.contiguous(memory_format=torch.channels_last)
        network, found = self.network, []
        x = network.bn1(network.conv_stem(x))
        for index, block in enumerate(network.blocks):
            x = block(x)
            if index in BLOCKS:
                found.append(x[0])
        found.append(network.bn2(network.conv_head(x))[0])
        return found
