"""Files that are whole or not there, whoever else writes at the same time."""

from __future__ import annotations

import errno
import os

import pytest

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path


def test_a_file_is_there_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".json" and temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "disk full while writing .*a.json"), (errno.EROFS, "choose another output")]
)
def test_the_system_says_no(tmp_path, number, message):
    with pytest.raises(OvsegError, match=message), atomic_path(tmp_path / "a.json"):
        raise OSError(number, os.strerror(number))


def test_permissions_are_the_usual_ones_and_other_threads_keep_theirs(tmp_path, monkeypatch):
    """A library may write for the owner's eyes only; and to read the umask is to set it, for all threads."""
    (tmp_path / "usual").touch()
    monkeypatch.setattr(os, "umask", None)
    with atomic_path(tmp_path / "ours") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_mode_of_a_linked_file_stays(tmp_path, link):
    original = tmp_path / "private.jpg"
    original.write_bytes(b"x")
    original.chmod(0o600)
    with atomic_path(tmp_path / "out" / "a.jpg") as temporary:
        link(original, temporary)
    assert original.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out" / "a.jpg").read_bytes() == b"x"
