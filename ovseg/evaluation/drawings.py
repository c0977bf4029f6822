"""Images of an evaluation: the ``--vis`` modes of ``main_seg``, written while it segments (``TEST.VIS_MODES``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ovseg.data.benchmarks import find_dataset
from ovseg.data.custom.names import folder_name
from ovseg.data.protocol import BACKGROUND, class_names_of
from ovseg.errors import OvsegError, argument_names
from ovseg.evaluation.predictions import distinct_stems
from ovseg.evaluation.sem_seg import Keeper, SeenImage
from ovseg.evaluation.tally import State
from ovseg.evaluation.tta import has_many_views
from ovseg.io.images import read_image
from ovseg.result.modes import GROUP_MODES, ModeWriter, check_modes
from ovseg.result.palettes import class_palette

FOLDER = "vis_imgs"  # in OUTPUT_DIR
KEY = "TEST.VIS_MODES"


class ModeDrawings(Keeper):
    """Keeper that writes the images of the modes of each image, ``FOLDER/MODE/STEM.jpg`` or ``.png``.

    Its state is empty: each file is complete as soon as it is written.

    Args:
        writer: of the files.
        stems: of the files of each image of the data set.
    """

    def __init__(self, writer: ModeWriter, stems: Sequence[str]) -> None:
        self._writer, self._stems = writer, stems

    def see(self, seen: SeenImage) -> None:
        """Write the files of an image; existing ones are replaced."""
        groups = [] if seen.groups is None else [seen.groups]
        self._writer.write(self._stems[seen.index], read_image(seen.file_name), seen.label_map, groups)

    def check(self, state: State, images: Sequence[int]) -> None:
        files = (self._writer.path(mode, self._stems[index]) for index in images for mode in self._writer.modes)
        if (missing := next((path for path in files if not path.is_file()), None)) is not None:
            raise ValueError(f"the drawing {missing} is gone")


def mode_drawings(cfg: CfgNode, dataset_name: str, file_names: Sequence[str]) -> ModeDrawings:
    """Return the keeper of ``TEST.VIS_MODES`` for the images of a data set, in ``OUTPUT_DIR/vis_imgs``.

    With several data sets, each has a folder of its own there.
    """
    folder = Path(cfg.OUTPUT_DIR) / FOLDER
    if len(cfg.DATASETS.TEST) > 1:
        folder /= folder_name(dataset_name, cfg.DATASETS.TEST)
    names, benchmark = class_names_of(dataset_name), find_dataset(dataset_name)
    background = names[0] == BACKGROUND
    palette = class_palette(benchmark.label_set if benchmark else None, len(names), background)
    modes = tuple(dict.fromkeys(cfg.TEST.VIS_MODES))
    return ModeDrawings(ModeWriter(folder, modes, names, palette, background), distinct_stems(file_names))


def draws_groups(cfg: CfgNode) -> bool:
    """Return whether a mode draws the groups of OVSegmentor."""
    return not set(GROUP_MODES).isdisjoint(cfg.TEST.VIS_MODES)


def check_drawings(cfg: CfgNode, num_classes: int) -> None:
    """Check ``TEST.VIS_MODES`` for a data set.

    Raises:
        OvsegError: an unknown mode, too many classes for one, or groups of a model that has none.
    """
    with argument_names({"--vis": KEY}):
        check_modes(cfg.TEST.VIS_MODES, num_classes)
    if draws_groups(cfg) and (cfg.MODEL.META_ARCHITECTURE != "OVSegmentor" or has_many_views(cfg)):
        raise OvsegError(
            f"{KEY} has {' or '.join(mode for mode in GROUP_MODES if mode in cfg.TEST.VIS_MODES)}, the groups of "
            "OVSegmentor in a single view: leave it out for other systems, TEST.AUG and TEST.MULTI_SCALE"
        )
