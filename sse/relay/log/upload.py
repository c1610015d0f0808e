"""Append the recordings of this process to the store, in batches, and again what the store has lost."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..stream.end import EndReason
from . import script
from .base import READ_SIZE, Trimmed
from .ring import Recording
from .store import Keys, Timing, milliseconds

#: Bytes after which an append does not linger.
FULL = 16 * 1024
#: Entries that one pipeline appends for one recording.
BATCH_ENTRIES = 16


@dataclass(eq=False)
class Upload:
    """A recording of this process on its way to the store."""

    recording: Recording
    keys: Keys
    #: Which recorder appends: another one that has taken its place is refused, or refuses it.
    generation: str = field(default_factory=lambda: uuid.uuid4().hex)
    #: Position up to which it is in the store, as far as is known.
    written: int = 0
    #: When the bytes that are not in the store are due there, None if there are none.
    due: float | None = None
    #: Whether it has readers that registered.
    is_read: bool = False


@dataclass(frozen=True)
class _Entry:
    """What one call of the script appends."""

    upload: Upload
    expected: int
    start: int
    data: bytes
    reason: EndReason | None

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Uploads:
    """All recordings that are on their way to the store.

    :param max_bytes: kept of one recording.
    :param wake: called with the second (`time.monotonic()`) at which something is due.
    :param on_written: called when a recording that has ended is in the store, or has no place there any more.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timing: Timing,
        wake: Callable[[float], None],
        on_written: Callable[[Recording], None],
    ) -> None:
        #: The process, as the store names it.
        self.process = ""
        self._max_bytes = max_bytes
        self._timing = timing
        self._wake = wake
        self._on_written = on_written
        self._all: dict[str, Upload] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, id: str) -> bool:
        return id in self._all

    def begin(self, recording: Recording, client: Any) -> None:
        """Begin a recording in the store; what a client raises passes on, here and below."""
        upload = Upload(recording, Keys.of(recording.id))
        self._create(upload, client)
        self._all[recording.id] = upload
        # The upload is a reader of the ring.
        recording.listen(partial(self._on_append, upload))
        self._wake(0.0)

    def forget(self, id: str) -> None:
        """Append nothing more of a recording."""
        self._all.pop(id, None)

    def has_written(self) -> bool:
        """Return whether all recordings that have ended are in the store."""
        return all(upload.recording.reason is None for upload in list(self._all.values()))

    def next_due(self) -> float:
        """Return when something is due, infinity if nothing is."""
        return min((u.due for u in list(self._all.values()) if u.due is not None), default=float("inf"))

    def renew(self) -> None:
        """Let all be due: an append of nothing renews the keys, and finds what the store has lost."""
        for upload in list(self._all.values()):
            upload.due = 0.0

    def append_due(self, now: float, client: Any) -> None:
        """Append what is due, in one pipeline; if that fails, `renew()` makes it due again."""
        due = [u for u in list(self._all.values()) if u.due is not None and u.due <= now]
        entries = [entry for upload in due for entry in self._entries(upload)]
        if not entries:
            return
        with client.pipeline(transaction=False) as pipeline:
            for entry in entries:
                self._queue(pipeline, entry)
            results = pipeline.execute(raise_on_error=False)
        failed: set[Upload] = set()
        for entry, result in zip(entries, results, strict=True):
            if entry.upload not in failed and not self._has_appended(entry, result, client):
                failed.add(entry.upload)

    def _on_append(self, upload: Upload) -> None:
        """Let what is new be appended in time; called for each event."""
        if upload.due is None:
            timing = self._timing
            upload.due = time.monotonic() + (timing.linger_read if upload.is_read else timing.linger)
            self._wake(upload.due)
        recording = upload.recording
        if recording.reason is not None or recording.end - upload.written >= FULL:
            upload.due = 0.0
            self._wake(0.0)

    def _entries(self, upload: Upload) -> Iterable[_Entry]:
        """Return the entries to append, an entry of nothing if there are none."""
        recording, upload.due = upload.recording, None
        # In this order, for bytes may be appended in between.
        reason, end = recording.reason, recording.end
        expected, start = upload.written, max(upload.written, recording.start)
        for _ in range(BATCH_ENTRIES):
            try:
                data = recording.read(start, min(READ_SIZE, end - start))
            except Trimmed:
                # The ring has overtaken what was to be appended.
                upload.due = 0.0
                return
            is_last = start + len(data) == end
            yield _Entry(upload, expected, start, data, reason if is_last else None)
            if is_last:
                return
            expected = start = start + len(data)
        upload.due = 0.0

    def _queue(self, pipeline: Any, entry: _Entry) -> None:
        upload, timing = entry.upload, self._timing
        times = timing.open, upload.recording.header.ttl, timing.tombstone, timing.alive
        # A Cluster's pipeline has no eval().
        pipeline.execute_command(
            "EVAL",
            script.APPEND,
            3,
            *asdict(upload.keys).values(),
            upload.generation,
            entry.expected,
            entry.start,
            entry.data,
            self._max_bytes,
            entry.reason or "",
            *map(milliseconds, times),
        )

    def _has_appended(self, entry: _Entry, result: Any, client: Any) -> bool:
        """Take a reply of the store into account; return whether the bytes are there."""
        upload = entry.upload
        if isinstance(result, Exception):
            raise result
        word, value = result
        if word == b"ok":
            upload.written = entry.end
            upload.is_read = value > 0
            if entry.reason is not None:
                self._finish(upload)
            return True
        upload.due = 0.0
        if word == b"missing":
            # A flush or an eviction: everything that is in memory is appended again.
            upload.written = upload.recording.start
            self._create(upload, client)
        elif word == b"moved" and int(value) <= upload.recording.end:
            # An append whose reply was lost, or a tail that the store has lost.
            upload.written = int(value)
        else:
            self._fence(upload, value.decode())
        return False

    def _create(self, upload: Upload, client: Any) -> None:
        header, timing = json.dumps(asdict(upload.recording.header), separators=(",", ":")), self._timing
        times = milliseconds(timing.open), milliseconds(timing.alive)
        client.eval(script.CREATE, 1, upload.keys.meta, upload.generation, upload.written, self.process, header, *times)

    def _fence(self, upload: Upload, state: str) -> None:
        """Stop a recorder that another process has taken for dead, or whose recording was stopped or erased."""
        self._finish(upload)
        recording = upload.recording
        if recording.reason is None:
            recording.cancel(EndReason.STOPPED if state in ("stopped", "erased") else EndReason.RECORDER_LOST)

    def _finish(self, upload: Upload) -> None:
        self.forget(upload.recording.id)
        self._on_written(upload.recording)
