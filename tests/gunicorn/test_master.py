"""Reloads: without a pause, and only onto code and settings that start."""

from __future__ import annotations

import copy
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from sse.gunicorn import master

from ..support.ending import EVENT, eventually, silent
from ..support.service import ROOT, Process, Service, call, environment
from ..support.upstream import Upstream


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory in which the service can be started, and its code changed."""
    for name in ("sse", "gunicorn.conf.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "app.py").write_text((ROOT / "app.py").read_text())
    return tmp_path


@pytest.fixture
def started(site: Path) -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Service(*args, root=site, SSE_THROTTLE="", **options))


def reload(service: Service, outcome: str) -> str:
    """Send SIGHUP, and return the line that says what came of it."""
    start = len(service.log())
    os.kill(service.pid, signal.SIGHUP)
    return service.wait_log(f"^.*{outcome}.*$", 30, start=start)[0]


def serves(service: Service) -> bool:
    """Return whether a request gets its response; not a health check, which a worker that stops answers with 503."""
    with call(service, "GET", "/nowhere") as client:
        return client.read_head().status == 404


BOOT_FAILS = """
def post_worker_init(worker):
    raise RuntimeError("no database")
"""


def test_a_reload_onto_broken_code_is_refused(site: Path, started: Callable[..., Service]) -> None:
    """It stopped the service: the old workers were stopped before the new ones failed."""
    service = started("--workers", "2")
    before = service.worker_pids()
    (site / "app.py").write_text("raise RuntimeError('a broken deploy')\n")
    assert "keep serving: RuntimeError: a broken deploy" in reload(service, "Reload refused")
    assert (serves(service), service.worker_pids()) == (True, before)
    (site / "app.py").write_text((ROOT / "app.py").read_text())
    reload(service, "Booting worker")
    for pid in before:
        service.wait_log(rf"Worker exiting \(pid: {pid}\)", 30)
    assert serves(service)


def test_a_reload_onto_wrong_settings_is_refused(site: Path, started: Callable[..., Service]) -> None:
    file = site / "settings.toml"
    file.write_text("SSE_MAX_STREAMS = 10\n")
    service = started(env={"SSE_CONFIG": str(file)})
    for text, said in (
        ("SSE_MAX_STREAMS = -1\n", "SSE_MAX_STREAMS: must be a whole number"),
        ("SSE_MAX_STREAMS =", "which is not TOML"),
    ):
        file.write_text(text)
        assert said in reload(service, "Reload refused")
        assert serves(service)
    assert "Traceback" not in service.log()


def test_workers_that_do_not_start_do_not_stop_the_old_ones(site: Path, started: Callable[..., Service]) -> None:
    """To load the app does not show that."""
    service = started("--workers", "2")
    before = service.worker_pids()
    (site / "gunicorn.conf.py").unlink()
    (site / "gunicorn.conf.py").write_text((ROOT / "gunicorn.conf.py").read_text() + BOOT_FAILS)
    assert "Worker failed to boot" in reload(service, "Reload failed")
    eventually(lambda: service.worker_pids() == before, "other workers than before")
    assert serves(service)


def test_no_request_waits_for_a_reload(site: Path, started: Callable[..., Service]) -> None:
    """Old workers stopped accepting when the new ones began to start, and requests waited for a second or two."""
    (site / "slow.py").write_text("import time\ntime.sleep(2)\nfrom app import app\n")
    service = started(app="slow:app")
    took: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            assert serves(service)
            took.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    [old] = service.worker_pids()
    reload(service, "Booting worker")
    service.wait_log(rf"Worker exiting \(pid: {old}\)", 30)
    done.set()
    thread.join()
    assert max(took) < 1, max(took)


def test_a_stream_goes_on_over_a_reload(site: Path, started: Callable[..., Service]) -> None:
    with Upstream(silent) as upstream:
        service = started("--graceful-timeout", "20", SSE_UPSTREAMS={"test": upstream.url})
        with call(service, "GET", "/upstream/test/") as client:
            client.read_until(EVENT)
            reload(service, "Booting worker")
            with call(service, "GET", "/upstream/test/") as other:
                other.read_until(EVENT)
            assert client.ending is None


SLOW = """
from pathlib import Path
import time
with open(Path(__file__).with_name("loads"), "a") as file:
    file.write("x")
time.sleep(1)
"""


def begin_check(site: Path, service: Service) -> None:
    """Send SIGHUP, and return when the code is being tried."""
    (site / "app.py").write_text((ROOT / "app.py").read_text() + SLOW)
    os.kill(service.pid, signal.SIGHUP)
    eventually((site / "loads").exists, "the code is not tried")


def test_a_stop_while_a_reload_is_checked_is_a_stop(site: Path, started: Callable[..., Service]) -> None:
    """The workers waited for those of the reload, and were killed with their streams at the end of their time."""
    service = started()
    begin_check(site, service)
    service.terminate()
    assert service.wait_exit() == 0
    assert "Hang up" not in service.log()


def test_two_reloads_at_once_are_one(site: Path, started: Callable[..., Service]) -> None:
    """The workers of the first were stopped before those of the second served."""
    service = started()
    [old] = service.worker_pids()
    begin_check(site, service)
    os.kill(service.pid, signal.SIGHUP)
    service.wait_log(rf"Worker exiting \(pid: {old}\)", 30)
    # The code may have changed between the two: it is tried again, and then loaded by one worker.
    assert len((site / "loads").read_text()) == 3
    service.terminate()
    service.wait_exit()
    assert service.log().count("Hang up") == 1


def test_a_worker_that_begins_stops_at_once() -> None:
    """Until it handled signals, they were lost, and it served until it was killed."""
    command = [sys.executable, "-m", "gunicorn", "app:app", "-b", "127.0.0.1:0"]
    with Process(command, env=environment({}, {})) as process:
        process.wait_log("Booting worker")
        process.terminate()
        assert process.wait_exit() == 0


@pytest.fixture
def signals() -> Iterator[ExitStack]:
    """Handlers of signals, as gunicorn sets them, until the test has ended; yields what else ends then."""
    with ExitStack() as stack:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        yield stack


def test_a_worker_counts_for_its_own_reload(signals: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that served late counted for the next reload, whose workers did not serve yet."""
    monkeypatch.setattr(master, "check_app", lambda *_: "")
    file = signals.enter_context(tempfile.TemporaryFile(buffering=0))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: file)
    guard = master.Guard(logging.getLogger())

    def fork() -> master.Guard:
        guard(signal.SIGHUP, None)
        gevent.sleep()
        return copy.copy(guard)

    late, new = fork(), fork()
    late.serve(1)
    assert (late.is_replaced(), new.is_replaced(), new.state()) == (True, False, "pending")
    new.serve(1)
    assert new.state() == "done"
