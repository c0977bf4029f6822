"""``SAM``: the proposer that asks Segment Anything for masks at the points of a grid, without training.

Kirillov et al., arXiv 2304.02643; Ravi et al. (SAM 2), arXiv 2408.00714; Carion et al. (SAM 3), arXiv 2511.16719. The
networks are the classes of the library transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ovseg.proposals.point_grid import PointGrid
from ovseg.proposals.sam_files import load_sam
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views


@PROPOSERS.register()
class SAM(Part):
    """Proposer of the masks of Segment Anything, 0 and 1, without class embeddings.

    The network is a constant that is read from its own folder, and no part of the model's state.

    Args:
        model: folder or name on the Hugging Face hub of a SAM, SAM 2 or SAM 3, or file of the original SAM: see
            :func:`ovseg.proposals.sam_files.load_sam`.
        grid: generator of the masks.

    Raises:
        OvsegError: the network cannot be read, or is another one.
    """

    gives_embeddings: ClassVar[bool] = False

    @configurable
    def __init__(self, model: str, grid: PointGrid | None = None):
        super().__init__()
        self.grid = grid or PointGrid()
        self._predictor = PointPredictor(*load_sam(model))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = cfg.MODEL.PROPOSER.SAM
        grid = PointGrid(
            points_per_side=keys.POINTS_PER_SIDE,
            points_at_a_time=keys.POINTS_AT_A_TIME,
            iou_threshold=keys.IOU_THRESHOLD,
            stability_threshold=keys.STABILITY_THRESHOLD,
            stability_offset=keys.STABILITY_OFFSET,
            nms_threshold=keys.NMS_THRESHOLD,
            crop_layers=keys.CROP_LAYERS,
            crop_overlap=keys.CROP_OVERLAP,
            crop_downscale=keys.CROP_DOWNSCALE,
            min_area=keys.MIN_AREA,
        )
        return {"model": keys.MODEL, "grid": grid}

    def save(self, folder: Path) -> None:
        """Write the network and its image processor to a folder, which ``model`` takes."""
        self._predictor.network.save_pretrained(folder)
        self._predictor.processor.save_pretrained(folder)

    @torch.no_grad()
    def forward(self, views: Views) -> list[Masks]:
        """Return the masks of each image, in its size, best first."""
        return [Masks(self.grid.generate(self._predictor, image)[0].float()) for image in views.images]


class PointPredictor:
    """Segment Anything as a :class:`ovseg.proposals.point_grid.Predictor`, on the device of the image.

    No module registers it, since it is no module.

    Args:
        network: SAM, SAM 2 or the tracker of SAM 3.
        processor: its image processor in transformers.
    """

    def __init__(self, network: nn.Module, processor: Any):
        self.network, self.processor = network.eval().requires_grad_(False), processor
        self.device = torch.device("cpu")

    def encode(self, image: Tensor) -> tuple[Any, Tensor]:
        """Return the embeddings of an image (3, H, W), and the factors of x and y from its pixels to the network's."""
        if image.device != self.device:
            self.network.to(image.device)
            self.device = image.device
        pixels = image.round().clamp(0, 255).to(torch.uint8)
        prepared = self.processor(images=pixels, return_tensors="pt", device=image.device)["pixel_values"]
        height, width = self._input_size(tuple(image.shape[1:]))
        scale = torch.tensor((width / image.shape[2], height / image.shape[1]), device=image.device)
        return self.network.get_image_embeddings(prepared), scale

    def decode(self, encoded: tuple[Any, Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """Return three masks (n, 3, h, w) and predicted IoUs (n, 3) for each of n points."""
        embeddings, scale = encoded
        answer = self.network(
            image_embeddings=embeddings,
            input_points=(points * scale)[None, :, None],  # one image, n prompts of one point each
            input_labels=torch.ones(1, len(points), 1, dtype=torch.int64, device=points.device),
            multimask_output=True,
        )
        return answer.pred_masks[0], answer.iou_scores[0]

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (m, h, w) without the padding of the network's input, in the size of the image (m, H, W)."""
        sizes = {"original_sizes": [size], "reshaped_input_sizes": [self._input_size(size)]}
        return self.processor.post_process_masks([logits[:, None]], **sizes, binarize=False)[0][:, 0]

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of an image in the network's input: its longer side is fixed in SAM, both sides in others."""
        target = self.processor.size
        if (longest := target["longest_edge"]) is None:
            return target["height"], target["width"]
        scale = longest / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)
