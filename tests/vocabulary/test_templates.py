from __future__ import annotations

import pytest

from ovseg.errors import OvsegError
from ovseg.vocabulary import get_templates


def test_published_sets_have_their_sizes_and_order():
    vild, imagenet = get_templates("vild"), get_templates("imagenet")
    assert len(vild) == 14 and vild[0] == "a photo of a {}." and vild[1] == "This is a photo of a {}"
    assert vild[-1] == "There is a large {} in the scene."
    assert len(imagenet) == 80 and imagenet[0] == "a bad photo of a {}."
    assert all(template.count("{}") == 1 for template in vild + imagenet)


def test_sets_of_zegformer():
    crops = get_templates("zegformer_crops")
    assert len(crops) == len(set(crops)) == 32
    assert {"a cropped photo of a {}.", "This is one masked {} in the scene", "This is a photo of a {}"} <= set(crops)
    assert get_templates("single") == ("A photo of a {} in the scene",)
    assert get_templates("imagenet_select")[7] == "A photo of a {} in the scene"
    assert set(get_templates("imagenet_select")[:7]) <= set(get_templates("imagenet"))


def test_predefined_is_what_the_configuration_says():
    assert get_templates("predefined") == ("a photo of a {}.",)
    assert get_templates("predefined", ["the {}", "{}"]) == ("the {}", "{}")


@pytest.mark.parametrize(
    ("name", "predefined", "words"),
    [
        ("vlid", ["{}"], "TEXT_TEMPLATES is 'vlid'"),
        ("predefined", [], "at least one template"),
        ("predefined", "a photo of a {}.", "must be a list"),
        ("predefined", ["a photo"], "exactly once"),
        ("predefined", ["{} and {}"], "exactly once"),
    ],
)
def test_mistakes_are_explained(name, predefined, words):
    with pytest.raises(OvsegError, match=words):
        get_templates(name, predefined)
