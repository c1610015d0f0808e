"""Which targets are left alone for a while, because they have responded with 429 and `Retry-After`."""

from __future__ import annotations

import re
from email.utils import mktime_tz, parsedate_tz

#: Seconds for which a target is left alone at most.
MAX_BENCH = 300.0

_SECONDS = re.compile("[0-9]{1,9}")


def parse_retry_after(value: str, now: float) -> float:
    """Return the seconds that a value of `Retry-After` names (RFC 9110, section 10.2.3), 0 if it names none.

    :param now: second of the Unix epoch.
    """
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        date = parsedate_tz(value)
        return max(mktime_tz(date) - now, 0.0) if date is not None else 0.0
    except (ValueError, OverflowError):
        return 0.0


class Bench:
    """The targets of all upstreams that are left alone, each until a second of the caller's clock."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], float] = {}

    def add(self, upstream: str, target: str, seconds: float, now: float) -> None:
        """Leave a target alone for so many seconds; what was added before is never shortened."""
        if seconds > 0:
            end = now + min(seconds, MAX_BENCH)
            self._ends[upstream, target] = max(end, self._ends.get((upstream, target), end))

    def end(self, upstream: str, target: str) -> float:
        """Return until when a target is left alone; a time that has passed if it is not."""
        return self._ends.get((upstream, target), 0.0)
