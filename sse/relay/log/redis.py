"""Recordings in a Redis or Valkey, which the processes of all hosts read.

The process that records keeps the ring in memory too and appends from it, so an append that failed is an append that
comes later. One thread (a greenlet where threads are patched) writes for all recordings of the process.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from ...errors import StoreUnavailable, StreamNotFound, TooManyStreams
from ..background import run_soon
from ..batch import Command
from ..lease import RETRY_AFTER, SharedLeases
from ..redis import SharedStore, execute
from ..stream.end import EndReason
from . import script
from .base import MAX_READERS, Claim, Expired, Header, Snapshot, TooManyReaders, Trimmed
from .follow import COUNT, Entry, Follower
from .log import Log
from .remote import RemoteReader
from .ring import Reader, Recording
from .store import READERS, Keys, Timing, claim_key, decode_claim, encode_claim, milliseconds
from .upload import Uploads

#: Connections for calls and for the writer.
CONNECTIONS = 16


class RedisLog(Log):
    """A log in Redis.

    :param uri: the value of `SSE_STORAGE_URI`.
    """

    is_shared = True

    def __init__(self, uri: str, *, timing: Timing | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._timing = timing or Timing()
        self._store = SharedStore(
            uri,
            connections=CONNECTIONS,
            retry_interval=0,
            without="recordings go on in memory",
            again="recordings are appended to it again",
        )
        self._leases = SharedLeases(
            self._store, total=0, per_client=MAX_READERS, kind=READERS, lifetime=self._timing.reader
        )
        self._uploads = Uploads(
            max_bytes=self._max_bytes, timing=self._timing, wake=self._wake_by, on_written=self._on_written
        )
        self._readers: set[RemoteReader] = set()
        self._claims: dict[str, Claim] = {}
        self._follower = Follower(self._store)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        #: When the writer has to work next, to renew what expires, and to look for what has been left.
        self._wakes_at = self._tick_at = self._look_at = 0.0
        self._is_closed = False

    def __len__(self) -> int:
        """Return how much this process looks after, be it a recording, a reader or a claim."""
        return len(self._open) + len(self._finished) + len(self._uploads) + len(self._leases) + len(self._claims)

    def close(self) -> None:
        """End the writer and close its connections; nothing is recorded or read any more."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._follower.close()
        self._store.close()

    def _call(self, operation: Callable[[Any], Any]) -> Any:
        """Return the result of an operation on the store.

        :raises StoreUnavailable: if it fails.
        """
        found = self._store.call(lambda client: (operation(client),))
        if found is None:
            raise StoreUnavailable(retry_after=RETRY_AFTER)
        return found[0]

    def _background(self, operation: Callable[[Any], Any]) -> None:
        """Do what need not be waited for; what fails here expires by itself."""
        run_soon(self._store.call, operation)

    # What a recorder calls.

    def create(self, id: str, header: Header, cancel: Callable[[EndReason], None]) -> Recording | None:
        self._start()
        recording = super().create(id, header, cancel)
        if recording is None:
            return None
        try:
            self._call(lambda client: self._uploads.begin(recording, client))
        except StoreUnavailable:
            self._drop(id)
            return None
        if header.claim:
            self._begin_claim(id, header)
        return recording

    def has_written(self) -> bool:
        return self._uploads.has_written()

    def _on_written(self, recording: Recording) -> None:
        self._drop(recording.id)
        claim = self._claims.pop(recording.header.claim, None)
        if claim is not None:
            key, ttl = claim_key(recording.header.claim), milliseconds(recording.header.ttl)
            self._background(lambda client: client.pexpire(key, ttl))

    def _drop(self, id: str) -> Recording | None:
        """Read a recording from the store from now on; one that is not there yet stays."""
        return None if id in self._uploads else super()._drop(id)

    def _on_left(self, recording: Recording) -> None:
        self._look_at = 0.0
        self._wake_by(0.0)

    # What a reader calls.

    def look(self, id: str) -> Snapshot:
        recording = self._own(id)
        if recording is not None:
            return recording.snapshot()
        keys = Keys.of(id)
        found = self._call(lambda client: client.eval(script.LOOK, 2, keys.meta, keys.data))
        if not found:
            raise StreamNotFound
        fields = json.loads(found[0])
        header = Header(**{**fields, "fields": tuple(map(tuple, fields["fields"]))})
        state, generation, first = found[1].decode(), found[3].decode(), found[4].decode()
        if state == "erased" or (state != "open" and not first):
            raise Expired(header.owner)
        end = int(found[2])
        start = int(first.partition("-")[0]) - int(found[5]) if first else end
        reason = None if state == "open" else EndReason(state)
        return Snapshot(header=header, start=start, end=end, reason=reason, generation=generation)

    def read(self, id: str, offset: int, limit: int) -> bytes:
        recording = self._own(id)
        if recording is not None:
            return recording.read(offset, limit)
        pieces, keys = [], Keys.of(id)
        while limit > 0 and (piece := self.fetch(keys, offset, limit)):
            pieces.append(piece)
            offset += len(piece)
            limit -= len(piece)
        return b"".join(pieces)

    def fetch(self, keys: Keys, offset: int, limit: int) -> bytes:
        """Return bytes of the store from a position on, b"" if there are none.

        :raises Trimmed: if the first ones are not kept.
        :raises StoreUnavailable: if the store is.
        """
        entries = self._call(lambda client: client.xrange(keys.data, f"({offset}-0", "+", count=COUNT))
        data, at = bytearray(), offset
        for id_, fields in entries:
            piece = fields.get(b"b", b"")
            end = int(id_.partition(b"-")[0])
            start = end - len(piece)
            if start > at:
                if not data:
                    raise Trimmed(start)
                break
            data += piece[at - start :]
            at = end
            if len(data) >= limit:
                break
        return bytes(data[:limit])

    def follow(self, id: str, snapshot: Snapshot, offset: int) -> Reader:
        self._start()
        keys = Keys.of(id)
        try:
            leave = self._leases.take(keys.lease)
        except TooManyStreams:
            raise TooManyReaders from None
        recording = self._own(id)
        if recording is not None:
            return self._join(recording, offset, leave)

        def on_close() -> None:
            self._readers.discard(reader)
            leave()

        reader = RemoteReader(
            keys,
            snapshot,
            offset,
            fetch=self.fetch,
            follow=self._follower.follow,
            retry_interval=self._timing.retry,
            on_close=on_close,
        )
        self._readers.add(reader)
        self._wake_by(0.0)
        return reader

    # What ends a recording from outside.

    def stop(self, id: str, *, erase: bool) -> None:
        keys = Keys.of(id)
        found = self._call(lambda client: client.hmget(keys.meta, "state", "proc", "head"))
        if found[0] is None:
            return
        state, process, ttl = found[0].decode(), found[1].decode(), json.loads(found[2])["ttl"]
        if erase:
            tombstone = milliseconds(self._timing.tombstone)
            self._call(lambda client: client.eval(script.ERASE, 3, *asdict(keys).values(), tombstone))
            if state == "open":
                self._mail(process, id, "erase")
        elif state == "open" and not self._is_stopped_by(process, id, keys):
            self._call(lambda client: self._end(client, keys, "", EndReason.STOPPED, ttl))

    def _end(self, client: Any, keys: Keys, generation: str, reason: EndReason, ttl: int) -> Any:
        """End an open recording of another process, whose recorder must have gone if a generation is given."""
        times = milliseconds(ttl), milliseconds(self._timing.tombstone)
        return client.eval(script.END, 2, keys.meta, keys.data, generation, reason, *times)

    def _is_stopped_by(self, process: str, id: str, keys: Keys) -> bool:
        """Ask the recorder to stop, because it has bytes that the store has not; return whether it did in time."""
        self._mail(process, id, "stop")
        deadline = time.monotonic() + self._timing.stop
        while time.monotonic() < deadline:
            time.sleep(0.02)
            if self._call(lambda client: client.hget(keys.meta, "state")) != b"open":
                return True
        return False

    def _mail(self, process: str, id: str, what: str) -> None:
        key = f"sse-log:{{mail}}:{process}"

        def send(client: Any) -> None:
            client.xadd(key, {what: id}, maxlen=10_000, approximate=True)
            client.pexpire(key, milliseconds(self._timing.claim))

        if process == self._uploads.process:
            self._on_mail([(b"", {what.encode(): id.encode()})])
        else:
            self._call(send)

    def _on_mail(self, entries: Sequence[Entry]) -> None:
        for _, fields in entries:
            for what, id_ in fields.items():
                recording = self._own(id_.decode())
                if recording is None:
                    continue
                if recording.reason is None:
                    recording.cancel(EndReason.STOPPED)
                if what == b"erase":
                    self._uploads.forget(recording.id)
                    self._drop(recording.id)

    # Idempotency keys: the claim of a process that dies expires, unless its recording has begun.

    def claim(self, key: str, claim: Claim, *, instead_of: Claim | None = None) -> Claim:
        self._start()
        mine = replace(claim, process=self._uploads.process)
        command = self._claiming(key, mine, instead_of)
        found = decode_claim(self._call(lambda client: client.execute_command(*command)))
        if found == mine:
            self._claims[key] = mine
            self._wake_by(0.0)
        return found

    def _claiming(self, key: str, claim: Claim, instead_of: Claim | None) -> Command:
        """Return the command that sets a claim if there was none or `instead_of`, and returns the one there is then."""
        before = encode_claim(instead_of) if instead_of else ""
        expiry = milliseconds(self._timing.claim if claim.has_begun else self._timing.alive)
        return "EVAL", script.CLAIM, 1, claim_key(key), encode_claim(claim), before, expiry

    def release(self, key: str, claim: Claim) -> None:
        mine = self._claims.pop(key, None)
        if mine is not None:
            self._background(lambda client: client.eval(script.RELEASE, 1, claim_key(key), encode_claim(mine)))

    def _begin_claim(self, id: str, header: Header) -> None:
        mine = self._claims.get(header.claim)
        if mine is not None and mine.id == id:
            self._claims[header.claim] = begun = replace(mine, has_begun=True)
            command = self._claiming(header.claim, begun, mine)
            self._background(lambda client: client.execute_command(*command))

    # The writer.

    def _start(self) -> None:
        """Give the process its name and start its writer, with the first call: gunicorn forks before."""
        with self._lock:
            if self._uploads.process:
                return
            self._uploads.process = uuid.uuid4().hex
        self._thread = threading.Thread(target=self._write_all, name="sse-log", daemon=True)
        self._thread.start()

    @cached_property
    def _wake(self) -> threading.Event:
        # Made with the first call: a lock that is made before gevent patches blocks the event loop.
        return threading.Event()

    def _wake_by(self, due: float) -> None:
        if due < self._wakes_at:
            self._wakes_at = due
            self._wake.set()

    def _write_all(self) -> None:
        unfollow = None
        while not self._is_closed:
            # First, so that what becomes due while the next lines look wakes this thread.
            self._wakes_at = math.inf
            is_busy = bool(len(self._uploads) or self._readers or self._claims)
            due = min(self._uploads.next_due(), self._tick_at, self._look_at) if is_busy else math.inf
            self._wakes_at = min(self._wakes_at, due)
            self._wake.wait(max(0.0, due - time.monotonic()) if is_busy else None)
            self._wake.clear()
            if unfollow is None:
                unfollow = self._follower.follow(f"sse-log:{{mail}}:{self._uploads.process}", "0-0", self._on_mail)
            elif not is_busy:
                unfollow = unfollow()
            if self._store.call(self._write) is None:
                self._postpone()
                time.sleep(self._timing.retry)

    def _write(self, client: Any) -> bool:
        """Do what is due."""
        now = time.monotonic()
        # After an outage first of all, because other processes may take this one for dead.
        if now >= self._tick_at:
            self._renew(client)
            self._tick_at = now + self._timing.tick
        # What is due soon goes along, so that many recordings are appended with few calls.
        self._uploads.append_due(now + self._timing.linger / 2, client)
        if now >= self._look_at:
            self._look_at = now + self._timing.look
            self._on_used(self.used)
            self._stop_lonely(now, client)
            for reader in list(self._readers):
                if reader.reason is None and now - reader.heard_at >= self._timing.silence:
                    reader.heard_at = now
                    self._look_for_recorder(reader, client)
        return True

    def _postpone(self) -> None:
        """Append later, and give recorders of other processes time to report again."""
        self._tick_at = 0.0
        for reader in list(self._readers):
            reader.heard_at = time.monotonic() + self._timing.retry

    def _renew(self, client: Any) -> None:
        """Renew what expires if this process dies."""
        self._uploads.renew()
        execute([self._claiming(key, claim, claim) for key, claim in list(self._claims.items())], client)

    def _stop_lonely(self, now: float, client: Any) -> None:
        """Stop recordings that have had no reader anywhere for too long."""
        lonely = self._lonely(now)
        counts = execute([("EVAL", script.COUNT, 1, Keys.of(recording.id).readers) for recording in lonely], client)
        for recording, count in zip(lonely, counts, strict=True):
            if count:
                recording.lonely_since = now
            else:
                recording.cancel(EndReason.CLIENT_GONE)

    def _look_for_recorder(self, reader: RemoteReader, client: Any) -> None:
        """End a recording whose recorder has gone, and a reader that has missed the end."""
        found = self._end(client, reader.keys, reader.generation, EndReason.RECORDER_LOST, reader.header.ttl)
        if not found:
            # The store may have been flushed; a recorder that lives begins again within a tick.
            reader.misses += 1
            if reader.misses * self._timing.silence >= self._timing.alive:
                reader.end(EndReason.RECORDER_LOST, reader.known_end)
        elif found[0] != b"open":
            # The end marker may have been lost.
            reader.end(EndReason.STOPPED if found[0] == b"erased" else EndReason(found[0].decode()), int(found[1]))
