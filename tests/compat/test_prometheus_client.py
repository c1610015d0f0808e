"""Contract with prometheus-client: what sse/compat/prometheus_client.py expects of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..support.service import ROOT

REMEDY = "prometheus-client has changed: adapt sse/compat/prometheus_client.py or hold it below this version"

#: Two processes that end, one after the other, and what is read of them.
COUNT = """
import os, sys
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sse.compat.prometheus_client import adopt_counts, keep_counts, lock_files
place = os.environ["PROMETHEUS_MULTIPROC_DIR"]
for number in (1, 2):
    if not (pid := os.fork()):
        adopt_counts(place)
        registry = CollectorRegistry()
        counter = Counter("calls", "", ["kind"], registry=registry)
        gauge = Gauge("open", "", multiprocess_mode="livesum", registry=registry)
        counter.labels("a").inc(number)
        gauge.inc()
        os._exit(0)
    os.waitpid(pid, 0)
    keep_counts(place, pid)
collected = CollectorRegistry()
MultiProcessCollector(collected)
with lock_files(place):
    print(generate_latest(collected).decode())
"""


def test_the_files_of_ended_processes_are_continued(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COUNT], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 'calls_total{kind="a"} 3.0' in done.stdout, f"{REMEDY}\n{done.stderr}"
    assert "open" not in done.stdout, REMEDY
    [left] = tmp_path.iterdir()
    assert left.name.startswith("counter_ended"), REMEDY
