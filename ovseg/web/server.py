"""Running the application: the socket, the messages, and a clean end."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence

import uvicorn

from ovseg.errors import OvsegError
from ovseg.web.app import create_app
from ovseg.web.service import Service

GRACE = 3  # seconds that open requests have after Ctrl-C
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: name or address; 0.0.0.0 and :: for all of this machine.
        port: 0 for a free one.

    Raises:
        OvsegError: the port is taken or not permitted, or the host is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except socket.gaierror as error:
        raise OvsegError(
            f"--host {host} is not a name or address ({error.strerror}): give 127.0.0.1 or 0.0.0.0"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OvsegError(
                f"port {port} is taken by another program, maybe another `ovseg serve`: stop it, or choose another "
                "--port"
            ) from error
        if error.errno == errno.EACCES:
            raise OvsegError(f"port {port} needs the rights of root: choose a --port above 1023") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise OvsegError(f"--host {host} is not an address of this machine: give 127.0.0.1 or 0.0.0.0") from error
        raise


def is_local(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run_server(service: Service, listening: socket.socket, host: str, names: Sequence[str] = ()) -> int:
    """Serve until Ctrl-C, and return 0, or until SIGTERM, and return 143.

    Args:
        listening: of :func:`open_socket`.
        host: for messages.
        names: further names by which the server may be asked for, as behind a proxy; without them, a host that other
            machines reach may be asked for by any name.
    """
    allowed = (*LOCAL_NAMES, host, *names) if names or is_local(host) else ("*",)
    app = create_app(service, allowed)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE
    )
    address = f"[{host}]" if ":" in host else host
    address += f":{listening.getsockname()[1]}"
    print(f"ovseg: http://{address} (model {service.model_name}); Ctrl-C stops", flush=True)
    status: int | str | None = 0
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises the signal again when it has ended
        pass
    except SystemExit as end:  # SIGTERM, see ovseg.errors
        status = end.code
    print("ovseg: stopped", flush=True)
    if service.model_line.is_busy or service.paint_line.is_busy:  # a library's thread cannot be ended otherwise
        sys.stderr.flush()
        os._exit(int(status or 0))
    return int(status or 0)
