"""Fetch a small document from an upstream, for the gateway itself."""

from __future__ import annotations

from ...errors import SSEError
from ...protocol.target.parse import Target
from ..drain import Drain
from ..exchange import Exchange, Limits, Stage
from ..monitor import Monitor
from ..stream.source import TruncatedBody
from .client import UpstreamClient
from .request import UpstreamRequest

#: Bytes of the largest document that is read.
MAX_SIZE = 1024 * 1024


#: Seconds that it may take.
LIMITS = Limits(open=5.0, head=5.0, idle=5.0, duration=10.0)


def fetch(upstreams: UpstreamClient, target: Target) -> bytes:
    """Return the body of a response with status 200.

    :raises OSError: if there is none.
    """
    exchange, monitor = Exchange(None, LIMITS), Monitor(Drain())
    monitor.add(exchange)
    request = UpstreamRequest(method="GET", target=target, fields=[("Accept", "application/json")])
    body = b""
    try:
        with upstreams.open(request, exchange.upstream) as response:
            if response.status != 200:
                raise OSError(f"status {response.status}")
            exchange.upstream.enter(Stage.READ)
            while (piece := response.read()) != b"":
                body += piece or b""
                if len(body) > MAX_SIZE:
                    raise OSError("the document is too large")
                if piece is None:
                    response.wait(None)
    except (SSEError, TruncatedBody) as error:
        raise OSError(str(error)) from error
    finally:
        monitor.discard(exchange)
    return body
