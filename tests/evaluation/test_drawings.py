"""Images of the ``--vis`` modes that an evaluation writes."""

from __future__ import annotations

import evaluation_standin as standin
import numpy as np
import pytest
from PIL import Image

from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.confusion import label_runs
from ovseg.evaluation.drawings import ModeDrawings, check_drawings
from ovseg.evaluation.predictions import distinct_stems
from ovseg.evaluation.sem_seg import SeenImage
from ovseg.result.modes import ModeWriter
from ovseg.result.palettes import class_palette


def seen(index, file_name, labels, groups=None):
    return SeenImage(index, str(file_name), "", labels, label_runs(labels, labels, 3, None), groups)


def test_images_of_equal_names_do_not_overwrite_each_other(tmp_path):
    files = [tmp_path / "images" / folder / name for folder, name in (("a", "0.jpg"), ("b", "0.jpg"), ("b", "0.png"))]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (200, 100, 50)).save(file)
    modes = ("mask", "all_groups")
    writer = ModeWriter(tmp_path / "out", modes, ("background", "cat", "dog"), class_palette(None, 3, True), True)
    drawings = ModeDrawings(writer, distinct_stems(list(map(str, files))))
    groups = np.zeros((4, 6), int)
    for index, file in enumerate(files):
        drawings.see(seen(index, file, np.full((4, 6), index), groups))
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    stems = ("a/0.jpg", "b/0.jpg", "b/0.png")
    assert found == {name for stem in stems for name in (f"mask/{stem}.png", f"all_groups/{stem}_layer0.jpg")}
    for index, stem in enumerate(stems):
        with Image.open(tmp_path / "out" / "mask" / f"{stem}.png") as mask:
            assert (np.asarray(mask) == index).all()
    drawings.check({}, [0, 1, 2])
    (tmp_path / "out" / "all_groups" / "b" / "0.png_layer0.jpg").unlink()
    drawings.check({}, [0, 1])
    with pytest.raises(ValueError, match=r"0\.png_layer0\.jpg is gone"):  # a resumed run must draw it again
        drawings.check({}, [0, 2])


@pytest.mark.parametrize(
    ("modes", "classes", "system", "message"),
    [
        (["heat"], 3, "OVSegmentor", r"TEST\.VIS_MODES heat is not a mode: choose among input, pred"),
        (["mask"], 847, "OVSegmentor", r"TEST\.VIS_MODES mask .* at most 256 classes, and there are 847"),
        (["pred", "all_groups"], 3, "OpenVocabularyMaskFormer", r"has all_groups, the groups of OVSegmentor"),
        (["pred", "input_pred"], 3, "OpenVocabularyMaskFormer", None),
        (["final_group"], 3, "OVSegmentor", None),
    ],
)
def test_modes_are_checked_before_an_evaluation(modes, classes, system, message):
    cfg = get_cfg()
    cfg.merge_from_list(["TEST.VIS_MODES", modes])
    cfg.MODEL.META_ARCHITECTURE = system
    if message is None:
        check_drawings(cfg, classes)
    else:
        with pytest.raises(OvsegError, match=message):
            check_drawings(cfg, classes)


def test_an_evaluation_of_another_system_draws_what_it_has_counted(data_folder):
    options = ("TEST.VIS_MODES", ["mask", "input_pred"], "TEST.SAVE_PREDICTIONS", "png", "TEST.PROPOSAL_RECALL", False)
    model = standin.StandIn()
    runner.evaluate_all(standin.configuration(data_folder / "out", *options), model)
    assert len(model.requests) == standin.NUM_IMAGES
    drawn = data_folder / "out" / "vis_imgs"
    names = [f"{index}.{suffix}" for index in range(standin.NUM_IMAGES) for suffix in ("jpg", "png")]
    assert sorted(path.name for path in drawn.rglob("*.*")) == names
    for saved in (data_folder / "out").glob("inference/*/predictions/*.png"):
        with Image.open(saved) as predicted, Image.open(drawn / "mask" / saved.name) as mask:
            assert np.array_equal(np.asarray(predicted), np.asarray(mask))
