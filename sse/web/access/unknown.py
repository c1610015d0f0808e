"""Bound what is read and parsed of a body that contains the credential, before that is checked."""

from __future__ import annotations

import math
import time

from limits import parse

from ...errors import Throttled
from .limit_storage import Check, Memory

#: Bytes of a body that are read to find out who sent it; to parse them takes up to 30 ms, in which nothing else runs.
MAX_BODY = 1024 * 1024

#: Bytes that count as one.
_UNIT = 64 * 1024
#: Of each address, 10 MiB in 10 s: about 3 % of a core.
_LIMIT = parse("160 per 10 second")


class UnknownBodies:
    """Counts the refused bodies of each address, in this process, whose time they take."""

    def __init__(self) -> None:
        self._counts = Memory()

    def check(self, address: str) -> None:
        """Check whether one more body may be read.

        :raises Throttled: if too much was refused before.
        """
        if not self._counts.ends:
            return
        [verdict] = self._counts.check_all([Check(name=address, items=[_LIMIT], amount=0)])
        if verdict.exceeded is not None:
            raise Throttled(retry_after=max(1, math.ceil(verdict.windows[0].reset - time.time())))

    def count(self, address: str, size: int) -> None:
        """Count a body that was refused.

        :param size: its bytes.
        """
        self._counts.check_all([Check(name=address, items=[_LIMIT], amount=math.ceil(size / _UNIT) or 1)])
