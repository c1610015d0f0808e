"""docs/operations.md and docs/performance.md."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ..benchmark.table import COLUMNS
from ..support.document import block, codes, page, run, table
from ..support.ending import EVENT, error_event, silent
from ..support.relay import Relay
from ..support.service import Service, call
from ..support.upstream import EVENT_STREAM, LAST_CHUNK, Connection, Upstream, chunk, head, respond


def test_doctor(shared_service: Service) -> None:
    text = block("doctor").replace("https://relay.example.com", shared_service.url)
    # With as many streams as any machine has file descriptors for.
    found = run(text, FLASK_SSE_MAX_STREAMS="100")
    assert f"{shared_service.url}/sse: its events come one by one" in found


def test_the_log_lines_are_those_of_the_code(relay: Relay) -> None:
    shown = [line.split() for line in re.findall("^    (stream .*|refused .*)$", page("docs/operations.md"), re.M)]
    assert len(shown) == 2
    for script, target in ((respond(b"data: a\n\n"), "test/"), (respond(), "nowhere/")):
        relay.upstream.script = script
        with call(relay.service, "GET", f"/upstream/{target}", {"X-Request-Id": "documentation"}) as client:
            client.read_body()
        line = relay.service.wait_log(f"{'stream' if target == 'test/' else 'refused'} .*request_id=documentation$")
        names = [pair.partition("=")[0] for pair in line[0].split()]
        assert names in [[pair.partition("=")[0] for pair in each] for each in shown]


def test_json_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("sse")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    exec(block("json_log"), {})
    log.info("said", extra={"request_id": "1"})
    written = json.loads(capsys.readouterr().err)
    assert (written["message"], written["request_id"]) == ("said", "1")


def test_open_streams(relay: Relay, service: Callable[..., Service], tmp_path: Path) -> None:
    relay.upstream.script = silent
    gateway = service(SSE_UPSTREAMS={"test": relay.upstream.url}, SSE_CONTROL_DIR=str(tmp_path))
    listing, ending = block("open_streams").splitlines()
    with call(gateway, "GET", "/upstream/test/") as client:
        client.read_until(EVENT)
        printed = run(listing, FLASK_SSE_CONTROL_DIR=str(tmp_path))
        id = printed.splitlines()[1].split()[0]
        run(ending.replace("4711-12", id), FLASK_SSE_CONTROL_DIR=str(tmp_path))
        assert client.read_body() == EVENT + error_event("ended_by_operator")
    shown = re.search(r"^    (id .*)\n    (4711-12 .*)$", page("docs/operations.md"), re.MULTILINE)
    assert shown and shown[1].split() == printed.splitlines()[0].split()
    assert len(shown[2].split()) == len(printed.splitlines()[1].split())


def test_traced(upstream: Callable[..., Upstream], tmp_path: Path) -> None:
    """The trace goes through: the client's, the gateway's two spans, the upstream."""
    go = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head(200, EVENT_STREAM, "Transfer-Encoding: chunked") + chunk(b"data: a\n\n"))
        connection.wait_for(go)
        connection.send(LAST_CHUNK)

    (tmp_path / "traced.py").write_text(block("traced"))
    server = upstream(script)
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    env = {"PYTHONPATH": str(tmp_path), "OTEL_BSP_SCHEDULE_DELAY": "50", **exporters}
    parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=1", "baggage": "y=2"}
    with Service(app="traced:app", env=env, SSE_UPSTREAMS={"test": server.url}) as service:
        with call(service, "GET", "/upstream/test/", parent) as client:
            client.read_until(b"data: a\n\n")
            request = server.wait_request()
            # Both spans have ended while the stream goes on.
            service.wait_log(r'(?s)"SpanKind.CLIENT".*"SpanKind.SERVER".*^}$')
            go.set()
            client.read_body()
        assert client.is_complete
        assert "MonkeyPatchWarning" not in service.log()
        found = [json.loads(text) for text in re.findall(r"^\{$.*?^\}$", service.log(), re.MULTILINE | re.DOTALL)]
    version, trace, span, _ = (request.field("traceparent") or "").split("-")
    assert (version, trace) == ("00", "a" * 32)
    assert (request.field("tracestate"), request.field("baggage")) == ("x=1", "y=2")
    ours = {each["kind"]: each for each in found if each["context"]["trace_id"] == f"0x{trace}"}
    assert set(ours) == {"SpanKind.SERVER", "SpanKind.CLIENT"}
    server_span, client_span = ours["SpanKind.SERVER"], ours["SpanKind.CLIENT"]
    assert server_span["parent_id"] == "0x" + "b" * 16
    assert client_span["parent_id"] == server_span["context"]["span_id"]
    assert client_span["context"]["span_id"] == f"0x{span}"


def test_speed() -> None:
    """The figures are test_benchmark's; here only that it prints what the page explains."""
    assert block("speed") == "python -m tests.benchmark\n"
    explained = [name for row in table(page("docs/performance.md"), "column") for name in codes(row[0])]
    assert explained == [column.title for column in COLUMNS]
