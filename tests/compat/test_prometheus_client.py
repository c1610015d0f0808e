"""Contract with prometheus-client: what sse/compat/prometheus_client.py expects of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from sse.compat.prometheus_client import IS_SHARED, labelled

from ..support.service import ROOT

REMEDY = "prometheus-client has changed: adapt sse/compat/prometheus_client.py or hold it below this version"

#: Two processes that end, and what is read of them.
COUNT = """
import os, sys
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sse.compat.prometheus_client import IS_SHARED, fold_ended, lock_files
assert IS_SHARED
place = os.environ["PROMETHEUS_MULTIPROC_DIR"]
registry = CollectorRegistry()
counter = Counter("calls", "", ["kind"], registry=registry)
gauge = Gauge("open", "", multiprocess_mode="livesum", registry=registry)
for number in (1, 2):
    if not (pid := os.fork()):
        counter.labels("a").inc(number)
        gauge.inc()
        os._exit(0)
    os.waitpid(pid, 0)
    fold_ended(place, pid)
collected = CollectorRegistry()
MultiProcessCollector(collected)
with lock_files(place):
    print(generate_latest(collected).decode())
"""


def test_without_its_directory_values_are_kept_in_memory() -> None:
    assert not IS_SHARED, REMEDY
    counter = Counter("contract", "", ["kind"], registry=CollectorRegistry())
    assert labelled(counter, "a") is labelled(counter, "a"), REMEDY


def test_files_of_ended_processes_can_be_added_up(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COUNT], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 'calls_total{kind="a"} 3.0' in done.stdout, f"{REMEDY}\n{done.stderr}"
    left = {path.name.partition("_")[2] for path in tmp_path.iterdir() if path.name.startswith("counter")}
    assert "ended.db" in left, REMEDY
