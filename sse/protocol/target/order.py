"""Orders the targets of an upstream by weighted rendezvous hashing, which is the same in every process and host."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from .entry import UpstreamTarget


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
