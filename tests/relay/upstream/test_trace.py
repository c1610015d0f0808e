"""The span of an upstream request, made by us; no instrumentation sees our connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sse.errors import UpstreamBadResponse
from sse.protocol.target.parse import parse_target
from sse.relay.upstream import trace
from sse.relay.upstream.trace import Fields, traced

TARGET = parse_target("https://api.example.com/v1/chat?key=canary")
FIELDS: Fields = [("Accept", "*/*"), ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")]


class Response:
    """As much of a response as a span needs."""

    def __init__(self, status: int) -> None:
        self.status = status


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(api, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(api, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.mark.parametrize(("status", "code"), [(200, api.StatusCode.UNSET), (503, api.StatusCode.ERROR)])
def test_a_request_is_a_client_span_and_the_upstream_s_parent(
    spans: InMemorySpanExporter, status: int, code: api.StatusCode
) -> None:
    sent: list[Fields] = []

    def send(fields: Fields) -> Response:
        sent.append(fields)
        return Response(status)

    traced("POST", TARGET, FIELDS, send)
    [span] = spans.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == ("POST", api.SpanKind.CLIENT, code)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "server.address": "api.example.com",
        "server.port": 443,
        "url.full": "https://api.example.com/v1/chat",
        "http.response.status_code": status,
    }
    found = [value for name, value in sent[0] if name == "traceparent"]
    assert span.context is not None
    assert [value[:-3] for value in found] == [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"]


def test_a_refused_request_is_a_failed_span(spans: InMemorySpanExporter) -> None:
    def send(fields: Fields) -> Response:
        raise UpstreamBadResponse("bad status line")

    with pytest.raises(UpstreamBadResponse):
        traced("GET", TARGET, FIELDS, send)
    [span] = spans.get_finished_spans()
    assert span.status.status_code is api.StatusCode.ERROR


@pytest.mark.parametrize("is_installed", [False, True])
def test_without_a_provider_the_fields_pass_unchanged(monkeypatch: pytest.MonkeyPatch, is_installed: bool) -> None:
    if not is_installed:
        monkeypatch.setattr(trace, "trace", None)
    sent: list[Fields] = []

    def send(fields: Fields) -> Response:
        sent.append(fields)
        return Response(200)

    traced("GET", TARGET, FIELDS, send)
    assert sent == [FIELDS]
