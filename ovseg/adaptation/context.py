"""Crops in the context of their whole images: SCAN's fine-tuning of CLIP (specification of SCAN, section 12).

The original CLIP's tower is frozen and whole images are not augmented, so each is looked at once, before training, and
not once for each of its crops in each epoch as in the original; what is learnt is the same.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ovseg.adaptation.crops import batch_loader, normalised
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.clip.vit import look_at_whole
from ovseg.data.sampler import mix
from ovseg.errors import OvsegError
from ovseg.io.images import read_image
from ovseg.io.progress import progress_bar
from ovseg.naming.contextual_shift import draw_patches, encode_shifted, shifted_blocks

logger = logging.getLogger(__name__)

_AT_A_TIME = 32  # whole images; fixed, as the last bits of what is seen may depend on it


class ContextualShift:
    """Which patches of a crop are replaced by features of its whole image, and by which.

    Args:
        original: CLIP's image tower before training, frozen; it stays on the CPU but for :func:`look_at_all`.
        ratio: share of a crop's background patches that is replaced.
        layers: blocks after which it is.
        seed: of the draws.

    Raises:
        OvsegError: the tower has none of the blocks.
    """

    def __init__(self, original: VisionTransformer, ratio: float, layers: Sequence[int], seed: int):
        self.original = original.requires_grad_(False)
        self.ratio, self.seed = ratio, seed
        self.blocks = shifted_blocks(layers, original)
        if not self.blocks:
            count = len(original.transformer.resblocks)
            raise OvsegError(
                f"--replace-layers {' '.join(map(str, layers))}: the image tower has {count} blocks, name some of 1 "
                f"to {count}"
            )

    def draw(self, masks: Tensor, *key: int) -> Tensor:
        """Draw background patches; a function of the masks, the seed and the key alone.

        Args:
            masks: uint8 (m, 1, S, S).

        Returns:
            bool (m, blocks, P).
        """
        generator = random.Random(mix(self.seed, *key))
        return draw_patches(self.original, masks.float(), self.ratio, len(self.blocks), generator).transpose(0, 1)

    def look(self, images: Tensor) -> Tensor:
        """Return the original's class tokens after each of the blocks, float32 (B, blocks, width), of (B, 3, S, S)."""
        seen = look_at_whole(self.original, images, (0,))
        return seen.class_tokens[list(self.blocks)].transpose(0, 1)

    def encode(self, visual: VisionTransformer, crops: Tensor, drawn: Tensor, tokens: Tensor) -> Tensor:
        """Return features (b, D), not normalised, of crops (b, 3, S, S), each with its own context.

        Args:
            visual: the tower that trains.
            drawn: bool (b, blocks, P) from :meth:`draw`.
            tokens: float32 (b, blocks, width) from :meth:`look`.
        """
        at_all_depths = tokens.new_zeros(self.blocks[-1] + 1, len(crops), tokens.shape[2])
        at_all_depths[list(self.blocks)] = tokens.transpose(0, 1)
        return encode_shifted(visual, crops, drawn.transpose(0, 1), at_all_depths, self.blocks)


class CropsInContext(Dataset):
    """A data set of crops, with drawn patches and the whole image's tokens in place of the masks.

    Args:
        crops: its items are crops (..., 3, S, S), masks (..., 1, S, S) and something else, or an OvsegError.
        shift: draws.
        images: for each index of ``crops`` the file of its whole image. A key of ``crops`` is an index, or numbers of
            which the last is.
        look: gives the tokens of different files, see :func:`look_at_all`.
    """

    def __init__(
        self, crops: Dataset, shift: ContextualShift, images: Sequence[Path], look: Callable[[Sequence[Path]], Tensor]
    ):
        self.crops, self.shift = crops, shift
        number = {path: k for k, path in enumerate(dict.fromkeys(images))}
        self.numbers = torch.tensor([number[path] for path in images])
        self.tokens = look(list(number))  # (N, blocks, width)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, key: int | tuple[int, ...]) -> tuple[Tensor, ...] | OvsegError:
        """Return crops, drawn bool (..., blocks, P), tokens (..., blocks, width), and the rest of the item."""
        item = self.crops[key]
        if isinstance(item, OvsegError):
            return item
        crops, masks, *rest = item
        numbers = key if isinstance(key, tuple) else (key,)
        drawn = self.shift.draw(masks.reshape(-1, *masks.shape[-3:]), *numbers)
        tokens = self.tokens[self.numbers[numbers[-1]]]
        several = masks.shape[:-3]
        return crops, drawn.reshape(*several, *drawn.shape[1:]), tokens.expand(*several, *tokens.shape), *rest


def look_at_all(
    shift: ContextualShift,
    paths: Sequence[Path],
    size: int,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    workers: int,
    preprocessing: Preprocessing = OPENAI,
) -> Tensor:
    """Return the class tokens of whole images, float32 (N, blocks, width) on the CPU; every process must call this.

    The processes share the work, and none computes anything else than a single one would.

    Args:
        paths: N image files, each once.
        size: side of CLIP's input, pixels.
        device: for the tower.
        autocast: gives the context that the tower is run in.
        workers: data-loader processes.
        preprocessing: of the CLIP.

    Raises:
        OvsegError: an image cannot be read.
    """
    images = _Squashed(paths, size, preprocessing)
    chunks = [range(first, min(first + _AT_A_TIME, len(paths))) for first in range(0, len(paths), _AT_A_TIME)]
    mine = chunks[comm.get_rank() :: comm.get_world_size()]
    shift.original.to(device)
    began, seen = time.perf_counter(), []
    with progress_bar(show=comm.is_main_process(), transient=True) as progress:
        bar = progress.add_task("whole images", total=sum(map(len, mine)))
        for (batch,) in batch_loader(images, mine, workers, pin_memory=device.type == "cuda"):
            with autocast():
                seen.append(shift.look(batch.to(device)).cpu())
            progress.advance(bar, len(batch))
    shift.original.cpu()
    logger.info("%s: looked at %d whole images in %.1f s", device, len(paths), time.perf_counter() - began)
    of_all = comm.all_gather(seen)
    in_order = [of_all[number % len(of_all)][number // len(of_all)] for number in range(len(chunks))]
    return torch.cat(in_order)


class _Squashed(Dataset):
    """Whole images as CLIP's square input: bilinear with antialias, unlike at inference, as in the original."""

    def __init__(self, paths: Sequence[Path], size: int, preprocessing: Preprocessing):
        self.paths, self.size, self.preprocessing = paths, size, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor] | OvsegError:
        try:
            image = Image.fromarray(read_image(self.paths[index]))
        except OvsegError as error:
            return error
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))
        pixels = normalised(pixels, self.preprocessing)
        return (torch.from_numpy(pixels.transpose(2, 0, 1)),)
