"""Hands the page out. What the browser may load is limited to this server by policy."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..errors import SlimdiffError
from .page import asset, theme

__all__ = ["application", "is_loopback", "listening", "serve"]

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # gradio's page is made of both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_NO_UPLOADS = 1024
_GRACE = 2

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Sealed:
    """Adds to every answer that the page may load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        async def sealed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _POLICY
                headers["referrer-policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, sealed)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at ``host`` and ``port``; 0 is any free port.

    Raises SlimdiffError if it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(address, family=family)
    except OSError as error:
        raise SlimdiffError(
            f"The demo cannot listen at {host}, port {port} ({error.strerror or error}). Choose "
            "another --port or --host."
        ) from None
    with made:
        yield made


def application(page: gr.Blocks, host: str) -> FastAPI:
    """The page as a web application. On loopback it answers to this machine's own names only."""
    closed = is_loopback(host) and ":" not in host
    own = [host, "localhost", "127.0.0.1"] if closed else ["*"]
    app = FastAPI(
        openapi_url=None,
        middleware=[Middleware(_Sealed), Middleware(TrustedHostMiddleware, allowed_hosts=own)],
    )
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css=asset("style.css"),
        js=asset("keys.js"),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
        max_file_size=_NO_UPLOADS,
    )


def serve(page: gr.Blocks, listener: socket.socket, host: str, at_end: Callable[[], None]) -> None:
    """Hand the page out until the process is interrupted, and then call ``at_end``."""
    config = uvicorn.Config(
        application(page, host), log_level="warning", timeout_graceful_shutdown=_GRACE
    )
    _Server(config, at_end).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends what is under way too, without a word about browsers that are still waiting."""

    def __init__(self, config: uvicorn.Config, at_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._at_end = at_end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._at_end()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)
