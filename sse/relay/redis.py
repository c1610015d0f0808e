"""The store that processes share, asked such that its absence costs nobody an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from limits.storage import storage_from_string

if TYPE_CHECKING:
    from limits.storage import RedisStorage

log = logging.getLogger("sse")

#: Seconds that it may take to connect, and to answer; without them it could hold a call for ever.
STORAGE_OPTIONS = {"socket_timeout": 1, "socket_connect_timeout": 1}
#: Seconds for which a store that did not answer is left alone.
ABSENCE = 5.0


def nothing() -> None:
    """Do nothing."""


class SharedStore:
    """A Redis, and whether it is there; one for all that an app keeps in it.

    It is away as well when it takes no writes (full, read-only, loading): what cannot be counted is not shared.

    :param uri: where it is, in the words of limits.
    """

    def __init__(self, uri: str) -> None:
        #: What limits makes of it, to count calls.
        self.storage = cast("RedisStorage", storage_from_string(uri, **STORAGE_OPTIONS))
        #: A redis.Redis or valkey.Valkey, of which limits' own type knows a part.
        self.client: Any = self.storage.get_connection()
        self._errors = self.storage.base_exceptions
        self._absent_until = 0.0

    def ask(self, question: Callable[[], Any], *, on_absence: Callable[[], object] = nothing) -> Any:
        """Return what the store answers, None while it is away: then each process counts for itself.

        :param question: asks it; its answer, if it matters, is not None.
        :param on_absence: called if it is away.
        """
        now, was_away = time.monotonic(), self._absent_until > 0
        if now < self._absent_until:
            on_absence()
            return None
        if was_away:
            # Whoever asks whether it is back may have to wait, so for a while it is one alone.
            self._absent_until = now + ABSENCE
        try:
            answer = question()
        except self._errors as error:
            self._note_absence(error)
            on_absence()
            return None
        if was_away:
            self._note_return()
        return answer

    def is_there(self) -> bool:
        """Tell whether it takes writes, as far as is known: one that is away is not asked all the time."""
        return self.ask(lambda: self.client.set("sse-probe", 1, px=1000)) is not None

    def _note_absence(self, error: Exception) -> None:
        if not self._absent_until:
            log.warning("the store is away (%s): each process counts for itself", type(error).__name__)
        self._absent_until = time.monotonic() + ABSENCE

    def _note_return(self) -> None:
        if self._absent_until:
            log.warning("the store is back: processes count together")
        self._absent_until = 0.0
