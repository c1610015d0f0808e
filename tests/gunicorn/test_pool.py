"""The pool that counts greenlets and parked streams alike."""

from __future__ import annotations

import gevent

from sse.gunicorn.pool import ConnectionPool


class Stream:
    """A parked stream."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.is_in_loop = True
        self.ended: list[str] = []

    def on_wake(self) -> None:
        """Do what the loop does when something arrives."""
        if self.is_in_loop:
            self.is_in_loop = False
            self.pool.unpark(self, lambda: self.ended.append("resumed"))

    def leave_loop(self) -> None:
        self.is_in_loop = False

    def abort(self, error: BaseException) -> None:
        self.ended.append("aborted")


def test_data_during_a_pools_kill_resumes_nothing() -> None:
    pool = ConnectionPool(2)
    streams: list[Stream] = []

    def serve() -> None:
        streams.append(Stream(pool))
        pool.park(streams[0])

    gevent.spawn(lambda: pool.spawn(serve).join()).join()
    assert len(pool) == 1
    gevent.spawn(streams[0].on_wake)
    pool.kill()
    assert streams[0].ended == ["aborted"]
    assert (len(pool), pool.free_count()) == (0, 2)
