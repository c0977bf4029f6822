"""Prompt templates: the sentences that a word is put into before CLIP reads it (spec section 4)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib import resources

from ovseg.errors import OvsegError, shown
from ovseg.vocabulary.reading import check_text

TEMPLATE_SETS = ("vild", "imagenet", "predefined")
DEFAULT_PREDEFINED = ("a photo of a {}.",)


@functools.cache
def _published() -> dict[str, tuple[str, ...]]:
    text = resources.files(__package__).joinpath("templates.json").read_text(encoding="utf-8")
    return {name: tuple(templates) for name, templates in json.loads(text).items()}


def get_templates(name: str, predefined: Sequence[str] = DEFAULT_PREDEFINED) -> tuple[str, ...]:
    """The templates of one set, in the published order; each holds one ``{}`` where the word goes.

    Args:
        name: ``"vild"`` (14 templates), ``"imagenet"`` (80) or ``"predefined"``.
        predefined: what ``"predefined"`` means; the key ``MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES``.

    Raises:
        OvsegError: unknown set; or ``predefined`` is chosen and is empty or has a template without exactly one ``{}``.
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
    """Raise OvsegError unless ``templates``, found ``where``, is a list of at least one text with one ``{}`` each."""
    if isinstance(templates, str) or not isinstance(templates, Sequence) or not templates:
        raise OvsegError(f'{where} must be a list with at least one template, for example ["a photo of a {{}}."]')
    for template in templates:
        check_text(template, f"a template in {where}")
        if template.count("{}") != 1 or set(template.replace("{}", "")) & {"{", "}"}:
            raise OvsegError(
                f"the template {shown(template)} in {where} must hold {{}} exactly once, and no other braces: that is "
                "where the word goes"
            )
