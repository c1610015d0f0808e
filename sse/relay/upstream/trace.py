"""The span of an upstream request, where OpenTelemetry is installed; without it nothing here costs anything.

OpenTelemetry's own instrumentations patch HTTP libraries, and none of those sends our requests. The attributes are
those of its semantic conventions for HTTP clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ...protocol.target.parse import Target

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = None  # type: ignore[assignment]  # an optional dependency

Fields = Sequence[tuple[str, str]]


class HasStatus(Protocol):
    """A response, of which a span holds the status."""

    status: int


Response = TypeVar("Response", bound=HasStatus)


def traced(method: str, target: Target, fields: Fields, send: Callable[[Fields], Response]) -> Response:
    """Send a request inside a client span that ends with the head of the response.

    :param fields: of the request; those that carry the trace are replaced.
    :param send: gets the fields that are sent.
    """
    # The proxy stands for a provider that is not set up: there is nothing that would take a span.
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return send(fields)
    tracer = trace.get_tracer("sse")
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "server.address": target.host,
        "server.port": target.port,
        # Without its query, where some APIs take their key.
        "url.full": f"{target.scheme}://{target.authority}{target.path}",
    }
    with tracer.start_as_current_span(method, kind=trace.SpanKind.CLIENT, attributes=attributes) as span:
        response = send(_with_span(fields))
        span.set_attribute("http.response.status_code", response.status)
        if response.status >= 400:
            span.set_status(trace.StatusCode.ERROR)
        return response


def _with_span(fields: Fields) -> Fields:
    """Return the fields, with those that name the current span as the parent."""
    carrier: dict[str, Any] = {}
    propagate.inject(carrier)
    return [*((name, value) for name, value in fields if name.lower() not in carrier), *carrier.items()]
