"""The ``--vis`` modes of ``main_demo`` and ``main_seg``: which images are written for one that is segmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

from ovseg.errors import OvsegError, argument
from ovseg.io.files import atomic_path
from ovseg.io.images import save_image
from ovseg.result.drawing import draw_regions, word_color
from ovseg.result.palettes import LARGEST

GROUP_MODES = ("all_groups", "first_group", "final_group")
MODES = ("input", "pred", "input_pred", "input_pred_label", *GROUP_MODES, "mask")
_INDEXED = ("pred", "mask")  # label maps, written as PNG files with a palette
# names in the original's help, which it refuses
_MEANT = {
    "input_seg": "input_pred",
    "input_pred_seg": "input_pred",
    "input_pred_seg_label": "input_pred_label",
    "last_group": "final_group",
}


def check_modes(modes: Sequence[str], num_classes: int) -> None:
    """Check modes.

    Raises:
        OvsegError: an unknown mode, or more classes than the palette of a label map has colours; names the argument
            ``--vis``, see :func:`ovseg.errors.argument`.
    """
    for mode in modes:
        if mode not in MODES:
            meant = f"did you mean {_MEANT[mode]}?" if mode in _MEANT else f"choose among {', '.join(MODES)}"
            raise OvsegError(f"{argument('--vis')} {mode} is not a mode: {meant}")
        if mode in _INDEXED and num_classes > LARGEST:
            raise OvsegError(
                f"{argument('--vis')} {mode} writes label maps of 8 bits, for at most {LARGEST} classes, and there are "
                f"{num_classes}: give fewer words, or leave it out; demo.py writes label maps of 16 bits"
            )


@dataclass(frozen=True)
class ModeWriter:
    """Writes ``FOLDER/MODE/STEM.jpg`` for each mode; ``.png`` for ``pred`` and ``mask``.

    Attributes:
        folder: where the folders of the modes are.
        modes: some of :data:`MODES`.
        names: of the classes, in the order of the labels.
        palette: at least as many colours, (n,3) uint8 RGB.
        background: label 0 is background, which drawings neither colour nor name.
    """

    folder: Path
    modes: tuple[str, ...]
    names: tuple[str, ...]
    palette: np.ndarray
    background: bool

    @property
    def needs_groups(self) -> bool:
        """Whether a mode draws the groups."""
        return not set(GROUP_MODES).isdisjoint(self.modes)

    def path(self, mode: str, stem: str, stage: int = 0) -> Path:
        """Return the file of a mode, of ``all_groups`` that of a grouping stage."""
        end = f"_layer{stage}" if mode == "all_groups" else ""
        return self.folder / mode / f"{stem}{end}{'.png' if mode in _INDEXED else '.jpg'}"

    def write(self, stem: str, image: np.ndarray, labels: np.ndarray, groups: Sequence[np.ndarray] = ()) -> list[Path]:
        """Write the images of all modes; existing files are replaced.

        Args:
            stem: name of the files, without suffix.
            image: (H,W,3) uint8 RGB.
            labels: (H,W) integers, index into ``names``.
            groups: the group of each pixel in each grouping stage, (H,W) integers.

        Returns:
            the files.

        Raises:
            OvsegError: see :func:`ovseg.io.files.atomic_path`.
        """
        written = []
        for mode in self.modes:
            options = {} if mode in _INDEXED else {"quality": 92}
            for stage, drawing in enumerate(self._images(mode, image, labels, groups)):
                with atomic_path(path := self.path(mode, stem, stage)) as temporary:
                    save_image(drawing, temporary, **options)
                written.append(path)
        return written

    def _images(
        self, mode: str, image: np.ndarray, labels: np.ndarray, groups: Sequence[np.ndarray]
    ) -> list[Image.Image]:
        """Return the images of a mode: one for each grouping stage of ``all_groups``, else one."""
        if mode == "input":
            return [Image.fromarray(image)]
        if mode == "pred":
            return [_indexed(labels, self.palette)]
        if mode == "mask":
            return [_indexed(labels, np.repeat(np.arange(LARGEST, dtype=np.uint8)[:, None], 3, axis=1))]
        if mode in GROUP_MODES:
            drawn = [Image.fromarray(_draw(image, group, [""] * (int(group.max()) + 1))) for group in groups]
            return drawn if mode == "all_groups" else [drawn[0 if mode == "first_group" else -1]]
        shown = np.where(labels == 0, -1, labels) if self.background else labels
        colors = {k: sv.Color(*map(int, color)) for k, color in enumerate(self.palette[: len(self.names)])}
        named = mode == "input_pred_label"
        drawn = draw_regions(image, shown, self.names, colors, outlined=False, named=named, every_name=named)
        return [Image.fromarray(drawn)]


def _draw(image: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the image with each group in a colour of its own."""
    colors = {k: word_color(k) for k in range(len(names))}
    return draw_regions(image, groups, names, colors, outlined=False, named=False)


def _indexed(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Return a label map as an image with a palette."""
    drawing = Image.fromarray(labels.astype(np.uint8), "P")
    drawing.putpalette(palette[:LARGEST].tobytes())
    return drawing
