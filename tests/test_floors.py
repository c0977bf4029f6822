"""The floors of the package: no import runs up, no modules import each other, nobody but the doors knows the toy.

What counts is every import in the source, those inside functions and under TYPE_CHECKING too, and modules that
``import_module`` is given by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ovseg"

_GROUND = {"errors"}
_LOW = _GROUND | {"io"}
_CLIP = _LOW | {"vocabulary", "checkpoint"}
_META_ARCH = _CLIP | {"clip", "naming", "proposals", "config", "data", "grounding"}  # data: the words of a data set
_DATA = _LOW | {
    "vocabulary",
    "config",
    "result",
    "checkpoint",
    "grounding",
}  # the latter for an index that is a pickle (ADE20K)
_SYSTEM = _META_ARCH | _DATA | {"meta_arch", "data"}
_ALL = _SYSTEM | {"evaluation", "engine", "hub", "segmenter", "adaptation"}
# What each floor may import, from the ground up; all but the last may import themselves.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "environment": _GROUND,
    "io": _GROUND,
    "grounding": _GROUND,
    "vocabulary": _LOW,
    "proposals": _LOW | {"checkpoint"},  # the packaged weights of HED
    "config": _LOW,
    "checkpoint": _LOW,
    "result": _LOW | {"vocabulary"},
    "clip": _CLIP,
    "naming": _CLIP | {"clip", "proposals", "grounding"},  # a namer takes masks
    "data": _DATA,
    "meta_arch": _META_ARCH,
    "evaluation": _SYSTEM,
    "engine": _SYSTEM | {"evaluation"},
    "hub": _CLIP | {"clip", "config", "proposals"},
    "segmenter": _SYSTEM | {"evaluation", "hub"},
    "export": _ALL - {"adaptation"} | {""},  # the version of the package
    "adaptation": _ALL - {"adaptation"},
    "labelling": _ALL | {""},  # its processes register the models
    "web": _ALL | {""},
    "toy": _ALL,
    "": _ALL | {"toy", "environment"},  # ovseg/__init__.py, a door as the commands are
    "cli": _ALL | {"labelling", "export", "web", "toy", "environment", ""},
    "__main__": {"cli"},
}


def imports() -> set[tuple[str, str]]:
    """Return (module, imported module) for all modules of the package, both by their full names."""
    files = {_module(file): file for file in PACKAGE.rglob("*.py")}
    pairs = set()
    for module, file in files.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for name in _imported(ast.parse(file.read_text(encoding="utf-8")), package):
            while name not in files and name.startswith("ovseg."):  # a name in a module
                name = name.rpartition(".")[0]
            if name in files and name != module:
                pairs.add((module, name))
    return pairs


def _module(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from (value.value for value in node.args if isinstance(value, ast.Constant))


def _floor(module: str) -> str:
    return [*module.split("."), ""][1]


def _runs_up(pair: tuple[str, str]) -> bool:
    ours, theirs = map(_floor, pair)
    return theirs not in FLOORS.get(ours, set()) | {ours}


def test_no_import_runs_up():
    up = {pair for pair in imports() if _runs_up(pair)}
    assert not up, "imports of a floor above"


def test_every_module_has_a_floor():
    assert {_floor(module) for module in map(_module, PACKAGE.rglob("*.py"))} <= FLOORS.keys()


def test_floors_have_no_circle():
    below = {name: allowed - {name} for name, allowed in FLOORS.items()}
    assert set(TopologicalSorter(below).static_order()) >= FLOORS.keys()


def test_no_circle_of_modules():
    below: dict[str, set[str]] = {}
    for ours, theirs in imports():
        below.setdefault(ours, set()).add(theirs)
    try:
        list(TopologicalSorter(below).static_order())
    except CycleError as error:
        raise AssertionError(f"these import each other: {' -> '.join(error.args[1])}") from None
