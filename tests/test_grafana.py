"""The Grafana dashboard: it shows every metric, and a real Prometheus runs its queries over the gateway's metrics."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sse.web.metrics import Metrics

from .support.program import free_port, program
from .support.service import PATIENCE, ROOT, Service, call
from .support.upstream import Upstream, respond

QUERIES: list[str] = [
    target["expr"]
    for panel in json.loads((ROOT / "deploy/grafana.json").read_text())["panels"]
    for target in panel["targets"]
]

#: What one stream whose usage is reported gives a value.
SHOWN = ("sse_requests", "sse_streams_ended", "sse_tokens", "sse_usage", "sse_first_event_seconds")


def test_the_dashboard_shows_every_metric() -> None:
    assert all(any(metric.name in query for query in QUERIES) for metric in Metrics().registry.collect())


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Callable[[str], list[Any]]]:
    """Run a Prometheus that reads a target, and give a function that returns the result of a query."""
    port = free_port()
    jobs = [{"job_name": "sse", "static_configs": [{"targets": [target]}]}]
    config = {"global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"}, "scrape_configs": jobs}
    (directory / "prometheus.json").write_text(json.dumps(config))
    command = [
        program("prometheus", "prometheus"),
        f"--config.file={directory}/prometheus.json",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:

        def query(text: str) -> list[Any]:
            url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
            with urllib.request.urlopen(url, timeout=PATIENCE) as response:
                result = json.load(response)
            assert result["status"] == "success", result
            return list(result["data"]["result"])

        try:
            yield query
        finally:
            process.terminate()


def test_prometheus_runs_the_queries_of_the_dashboard(
    service: Callable[..., Service], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    usage = b'data: {"usage":{"prompt_tokens":20,"completion_tokens":9}}\n\n'
    relay = service(
        SSE_UPSTREAMS={"test": upstream(respond(usage, framing="close")).url}, SSE_METRICS=True, SSE_USAGE=True
    )

    def stream() -> None:
        with call(relay, "POST", "/upstream/test/", {}, b"{}") as client:
            client.read_body()

    stream()
    with prometheus(tmp_path, f"127.0.0.1:{relay.port}") as query:
        deadline = time.monotonic() + 3 * PATIENCE
        while True:
            # A rate needs two values, and an increase between them.
            stream()
            time.sleep(0.25)
            try:
                if query('rate(sse_streams_ended_total{reason="complete"}[1m]) > 0'):
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        for text in QUERIES:
            found = query(re.sub(r"\$__rate_interval", "1m", text))
            assert found or not any(name in text for name in SHOWN), text
