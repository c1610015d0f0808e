"""The page on capacity: its figures follow from the measured ones."""

from __future__ import annotations

import pytest

from docs.capacity import Measured, Plan, rows

from ..support.document import page

#: Figures with which each line can be checked by hand.
MEASURED = Measured(event=10, request=300, memory=12, kernel=4, redis_request=60, redis_event=2, worker=64)
PLAN = Plan(rate=10, life=10, event=250, kept=200, ttl=20, busy=0.5, cores=4)

EXPECTED = {
    # 10 events and a tenth of a request: 130 µs a second.
    "cores for relaying, one worker each": ["3", "26", "260"],
    "hosts of 16 cores": ["1", "7", "65"],
    # 16 KiB a stream, and 64 MiB a worker.
    "memory of the workers and their sockets, GiB": ["0.3", "3.2", "31.5"],
    "file descriptors of a worker": ["6,667", "7,692", "7,692"],
    "upstream connections of a host": ["10,000", "14,286", "15,385"],
    "Gbit/s in each direction": ["0.2", "2.0", "20.0"],
    "cores of Redis for throttle and leases": ["0.12", "1.20", "12.00"],
    "cores of Redis if all is recorded": ["0.4", "4.0", "40.0"],
    # 20 kB a recording; one half and two whole ones a stream.
    "memory of Redis if all is recorded, GiB": ["0", "5", "47"],
}


@pytest.mark.parametrize("line", rows(MEASURED, PLAN), ids=lambda line: line[0])
def test_a_figure_follows_from_what_was_measured(line: list[str]) -> None:
    assert line[1:] == EXPECTED[line[0]]


def test_the_page_has_both_tables() -> None:
    assert all(f"```{{generated}} {part}\n" in page("docs/capacity.md") for part in ("capacity", "measured"))
