"""``make setup`` looks at the environment; a shell script stands in for the environment's Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("Makefile", "requirements.txt", "pyproject.toml", "ovseg/environment/detectron2.py")
PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
*"venv --clear"*)
  rm -rf .venv; mkdir -p .venv/bin .venv/lib/python3.11/site-packages/torch-2.0.dist-info; cp "$0" .venv/bin/python;;
*"-r requirements.txt"*)
  mkdir -p .venv/lib/python3.11/site-packages/detectron2-0.6.dist-info;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def project(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    set_up(tmp_path)
    return tmp_path


def set_up(project, *options):
    """The names of the steps that were done."""
    (project / "calls").write_text("")
    subprocess.run(["make", "setup", "PYTHON=./python", *options], cwd=project, check=True, capture_output=True)
    calls = (project / "calls").read_text()
    steps = {"venv": "venv --clear", "requirements": "-r requirements.txt", "package": "--editable"}
    return [name for name, text in steps.items() if text in calls], calls


def test_once_and_then_nothing(project):
    assert (project / ".venv/lib/python3.11/site-packages/detectron2-0.6.dist-info").is_dir()
    steps, calls = set_up(project)
    assert steps == [] and "install" not in calls


@pytest.mark.parametrize("change", ["uninstalled", "requirements", "interrupted", "moved"])
def test_what_changed_is_done_again(project, change):
    if change == "uninstalled":
        shutil.rmtree(project / ".venv/lib/python3.11/site-packages/detectron2-0.6.dist-info")
    elif change == "requirements":
        (project / "requirements.txt").write_text("numpy==2.0.0\n")
    elif change == "interrupted":
        (project / ".venv/.state").unlink()
    else:
        project = project.rename(project.with_name("moved"))
    assert set_up(project)[0] == ["requirements", "package"]
    assert set_up(project)[0] == []


def test_a_named_source_of_detectron2_is_asked_for_always(project):
    steps, calls = set_up(project, "DETECTRON2=--source git")
    assert steps == ["requirements", "package"] and "tools/install_detectron2.py --source git" in calls
    assert set_up(project)[0] == []


def test_a_broken_environment_is_made_again(project):
    (project / ".venv/bin/python").write_text("#!/nowhere/python\n")
    assert set_up(project)[0] == ["venv", "requirements", "package"]
