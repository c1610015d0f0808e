"""Event streams of other projects: servers from PyPI, run by uvicorn in a process of their own."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver import Context, MCPServer

from .service import Process

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request


class Server(Process):
    """uvicorn with one of the apps below, ready to be called when the constructor returns.

    :param factory: name of the function that makes the app.
    """

    def __init__(self, factory: str) -> None:
        super().__init__([sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:{factory}", "--port", "0"])
        try:
            self.url: str = self.wait_log(r"Uvicorn running on (http://\S+)", 30)[1]
        except BaseException:
            self.stop(1)
            raise


def sse_starlette_app() -> Starlette:
    """Return an app that streams by sse-starlette, all that it can put into an event."""
    # Imported here, for it patches uvicorn, and the tests' own process is not to be touched.
    from sse_starlette import EventSourceResponse, JSONServerSentEvent, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def events() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent("one", id="1", event="greeting", retry=3000)
        yield ServerSentEvent("two\nlines", comment="a comment")
        yield JSONServerSentEvent({"text": "三 🌊"}, id="3")
        yield ServerSentEvent("four", sep="\n")
        yield ServerSentEvent("five" * 20_000, sep="\r")
        for number in range(500):
            yield ServerSentEvent(str(number), id=str(number))

    async def feed(_: Request) -> EventSourceResponse:
        return EventSourceResponse(events())

    return Starlette(routes=[Route("/feed", feed, methods=["GET", "POST"])])


def mcp_app() -> Starlette:
    """Return an MCP server with streamable HTTP, whose one tool reports its progress before its result."""
    server = MCPServer("counter")

    @server.tool()
    async def count(to: int, context: Context[Any, Any]) -> str:
        for number in range(1, to + 1):
            await context.report_progress(number, to)
        return f"counted to {to}"

    return server.streamable_http_app()
