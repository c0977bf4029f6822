"""The ASGI application: routes, errors as JSON, the limit of bodies, headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ovseg
from ovseg.errors import OvsegError
from ovseg.web import page, rest
from ovseg.web.limits import MEGABYTE, Limits
from ovseg.web.service import Service

logger = logging.getLogger(__name__)

EXPIRY = 20  # seconds between looks for scenes that are not used any longer
DRAINED = 8  # times the limit that is read of a body that is too large, so that the client reads the answer
HEADERS = {
    # a page loads nothing from elsewhere, and sends nothing there
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def create_app(service: Service, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Return the application of a service.

    Args:
        hosts: names by which it may be asked for (header Host), which protects a server on the loopback from pages of
            other hosts; ``*`` for any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiry = asyncio.create_task(_expire(service))
        yield
        expiry.cancel()

    app = FastAPI(
        title="ovseg",
        version=ovseg.__version__,
        summary="Open-vocabulary image segmentation: any image, any words, their masks",
        docs_url=None,  # the library's own pages load scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(rest.router)
    app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=page.STATIC), name="static")
    app.add_exception_handler(OvsegError, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(LimitedBody, limits=service.limits)
    app.add_middleware(OwnPages)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(WithHeaders)
    return app


async def _expire(service: Service) -> None:
    while True:
        await asyncio.sleep(EXPIRY)
        service.scenes.expire()


def problem(status: int, message: str) -> JSONResponse:
    """Return an error as a response."""
    return JSONResponse({"error": message}, status, {"Retry-After": "5"} if status == 503 else None)


async def _refused(request: Request, error: Exception) -> Response:
    return problem(getattr(error, "status", 400), str(error))


async def _not_valid(request: Request, error: Exception) -> Response:
    """Return what is wrong with the first field that is not valid, in one sentence."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    name = str(([part for part in first.get("loc", ()) if isinstance(part, str)] or ["the request"])[-1])
    if first.get("type") == "missing":
        return problem(400, f"{name} is missing: send it as a field of the form (multipart/form-data)")
    return problem(400, f"{name} is not valid: {first.get('msg', 'see /docs')}")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail))


async def _defect(request: Request, error: Exception) -> Response:
    return problem(500, "the server has a defect, which its log describes: report it")


class LimitedBody:
    """Middleware that refuses bodies beyond :attr:`Limits.upload` with 413, whatever their headers say."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limit = app, limits.upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                await self._drain(receive, message, received)
                megabytes = f"{self.limit / MEGABYTE:g} MB"
                raise HTTPException(413, f"the request is larger than {megabytes}, the most that this server takes")
            return message

        await self.app(scope, limited, send)

    async def _drain(self, receive: Receive, message: Message, received: int) -> None:
        while message.get("more_body") and received <= DRAINED * self.limit:
            message = await receive()
            received += len(message.get("body", b""))


class OwnPages:
    """Middleware that refuses requests of other sites' pages with 403, except those that only read.

    Browsers say in headers, which no page can change, whose page sends a request; other clients need not send them.
    ``Sec-Fetch-Site`` counts first: behind a proxy that does not pass the header Host on, Origin differs from it.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and _is_foreign(Headers(scope=scope)):
            message = (
                "a page of another site sent this request: use the page of this server, or a client without Origin"
            )
            return await problem(403, message)(scope, receive, send)
        await self.app(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin")
    if site in ("cross-site", "same-origin", "none"):
        return site == "cross-site"
    return origin is not None and origin.lower().rpartition("//")[2] != headers.get("host", "").lower()


class WithHeaders:
    """Middleware that adds :data:`HEADERS` to responses that do not have them."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present),
                ]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
