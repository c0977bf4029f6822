"""Prompt templates: sentences with a placeholder for the word (specification, section 4)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib import resources

from ovseg.errors import OvsegError, shown
from ovseg.vocabulary.reading import check_text

TEMPLATE_SETS = ("vild", "imagenet", "maskclip", "predefined")
# What MaskCLIP adds to the 80 of "imagenet". Its specification (section 4) gives the first "and four like it": the
# other four are those of ViLD (arXiv 2104.13921), which has five sentences of this kind.
_MASKCLIP_SCENES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
DEFAULT_PREDEFINED = ("a photo of a {}.",)
SCENE = ("A photo of a {} in the scene",)  # ZegFormer's single template
SELECTED = (  # the seven best of ImageNet's, by CLIP's authors
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
OVSEGMENTOR = {  # its sets by their names; "full" is that of ImageNet
    "simple": ("a photo of a {}.",),
    "subset": (SELECTED[0], "a bad photo of a {}.", *SELECTED[2:]),
    "identity": ("{}",),
}
_PHOTOS = (("bad photo", "the"), ("photo", "the large"), ("photo", "the small"), ("cropped photo", "a"))
_SCENES = ("There is a", "There is the", "This is a", "This is the", "This is one")


@functools.cache
def _published() -> dict[str, tuple[str, ...]]:
    text = resources.files(__package__).joinpath("templates.json").read_text(encoding="utf-8")
    published = {name: tuple(templates) for name, templates in json.loads(text).items()}
    return published | {
        "maskclip": published["imagenet"] + _MASKCLIP_SCENES,
        "single": SCENE,
        "imagenet_select": SELECTED + SCENE,
        "zegformer_crops": _of_zegformer_crops(),
        **OVSEGMENTOR,
        "full": published["imagenet"],
    }


def _of_zegformer_crops() -> tuple[str, ...]:
    """Return the 32 templates of ZegFormer's crops (specification of ZegFormer, section 1), in any order."""
    photos = [f"a {kind} of {article}" for kind, article in _PHOTOS]
    scenes = [f"{start} {masked}{{}} in the scene" for start in _SCENES for masked in ("", "masked ")]
    views = [
        f"This is a {masked}photo of a {size}{{}}"
        for masked in ("", "masked ", "cropped ")
        for size in ("", "small ", "medium ", "large ")
    ]
    return (
        *(f"{photo} {{}}." for photo in photos),
        *(f"{photo} {{}} in the scene" for photo in photos),
        *views,
        *SCENE,
        "a photo of a masked {} in the scene",
        *scenes,
    )


def get_templates(name: str, predefined: Sequence[str] = DEFAULT_PREDEFINED) -> tuple[str, ...]:
    """Return the templates of a set in the published order; each contains ``{}`` once, the placeholder of the word.

    Args:
        name: ``"vild"`` (14 templates), ``"imagenet"`` (80), ``"maskclip"`` (85) or ``"predefined"``; ZegFormer's
            ``"single"`` (1), ``"imagenet_select"`` (8) and ``"zegformer_crops"`` (32); OVSegmentor's
            ``"simple"`` (1), ``"subset"`` (7), ``"full"`` (80) and ``"identity"`` (the word alone).
        predefined: templates of ``"predefined"``; the key ``MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES``.

    Raises:
        OvsegError: the set is unknown; or ``predefined`` is selected and is empty or has a template without exactly
            one ``{}``.
    """
    if name in _published():
        return _published()[name]
    if name != "predefined":
        raise OvsegError(
            f"MODEL.CLIP_ADAPTER.TEXT_TEMPLATES is {name!r}; choose one of {', '.join(map(repr, TEMPLATE_SETS))}"
        )
    check_templates(predefined, "MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES")
    return tuple(predefined)


def check_templates(templates: Sequence[str], where: str) -> None:
    """Raise OvsegError unless ``templates`` is a non-empty list of texts with one ``{}`` each; ``where`` names it."""
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise OvsegError(f'{where} must be a list with at least one template, for example ["a photo of a {{}}."]')
    for template in templates:
        check_text(template, f"a template in {where}")
        if template.count("{}") != 1 or set(template.replace("{}", "")) & {"{", "}"}:
            raise OvsegError(
                f"the template {shown(template)} in {where} must contain {{}}, the placeholder of the word, exactly "
                "once, and no other braces"
            )
