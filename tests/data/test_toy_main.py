from __future__ import annotations

import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.io.images import read_image
from ovseg.toy import make_scene
from ovseg.toy.__main__ import main
from ovseg.toy.classes import SPLITS
from ovseg.vocabulary import Vocabulary


def test_scenes_and_their_words_are_written(tmp_path, capsys):
    main(["--output", str(tmp_path), "--first", "3", "--scenes", "2"])

    scenes = [make_scene(SPLITS["val"][0] + number) for number in (3, 4)]
    printed = capsys.readouterr().out
    for number, scene in zip((3, 4), scenes, strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / f"{number:04d}.png"), scene.image)
        assert scene.captions[0] in printed
    names = {name for scene in scenes for name in (*scene.stuff, *(thing.name for thing in scene.things))}
    assert set(Vocabulary.from_file(tmp_path / "words.txt").names) == names


@pytest.mark.parametrize("options", [["--first", "-1"], ["--scenes", "0"], ["--first", "199", "--scenes", "2"]])
def test_scenes_that_do_not_exist_are_refused(tmp_path, options):
    with pytest.raises(OvsegError, match="val has scenes 0 to 199"):
        main(["--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()
