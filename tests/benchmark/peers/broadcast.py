"""A site with one channel, by sse-starlette: a queue for each reader, and the publisher puts each event into all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

queues: set[asyncio.Queue[str]] = set()


async def read(request: Request) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues.add(queue)
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            queues.discard(queue)

    return EventSourceResponse(events())


async def publish(request: Request) -> Response:
    data = (await request.body()).decode()
    for queue in queues:
        queue.put_nowait(data)
    return Response()


app = Starlette(routes=[Route("/read", read), Route("/publish", publish, methods=["POST"])])
