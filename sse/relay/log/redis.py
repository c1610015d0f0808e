"""Recordings in a Redis or Valkey, which the processes of all hosts read.

The process that records keeps the ring in memory too and appends from it, so an append that failed is an append that
comes later. One thread (a greenlet where threads are patched) writes for all recordings of the process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import script
from .base import (
    CLIENT_GONE,
    COMPLETE,
    MAX_READERS,
    READ_SIZE,
    RECORDER_LOST,
    STOPPED,
    TOMBSTONE,
    BaseReader,
    Claim,
    Expired,
    Header,
    Interrupted,
    NotKept,
    Own,
    Reader,
    Recording,
    Snapshot,
    TooManyReaders,
    Trimmed,
    Unavailable,
    Wake,
)
from .follow import COUNT, Entry, Follower

log = logging.getLogger("sse")

#: Hash tags of the keys, so that all recordings of a Cluster's process are read with so many connections at most.
BUCKETS = 16
#: Entries that one pipeline appends for one recording.
BATCH_ENTRIES = 16
#: Bytes of a reader in another process that are read ahead of it.
READ_AHEAD = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long things may take, in seconds."""

    #: Until bytes are appended that no other process reads, and that one does.
    linger: float = 0.25
    linger_read: float = 0.015
    #: Between two renewals of what expires, and between two looks for recordings without readers.
    tick: float = 5.0
    look: float = 1.0
    #: Until the death of a process is noticed: its key expires, and a reader that has waited looks for it.
    alive: float = 15.0
    silence: float = 5.0
    #: Until a reader, an open recording, a claim and a tombstone expire that are not renewed.
    reader: int = 20
    open: float = 900.0
    claim: float = 60.0
    tombstone: float = TOMBSTONE
    #: Between two attempts while the store is unavailable.
    retry: float = 1.0
    #: Until a recording of another process is stopped without that process.
    stop: float = 0.6


#: Bytes after which an append does not linger.
FULL = 16 * 1024


@dataclass(frozen=True)
class Keys:
    """The keys of a recording. The id itself is a right to read, so it is not in the store."""

    meta: str
    data: str
    readers: str

    @classmethod
    def of(cls, id: str) -> Keys:
        digest = hashlib.sha256(id.encode()).hexdigest()[:40]
        prefix = f"sse-log:{{{int(digest[:4], 16) % BUCKETS}}}"
        return cls(f"{prefix}:m:{digest}", f"{prefix}:d:{digest}", f"{prefix}:r:{digest}")


@dataclass(eq=False)
class Upload:
    """A recording of this process on its way to the store."""

    recording: Recording
    keys: Keys
    generation: str
    #: Position up to which it is in the store, as far as is known.
    written: int = 0
    #: The end that the store has; it differs from `written` where bytes are lost.
    expected: int = 0
    #: When the bytes that are not in the store are due there, None if there are none.
    due: float | None = None
    has_ended: bool = False
    is_read: bool = False


