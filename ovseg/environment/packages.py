"""Installed packages: their versions, whether they fit what ovseg requires, and known conflicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata

OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
INTERNAL = ("dev", "docs")  # extras for work on ovseg itself


@dataclass(frozen=True)
class Extra:
    """An extra of ovseg, such as ``photo``, and the names of its packages that are not installed or do not fit."""

    name: str
    lacks: tuple[str, ...]


@dataclass
class Packages:
    """What is installed.

    Attributes:
        versions: version of each installed package that ovseg requires, by name.
        extras: all extras but those for work on ovseg itself.
        problems: sentences with a remedy.
    """

    versions: dict[str, str] = field(default_factory=dict)
    extras: list[Extra] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def version_of(name: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_packages(requirements: Sequence[str] | None = None) -> Packages:
    """Return what is installed of the requirements of ovseg.

    Args:
        requirements: in the form of ``importlib.metadata.requires``; None for those of the installed ovseg.
    """
    found = Packages()
    if requirements is None:
        try:
            requirements = metadata.requires("ovseg") or []
        except metadata.PackageNotFoundError:
            found.problems.append("ovseg is not installed as a package: run `pip install -e .` in the clone")
            return found
    lacks: dict[str, list[str]] = {}
    for extra, name, wrong in _check(requirements):
        if version := version_of(name):
            found.versions[name] = version
        if extra:
            lacks.setdefault(extra, []).extend([wrong] if wrong else [])
        elif wrong:
            found.problems.append(f"{wrong}: run `pip install --upgrade ovseg`")
    found.extras = [Extra(extra, tuple(names)) for extra, names in lacks.items() if extra not in INTERNAL]
    found.problems += conflicts()
    return found


def conflicts() -> list[str]:
    """Return a sentence for each known conflict between installed packages."""
    found = []
    if both := [name for name in OPENCV if version_of(name) and version_of("opencv-python-headless")]:
        found.append(
            f"{' and '.join(both)} and opencv-python-headless are both installed and write the same files: run `pip "
            f"uninstall {' '.join(both)}`, then `pip install --force-reinstall opencv-python-headless`"
        )
    transformers = version_of("transformers")
    if transformers and transformers.split(".")[0] in ("2", "3", "4"):
        found.append(
            f"transformers is {transformers}: Segment Anything needs 5: run `pip install 'ovseg[sam]'` to use it"
        )
    if version_of("detectron2") and version_of("pb1-detectron2"):
        found.append("detectron2 and pb1-detectron2 are both installed: run `pip uninstall pb1-detectron2`")
    return found


def _check(requirements: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Generate (extra or "", package, what is wrong with it or "") for the requirements that apply here."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:  # Matplotlib brings it: a half-installed environment
        return
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        extra = text.partition("extra == ")[2].strip(" '\")") if "extra ==" in text else ""
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        version = version_of(requirement.name)
        if version is None:
            wrong = f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong = f"{requirement.name} is {version}, and {requirement.specifier} is needed"
        else:
            wrong = ""
        yield extra, requirement.name, wrong
