"""A worker that is killed, and one that is stopped, under load."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sse.relay.lease import LIFETIME

from ..support.crowd import Crowd, Spring, descriptors
from ..support.ending import EVENT, LAST_WORDS, eventually, silent
from ..support.program import RedisServer
from ..support.service import RawClient, Service, call
from ..support.upstream import Upstream, respond

STREAMS = 200


def in_turn_refused(service: Service, code: str) -> None:
    """Ask for one stream more, which must be refused so."""
    with call(service, "GET", "/upstream/test/") as client:
        assert client.read_head().status in (429, 503)
        assert client.json()["code"] == code


def open_gauge(service: Service) -> float:
    with call(service, "GET", "/metrics") as client:
        text = client.read_body().decode()
    return sum(float(value) for value in re.findall(r"^sse_streams_open\{.*\} (\S+)$", text, re.MULTILINE))


def test_a_killed_workers_streams_are_visibly_cut() -> None:
    settings: dict[str, Any] = {
        "SSE_THROTTLE": "",
        "SSE_MAX_STREAMS": STREAMS,
        "SSE_MAX_STREAMS_PER_CLIENT": 0,
        "SSE_METRICS": True,
    }
    with Spring() as spring, Service(SSE_UPSTREAMS={"test": spring.url}, **settings) as service:
        with Crowd(service, STREAMS) as crowd:
            spring.wait_open(STREAMS)
            in_turn_refused(service, "at_capacity")
            assert open_gauge(service) == STREAMS
            [killed] = service.worker_pids()
            began = time.monotonic()
            os.kill(killed, signal.SIGKILL)
            crowd.wait_ended()
            cut = time.monotonic() - began
            assert crowd.aborted == STREAMS
            spring.wait_open(0)
            with Crowd(service, STREAMS) as again:
                served = time.monotonic() - began
                assert again.streaming == STREAMS
                in_turn_refused(service, "at_capacity")
                assert open_gauge(service) == STREAMS
            assert service.worker_pids() != [killed]
        print(f"{STREAMS} streams cut after {cut * 1000:.0f} ms, as many again after {served:.1f} s")


def test_a_killed_workers_leases_expire(
    redis_server: RedisServer,
) -> None:
    settings: dict[str, Any] = {
        "SSE_THROTTLE": "",
        "SSE_MAX_STREAMS_PER_CLIENT": STREAMS,
        "SSE_STORAGE_URI": redis_server.url,
    }
    store = redis_server.client()
    with Spring() as spring, Service("--workers", "2", SSE_UPSTREAMS={"test": spring.url}, **settings) as service:
        with Crowd(service, STREAMS) as crowd:
            spring.wait_open(STREAMS)
            in_turn_refused(service, "too_many_streams")
            # Of two, the one with more streams.
            victim = max(service.worker_pids(), key=descriptors)
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: len(service.worker_pids()) == 2 and victim not in service.worker_pids(), "no new worker")
            # The kernel has closed both sides of its streams; those of the other go on.
            crowd.wait(lambda: crowd.ended >= STREAMS // 2 and crowd.streaming == spring.open)
            assert crowd.aborted == crowd.ended
            assert crowd.streaming == STREAMS - crowd.ended
            in_turn_refused(service, "too_many_streams")
            [key] = store.keys("sse-leases:*")
            leases = store.zrange(key, 0, -1, withscores=True)
            now = int(store.time()[0])
            assert len(leases) == STREAMS
            assert max(end for _, end in leases) <= now + LIFETIME
            assert 0 < store.ttl(key) <= LIFETIME + 1
            # As if their time were over, which no test waits for; the living ones' come back with the next renewal.
            for lease, _ in leases:
                store.zincrby(key, -LIFETIME - 1, lease)
            with Crowd(service, 1) as one_more:
                assert one_more.streaming == 1
    store.close()


def test_a_killed_worker_leaks_no_quota_or_lease(redis_server: RedisServer, tmp_path: Path) -> None:
    """A client's own limits: what its streams hold is nothing that has to be released, but for what expires."""
    clients = tmp_path / "clients.toml"
    digest = hashlib.sha256(b"passcode").hexdigest()
    clients.write_text(f'[ann]\nsha256 = "{digest}"\nmax_streams = 2\nquota = "100 per 1 day"\n')
    fields = {"X-Passcode": "passcode"}
    usage = b'data: {"usage":{"prompt_tokens":20,"completion_tokens":9}}\n\n'
    with (
        redis_server.client() as store,
        Upstream(silent) as upstream,
        Service(
            "--workers",
            "1",
            SSE_UPSTREAMS={"test": upstream.url},
            SSE_CLIENTS_FILE=str(clients),
            SSE_STORAGE_URI=redis_server.url,
        ) as service,
        ExitStack() as stack,
    ):

        def post() -> RawClient:
            return stack.enter_context(call(service, "POST", "/upstream/test/", fields, b"{}"))

        cut = [post(), post()]
        for client in cut:
            client.read_until(EVENT)
        [killed] = service.worker_pids()
        os.kill(killed, signal.SIGKILL)
        assert [(client.read_body(), client.ending) for client in cut] == [(EVENT, "aborted")] * 2
        assert store.keys("sse:{quota:*") == []
        refused = post()
        assert (refused.read_head().status, refused.json()["code"]) == (429, "too_many_streams")
        [key] = store.keys("sse-leases:*ann")
        assert 0 < store.ttl(key) <= LIFETIME + 1
        # As if their time were over, which no test waits for.
        for lease, _ in store.zrange(key, 0, -1, withscores=True):
            store.zincrby(key, -LIFETIME - 1, lease)
        upstream.script = respond(usage, framing="close")
        assert post().read_body() == usage
        eventually(lambda: not store.exists(key), "the lease is left")
        [account] = [name for name in store.keys("sse:{quota:*") if store.type(name) == b"hash"]
        assert store.hget(account, "spent") == b"29"


