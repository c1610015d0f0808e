"""What of recordings is in the store, under which keys, and for how long."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .base import TOMBSTONE, Claim

#: Hash tags of the keys, so that all recordings of a Cluster's process are read with so many connections at most.
BUCKETS = 16
#: The kind of the leases of readers.
READERS = "log:r"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long things may take, in seconds."""

    #: Until bytes are appended that no other process reads, and that one does.
    linger: float = 0.25
    linger_read: float = 0.015
    #: Between two renewals of what expires, and between two looks for recordings without readers.
    tick: float = 5.0
    look: float = 1.0
    #: Until the death of a process is noticed: what it has to renew expires, and a reader that has waited looks.
    alive: float = 15.0
    silence: float = 5.0
    #: Until a reader, an open recording, a claim that has begun and a tombstone expire that are not renewed.
    reader: int = 20
    open: float = 900.0
    claim: float = 60.0
    tombstone: float = TOMBSTONE
    #: Between two attempts while the store is unavailable.
    retry: float = 1.0
    #: Until a recording of another process is stopped without that process.
    stop: float = 0.6


@dataclass(frozen=True)
class Keys:
    """The keys of a recording. The id itself is a right to read, so it is not in the store."""

    meta: str
    data: str
    readers: str

    @classmethod
    def of(cls, id: str) -> Keys:
        digest = hashlib.sha256(id.encode()).hexdigest()[:40]
        name = f"{{{int(digest[:4], 16) % BUCKETS}}}:{digest}"
        return cls(f"sse-log:m:{name}", f"sse-log:d:{name}", f"sse-{READERS}:{name}")

    @property
    def lease(self) -> str:
        """Under what the leases of its readers are counted."""
        return self.readers.removeprefix(f"sse-{READERS}:")


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def claim_key(key: str) -> str:
    return f"sse-log:c:{key}"


def encode_claim(claim: Claim) -> str:
    return " ".join((claim.id, claim.fingerprint, claim.process, "1" if claim.has_begun else "0"))


def decode_claim(text: bytes) -> Claim:
    id_, fingerprint, process, has_begun = text.decode().split(" ")
    return Claim(id=id_, fingerprint=fingerprint, process=process, has_begun=has_begun == "1")
