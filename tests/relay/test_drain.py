"""How far the stopping of a process has come."""

from __future__ import annotations

import time

import pytest

from sse.relay.drain import DRAIN_EVENT_WINDOW, DRAIN_WRITE_WINDOW, Drain, Phase


def test_a_process_that_is_not_stopped_serves() -> None:
    assert Drain().phase() is Phase.SERVING


def test_to_look_at_the_phase_does_not_start_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran from the first look, which a stream took that came later than the stop."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    draining = Drain()
    draining.begin(10)
    now[0] += 9
    assert draining.phase() is Phase.FINISHING


def test_a_second_beginning_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    draining = Drain()
    draining.begin(10)
    now[0] += 9
    draining.begin(10)
    assert draining.phase() is Phase.FINISHING


@pytest.mark.parametrize("grace", [10.0, 1.0, 0.0, -5.0])
def test_the_phases_follow_the_clock(grace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    draining = Drain()
    draining.begin(grace)
    end = 100.0 + max(0.0, grace)
    times = [
        (100.0, Phase.DRAINING if grace > DRAIN_EVENT_WINDOW else Phase.FINISHING if grace > 0 else Phase.ABORTING),
        (end - DRAIN_EVENT_WINDOW + 0.01, Phase.FINISHING if grace > 0 else None),
        (end - 0.01, Phase.FINISHING if grace > 0 else None),
        (end, Phase.ABORTING),
        (end + DRAIN_WRITE_WINDOW - 0.01, Phase.ABORTING),
        (end + DRAIN_WRITE_WINDOW, Phase.CLOSED),
    ]
    for at, phase in times:
        if phase is not None and at >= now[0]:
            now[0] = at
            assert draining.phase() is phase, at
