"""A thousand clients that are gone at once: everything they held is released."""

from __future__ import annotations

import time
from typing import Any

from ..support.crowd import Crowd, Spring, descriptors, room_for
from ..support.ending import eventually
from ..support.service import Service, call

CLIENTS = 1000

#: Bytes that the last thousand may leave behind; streams that are kept take more than 6 kB each.
LEFT_BEHIND = 5 * 2**20


def test_a_thousand_clients_that_vanish_leave_nothing_behind() -> None:
    settings: dict[str, Any] = {"SSE_THROTTLE": "", "SSE_MAX_STREAMS": CLIENTS, "SSE_MAX_STREAMS_PER_CLIENT": 0}
    with room_for(CLIENTS), Spring() as spring, Service(SSE_UPSTREAMS={"test": spring.url}, **settings) as service:
        [pid] = service.worker_pids()
        sizes = []
        for by_reset in (True, False, True):
            # A thousand leases, so each round needs those of the one before.
            with Crowd(service, CLIENTS) as crowd:
                assert crowd.streaming == CLIENTS
                spring.wait_open(CLIENTS)
                assert descriptors(pid) > 2 * CLIENTS
                began = time.monotonic()
                crowd.leave(by_reset=by_reset)
            with call(service, "GET", "/healthz") as client:
                assert client.read_head().status == 200
            answered = time.monotonic() - began
            spring.wait_open(0)
            gone = time.monotonic() - began
            eventually(lambda: descriptors(pid) < 50, "descriptors are left")
            sizes.append(service.rss())
            shown = f"/healthz after {answered:.2f} s, all released after {gone:.2f} s, {sizes[-1] / 2**20:.0f} MB"
            print(f"{'RST' if by_reset else 'FIN'}: {shown}")
        # The first two show how much memory so many streams need in all.
        assert sizes[-1] - max(sizes[:-1]) < LEFT_BEHIND
        eventually(lambda: service.log().count("end=client_gone") == 3 * CLIENTS, "not all have ended")
        assert "Traceback" not in service.log()
