"""What a log promises, whatever store it is in."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading

import pytest

from sse.errors import StreamNotFound
from sse.relay.log.base import (
    MAX_READERS,
    Claim,
    Expired,
    Interrupted,
    TooManyReaders,
    Trimmed,
)
from sse.relay.stream.end import EndReason

from ...support.ending import eventually
from ...support.log import Store, header, read_all
from ...support.service import ROOT

BODY = "\ufeffdata: 流\r\n\r\ndata: \U0001f30a\n\n".encode()


def test_every_position_gives_exactly_the_rest(store: Store) -> None:
    recording = store.create()
    for at in range(0, len(BODY), 3):
        recording.append(BODY[at : at + 3])
    store.log.finish(recording, EndReason.COMPLETE)
    for at in range(len(BODY) + 1):
        reader = store.reader(recording.id, at)
        assert read_all(reader) == BODY[at:]
        assert reader.offset == len(BODY)
        reader.close()


def test_what_is_there_can_be_read_without_following(store: Store) -> None:
    recording = store.create()
    recording.append(BODY)
    eventually(lambda: store.other.look(recording.id).end == len(BODY), "not in the store")
    for at in range(len(BODY) + 1):
        assert store.other.read(recording.id, at, 5) == BODY[at : at + 5]
    assert store.other.read(recording.id, 0, 1 << 20) == BODY
    assert store.other.read(recording.id, len(BODY) + 7, 5) == b""


def test_a_reader_before_the_first_byte_gets_all(store: Store) -> None:
    recording = store.create()
    reader = store.reader(recording.id)
    assert reader.read() is None
    recording.append(b"a")
    reader.wait(10)
    assert reader.read() == b"a"
    assert reader.read() is None
    reader.close()


def test_a_pause_does_not_hold_the_last_bytes_back(store: Store) -> None:
    """A token and then a minute of silence: the token is there at once, not with the next one."""
    recording = store.create()
    reader = store.reader(recording.id)
    recording.append(b"one")
    reader.wait(10)
    assert reader.read() == b"one"
    recording.append(b"two")
    reader.wait(10)
    assert reader.read() == b"two"
    reader.close()


def test_the_last_bytes_and_the_end_come_together(store: Store) -> None:
    """Another server's live reader lost what was appended together with the end."""
    for _ in range(50):
        recording = store.create()
        reader = store.reader(recording.id)
        recording.append(b"first")
        reader.wait(10)
        recording.append(b"last")
        store.log.finish(recording, EndReason.COMPLETE)
        assert read_all(reader) == b"firstlast"
        reader.close()


