"""Training of learned prompts on ground-truth regions: the run that ``tools/tune_text_prompts.py`` starts.

Xu et al., arXiv 2112.14757, section 3.3: CLIP is frozen; regions of the training set are classified by their crops, and
the vectors around the words get the gradients.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.adaptation.crops import stack_parts
from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.model import find_clip
from ovseg.config import refuse_keys_without_effect
from ovseg.config.limits import check_config
from ovseg.data.catalog import check_prepared
from ovseg.data.loader import MappedDataset, SampleLoader
from ovseg.data.mapper import training_set
from ovseg.data.requested_words import requested_words
from ovseg.data.sampler import StreamBatchSampler
from ovseg.engine.run import fit
from ovseg.engine.setup import owned_output
from ovseg.errors import OvsegError
from ovseg.io.images import read_image, read_labels
from ovseg.io.progress import progress_bar
from ovseg.meta_arch.simbaseline import text_adapter
from ovseg.naming import MaskedCrops
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

SAMPLING = ("DATASETS.SAMPLE_PER_CLASS", "DATASETS.SAMPLE_SEED")
PROMPTS = "clip_adapter.prompt_learner."
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)  # of RandomResizedCrop: ours, the original's are not recorded


class PromptTuner(nn.Module):
    """Model whose loss is the cross-entropy of regions with the words of the training set.

    Args:
        clip_adapter: CLIP with learned prompts, the only parameters that train.
        words: the training words, K of them.
        fill: see :meth:`inputs`.
    """

    def __init__(self, clip_adapter: ClipAdapter, words: Vocabulary, fill: str = "original"):
        super().__init__()
        self.clip_adapter, self.words, self.fill = clip_adapter, words, fill
        clip_adapter.requires_grad_(False)
        clip_adapter.prompt_learner.requires_grad_(True)

    def forward(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``loss_cls`` of images (B, 3, S, S) uint8, masks (B, S, S) and classes int64 (B,)."""
        images, masks, classes = (part.to(self.clip_adapter.pixel_mean.device) for part in batch)
        return {"loss_cls": F.cross_entropy(self.logits(self.image_features(images, masks)), classes)}

    def inputs(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return CLIP's input of regions (B, 3, S, S) 0 .. 255 with masks (B, S, S).

        Behind a region, the *normalised* image is CLIP's mean in 0 .. 1 (0.48, 0.46, 0.41) with ``fill`` "original",
        as the published prompts were trained; it is 0, the mean colour of the crops at inference, with "mean".
        """
        clip = self.clip_adapter
        normalised = (images.float() - clip.pixel_mean) / clip.pixel_std
        behind = clip.pixel_mean / 255 if self.fill == "original" else torch.zeros_like(clip.pixel_mean)
        return torch.where(masks[:, None] > 0, normalised, behind)

    @torch.no_grad()
    def image_features(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return CLIP's features of regions, float32 (B, D), not normalised."""
        return MaskedCrops(self.clip_adapter).encode(self.inputs(images, masks), masks[:, None].float())

    def logits(self, features: Tensor) -> Tensor:
        """Return 100 x cosine of image features (B, D) and the words, (B, K)."""
        return self.clip_adapter.similarity(features, self.clip_adapter.text(self.words.texts))


class RegionMapper:
    """Mapper from a segment to its augmented crop: its box, a random part of it, and a random flip.

    Random draws come from NumPy's global generator.

    Args:
        size: side S of the crop.
    """

    def __init__(self, size: int):
        self.size = size

    def __call__(self, segment: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return an image uint8 (3, S, S), its mask uint8 (S, S) and its class, int64 ().

        Raises:
            OvsegError: an unreadable file, or labels of another size than the image.
        """
        image, labels = read_image(segment["file_name"]), read_labels(segment["sem_seg_file_name"])
        if labels.shape != image.shape[:2]:
            raise OvsegError(
                f"label file {segment['sem_seg_file_name']} has another size than its image {segment['file_name']}: "
                "both must be of one size"
            )
        mask = labels == segment["class"]
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        image, mask = image[box], mask[box]
        part = _random_part(*mask.shape)
        if mask[part].any():
            image, mask = image[part], mask[part]
        if np.random.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
        size = (self.size, self.size)
        pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False).round().clamp(0, 255).byte()[0]
        shape = torch.from_numpy(mask.astype(np.float32))[None, None]
        return pixels, F.interpolate(shape, size, mode="nearest")[0, 0].byte(), torch.tensor(segment["class"])


def tune_prompts(cfg: CfgNode, resume: bool = False, fill: str = "original") -> Path:
    """Train the prompts of ``PROMPT_SHAPE`` as ``cfg.SOLVER`` says, on segments of ``DATASETS.TRAIN``.

    ``DATASETS.SAMPLE_PER_CLASS`` segments of each class are used (-1: all), chosen by ``DATASETS.SAMPLE_SEED``.
    ``OUTPUT_DIR`` gets the checkpoints of Detectron2's layout, which hold the prompts alone.

    Args:
        resume: continue from the newest checkpoint in ``OUTPUT_DIR``.
        fill: see :meth:`PromptTuner.inputs`.

    Returns:
        the final checkpoint, for ``MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT``.

    Raises:
        OvsegError: the configuration has no learnable prompts, or see the parts.
    """
    check_config(cfg)
    refuse_keys_without_effect(cfg, used=SAMPLING)
    adapter = cfg.MODEL.CLIP_ADAPTER
    if adapter.PROMPT_LEARNER != "learnable" or adapter.PROMPT_CHECKPOINT:
        raise OvsegError(
            "prompts are trained from the start: set MODEL.CLIP_ADAPTER.PROMPT_LEARNER to learnable and "
            "PROMPT_CHECKPOINT to '' (--resume continues the run in OUTPUT_DIR)"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""  # of a segmenter; only CLIP is used
    for name in cfg.DATASETS.TRAIN:
        check_prepared(name)
    name, ignore_label = training_set(cfg)
    words = requested_words({"meta": {"dataset_name": name}})
    sources = {dataset: DatasetCatalog.get(dataset) for dataset in cfg.DATASETS.TRAIN}

    def make_model(found: tuple[Path, dict[str, Any]] | None) -> PromptTuner:
        tuner = PromptTuner(text_adapter(cfg).to(cfg.MODEL.DEVICE), words, fill)
        tuner.clip_adapter.require_weights()
        if found is not None:
            tuner.clip_adapter.prompt_learner.load(found[0])
            tuner.clip_adapter.prompt_learner.requires_grad_(True)
        return tuner

    def make_loader(seed: int, start: int) -> Iterable[Any]:
        records = [record for of_set in sources.values() for record in of_set]
        segments = choose_segments(
            records, len(words), ignore_label, cfg.DATASETS.SAMPLE_PER_CLASS, cfg.DATASETS.SAMPLE_SEED
        )
        return region_loader(cfg, segments, seed, start)

    with owned_output(cfg):
        fit(cfg, resume, make_loader=make_loader, make_model=make_model, state_of=prompts_of)
    return Path(cfg.OUTPUT_DIR, "model_final.pth")


def prompts_of(tuner: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the prompts, under their names in a model."""
    return {name: tensor for name, tensor in tuner.state_dict().items() if name.startswith(PROMPTS)}


def choose_segments(
    records: Sequence[Mapping[str, Any]], num_classes: int, ignore_label: int, per_class: int, seed: int
) -> list[dict[str, Any]]:
    """Return segments, one for each class of an image, at most ``per_class`` of each class.

    Images are looked at in a random order, until each class has enough segments.

    Args:
        records: with ``file_name`` and ``sem_seg_file_name``.
        num_classes: K.
        ignore_label: value of pixels without a class.
        per_class: -1 for all.
        seed: of the order.

    Raises:
        OvsegError: an unreadable label file, a label beyond the classes, or no segment at all.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    counts, segments = np.zeros(num_classes, dtype=int), []
    with progress_bar(transient=True, show=comm.is_main_process()) as progress:
        for index in progress.track(order, description="choosing segments"):
            record = records[index]
            values = np.unique(read_labels(record["sem_seg_file_name"]))
            for value in values[values != ignore_label]:
                if not 0 <= value < num_classes:
                    raise OvsegError(
                        f"label file {record['sem_seg_file_name']} holds the value {value}, but labels must be below "
                        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES = {num_classes} or the ignore label {ignore_label}"
                    )
                if per_class < 0 or counts[value] < per_class:
                    counts[value] += 1
                    files = {key: record[key] for key in ("file_name", "sem_seg_file_name")}
                    segments.append({**files, "class": int(value)})
            if 0 <= per_class <= counts.min():
                break
    if not segments:
        raise OvsegError("the data sets of DATASETS.TRAIN have no labelled pixel: check their labels")
    absent = int((counts == 0).sum())
    logger.info("%d segments of %d classes; %d classes have none", len(segments), num_classes - absent, absent)
    return segments


def region_loader(cfg: CfgNode, segments: Sequence[dict[str, Any]], seed: int, start: int) -> SampleLoader:
    """Return endless batches of this process's share of ``SOLVER.IMS_PER_BATCH`` crops of segments."""
    batch_size, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch_size % processes:
        raise OvsegError(
            f"SOLVER.IMS_PER_BATCH = {batch_size} cannot be shared by {processes} processes: choose a multiple of it"
        )
    sampler = StreamBatchSampler(len(segments), batch_size, seed, start, comm.get_rank(), processes)
    source = find_clip(cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME, cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS)
    mapper = RegionMapper(source.architecture["vision_cfg"].get("image_size", 224))
    return SampleLoader(MappedDataset(segments, mapper, seed), sampler, cfg.DATALOADER.NUM_WORKERS, stack_parts)


def _random_part(height: int, width: int) -> tuple[slice, slice]:
    """Return the window of ``RandomResizedCrop``, from NumPy's generator: the whole if ten draws do not fit."""
    for _ in range(10):
        area = height * width * np.random.uniform(*SCALE)
        ratio = np.exp(np.random.uniform(*np.log(RATIO)))  # of width to height, relative to the box's
        high, wide = round(np.sqrt(area / ratio * height / width)), round(np.sqrt(area * ratio * width / height))
        if 0 < high <= height and 0 < wide <= width:
            top, left = np.random.randint(height - high + 1), np.random.randint(width - wide + 1)
            return slice(top, top + high), slice(left, left + wide)
    return slice(0, height), slice(0, width)
