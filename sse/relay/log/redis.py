"""Recordings in a Redis or Valkey, which the processes of all hosts read.

The process that records keeps the ring in memory too and appends from it, so an append that failed is an append that
comes later. One thread (a greenlet where threads are patched) writes for all recordings of the process.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from ..background import run_soon
from ..redis import QUEUE_TIMEOUT
from ..stream.end import EndReason
from . import script
from .base import MAX_READERS, Claim, Expired, Header, NotKept, Snapshot, TooManyReaders, Trimmed, Unavailable
from .follow import COUNT, Entry, Follower
from .remote import RemoteReader
from .ring import Own, Reader, Recording
from .store import Keys, Timing, alive_key, claim_key, decode_claim, encode_claim, milliseconds
from .upload import Uploads

log = logging.getLogger("sse")


#: Seconds to connect, and to wait for a reply; and connections that callers may use.
TIMEOUT = 1.0
CONNECTIONS = 16


class RedisLog:
    """A log in Redis; the contract is `Log`'s.

    :param connect: returns a client, given `timeout` in seconds and the number of `connections`.
    :param errors: what a client raises if the store is unavailable.
    :param max_bytes: bytes that are kept of one recording.
    :param memory: bytes that the recordings of this process may take in its own memory.
    :param on_used: called about once a second with the bytes that they take.
    """

    def __init__(
        self,
        connect: Callable[..., Any],
        errors: tuple[type[Exception], ...],
        *,
        max_bytes: int,
        memory: int,
        is_cluster: bool = False,
        timing: Timing | None = None,
        on_used: Callable[[int], object] = bool,
    ) -> None:
        self._connect = connect
        self._errors = errors
        self._on_used = on_used
        self._timing = timing or Timing()
        self._own = Own(max_bytes=max_bytes, memory=memory, clock=time.monotonic)
        self._uploads = Uploads(
            self._connection,
            lambda: self._process,
            max_bytes=max_bytes,
            timing=self._timing,
            errors=errors,
            wake=self._wake_by,
            on_written=self._on_written,
        )
        self._readers: dict[str, RemoteReader] = {}
        self._keys_of_readers: dict[str, Keys] = {}
        self._claims: dict[str, Claim] = {}
        self._follower = Follower(connect, errors, is_cluster=is_cluster)
        self._process = ""
        self._client: Any = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wakes_at = self._look_at = 0.0
        self._is_down = self._is_closed = False

    def __len__(self) -> int:
        """Return how much this process looks after, be it a recording, a reader or a claim."""
        return len(self._own) + len(self._uploads) + len(self._keys_of_readers) + len(self._claims)

    def close(self) -> None:
        """End the writer and close its connections; nothing is recorded or read any more."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._follower.close()
        if self._client is not None:
            self._client.close()

    # What a recorder calls.

    def create(self, id: str, header: Header, cancel: Callable[[EndReason], None]) -> Recording | None:
        self._start()
        recording = self._own.admit(id, header, cancel, self._drop)
        if recording is None:
            return None
        try:
            self._call(lambda _: self._uploads.begin(recording))
        except Unavailable:
            self._own.drop(id)
            return None
        if header.claim:
            self._begin_claim(id, header)
        return recording

    def finish(self, recording: Recording, reason: EndReason) -> None:
        self._own.finish(recording, reason)

    def attend(self, recording: Recording) -> Reader:
        return self._own.join(recording, 0, self._on_left)

    # What a reader calls.

    def look(self, id: str) -> Snapshot:
        recording = self._own.get(id)
        if recording is not None:
            return recording.snapshot()
        keys = Keys.of(id)
        found = self._call(lambda client: client.eval(script.LOOK, 2, keys.meta, keys.data))
        if not found:
            raise NotKept
        return self._snapshot(found)

    def _snapshot(self, found: Sequence[bytes]) -> Snapshot:
        fields = json.loads(found[0])
        header = Header(**{**fields, "fields": tuple(map(tuple, fields["fields"]))})
        state, first = found[1].decode(), found[5].decode()
        if state == "erased" or (state != "open" and not first):
            raise Expired(header.owner)
        end = int(found[2])
        start = int(first.partition("-")[0]) - int(found[6]) if first else end
        reason = None if state == "open" else EndReason(state)
        process, generation = found[3].decode(), found[4].decode()
        return Snapshot(header=header, start=start, end=end, reason=reason, process=process, generation=generation)

    def read(self, id: str, offset: int, limit: int) -> bytes:
        recording = self._own.get(id)
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
        :raises Unavailable: if the store is.
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
        keys, name = Keys.of(id), uuid.uuid4().hex
        if not self._call(lambda c: c.eval(script.JOIN, 1, keys.readers, name, self._timing.reader, MAX_READERS)):
            raise TooManyReaders
        self._keys_of_readers[name] = keys
        self._wake_by(0.0)
        recording = self._own.get(id)
        if recording is not None:
            return self._own.join(recording, offset, self._on_left, lambda: self._leave(name))
        reader = RemoteReader(
            keys,
            snapshot,
            offset,
            fetch=self.fetch,
            follow=self._follower.follow,
            retry_interval=self._timing.retry,
            on_close=lambda: self._leave(name),
        )
        self._readers[name] = reader
        return reader

    def _leave(self, name: str) -> None:
        keys = self._keys_of_readers.pop(name)
        self._readers.pop(name, None)
        self._background(lambda client: client.zrem(keys.readers, name))

    # What ends a recording from outside.

    def stop(self, id: str, *, erase: bool) -> None:
        keys, timing = Keys.of(id), self._timing
        found = self._call(lambda client: client.hmget(keys.meta, "state", "proc", "head"))
        if found[0] is None:
            return
        state, process, ttl = found[0].decode(), found[1].decode(), json.loads(found[2])["ttl"]
        if erase:
            self._call(
                lambda client: client.eval(script.ERASE, 3, *asdict(keys).values(), milliseconds(timing.tombstone))
            )
            if state == "open":
                self._mail(process, id, "erase")
        elif state == "open" and not self._is_stopped_by(process, id, keys):
            times = milliseconds(ttl), milliseconds(timing.tombstone)
            self._call(lambda client: client.eval(script.END, 2, keys.meta, keys.data, "", EndReason.STOPPED, *times))

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

        if process == self._process:
            self._on_mail([(b"", {what.encode(): id.encode()})])
        else:
            self._call(send)

    def _on_mail(self, entries: Sequence[Entry]) -> None:
        for _, fields in entries:
            for what, id_ in fields.items():
                recording = self._own.get(id_.decode())
                if recording is None:
                    continue
                if recording.reason is None:
                    recording.cancel(EndReason.STOPPED)
                if what == b"erase":
                    self._uploads.forget(recording.id)
                    self._drop(recording.id)

    # Claims.

    def claim(self, key: str, claim: Claim, *, instead_of: Claim | None = None) -> Claim:
        self._start()
        mine = replace(claim, process=self._process)
        before = encode_claim(instead_of) if instead_of else ""
        expiry = milliseconds(self._timing.claim)

        def set_(client: Any) -> bytes:
            found: bytes = client.eval(script.CLAIM, 1, claim_key(key), encode_claim(mine), before, expiry)
            return found

        self._call(lambda _: self._alive())
        found = decode_claim(self._call(set_))
        if found == mine:
            self._claims[key] = mine
            self._wake_by(0.0)
        return found

    def is_alive(self, claim: Claim) -> bool:
        return claim.process == self._process or bool(self._call(lambda c: c.exists(alive_key(claim.process))))

    def release(self, key: str, claim: Claim) -> None:
        mine = self._claims.pop(key, None)
        if mine is not None:
            self._background(lambda client: client.eval(script.RELEASE, 1, claim_key(key), encode_claim(mine)))

    def _begin_claim(self, id: str, header: Header) -> None:
        mine = self._claims.get(header.claim)
        if mine is None or mine.id != id:
            return
        begun = replace(mine, has_begun=True)
        self._claims[header.claim] = begun
        arguments = encode_claim(begun), encode_claim(mine), milliseconds(self._timing.claim)
        self._background(lambda client: client.eval(script.CLAIM, 1, claim_key(header.claim), *arguments))

    # The writer.

    def _start(self) -> None:
        """Give the process its name and start its writer, with the first call: gunicorn forks before."""
        with self._lock:
            if self._process:
                return
            self._process = uuid.uuid4().hex
        self._thread = threading.Thread(target=self._write_all, name="sse-log", daemon=True)
        self._thread.start()

    @cached_property
    def _slots(self) -> threading.BoundedSemaphore:
        # Made with the first call: a lock that is made before gevent patches blocks the event loop.
        return threading.BoundedSemaphore(CONNECTIONS)

    @cached_property
    def _wake(self) -> threading.Event:
        return threading.Event()

    def _connection(self) -> Any:
        if self._client is None:
            # Two more are for the writer.
            self._client = self._connect(timeout=TIMEOUT, connections=CONNECTIONS + 2)
        return self._client

    def _call(self, operation: Callable[[Any], Any]) -> Any:
        """Return the result of an operation on the store.

        :raises Unavailable: if it fails.
        """
        # The client raises where all of its connections are in use; here the caller waits for one.
        is_queued = not self._slots.acquire(blocking=False)
        if is_queued and not self._slots.acquire(timeout=QUEUE_TIMEOUT):
            raise Unavailable
        try:
            if is_queued and self._is_down:
                raise Unavailable
            return operation(self._connection())
        except self._errors as error:
            self._mark(error)
            raise Unavailable from error
        finally:
            self._slots.release()

    def _background(self, operation: Callable[[Any], Any]) -> None:
        """Do what need not be waited for; what fails here expires by itself."""

        def run() -> None:
            try:
                self._call(operation)
            except Unavailable:
                return

        run_soon(run)

    def _mark(self, error: Exception | None) -> None:
        if error is not None and not self._is_down:
            log.warning("Redis unavailable (%s); recordings go on in memory", type(error).__name__)
        elif error is None and self._is_down:
            log.warning("Redis recovered; recordings are appended to it again")
        self._is_down = error is not None

    def _wake_by(self, due: float) -> None:
        if due < self._wakes_at:
            self._wakes_at = due
            self._wake.set()

    def _write_all(self) -> None:
        timing, unfollow = self._timing, None
        next_tick = 0.0
        while not self._is_closed:
            now = time.monotonic()
            # First, so that what becomes due while the next lines look wakes this thread.
            self._wakes_at = float("inf")
            due = min(self._uploads.next_due(), now + timing.look)
            is_busy = bool(len(self._uploads) or self._keys_of_readers or self._claims)
            self._wakes_at = min(due, next_tick, self._look_at) if is_busy else float("inf")
            self._wake.wait(max(0.0, self._wakes_at - now) if is_busy else None)
            self._wake.clear()
            if unfollow is None:
                unfollow = self._follower.follow(f"sse-log:{{mail}}:{self._process}", "0-0", self._on_mail)
            elif not is_busy:
                unfollow = unfollow()
            now = time.monotonic()
            try:
                # After an outage first of all, because other processes may take this one for dead.
                if now >= next_tick or self._is_down:
                    self._renew()
                    next_tick = now + timing.tick
                # What is due soon goes along, so that many recordings are appended with few calls.
                self._uploads.append_due(now + timing.linger / 2)
                if now >= self._look_at:
                    self._look_at = now + timing.look
                    self._look_after(now)
                self._mark(None)
            except self._errors as error:
                self._mark(error)
                self._postpone()
                time.sleep(timing.retry)

    def _postpone(self) -> None:
        """Append later, and give recorders of other processes time to report again."""
        self._uploads.renew()
        for reader in list(self._readers.values()):
            reader.heard_at = time.monotonic() + self._timing.retry

    def _on_written(self, recording: Recording) -> None:
        self._own.drop(recording.id)
        claim = self._claims.pop(recording.header.claim, None)
        if claim is not None:
            key, ttl = claim_key(recording.header.claim), milliseconds(recording.header.ttl)
            self._background(lambda client: client.pexpire(key, ttl))

    def _drop(self, id: str) -> None:
        """Read a recording from the store from now on; one that is not there yet stays."""
        if id not in self._uploads:
            self._own.drop(id)

    def _on_left(self, recording: Recording) -> None:
        if not recording.header.leave:
            self._look_at = 0.0
            self._wake_by(0.0)

    # What is done once in a while.

    def _look_after(self, now: float) -> None:
        """Stop recordings that have had no reader anywhere for too long, and look for recorders that have gone."""
        self._on_used(self.used)
        lonely = self._own.lonely(now)
        with self._connection().pipeline(transaction=False) as pipeline:
            for recording in lonely:
                pipeline.execute_command("EVAL", script.COUNT, 1, Keys.of(recording.id).readers)
            counts = pipeline.execute() if lonely else []
        for recording, count in zip(lonely, counts, strict=True):
            if count:
                recording.lonely_since = now
            else:
                recording.cancel(EndReason.CLIENT_GONE)
        for reader in list(self._readers.values()):
            if reader.reason is None and now - reader.heard_at >= self._timing.silence:
                reader.heard_at = now
                self._look_for_recorder(reader)

    def _look_for_recorder(self, reader: RemoteReader) -> None:
        client, keys = self._connection(), reader.keys
        if client.exists(alive_key(reader.process)):
            found = client.hmget(keys.meta, "state", "end")
        else:
            times = milliseconds(reader.header.ttl), milliseconds(self._timing.tombstone)
            found = client.eval(script.END, 2, keys.meta, keys.data, reader.generation, EndReason.RECORDER_LOST, *times)
        if not found or found[0] is None:
            # The store may have been flushed; a recorder that lives begins again within a tick.
            reader.misses += 1
            if reader.misses * self._timing.silence >= self._timing.alive:
                reader.end(EndReason.RECORDER_LOST, reader.known_end)
        elif found[0] != b"open":
            # The end marker may have been lost.
            reader.end(EndReason.STOPPED if found[0] == b"erased" else EndReason(found[0].decode()), int(found[1]))

    def _renew(self) -> None:
        """Renew what expires if this process dies."""
        timing = self._timing
        self._alive()
        self._uploads.renew()
        with self._connection().pipeline(transaction=False) as pipeline:
            for name, keys in list(self._keys_of_readers.items()):
                pipeline.execute_command("EVAL", script.JOIN, 1, keys.readers, name, timing.reader, 0)
            for key in list(self._claims):
                pipeline.pexpire(claim_key(key), milliseconds(timing.claim))
            pipeline.execute()

    def _alive(self) -> None:
        self._connection().set(alive_key(self._process), 1, px=milliseconds(self._timing.alive))

    @property
    def used(self) -> int:
        """Bytes that recordings take in the memory of this process."""
        return self._own.used()

    def has_written(self) -> bool:
        """Return whether all recordings of this process that have ended are in the store."""
        return self._uploads.has_written()
