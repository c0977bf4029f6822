"""A server of this machine that answers as the Hugging Face hub does: a model's list of files, and ranges of files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which the hub states a sha256


class Hub:
    """The stand-in.

    Args:
        repositories: content of each file, by name of the repository and of the file.

    Attributes:
        requests: (path, start of the range) of the files that were asked for.
        cut: number of bytes after which the next answer with a file breaks off; None for no break.
        stall: number of bytes after which the next answer with a file waits for ``resumed``; None for no wait.
        down: answer files with status 503.
        lies: sha256 that is stated for a file, by its name, in place of its own.
        gated: repositories that need an accepted licence.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]):
        self.repositories = repositories
        self.requests: list[tuple[str, int]] = []
        self.asked = 0  # lists of files
        self.cut: int | None = None
        self.stall: int | None = None
        self.resumed = threading.Event()
        self.down = False
        self.lies: dict[str, str] = {}
        self.gated: set[str] = set()
        self.commit = COMMIT
        self.url = ""

    def about(self, repository: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.repositories[repository].items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            about: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
            if len(content) >= LARGE:
                digest = self.lies.get(name, hashlib.sha256(content).hexdigest())
                about["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(about)
        return {"id": repository, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """Run a stand-in; its attribute ``url`` is what ``HF_ENDPOINT`` must be."""
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self._list(*found.groups())
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(*found.groups())
            else:
                self._answer(404, b"")

        def _list(self, repository: str, revision: str | None) -> None:
            hub.asked += 1
            if repository in hub.gated:
                self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif repository not in hub.repositories:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif revision not in (None, "main", hub.commit):
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                self._answer(200, json.dumps(hub.about(repository)).encode())

        def _file(self, repository: str, revision: str, name: str) -> None:
            content = hub.repositories[repository][name]
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(found[1]) if found else 0
            hub.requests.append((name, start))
            if hub.down:
                self._answer(503, b"")
                return
            cut, hub.cut = hub.cut, None
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if found:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if (stall := hub.stall) is not None and len(content) > stall:
                hub.stall = None
                self.wfile.write(content[start : start + stall])
                self.wfile.flush()
                hub.resumed.wait(60)
                start += stall
            self.wfile.write(content[start:] if cut is None else content[start : start + cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                hub.down = True

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:  # clients are killed
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.resumed.set()
        server.shutdown()
        server.server_close()
        thread.join()
