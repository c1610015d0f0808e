"""A wall clock that jumps by hours: streams and time-outs do not notice, and no limit lasts longer for it.

The clock is set by libfaketime where it is installed, for gunicorn, gevent and all below; the monotonic one goes on.
"""

from __future__ import annotations

import hashlib
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from ..support.crowd import Crowd, Spring
from ..support.ending import EVENT, ending, error_event, eventually, new_mark, silent
from ..support.program import missing
from ..support.service import Service, call, forward
from ..support.upstream import Upstream, respond

HOURS = 3


class Clock:
    """The wall clock of the processes that are started with its environment."""

    def __init__(self, directory: Path) -> None:
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            missing("libfaketime", "faketime")
        self._file = directory / "clock"
        self.env = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, hours: int) -> None:
        # In one step, for the file is read all the time.
        other = self._file.with_suffix(".new")
        other.write_text(f"{hours:+}h\n")
        other.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def asked(service: Service, path: str = "/upstream/test/") -> tuple[int, str | None]:
    """Return the status of a call, and its Retry-After."""
    with call(service, "GET", path) as client:
        head = client.read_head()
        client.read_body()
        return head.status, head.field("Retry-After")


def test_the_service_sees_the_clock_that_is_set(clock: Clock) -> None:
    """Otherwise the tests below would show nothing."""
    with Service(env=clock.env) as service:
        clock.set(-HOURS)
        now = time.time()
        with call(service, "GET", "/healthz") as client:
            date = client.read_head().field("Date")
        assert date
        assert abs(parsedate_to_datetime(date).timestamp() - (now - HOURS * 3600)) < 60


@pytest.mark.parametrize("hours", [HOURS, -HOURS])
def test_streams_and_time_outs_do_not_notice(hours: int, clock: Clock) -> None:
    mark = new_mark()
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_IDLE_TIMEOUT": 2}
    with (
        Spring(interval=0.1) as spring,
        Upstream(silent) as upstream,
        Service(SSE_UPSTREAMS={"test": spring.url, "silent": upstream.url}, env=clock.env, **settings) as service,
        Crowd(service, 5) as crowd,
        forward(service, upstream.url, **mark) as idle,
    ):
        idle.read_until(EVENT)
        began = time.monotonic()
        clock.set(hours)
        # It jumped while this one was waiting: neither at once, nor after hours.
        idle.read_body()
        assert 1.5 < time.monotonic() - began < 8
        assert ending(service, mark) == "idle_timeout"
        assert re.search(r"end=idle_timeout .* total=[2-9]\.", service.log())
        before = {reader: len(reader.body) for reader in crowd.readers}
        crowd.wait(lambda: all(len(reader.body) > before[reader] + 2 * len(EVENT) for reader in crowd.readers))
        assert crowd.streaming == 5


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("hours", [HOURS, -HOURS])
def test_no_client_is_locked_out_longer(hours: int, store: str, clock: Clock, request: pytest.FixtureRequest) -> None:
    """limits counts by the wall clock: set back, it refused all who had called, until it was where it had been."""
    settings: dict[str, Any] = {"SSE_THROTTLE": "3 per 2 second"}
    if store == "redis":
        settings["SSE_STORAGE_URI"] = request.getfixturevalue("redis_server").url
    with Upstream(respond(EVENT)) as upstream:
        table = {"test": upstream.url}
        with Service("--workers", "1", SSE_UPSTREAMS=table, env=clock.env, **settings) as service:
            assert [asked(service)[0] for _ in range(3)] == [200] * 3
            clock.set(hours)
            eventually(lambda: asked(service)[0] == 200, "locked out")
            # And what it says is true again.
            while (found := asked(service))[0] == 200:
                pass
            assert found[0] == 429
            assert 1 <= int(found[1] or 0) <= 2


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("hours", [HOURS, -HOURS])
def test_a_quota_is_neither_renewed_nor_longer_spent(
    hours: int, store: str, clock: Clock, request: pytest.FixtureRequest
) -> None:
    settings: dict[str, Any] = {"SSE_QUOTA": "1 per 1 hour"}
    if store == "redis":
        settings["SSE_STORAGE_URI"] = request.getfixturevalue("redis_server").url
    with Upstream(respond(EVENT)) as upstream:
        with Service("--workers", "1", SSE_UPSTREAMS={"test": upstream.url}, env=clock.env, **settings) as service:

            def post() -> tuple[int, int]:
                with call(service, "POST", "/upstream/test/", {}, b"{}") as client:
                    head = client.read_head()
                    client.read_body()
                    return head.status, int(head.field("Retry-After") or 0)

            assert post()[0] == 200
            service.wait_log("stream end=complete ")
            status, wait = post()
            assert (status, 0 < wait <= 3600) == (429, True)
            clock.set(hours)
            status, later = post()
            assert (status, wait - 10 <= later <= wait) == (429, True)


def test_a_credential_ends_by_the_clock(clock: Clock, tmp_path: Path) -> None:
    """Its end is a time of day: set back, the clock ends nothing, and set forward, it ends what has expired by it."""
    until = datetime.now(UTC) + timedelta(hours=HOURS - 1)
    lines = {"short": f"expires = {until.isoformat()}", "long": ""}
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in lines}
    clients = tmp_path / "clients.toml"
    clients.write_text("".join(f'[{name}]\nsha256 = "{digests[name]}"\n{lines[name]}\n' for name in lines))
    with (
        Upstream(silent) as upstream,
        Service(SSE_UPSTREAMS={"test": upstream.url}, SSE_CLIENTS_FILE=str(clients), env=clock.env) as service,
        call(service, "GET", "/upstream/test/", {"X-Passcode": "short"}) as short,
        call(service, "GET", "/upstream/test/", {"X-Passcode": "long"}) as long,
    ):
        for client in (short, long):
            client.read_until(EVENT)
        clock.set(-HOURS)
        with call(service, "GET", "/upstream/test/", {"X-Passcode": "short"}) as again:
            again.read_until(EVENT)
        clock.set(HOURS)
        assert short.read_body() == EVENT + error_event("credential_expired")
        assert asked(service)[0] == 401
        with call(service, "GET", "/upstream/test/", {"X-Passcode": "short"}) as again:
            assert again.read_head().status == 401
        with call(service, "GET", "/upstream/test/", {"X-Passcode": "long"}) as again:
            again.read_until(EVENT)
        assert long.ending is None
