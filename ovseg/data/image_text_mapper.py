"""Mapper of image-text pairs for OVSegmentor: augmentations, questions and answers, a second image (section 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import Tensor
from torchvision import transforms

from ovseg.data.image_text_rows import Finder, ImageText, Rows
from ovseg.data.mapper import to_tensor
from ovseg.data.worlds import words_of
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import is_file
from ovseg.io.images import decode_image
from ovseg.vocabulary.entities import EntityFinder, PhraseFinder, answer_text
from ovseg.vocabulary.templates import get_templates

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
CROSS_PROMPT = "A photo of {}"
_DRAWS = 20  # of an augmentation that fails

Tokenize = Callable[
    [Sequence[str], int], tuple[Tensor, Tensor]
]  # texts, length -> input_ids, attention_mask (n, length)


class ImageTextMapper:
    """Mapper of one row to a training sample of OVSegmentor.

    Draws come from the global generators of NumPy, Python and torch; seed them for repeatable samples.

    Args:
        augment: of a Pillow image to a (3, S, S) tensor, RGB from 0 to 255.
        tokenize: returns ``input_ids`` and ``attention_mask``, int64 (n, length), of n texts.
        length: tokens of a text.
        finder: of the entities that questions hide; None for no questions.
        answers: templates of answers, one of which is drawn.
        paired: also return a second image with a shared entity.
        labels: words that are drawn from the caption, 0 for none.
        words_of_caption: what they are drawn from; needed with ``labels``.
        exif: rotate images as their EXIF data say.
    """

    @configurable
    def __init__(
        self,
        *,
        augment: Callable[[Image.Image], Tensor],
        tokenize: Tokenize,
        length: int = 77,
        finder: Finder | None = None,
        answers: Sequence[str] = ("a photo of a {}.",),
        paired: bool = False,
        labels: int = 0,
        words_of_caption: Callable[[str], Sequence[str]] | None = None,
        exif: bool = False,
    ):
        self.augment = augment
        self.tokenize = tokenize
        self.length = length
        self.finder = finder
        self.answers = tuple(answers)
        self.paired = paired
        self.labels, self.words_of_caption = labels, words_of_caption
        self.exif = exif

    @classmethod
    def from_config(cls, cfg: CfgNode, tokenize: Tokenize) -> dict[str, Any]:
        own, text = cfg.MODEL.OVSEGMENTOR, cfg.INPUT.TEXT_AUG
        if text.MULTI_LABEL != own.MULTI_LABEL:
            raise OvsegError(
                f"INPUT.TEXT_AUG.MULTI_LABEL is {text.MULTI_LABEL}, but MODEL.OVSEGMENTOR.MULTI_LABEL is "
                f"{own.MULTI_LABEL}: set both to the words that the multi-label loss has of each caption"
            )
        return {
            "augment": build_augmentation(cfg),
            "tokenize": tokenize,
            "length": text.MAX_SEQ_LEN,
            "finder": configured_finder(cfg) if own.USE_ENTITYLOSS else None,
            "answers": get_templates(text.TEMPLATES),
            "paired": own.USE_MASKLOSS,
            "labels": text.MULTI_LABEL,
            "words_of_caption": caption_words(cfg) if text.MULTI_LABEL else None,
            "exif": cfg.INPUT.IMG_AUG.EXIF,
        }

    def __call__(self, rows: Rows, index: int) -> dict[str, Any]:
        """Map a row.

        Returns:
            ``image`` (3, S, S) and ``caption``, a dict of ``input_ids`` and ``attention_mask``, int64 (length,); with
            a finder ``question`` and ``answer``, alike; if paired ``cross_image``, with a draw of the augmentation of
            its own, and ``cross_entity``; with ``labels`` also ``labels``, texts of shape (labels, length).

        Raises:
            OvsegError: the row, its image or its partner's image cannot be used.
        """
        row = rows[index]
        sample: dict[str, Any] = {"image": self._read(row)}
        caption = row.captions[np.random.randint(len(row.captions))]
        texts = {"caption": caption}
        if self.finder is not None:
            texts["question"], entities = self.finder.mask(caption)
            texts["answer"] = answer_text(entities, self.answers[np.random.randint(len(self.answers))])
        if self.paired:
            other, entity = rows.draw_partner(index, np.random.default_rng(np.random.randint(2**31)))
            sample["cross_image"] = self._read(rows[other])
            texts["cross_entity"] = CROSS_PROMPT.format(entity)
        labels = self._draw_labels(caption)
        ids, mask = self.tokenize([*texts.values(), *labels], self.length)
        tokens = ({"input_ids": ids[i], "attention_mask": mask[i]} for i in range(len(texts)))
        if labels:
            sample["labels"] = {"input_ids": ids[len(texts) :], "attention_mask": mask[len(texts) :]}
        return sample | dict(zip(texts, tokens, strict=False))

    def _draw_labels(self, caption: str) -> list[str]:
        """Return prompts of words of the caption; words repeat if it has too few, without any it stands for itself."""
        if not self.labels:
            return []
        words = list(self.words_of_caption(caption))
        if not words:
            return [caption] * self.labels
        drawn = np.random.choice(len(words), self.labels, replace=len(words) < self.labels)
        templates = np.random.randint(len(self.answers), size=self.labels)
        return [self.answers[template].format(words[word]) for template, word in zip(templates, drawn, strict=True)]

    def _read(self, row: ImageText) -> Tensor:
        if not isinstance(row.image, bytes) and not is_file(row.image):
            raise OvsegError(f"there is no image {row.name}")
        return self.augment(Image.fromarray(decode_image(row.open(), row.name, self.exif)))


def configured_finder(cfg: CfgNode) -> Finder:
    """Return the finder of ``INPUT.TEXT_AUG.ENTITIES``.

    Raises:
        OvsegError: it names no vocabulary.
    """
    text = cfg.INPUT.TEXT_AUG
    return PhraseFinder(words_of(text.ENTITIES)) if text.ENTITIES else EntityFinder(text.LEGACY_STRIP)


def caption_words(cfg: CfgNode) -> Callable[[str], Sequence[str]]:
    """Return the function that finds the words of ``INPUT.TEXT_AUG.WORD_TYPE`` in a caption."""
    if cfg.INPUT.TEXT_AUG.WORD_TYPE == "entity":
        finder = configured_finder(cfg)
        return lambda caption: finder.mask(caption)[1]
    from ovseg.vocabulary.nouns import get_extractor  # takes seconds to import

    return get_extractor().nouns


def build_augmentation(cfg: CfgNode) -> Callable[[Image.Image], Tensor]:
    """Return the augmentation of ``INPUT.IMG_AUG``, from a Pillow image to (3, S, S), RGB from 0 to 255.

    With ``DEIT_AUG`` it is timm's for training, whose random erasing is noise around the mean colour: a float32 that
    exceeds the range there. Else it is a random crop, resized to a square, and mirroring, uint8.

    Raises:
        OvsegError: the size is not that of the model, or timm does not know the policy.
    """
    own, side = cfg.INPUT.IMG_AUG, cfg.MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE
    if side != own.IMG_SIZE:
        raise OvsegError(
            f"INPUT.IMG_AUG.IMG_SIZE is {own.IMG_SIZE}, but MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE is {side}: set both "
            "to the side of training images"
        )
    if not own.DEIT_AUG:
        crop = transforms.RandomResizedCrop(own.IMG_SIZE, scale=tuple(own.IMG_SCALE))
        return _Steps([crop, transforms.RandomHorizontalFlip(own.FLIP_PROB)])
    from timm.data.random_erasing import RandomErasing  # takes seconds to import
    from timm.data.transforms_factory import transforms_imagenet_train

    try:
        *steps, _ = transforms_imagenet_train(
            own.IMG_SIZE,
            hflip=own.FLIP_PROB,
            color_jitter=own.COLOR_JITTER,
            auto_augment=own.AUTO_AUGMENT or None,
            interpolation=own.INTERPOLATION,
            mean=MEAN,
            std=STD,
            separate=True,
        )
    except Exception as error:  # its parser asserts, and looks names up
        raise OvsegError(
            f"INPUT.IMG_AUG.AUTO_AUGMENT {own.AUTO_AUGMENT!r} is not a policy of timm ({reason_of(error)}): give one "
            "such as rand-m9-mstd0.5-inc1, or ''"
        ) from error
    erase = RandomErasing(own.RE_PROB, mode=own.RE_MODE, max_count=own.RE_COUNT, device="cpu") if own.RE_PROB else None
    return _Steps(steps, erase)


class _Steps:
    """Steps on Pillow images, then random erasing of the tensor."""

    def __init__(
        self, steps: Sequence[Callable[[Image.Image], Image.Image]], erase: Callable[[Tensor], Tensor] | None = None
    ):
        self.steps = transforms.Compose(list(steps))
        self.erase = erase

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = to_tensor(np.asarray(self._draw(image)))
        if self.erase is None:
            return pixels
        noise = self.erase(torch.full(pixels.shape, torch.nan))  # of normalised pixels, NaN where nothing is erased
        noise = (noise * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
        return torch.where(noise.isnan(), pixels.float(), noise)

    def _draw(self, image: Image.Image) -> Image.Image:
        """Return the augmented image.

        Strong policies now and then reduce colours to 0 bits, which current versions of Pillow refuse: the draw is
        repeated.
        """
        for _ in range(_DRAWS - 1):
            try:
                return self.steps(image)
            except ValueError:
                continue
        return self.steps(image)
