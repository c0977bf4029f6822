"""Words in every form that is taken: values of Python, texts, files; and what command lines name as inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from ovseg.io.inputs import choose_outputs, find_inputs
from ovseg.vocabulary import Vocabulary
from tests.fuzz.mutate import TEXTS, mutate_bytes, mutate_value, odd_value

_LISTS: tuple[Any, ...] = (
    ["sky", "dog", "black cat"],
    [["person", "pedestrian"], "dog", ["sky"]],
    [["éléphant", "e\u0301le\u0301phant"], "猫", "😀"],
    {"person": ["rider"], "dog": []},
)
_TEXTS = ("person, child; dog", "sky; dog;", "dog", "a,b;c")
_FILE = "# words\nsky\nperson: child, rider\n\n猫: cat\n'quoted'\nblack cat\n".encode()


class Words:
    """Lists, texts and files of words."""

    name = "words"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> Any:
        kind = rng.randrange(4)
        if kind == 0:
            path = folder / "words.txt"
            path.write_bytes(mutate_bytes(rng, _FILE, [text.encode("utf-16") for text in _TEXTS]))
            return path
        if kind == 1:
            data = mutate_bytes(rng, rng.choice(_TEXTS).encode())
            return rng.choice((rng.choice(TEXTS), data.decode("utf-8", "surrogateescape")))
        if kind == 2:
            unusual = (
                np.array(["sky", "dog"]),
                {"sky", "dog"},
                b"sky;dog",
                7,
                1.5,
                object,
                range(3),
                iter("ab"),
                ("a",),
            )
            return rng.choice((*unusual, odd_value(rng), [rng.choice(unusual)], np.float32(1)))
        return mutate_value(rng, rng.choice(_LISTS))

    def steps(self, given: Any) -> Iterable[Callable[[], object]]:
        if isinstance(given, Path):
            return [partial(_use, lambda: Vocabulary.from_file(given))]
        steps = [partial(_use, lambda: Vocabulary.of(given)), lambda: Vocabulary.of(["a", "b"]).with_templates(given)]
        if isinstance(given, str):
            steps += [partial(Vocabulary.from_label_set, given), lambda: Vocabulary.of(["a", "b"]).subset([given])]
            steps += [partial(_use, lambda: Vocabulary.from_string(given)), partial(Vocabulary.from_file, given)]
        return steps


def _use(make: Callable[[], Vocabulary]) -> None:
    words = make()
    hash(words)
    assert len(words.version) == 12 and len(words.class_names) == len(words)
    assert len(words.union(words)) == len(words)


class Paths:
    """Arguments of --input and --output."""

    name = "paths"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> tuple[list[str], str]:
        for name in (
            "a.png",
            "b.jpg",
            "A.PNG",
            "[ab].png",
            "sub/a.png",
            "x.mp4",
            "weiß.png",
            "e\u0301.png",
            "a_labels.png",
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
        (folder / "loop").symlink_to("loop")
        (folder / "closed").mkdir(mode=0)
        usual = ("a.png", "b.jpg", ".", "*.png", "**/*.png", "[ab].png", "sub", "loop", "closed", "closed/x", "loop/x")
        pool = (
            *usual,
            *TEXTS,
            "x" * 4096,
            "a/" * 3000,
            "n" * 255 + ".png",
            "\udcff.png",
            "[",
            "[!",
            "?" * 50,
            "s3://b/x",
        )
        arguments = [rng.choice(usual if rng.random() < 0.5 else pool) for _ in range(rng.randint(0, 4))]
        outputs = ("out", "out.png", "out.mp4", ".", "a.png", "sub/", "", "loop/x", "closed/x.png", *pool)
        return arguments, rng.choice(outputs)

    def steps(self, given: tuple[list[str], str]) -> Iterable[Callable[[], object]]:
        return [partial(_choose, *given)]


def _choose(arguments: list[str], output: str) -> None:
    files, _ = find_inputs(arguments)
    outputs = choose_outputs(files, output, arguments)
    assert len(set(outputs)) == len(files)
