"""Files of the hub: resumed, verified, and nothing without a request."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from ovseg.errors import CannotWrite, OvsegError
from ovseg.hub.fetch import checksums, fetch
from ovseg.io.files import cache_dir
from tests.hub.conftest import SIZE, write_library_cache
from tests.hub.stand_in import COMMIT

REPO = Path(__file__).parents[2]
FILES = ["config.json", "*.safetensors"]


def commits():
    return [path for path in (cache_dir() / "hub").glob("*/*") if path.is_dir()]


def content(hub, name="model.safetensors"):
    return hub.repositories["org/model"][name]


def test_files_arrive_once(hub):
    folder = fetch("org/model", FILES)
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == content(hub)
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["config.json", "model.safetensors"]
    assert checksums(folder)["model.safetensors"] == hashlib.sha256(content(hub)).hexdigest()
    assert fetch("org/model", FILES) == folder
    assert len(hub.requests) == 2 and hub.asked == 1  # neither files nor the list again


def test_a_cut_connection_is_continued_by_the_next_call(hub):
    hub.cut = 2_000_000  # and no answers afterwards
    with pytest.raises(OvsegError, match=r"org/model cannot be fetched .* run it again, which continues"):
        fetch("org/model", ["model.safetensors"])
    hub.down = False
    folder = fetch("org/model", ["model.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == content(hub)
    start = hub.requests[-1][1]
    assert 1_000_000 < start <= 2_000_000 < SIZE  # what had arrived was not asked for again
    assert not list(folder.glob(".*.part"))


def test_a_damaged_part_is_fetched_again(hub):
    hub.cut = 2_000_000
    with pytest.raises(OvsegError):
        fetch("org/model", ["model.safetensors"])
    hub.down = False
    (hub_folder,) = commits()
    (part,) = hub_folder.glob(".*.part")
    part.write_bytes(bytes(part.stat().st_size))
    folder = fetch("org/model", ["model.safetensors"])
    assert folder == hub_folder and (folder / "model.safetensors").read_bytes() == content(hub)
    assert hub.requests[-1][1] == 0


def test_a_wrong_checksum_is_refused(hub):
    hub.lies["model.safetensors"] = "0" * 64
    with pytest.raises(OvsegError, match=r"model.safetensors of org/model has the sha256 .* but 0000000000000000"):
        fetch("org/model", ["model.safetensors"])
    assert not any(list(folder.glob("*model*")) for folder in commits())


def test_a_checksum_that_is_known_here_wins(hub):
    known = {"model.safetensors": "1" * 64}
    with pytest.raises(OvsegError, match=r"but 1111111111111111\.\.\. was expected"):
        fetch("org/model", FILES, sha256=known)
    assert not hub.requests  # nothing was downloaded


def test_small_files_are_verified_too(hub):
    about = hub.about

    def changed(repository):
        answer = about(repository)
        answer["siblings"][0]["blobId"] = "0" * 40
        return answer

    hub.about = changed
    with pytest.raises(OvsegError, match=r"config.json of org/model has the sha256"):
        fetch("org/model", FILES)


def test_a_branch_is_pinned_until_an_update(hub):
    first = fetch("org/model", ["config.json"])
    hub.commit = "f" * 40
    assert fetch("org/model", ["config.json"]) == first
    second = fetch("org/model", ["config.json"], update=True)
    assert second.name == "f" * 40 and fetch("org/model", ["config.json"]) == second
    assert fetch("org/model", ["config.json"], revision=COMMIT) == first  # still there


def test_more_files_of_the_pinned_commit(hub):
    first = fetch("org/model", ["config.json"])
    second = fetch("org/model", ["model.safetensors"])
    assert first == second and len(hub.requests) == 2


def test_no_network_and_offline(hub, monkeypatch):
    with pytest.raises(OvsegError, match=r"org/model is not on this machine, and downloads were not permitted"):
        fetch("org/model", FILES, network=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OvsegError, match=r"org/model is not on this machine, and HF_HUB_OFFLINE is set"):
        fetch("org/model", FILES)
    assert hub.asked == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = fetch("org/model", FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch("org/model", FILES) == folder


def test_nobody_answers(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OvsegError, match=r"org/model cannot be fetched from the Hugging Face hub \(.*\): check"):
        fetch("org/model", FILES)


def test_the_cache_of_the_library_serves_without_network(hub, tmp_path):
    snapshot = write_library_cache(tmp_path, {"config.json": b"{}"})
    assert fetch("org/model", ["config.json"], network=False) == snapshot
    with pytest.raises(OvsegError, match="is not on this machine"):
        fetch("org/model", ["config.json", "model.safetensors"], network=False)


def test_files_in_the_cache_of_the_library_are_not_fetched_again(hub, tmp_path):
    write_library_cache(tmp_path, {"model.safetensors": content(hub), "config.json": b"[]"})  # another configuration
    folder = fetch("org/model", FILES)
    assert [name for name, _ in hub.requests] == ["config.json"] and (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "model.safetensors").read_bytes() == content(hub)


def test_disk_full(hub, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(CannotWrite, match=r"the download needs 3 MB, and .* has 0 MB of free disk: free some space"):
        fetch("org/model", FILES)
    monkeypatch.undo()


def test_the_disk_becomes_full_meanwhile(hub, monkeypatch):
    def full(url, stream, **_):
        stream.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(CannotWrite, match="disk full while writing"):
        fetch("org/model", FILES)


@pytest.mark.parametrize(
    ("name", "files", "revision", "message"),
    [
        ("model", FILES, "", "'model' is not a name on the Hugging Face hub: give ORGANISATION/NAME"),
        ("../../etc", FILES, "", "is not a name on the Hugging Face hub"),
        ("org/absent", FILES, "", "there is no org/absent on the Hugging Face hub, or it is private"),
        ("org/model", FILES, "v9", "org/model has no revision 'v9': give a branch, tag or commit"),
        ("org/model", ["absent.txt"], "", r"has no file absent.txt \(it has config.json, "),
    ],
)
def test_wrong_names(hub, name, files, revision, message):
    with pytest.raises(OvsegError, match=message):
        fetch(name, files, revision=revision)


def test_terms_that_must_be_accepted(hub):
    hub.gated.add("org/model")
    with pytest.raises(OvsegError, match="only to those who accept its terms: accept them on its page"):
        fetch("org/model", FILES)


def test_names_that_leave_the_folder_are_refused(hub):
    hub.repositories["org/model"]["../../evil.safetensors"] = b"x"
    with pytest.raises(OvsegError, match="would leave its folder"):
        fetch("org/model", FILES)


def test_a_killed_download_is_continued(hub, tmp_path):
    """The command is killed by -9 after 16 of 24 MB, of which the library has written up to 10 MiB."""
    repository = {"config.yaml": b"MODEL: {}", "model.safetensors": bytes(range(256)) * 93_750}
    hub.repositories["org/large"] = repository
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPO), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "ovseg", "models", "download", "hf-hub:org/large"]
    hub.stall = 16_000_000
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    try:
        for _ in range(600):
            if any(part.stat().st_size for part in (tmp_path / "cache").rglob(".model*.part")):
                break
            hub.resumed.wait(0.1)
    finally:
        process.kill()
        process.wait()
    hub.resumed.set()
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    name, start = hub.requests[-1]
    assert name == "model.safetensors" and 0 < start <= 10 * 2**20
    assert hashlib.sha256(repository["model.safetensors"]).hexdigest() in run.stdout