class RedisLog:
    """A log in Redis; the contract is `Log`'s.

    :param connect: returns a client, given `timeout` in seconds and the number of `connections`.
    :param errors: what a client raises if the store is unavailable.
    :param max_bytes: bytes that are kept of one recording.
    :param memory: bytes that the recordings of this process may take in its own memory.
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
    ) -> None:
        self._connect = connect
        self._errors = errors
        self._timing = timing or Timing()
        self._max_bytes = max_bytes
        self._own = Own(max_bytes=max_bytes, memory=memory, clock=time.monotonic)
        self._uploads: dict[str, Upload] = {}
        self._readers: dict[str, RemoteReader] = {}
        self._keys_of_readers: dict[str, Keys] = {}
        self._claims: dict[str, Claim] = {}
        self._follower = Follower(connect, errors, is_cluster=is_cluster)
        self._process = ""
        self._client: Any = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._wakes_at = 0.0
        self._is_down = False

    def __len__(self) -> int:
        """Return how much this process looks after, be it a recording, a reader or a claim."""
        return len(self._own) + len(self._uploads) + len(self._keys_of_readers) + len(self._claims)

    # What a recorder calls.

    def create(self, id: str, header: Header, cancel: Callable[[str], None]) -> Recording | None:
        self._start()
        recording = self._own.admit(id, header, cancel, self._drop)
        if recording is None:
            return None
        upload = Upload(recording, Keys.of(id), uuid.uuid4().hex)
        try:
            self._create(upload)
        except self._errors as error:
            self._mark(error)
            self._drop(id)
            return None
        with self._lock:
            self._uploads[id] = upload
        # The store's writer is a reader of the ring.
        recording.bells.add(lambda: self._touch(upload))
        self._wake_by(0.0)
        if header.claim:
            self._begin_claim(id, header)
        return recording

    def finish(self, recording: Recording, reason: str) -> None:
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
        reason = None if state == "open" else state
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

    def fetch(self, keys: Keys, offset: int, limit: int = READ_AHEAD) -> bytes:
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
        reader = RemoteReader(self, keys, snapshot, offset, lambda: self._leave(name))
        self._readers[name] = reader
        return reader

    @property
    def retry_interval(self) -> float:
        """Seconds between two attempts while the store is unavailable."""
        return self._timing.retry

    def subscribe(self, keys: Keys, position: int, deliver: Callable[[Sequence[Entry]], None]) -> Callable[[], None]:
        """Call back with the entries behind a position."""
        return self._follower.follow(keys.data, f"{position}-0", deliver)

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
            self._call(lambda client: client.eval(script.ERASE, 3, *asdict(keys).values(), _ms(timing.tombstone)))
            if state == "open":
                self._mail(process, id, "erase")
        elif state == "open" and not self._is_stopped_by(process, id, keys):
            times = _ms(ttl), _ms(timing.tombstone)
            self._call(lambda client: client.eval(script.END, 2, keys.meta, keys.data, "", STOPPED, *times))

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
            client.pexpire(key, _ms(self._timing.claim))

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
                    recording.cancel(STOPPED)
                if what == b"erase":
                    self._uploads.pop(recording.id, None)
                    self._drop(recording.id)

    # Claims.

    def claim(self, key: str, claim: Claim, *, instead_of: Claim | None = None) -> Claim:
        self._start()
        mine = Claim(id=claim.id, fingerprint=claim.fingerprint, process=self._process)
        before = _encode_claim(instead_of) if instead_of else ""
        expiry = _ms(self._timing.claim)

        def set_(client: Any) -> bytes:
            found: bytes = client.eval(script.CLAIM, 1, _claim_key(key), _encode_claim(mine), before, expiry)
            return found

        self._call(lambda _: self._alive())
        found = _decode_claim(self._call(set_))
        if found == mine:
            self._claims[key] = mine
            self._wake_by(0.0)
        return found

    def is_alive(self, claim: Claim) -> bool:
        return claim.process == self._process or bool(self._call(lambda c: c.exists(_alive_key(claim.process))))

    def release(self, key: str, claim: Claim) -> None:
        mine = self._claims.pop(key, None)
        if mine is not None:
            self._background(lambda client: client.eval(script.RELEASE, 1, _claim_key(key), _encode_claim(mine)))

    def _begin_claim(self, id: str, header: Header) -> None:
        mine = self._claims.get(header.claim)
        if mine is None or mine.id != id:
            return
        begun = Claim(id=id, fingerprint=mine.fingerprint, process=self._process, has_begun=True)
        self._claims[header.claim] = begun
        arguments = _encode_claim(begun), _encode_claim(mine), _ms(self._timing.claim)
        self._background(lambda client: client.eval(script.CLAIM, 1, _claim_key(header.claim), *arguments))

    # The writer.

    def _start(self) -> None:
        """Give the process its name and start its writer, with the first call: gunicorn forks before."""
        with self._lock:
            if self._process:
                return
            self._process = uuid.uuid4().hex
        threading.Thread(target=self._write_all, name="sse-log", daemon=True).start()

    def _connection(self) -> Any:
        if self._client is None:
            self._client = self._connect(timeout=1.0, connections=16)
        return self._client

    def _call(self, operation: Callable[[Any], Any]) -> Any:
        """Return the result of an operation on the store.

        :raises Unavailable: if it fails.
        """
        try:
            return operation(self._connection())
        except self._errors as error:
            self._mark(error)
            raise Unavailable from error

    def _background(self, operation: Callable[[Any], Any]) -> None:
        """Do what need not be waited for; what fails here expires by itself."""

        def run() -> None:
            try:
                self._call(operation)
            except Unavailable:
                return

        threading.Thread(target=run, name="sse-log-call", daemon=True).start()

    def _mark(self, error: Exception | None) -> None:
        if error is not None and not self._is_down:
            log.warning("Redis unavailable (%s); recordings go on in memory", type(error).__name__)
        elif error is None and self._is_down:
            log.warning("Redis recovered; recordings are appended to it again")
        self._is_down = error is not None

    def _touch(self, upload: Upload) -> None:
        """Let what is new be appended in time; called for each event."""
        recording = upload.recording
        if upload.due is None:
            timing = self._timing
            upload.due = time.monotonic() + (timing.linger_read if upload.is_read else timing.linger)
            self._wake_by(upload.due)
        if recording.reason is not None or recording.end - upload.written >= FULL:
            upload.due = 0.0
            self._wake_by(0.0)

    def _wake_by(self, due: float) -> None:
        if due < self._wakes_at:
            self._wakes_at = due
            self._wake.set()

    def _write_all(self) -> None:
        timing, unfollow = self._timing, None
        next_tick = next_look = 0.0
        while True:
            now = time.monotonic()
            # First, so that what becomes due while the next lines look wakes this thread.
            self._wakes_at = float("inf")
            due = min((u.due for u in list(self._uploads.values()) if u.due is not None), default=now + timing.look)
            is_busy = bool(self._uploads or self._keys_of_readers or self._claims)
            self._wakes_at = min(due, next_tick, next_look) if is_busy else float("inf")
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
                self._append([u for u in list(self._uploads.values()) if u.due is not None and u.due <= now])
                if now >= next_look:
                    self._look_after(now)
                    next_look = now + timing.look
                self._mark(None)
            except self._errors as error:
                self._mark(error)
                self._postpone()
                time.sleep(timing.retry)

    def _postpone(self) -> None:
        """Append later, and give recorders of other processes time to be heard of again."""
        for upload in list(self._uploads.values()):
            upload.due = 0.0
        for reader in list(self._readers.values()):
            reader.heard_at = time.monotonic() + self._timing.retry

    def _append(self, uploads: Iterable[Upload]) -> None:
        """Append what is new of some recordings, in one pipeline."""
        with self._connection().pipeline(transaction=False) as pipeline:
            sent = [(upload, *entry) for upload in uploads for entry in self._entries(upload)]
            for upload, expected, start, data, reason in sent:
                self._queue(pipeline, upload, expected, start, data, reason)
            results = pipeline.execute(raise_on_error=False) if sent else []
        failed: set[Upload] = set()
        for (upload, _, start, data, reason), result in zip(sent, results, strict=True):
            if upload not in failed and not self._has_appended(upload, start + len(data), reason, result):
                failed.add(upload)

    def _entries(self, upload: Upload) -> list[tuple[int, int, bytes, str]]:
        """Return what is to be appended: the end that is expected, the position, the bytes and the reason."""
        recording, entries = upload.recording, list[tuple[int, int, bytes, str]]()
        reason, end = recording.reason, recording.end
        expected, start = upload.expected, max(upload.written, recording.start)
        upload.due = None
        while len(entries) < BATCH_ENTRIES:
            data = recording.read(start, min(READ_SIZE, end - start))
            is_last = start + len(data) == end
            entries.append((expected, start, data, (reason or "") if is_last else ""))
            expected = start = start + len(data)
            if is_last:
                return entries
        upload.due = 0.0
        return entries

    def _queue(self, pipeline: Any, upload: Upload, expected: int, start: int, data: bytes, reason: str) -> None:
        timing = self._timing
        times = _ms(timing.open), _ms(upload.recording.header.ttl), _ms(timing.tombstone)
        arguments = upload.generation, expected, start, data, self._max_bytes, reason, *times
        pipeline.eval(script.APPEND, 3, upload.keys.meta, upload.keys.data, upload.keys.readers, *arguments)

    def _has_appended(self, upload: Upload, end: int, reason: str, result: Any) -> bool:
        """Take a reply of the store into account; return whether the bytes are there."""
        if isinstance(result, Exception):
            upload.due = 0.0
            if isinstance(result, self._errors):
                raise result
            raise TypeError("unexpected reply") from result
        word, value = result[0], result[1]
        if word == b"ok":
            upload.written = upload.expected = end
            upload.is_read = value > 0
            if reason:
                self._has_finished(upload)
            return True
        upload.due = 0.0
        if word == b"missing":
            self._create_again(upload)
        elif word == b"moved" and int(value) <= upload.recording.end:
            # An append whose reply was lost, or a tail that the store has lost.
            upload.expected = upload.written = int(value)
        else:
            self._is_fenced(upload, value.decode())
        return False

    def _create(self, upload: Upload) -> None:
        header = json.dumps(asdict(upload.recording.header), separators=(",", ":"))
        arguments = upload.generation, upload.written, self._process, header, _ms(self._timing.open)
        # The process is known to live before anything says that it records.
        with self._connection().pipeline(transaction=False) as pipeline:
            pipeline.set(_alive_key(self._process), 1, px=_ms(self._timing.alive))
            pipeline.eval(script.CREATE, 1, upload.keys.meta, *arguments)
            pipeline.execute()

    def _create_again(self, upload: Upload) -> None:
        """Append everything again that is in memory: the store has lost it, by a flush or an eviction."""
        upload.written = upload.expected = upload.recording.start
        self._create(upload)

    def _is_fenced(self, upload: Upload, state: str) -> None:
        """Stop a recorder that another process has taken for dead, or whose recording was stopped or erased."""
        recording = upload.recording
        self._uploads.pop(recording.id, None)
        self._drop(recording.id)
        if recording.reason is None:
            recording.cancel(STOPPED if state in (STOPPED, "erased") else RECORDER_LOST)

    def _has_finished(self, upload: Upload) -> None:
        recording = upload.recording
        self._uploads.pop(recording.id, None)
        self._drop(recording.id)
        claim = self._claims.pop(recording.header.claim, None)
        if claim is not None:
            key, ttl = _claim_key(recording.header.claim), _ms(recording.header.ttl)
            self._background(lambda client: client.pexpire(key, ttl))

    def _drop(self, id: str) -> None:
        """Read a recording from the store from now on; one that is not there yet stays."""
        if id not in self._uploads:
            self._own.drop(id)

    def _on_left(self, recording: Recording) -> None:
        if not recording.header.leave:
            self._wake_by(0.0)

    # What is done once in a while.

    def _look_after(self, now: float) -> None:
        """Stop recordings that have had no reader anywhere for too long, and look for recorders that have gone."""
        lonely = self._own.lonely(now)
        with self._connection().pipeline(transaction=False) as pipeline:
            for recording in lonely:
                pipeline.eval(script.COUNT, 1, Keys.of(recording.id).readers)
            counts = pipeline.execute() if lonely else []
        for recording, count in zip(lonely, counts, strict=True):
            if count:
                recording.lonely_since = now
            else:
                recording.cancel(CLIENT_GONE)
        for reader in list(self._readers.values()):
            if reader.reason is None and now - reader.heard_at >= self._timing.silence:
                reader.heard_at = now
                self._look_for_recorder(reader)

    def _look_for_recorder(self, reader: RemoteReader) -> None:
        client, keys = self._connection(), reader.keys
        if client.exists(_alive_key(reader.process)):
            found = client.hmget(keys.meta, "state", "end")
        else:
            times = _ms(reader.header.ttl), _ms(self._timing.tombstone)
            found = client.eval(script.END, 2, keys.meta, keys.data, reader.generation, RECORDER_LOST, *times)
        if not found or found[0] is None:
            # The store may have been flushed; a recorder that lives begins again within a tick.
            reader.misses += 1
            if reader.misses * self._timing.silence >= self._timing.alive:
                reader.end(RECORDER_LOST, reader.known_end)
        elif found[0] != b"open":
            # The end marker may have been lost.
            reader.end(STOPPED if found[0] == b"erased" else found[0].decode(), int(found[1]))

    def _renew(self) -> None:
        """Renew what expires if this process dies."""
        timing = self._timing
        self._alive()
        for upload in list(self._uploads.values()):
            # An append of nothing renews the keys, and finds what the store has lost.
            upload.due = upload.due or 0.0
        with self._connection().pipeline(transaction=False) as pipeline:
            for name, keys in list(self._keys_of_readers.items()):
                pipeline.eval(script.JOIN, 1, keys.readers, name, timing.reader, 0)
            for key in list(self._claims):
                pipeline.pexpire(_claim_key(key), _ms(timing.claim))
            pipeline.execute()

    def _alive(self) -> None:
        self._connection().set(_alive_key(self._process), 1, px=_ms(self._timing.alive))

    @property
    def used(self) -> int:
        """Bytes that recordings take in the memory of this process."""
        return self._own.used()

    def has_written(self) -> bool:
        """Return whether all recordings of this process that have ended are in the store."""
        return all(upload.recording.reason is None for upload in list(self._uploads.values()))


class RemoteReader(BaseReader):
    """A reader of what another process records, or has recorded."""

    def __init__(self, log: RedisLog, keys: Keys, snapshot: Snapshot, offset: int, on_close: Wake) -> None:
        super().__init__(snapshot.header, offset, on_close)
        self.keys = keys
        self.process = snapshot.process
        self.generation = snapshot.generation
        self.reason = snapshot.reason
        #: Position up to which the store has bytes, as far as is known.
        self.known_end = snapshot.end
        #: When there was the last sign of the recorder, and how often there was no trace of the recording.
        self.heard_at = time.monotonic()
        self.misses = 0
        self._log = log
        self._lock = threading.Lock()
        #: Bytes that were read ahead, and the position behind them.
        self._ready = bytearray()
        self._have = offset
        self._error: Exception | None = None
        self._is_fetching = self._is_closed = False
        self._unfollow = log.subscribe(keys, snapshot.end, self._deliver) if self.reason is None else None

    def _next(self) -> bytes | None:
        with self._lock:
            piece = bytes(self._ready[:READ_SIZE])
            del self._ready[: len(piece)]
        if piece:
            return piece
        if self._error is not None:
            raise self._error
        if self._have < self.known_end:
            self._fetch_soon()
            return None
        if self.reason == COMPLETE:
            return b""
        if self.reason is not None:
            raise Interrupted(self.reason)
        return None

    def _is_ready(self) -> bool:
        is_at_end = self._have >= self.known_end and self.reason is not None
        if not (self._ready or is_at_end or self._error or self._is_cancelled) and self._have < self.known_end:
            self._fetch_soon()
            return False
        return bool(self._ready or is_at_end or self._error or self._is_cancelled)

    def _deliver(self, entries: Sequence[Entry]) -> None:
        """Take what was appended: bytes that follow at once, others only as something to fetch."""
        self.heard_at, self.misses = time.monotonic(), 0
        with self._lock:
            for id_, fields in entries:
                end, piece = int(id_.partition(b"-")[0]), fields.get(b"b", b"")
                if b"r" in fields:
                    self.reason = fields[b"r"].decode()
                elif self._have == end - len(piece) and len(self._ready) < READ_AHEAD and not self._is_fetching:
                    self._ready += piece
                    self._have = end
                self.known_end = max(self.known_end, end)
        self._bells.ring()

    def end(self, reason: str, end: int) -> None:
        """End the recording as other processes see it."""
        self.reason, self.known_end = reason, end
        self._bells.ring()

    def _fetch_soon(self) -> None:
        if not self._is_fetching:
            self._is_fetching = True
            threading.Thread(target=self._fetch, name="sse-log-fetch", daemon=True).start()

    def _fetch(self) -> None:
        try:
            data = self._log.fetch(self.keys, self._have)
            if not data and self._have < self.known_end:
                # What was there has gone: a flush, an eviction, a failover.
                raise Trimmed(self.known_end)
            with self._lock:
                self._ready += data
                self._have += len(data)
        except Trimmed as error:
            self._error = error
        except Unavailable:
            time.sleep(self._log.retry_interval)
        self._is_fetching = False
        if not self._is_closed:
            self._bells.ring()

    def close(self) -> None:
        self._is_closed = True
        unfollow, self._unfollow = self._unfollow, None
        if unfollow is not None:
            unfollow()
        super().close()


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _alive_key(process: str) -> str:
    return f"sse-log:p:{process}"


def _claim_key(key: str) -> str:
    return f"sse-log:c:{key}"


def _encode_claim(claim: Claim) -> str:
    return " ".join((claim.id, claim.fingerprint, claim.process, "1" if claim.has_begun else "0"))


def _decode_claim(text: bytes) -> Claim:
    id_, fingerprint, process, has_begun = text.decode().split(" ")
    return Claim(id=id_, fingerprint=fingerprint, process=process, has_begun=has_begun == "1")
