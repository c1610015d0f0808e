"""What so many open streams need, from what one needs: the tables of the page on capacity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

#: Open streams of the table's columns.
STREAMS = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one stream, event or request was measured to take; docs/performance.md has the tables."""

    #: CPU time of the gateway for an event that comes alone, µs
    event: float = 20.0
    #: CPU time of the gateway for a request, µs
    request: float = 635.0
    #: memory of an open stream in its worker, KiB
    memory: float = 7.1
    #: memory of its two sockets in the kernel, KiB
    kernel: float = 8.5
    #: CPU time of Redis for a request, µs
    redis_request: float = 49.0
    #: CPU time of Redis for an event of a recorded stream, µs
    redis_event: float = 3.0
    #: memory of a worker without streams, MiB
    worker: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a deployment is used, and how full its machines may be."""

    #: Events a second, and seconds, of an answer of a language model.
    rate: float = 30.0
    life: float = 30.0
    #: Bytes of an event on the wire: 200 of data, 8 of its chunk, 66 of TCP, IP and Ethernet.
    event: int = 274
    #: Bytes of it that a recording keeps, and seconds for which it does after the end (SSE_RESUME_TTL).
    kept: int = 200
    ttl: float = 300.0
    #: Share of a core that is planned to be busy, and cores of a host.
    busy: float = 0.6
    cores: int = 16


def cores(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the cores for relaying."""
    spent = plan.rate * measured.event + measured.request / plan.life
    return streams * spent / 1e6 / plan.busy


def workers(streams: int, measured: Measured, plan: Plan) -> int:
    """Return the workers: one a core."""
    return ceil(cores(streams, measured, plan))


def hosts(streams: int, measured: Measured, plan: Plan) -> int:
    """Return the hosts for so many workers."""
    return ceil(workers(streams, measured, plan) / plan.cores)


def memory(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the GiB of all workers and their sockets."""
    streaming = streams * (measured.memory + measured.kernel) / 2**20
    return streaming + workers(streams, measured, plan) * measured.worker / 2**10


def descriptors(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the file descriptors of a worker: two a stream."""
    return 2 * streams / workers(streams, measured, plan)


def ports(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the connections of a host to its upstreams, each of which takes a port."""
    return streams / hosts(streams, measured, plan)


def bandwidth(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the Gbit/s in each direction, of all hosts."""
    return streams * plan.rate * plan.event * 8 / 1e9


def admissions(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the cores of Redis for throttle and leases."""
    return streams / plan.life * measured.redis_request / 1e6 / plan.busy


def recordings(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the cores of Redis for recording every stream; a shard has one."""
    return streams * plan.rate * measured.redis_event / 1e6 / plan.busy


def kept(streams: int, measured: Measured, plan: Plan) -> float:
    """Return the GiB that recordings take in Redis: those that go on, half of them on average, and those that ended."""
    recorded = plan.rate * plan.life * plan.kept
    return streams * recorded * (0.5 + plan.ttl / plan.life) / 2**30


ROWS: tuple[tuple[str, Callable[[int, Measured, Plan], float], str], ...] = (
    ("cores for relaying, one worker each", cores, ",.0f"),
    ("hosts of 16 cores", hosts, ",d"),
    ("memory of the workers and their sockets, GiB", memory, ",.1f"),
    ("file descriptors of a worker", descriptors, ",.0f"),
    ("upstream connections of a host", ports, ",.0f"),
    ("Gbit/s in each direction", bandwidth, ",.1f"),
    ("cores of Redis for throttle and leases", admissions, ",.2f"),
    ("cores of Redis if all is recorded", recordings, ",.1f"),
    ("memory of Redis if all is recorded, GiB", kept, ",.0f"),
)


def rows(measured: Measured | None = None, plan: Plan | None = None) -> list[list[str]]:
    """Return the lines of the table, a figure for each number of streams."""
    given = measured or Measured(), plan or Plan()
    return [[name, *(format(figure(streams, *given), form) for streams in STREAMS)] for name, figure, form in ROWS]