class Asking(threading.Thread):
    """Asks one short thing after the other, each on a connection of its own, until nothing listens."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self._service = service
        #: In their order: the status of each whole response, "cut" where it broke off, "reset" where none came.
        self.seen: list[int | str] = []

    def run(self) -> None:
        while True:
            try:
                self.seen.append(self._ask())
            except ConnectionRefusedError:
                return

    def _ask(self) -> int | str:
        client = RawClient(self._service.host, self._service.port)
        with client:
            try:
                client.request("GET", "/healthz", {"Connection": "close"})
                status = client.read_head().status
            except ConnectionError:
                return "reset"
            client.read_body()
            return status if client.is_complete else "cut"


def test_a_stop_under_load_leaves_no_response_ambiguous() -> None:
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with (
        Spring(interval=0.1) as spring,
        Service("--graceful-timeout", "8", SSE_UPSTREAMS={"test": spring.url}, **settings) as service,
        Crowd(service, STREAMS) as crowd,
    ):
        asking = [Asking(service) for _ in range(4)]
        for each in asking:
            each.start()
        eventually(lambda: all(len(each.seen) > 10 for each in asking), "no response")
        service.terminate()
        crowd.wait_ended(20)
        for each in asking:
            each.join(20)
            assert not each.is_alive()
        for reader in crowd.readers:
            assert reader.is_aborted
            assert re.fullmatch(b"(%b){2,}" % re.escape(EVENT), LAST_WORDS.sub(b"", reader.body))
            assert LAST_WORDS.search(reader.body)
        spring.wait_open(0)
        assert service.wait_exit(20) == 0
        assert "SIGKILL" not in service.log()
        assert "Traceback" not in service.log()
        # What had not been accepted when the listener closed is reset; after that nothing listens.
        answers = [seen for each in asking for seen in each.seen]
        assert set(answers) <= {200, 503, "reset"}
        for each in asking:
            assert "reset" not in each.seen[:-1]
        print(f"{len(answers)} short answers: { {kind: answers.count(kind) for kind in set(answers)} }")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((service.host, service.port))