def test_readers_that_come_while_it_grows_miss_nothing(store: Store) -> None:
    """A thousand times, at any moment of the appending: no byte is lost and none comes twice."""
    failures: list[int] = []

    def attach(id_: str, body: bytes) -> None:
        at = int.from_bytes(os.urandom(2), "big") % 5_000
        reader = store.reader(id_, at)
        if read_all(reader) != body[at:]:
            failures.append(at)
        reader.close()

    for _ in range(1000 // MAX_READERS):
        recording, body = store.create(), os.urandom(20_000)
        threads = [threading.Thread(target=attach, args=(recording.id, body)) for _ in range(MAX_READERS)]
        for number, at in enumerate(range(0, len(body), 1000)):
            recording.append(body[at : at + 1000])
            if number % 2 == 0 and number < 2 * MAX_READERS:
                threads[number // 2].start()
        store.log.finish(recording, EndReason.COMPLETE)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert not failures


def test_an_interrupted_recording_never_looks_complete(store: Store) -> None:
    recording = store.create()
    recording.append(b"ab")
    store.log.finish(recording, EndReason.UPSTREAM_TRUNCATED)
    eventually(lambda: store.other.look(recording.id).reason is not None, "the end is not in the store")
    reader = store.reader(recording.id, 1)
    while (piece := reader.read()) is None:
        reader.wait(10)
    assert piece == b"b"
    with pytest.raises(Interrupted, match="upstream_truncated"):
        reader.read()
    reader.close()


def test_an_empty_recording_can_be_complete(store: Store) -> None:
    recording = store.create()
    store.log.finish(recording, EndReason.COMPLETE)
    reader = store.reader(recording.id)
    assert read_all(reader) == b""
    reader.close()
    assert store.other.look(recording.id).end == 0


def test_a_snapshot_says_what_the_recorder_said(store: Store) -> None:
    recording = store.create(status=201, leave=0.5, fields=(("Content-Type", "text/plain; charset=utf-8"),))
    found = store.other.look(recording.id)
    assert found.header == recording.header
    assert (found.start, found.end, found.reason) == (0, 0, None)


def test_the_ring_drops_the_oldest_bytes(store: Store) -> None:
    recording = store.create()
    for number in range(30):
        recording.append(bytes([number]) * 100_000)
    store.log.finish(recording, EndReason.COMPLETE)
    eventually(lambda: store.other.look(recording.id).reason is not None, "the end is not in the store")
    found = store.other.look(recording.id)
    assert found.end == 3_000_000
    assert 1_000_000 <= found.end - found.start <= 1_300_000
    with pytest.raises(Trimmed) as caught:
        store.other.read(recording.id, 0, 10)
    assert caught.value.start == found.start
    kept = store.reader(recording.id, found.start)
    assert len(read_all(kept)) == found.end - found.start
    kept.close()
    late = store.reader(recording.id, 5)
    with pytest.raises(Trimmed):
        while late.read() is None:
            late.wait(10)
    late.close()


def test_a_reader_that_the_ring_overtakes_gets_an_error(store: Store) -> None:
    recording = store.create()
    reader = store.reader(recording.id)
    recording.append(b"x" * 10)
    reader.wait(10)
    assert reader.read() == b"x" * 10
    for _ in range(40):
        recording.append(b"y" * 100_000)
    store.log.finish(recording, EndReason.COMPLETE)
    eventually(lambda: store.other.look(recording.id).reason is not None, "the end is not in the store")
    with pytest.raises(Trimmed):
        # It may have been read ahead of, but never beyond the gap.
        while True:
            if reader.read() is None:
                reader.wait(10)
    reader.close()


def test_readers_of_one_recording_are_bounded(store: Store) -> None:
    recording = store.create()
    readers = [store.reader(recording.id) for _ in range(MAX_READERS)]
    with pytest.raises(TooManyReaders):
        store.reader(recording.id)
    readers.pop().close()
    found: list[object] = []

    def joins() -> bool:
        try:
            found.append(store.reader(recording.id))
        except TooManyReaders:
            return False
        return True

    eventually(joins, "a reader that left is still counted")


def test_an_unknown_id_is_not_kept(store: Store) -> None:
    with pytest.raises(StreamNotFound):
        store.other.look("unknown")
    store.other.stop("unknown", erase=True)


def test_an_expired_recording_is_known_for_a_while(store: Store) -> None:
    recording = store.create()
    recording.append(b"a")
    store.log.finish(recording, EndReason.COMPLETE)
    eventually(lambda: store.other.look(recording.id).reason is not None, "the end is not in the store")
    store.expire(recording.id)
    with pytest.raises(Expired) as caught:
        store.other.look(recording.id)
    assert caught.value.owner == "name:ada"


def test_stopping_keeps_the_bytes_and_stops_the_recorder(store: Store) -> None:
    recording = store.create()
    recording.append(b"kept")
    store.other.stop(recording.id, erase=False)
    eventually(lambda: store.stops[recording.id] == [EndReason.STOPPED], "the recorder goes on")
    store.log.finish(recording, EndReason.STOPPED)
    eventually(lambda: store.other.look(recording.id).reason == EndReason.STOPPED, "it is not stopped")
    eventually(lambda: store.other.read(recording.id, 0, 10) == b"kept", "the bytes are gone")
    store.other.stop(recording.id, erase=False)


def test_erasing_stops_the_recorder_and_keeps_nothing(store: Store) -> None:
    recording = store.create()
    recording.append(b"gone")
    store.other.stop(recording.id, erase=True)
    with pytest.raises(Expired):
        store.other.look(recording.id)
    eventually(lambda: store.stops[recording.id][:1] == [EndReason.STOPPED], "the recorder goes on")
    recording.append(b"more")
    store.log.finish(recording, EndReason.STOPPED)
    with pytest.raises(Expired):
        store.log.look(recording.id)
    store.other.stop(recording.id, erase=True)


def test_a_recording_without_a_reader_is_stopped(store: Store) -> None:
    recording = store.create(leave=0.0)
    first, second = store.reader(recording.id), store.reader(recording.id)
    own = store.log.attend(recording)
    own.close()
    first.close()
    assert not store.stops[recording.id]
    second.close()
    eventually(lambda: store.stops[recording.id][:1] == [EndReason.CLIENT_GONE], "it goes on without a reader")


def test_a_recording_goes_on_while_it_may_have_no_reader(store: Store) -> None:
    recording = store.create(leave=1000.0)
    store.log.attend(recording).close()
    recording.append(b"a")
    eventually(lambda: store.other.read(recording.id, 0, 5) == b"a", "it does not go on")
    assert not store.stops[recording.id]


def test_a_key_is_claimed_once(store: Store) -> None:
    key = secrets.token_hex(16)
    mine, other = Claim(id="one", fingerprint="f"), Claim(id="two", fingerprint="g")
    found = store.log.claim(key, mine)
    assert (found.id, found.fingerprint, found.has_begun) == ("one", "f", False)
    found = store.other.claim(key, other)
    assert (found.id, found.fingerprint) == ("one", "f")
    store.log.release(key, mine)
    eventually(lambda: store.other.claim(key, other).id == "two", "the key is not released")


def test_a_claim_can_be_taken_over_once(store: Store) -> None:
    key = secrets.token_hex(16)
    found = store.log.claim(key, Claim(id="one", fingerprint="f"))
    assert store.other.claim(key, Claim(id="two", fingerprint="f"), instead_of=found).id == "two"
    assert store.log.claim(key, Claim(id="three", fingerprint="f"), instead_of=found).id == "two"


def test_a_claim_knows_whether_its_recording_has_begun(store: Store) -> None:
    key, id_ = secrets.token_hex(16), secrets.token_urlsafe(16)
    store.log.claim(key, Claim(id=id_, fingerprint="f"))
    assert not store.other.claim(key, Claim(id="x", fingerprint="f")).has_begun
    recording = store.log.create(id_, header(claim=key), print)
    assert recording is not None
    eventually(lambda: store.other.claim(key, Claim(id="x", fingerprint="f")).has_begun, "it has not begun")


def test_many_threads_claim_one_key(store: Store) -> None:
    key, found = secrets.token_hex(16), []
    logs = [store.log, store.other] * 8

    def claim(number: int) -> None:
        found.append(logs[number].claim(key, Claim(id=str(number), fingerprint="f")).id)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(len(logs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == len(logs)
    assert len(set(found)) == 1


def test_all_of_this_with_gevents_threads() -> None:
    """The service's threads are greenlets; nothing in a log may then block the event loop."""
    if "gevent" in sys.modules and sys.modules["gevent"].monkey.is_module_patched("threading"):
        return
    code = (
        "from gevent import monkey; monkey.patch_all(); import pytest, sys;"
        f"sys.exit(pytest.main([{__file__!r}, '-n0', '-q', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
