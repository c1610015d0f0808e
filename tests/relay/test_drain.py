"""How far the stopping of a process has come."""

from __future__ import annotations

import pytest

from sse.relay import drain
from sse.relay.drain import FAREWELL, LAST_EVENT, Drain, Phase


def test_a_process_that_nobody_stops_serves() -> None:
    assert Drain().phase() is Phase.SERVING


def test_a_process_serves_until_it_is_told_to_stop() -> None:
    told: list[bool] = []
    draining = Drain()
    draining.begin_when(lambda: bool(told), grace=10)
    assert draining.phase() is Phase.SERVING
    told.append(True)
    assert draining.phase() is Phase.STOPPING


@pytest.mark.parametrize("grace", [10.0, 1.0, 0.0, -5.0])
def test_the_phases_follow_the_clock(grace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(drain.time, "monotonic", lambda: now[0])
    draining = Drain()
    draining.begin_when(lambda: True, grace=grace)
    end = 100.0 + max(0.0, grace)
    times = [
        (100.0, Phase.STOPPING if grace > LAST_EVENT else Phase.ENDING if grace > 0 else Phase.OVER),
        (end - LAST_EVENT + 0.01, Phase.ENDING if grace > 0 else None),
        (end - 0.01, Phase.ENDING if grace > 0 else None),
        (end, Phase.OVER),
        (end + FAREWELL - 0.01, Phase.OVER),
        (end + FAREWELL, Phase.LATE),
    ]
    for at, phase in times:
        if phase is not None and at >= now[0]:
            now[0] = at
            assert draining.phase() is phase, at
