"""Captions of toy scenes: varied English that says only what can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_LIES = ("lies on", "sits on", "rests on", "is on", "has been put on")
_NEAR = ("next to", "beside", "near", "close to", "by")
_WITH = ("with", "together with", "and", "along with")
_OPENINGS = ("a photo of {}", "this is a photo of {}", "a picture of {}", "there is {} in the scene", "we see {}", "{}")


@dataclass(frozen=True)
class Thing:
    """Attributes of one thing that captions mention.

    Attributes:
        colour, shape, pattern: words of ``classes.COLOURS``, ``SHAPES``, ``PATTERNS``.
        size: "small", "medium" or "large" relative to the image's shorter side.
        centre: (x, y) in pixels.
        radius: in pixels.
        area: visible pixels.
        ground: the stuff that it lies on, or None when it lies across several.
    """

    colour: str
    shape: str
    pattern: str
    size: str
    centre: tuple[float, float]
    radius: float
    area: int
    ground: str | None

    @property
    def name(self) -> str:
        """Its class name, such as "red star"."""
        return f"{self.colour} {self.shape}"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _noun(rng: np.random.Generator, thing: Thing) -> str:
    """Return the thing with its article, sometimes with its size, mostly with its pattern."""
    words = []
    if rng.random() < 0.3:
        words.append(thing.size)
    if thing.pattern != "plain" and rng.random() < 0.75:
        words.append(thing.pattern)
    return " ".join(["a", *words, thing.name])


def _nouns(rng: np.random.Generator, things: Sequence[Thing]) -> list[str]:
    return [_noun(rng, things[index]) for index in rng.permutation(len(things))]


def _list_everything(rng: np.random.Generator, things: Sequence[Thing], stuff: Sequence[str]) -> str:
    ground = _join([str(kind) for kind in rng.permutation(stuff)])
    nouns = _join(_nouns(rng, things))
    are = "are" if len(things) > 1 else "is"
    return _pick(
        rng,
        (
            f"{nouns} on {ground}",
            f"a photo of {nouns} on {ground}",
            f"{ground} {_pick(rng, _WITH)} {nouns}",
            f"a scene of {ground} with {nouns}",
            f"on {ground} there {are} {nouns}",
            f"this is a photo of {ground} and {nouns}",
        ),
    )


def _list_things(rng: np.random.Generator, things: Sequence[Thing], stuff: Sequence[str]) -> str:
    some = _nouns(rng, things)[: int(rng.integers(min(2, len(things)), len(things) + 1))]
    return _pick(rng, _OPENINGS).format(_join(some))


def _one_thing(rng: np.random.Generator, things: Sequence[Thing], stuff: Sequence[str]) -> str:
    thing = things[int(rng.integers(len(things)))]
    noun = _noun(rng, thing)
    if thing.ground is None:
        return _pick(rng, _OPENINGS).format(f"{noun} on {_join(stuff)}")
    return _pick(
        rng,
        (
            f"{noun} {_pick(rng, _LIES)} the {thing.ground}",
            f"a photo of {noun} on {thing.ground}",
            f"there is {noun} on the {thing.ground}",
            f"the {thing.ground} under {noun}",
        ),
    )


def _two_things(rng: np.random.Generator, things: Sequence[Thing], stuff: Sequence[str]) -> str:
    """Return a sentence on two things: next to each other if they (nearly) touch, else on which side."""
    first, second = (things[int(index)] for index in rng.permutation(len(things))[:2])
    across, down = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    if np.hypot(across, down) < 1.5 * (first.radius + second.radius):
        where = _pick(rng, _NEAR)
    elif abs(across) > abs(down):
        where = "to the left of" if across > 0 else "to the right of"
    else:
        where = "above" if down > 0 else "below"
    subject, other = _noun(rng, first), _noun(rng, second)
    if first.ground is None or rng.random() < 0.3:
        return _pick(rng, _OPENINGS).format(f"{subject} {where} {other}")
    return f"{subject} {_pick(rng, _LIES)} the {first.ground} {where} {other}"


def _ground_only(rng: np.random.Generator, things: Sequence[Thing], stuff: Sequence[str]) -> str:
    kinds = _join([str(kind) for kind in rng.permutation(stuff)])
    thing = _noun(rng, things[int(rng.integers(len(things)))])
    return _pick(
        rng,
        (
            f"a photo of {kinds} in the scene with {thing}",
            f"{kinds} with {thing} on top",
            f"there is {kinds} in the scene, and {thing}",
        ),
    )


_WRITERS: tuple[Callable[..., str], ...] = (_two_things, _list_things, _one_thing, _ground_only, _list_everything)


def describe(rng: np.random.Generator, things: Sequence[Thing], stuff: Sequence[str], count: int) -> tuple[str, ...]:
    """Write captions; every other one names all that is there, those between speak of parts.

    Args:
        rng: where all randomness comes from.
        things: the visible things, at least one.
        stuff: the visible grounds.
        count: how many captions.
    """
    captions = []
    for index in range(count):
        writers = (_list_everything,) if index % 2 == 0 else _WRITERS if len(things) > 1 else _WRITERS[1:]
        writer = writers[int(rng.integers(len(writers)))] if len(writers) > 1 else writers[0]
        captions.append(writer(rng, things, stuff))
    return tuple(captions)


def names_sides(caption: str) -> bool:
    """Return whether a caption would be wrong for a mirrored image."""
    return any(side in caption for side in ("left of", "right of"))
