from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PINS = (ROOT / "requirements.txt").read_text()


def wanted() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    compiled = ("dev", "photo", "hed", "sam", "demo", "ray")
    return project["dependencies"] + [text for name in compiled for text in extras[name]]


@pytest.mark.parametrize("text", wanted())
def test_every_dependency_is_pinned_within_its_range(text):
    """requirements.txt was compiled after the last change of pyproject.toml (`make requirements`)."""
    requirement = Requirement(text)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    pins = [Requirement(line) for line in PINS.splitlines() if not line.startswith("#")]
    versions = [next(iter(pin.specifier)).version for pin in pins if pin.name.lower() == name]
    assert versions, f"{name} is not in requirements.txt: run `make requirements`"
    assert all(requirement.specifier.contains(version) for version in versions), (text, versions)


def test_pins_name_no_host_and_no_path():
    assert "://" not in PINS
    assert not re.search(r"(?m)^-|@|file:|/", PINS)
    assert all("==" in line for line in PINS.splitlines())
