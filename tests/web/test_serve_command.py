"""``ovseg serve``: wrong arguments in one sentence each, its start and its end."""

from __future__ import annotations

import copy
import json
import signal
import urllib.request
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from ovseg import Segmenter
from ovseg.cli import app, serve
from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.io.photographs import WORDS
from ovseg.web.limits import Limits
from ovseg.web.server import LOCAL_NAMES, is_local, open_socket
from ovseg.web.service import OWN
from tests.web.running import running


def test_start_and_end():
    with running() as (process, address):
        with urllib.request.urlopen(f"{address}/health") as answer:
            assert json.load(answer)["model"] == "toy-ovseg"
        with urllib.request.urlopen(f"{address}/api/about") as answer:
            assert [one["name"] for one in json.load(answer)["examples"]] == ["scene-8", "scene-9", "scene-10"]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and output == "ovseg: stopped\n"
        assert "Traceback" not in errors


WRONG = {
    "--port 70000": "'--port': it should be less than or equal to 65535",
    "--queue -1": "'--queue': it should be greater than or equal to 0",
    "--proposer MaskFormer": "--proposer 'MaskFormer' is not a proposer: write BoundaryTree or SAM=FOLDER",
    "--proposer SAM": "--proposer 'SAM' is not a proposer",
    "--proposer BoundaryTree=x": "is not a proposer",
    "--set X": "'X' is not KEY=VALUE",
    "--allow-host *.example.org": "--allow-host '*.example.org' is not a name: write each name in full, without *",
    "--max-pixels inf": "--max-pixels is inf: give a finite number",
    "--keep inf": "--keep is inf: give a finite number",
    "--max-words 0": "'--max-words': it should be greater than or equal to 1",
    "--host 203.0.113.1 --port 0": "--host 203.0.113.1 is not an address of this machine",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments(line, capsys):
    with pytest.raises(SystemExit) if "--host" in line else pytest.MonkeyPatch.context():
        assert app.main(["serve", *line.split()]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and WRONG[line] in message


def test_words_of_visitors_are_not_stored(here, monkeypatch):
    monkeypatch.setenv("OVSEG_CACHE", str(here / "cache"))
    service = serve._service("toy-ovseg", [], "cpu", [], "", Limits())
    own = service.segmenters[OWN]
    own.prepare(["visitor's own word"])
    assert own.model.clip_adapter.text.cache is None and not list(here.rglob("*.safetensors"))
    assert own.card.licence == Segmenter.from_pretrained("toy-ovseg", device="cpu").card.licence != ""
    named = here / "named"
    asked = serve._service("toy-ovseg", ["MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", str(named)], "cpu", [], "", Limits())
    asked.segmenters[OWN].prepare(["visitor's own word"])
    assert len(list(named.rglob("*.safetensors"))) == 1


def test_examples_are_those_of_the_world_of_a_model(toy):
    assert [one.name for one in serve._examples(toy)] == ["scene-8", "scene-9", "scene-10"]
    other = copy.copy(toy)
    other.name, other.config = "toyota", get_cfg()
    assert serve._examples(other)[0].name in WORDS


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    with pytest.raises(OvsegError, match=r"uvicorn is not installed: run `pip install 'ovseg\[web\]'`"):
        serve.serve()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, (*LOCAL_NAMES, "127.0.0.1")),
        ({"allow_host": ["a.example"]}, (*LOCAL_NAMES, "127.0.0.1", "a.example")),
        ({"host": "0.0.0.0"}, ("*",)),
        ({"host": "0.0.0.0", "allow_host": ["a.example"]}, (*LOCAL_NAMES, "0.0.0.0", "a.example")),
    ],
)
def test_names_by_which_it_may_be_asked_for(options, names, monkeypatch):
    allowed, idle = [], SimpleNamespace(is_busy=False)
    service = SimpleNamespace(model_name="a", model_line=idle, paint_line=idle)
    monkeypatch.setattr(serve, "_service", lambda *args: service)
    monkeypatch.setattr("ovseg.web.server.create_app", lambda service, hosts: allowed.append(hosts))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    assert serve.serve(port=0, **options) == 0 and allowed == [names]


def test_a_taken_port():
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OvsegError, match=rf"port {port} is taken by another program, .* choose another --port"):
            open_socket("127.0.0.1", port)
    with pytest.raises(OvsegError, match="is not a name or address"):
        open_socket("no such host", 0)


def test_other_machines_reach_it_only_on_request(capsys, monkeypatch):
    assert is_local("127.0.0.1") and is_local("localhost") and is_local("::1")
    assert not is_local("0.0.0.0") and not is_local("::") and not is_local("example.org")
    monkeypatch.setattr(serve, "_service", lambda *args: None)
    monkeypatch.setattr("ovseg.web.server.run_server", lambda service, listening, host, names: listening.getsockname())
    assert serve.serve(port=0)[0] == "127.0.0.1"
    assert capsys.readouterr().err == ""
    assert serve.serve(port=0, host="0.0.0.0")[0] == "0.0.0.0"
    assert "warning: --host 0.0.0.0 makes this page reachable from other machines" in capsys.readouterr().err
