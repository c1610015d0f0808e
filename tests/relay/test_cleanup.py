"""What an exchange holds is released once, the last first, and all of it."""

from __future__ import annotations

import pytest

from sse.relay.cleanup import Cleanup


def test_what_was_taken_last_is_released_first() -> None:
    released: list[str] = []
    with Cleanup() as held:
        held.add(lambda: released.append("lease"))
        held.add(lambda: released.append("upstream"))
    held.close()
    assert released == ["upstream", "lease"]


def test_a_release_that_fails_keeps_none_from_the_others() -> None:
    released: list[str] = []

    def fail() -> None:
        raise LookupError("a defect")

    held = Cleanup()
    held.add(lambda: released.append("lease"))
    held.add(fail)
    with pytest.raises(LookupError):
        held.close()
    assert released == ["lease"]


def test_what_is_taken_over_is_released_by_its_owner() -> None:
    released: list[str] = []
    first, second = Cleanup(), Cleanup()
    first.add(lambda: released.append("lease"))
    second.take(first)
    first.close()
    assert not released
    second.close()
    assert released == ["lease"]
