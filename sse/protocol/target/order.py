"""Which target of an upstream is called first: the order of all, and those that are left alone for a while.

The order is that of weighted rendezvous hashing, which is the same in every process and host. A target is left alone
when it has responded with 429 and `Retry-After`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from email.utils import mktime_tz, parsedate_tz

from .entry import UpstreamTarget

#: Seconds for which a target is left alone at most.
MAX_BENCH = 300.0

_SECONDS = re.compile("[0-9]{1,9}")


def order_targets(affinity: str, targets: Iterable[UpstreamTarget]) -> list[UpstreamTarget]:
    """Return the targets of an upstream, the one to try first at the beginning.

    The same affinity value gives the same order as long as the targets stay, so the caches of its prompts stay warm; a
    target that is taken out moves only the values that it had. Over many values each target comes first in proportion
    to its weight (highest random weight, with the score -weight / ln(hash)).

    :param affinity: what keeps to one target: a client's name, a field's value.
    """
    return sorted(targets, key=lambda target: (-_score(affinity, target), target.id))


def _score(affinity: str, target: UpstreamTarget) -> float:
    text = f"{len(affinity)}:{affinity}{target.id}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    # Of 53 bits, which a float holds, and between 0 and 1, so that the logarithm is neither 0 nor infinite.
    return -target.weight / math.log(((number >> 11) + 1) / (2**53 + 2))


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
