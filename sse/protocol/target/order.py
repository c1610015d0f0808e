"""Orders the targets of an upstream by weighted rendezvous hashing, which is the same in every process and host."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping


def order_targets(affinity: str, weights: Mapping[str, float]) -> list[str]:
    """Return the ids of an upstream's targets, the one to try first at the beginning.

    The same affinity value gives the same order as long as the targets stay, so the caches of its prompts stay warm; a
    target that is taken out moves only the values that it had. Over many values each target comes first in proportion
    to its weight (highest random weight, with the score -weight / ln(hash)).

    :param affinity: what keeps to one target: a client's name, a field's value.
    :param weights: id -> weight, more than 0.
    """
    return sorted(weights, key=lambda target: (-_score(affinity, target, weights[target]), target))


def _score(affinity: str, target: str, weight: float) -> float:
    text = f"{len(affinity)}:{affinity}{target}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    # Of 53 bits, which a float holds, and between 0 and 1, so that the logarithm is neither 0 nor infinite.
    return -weight / math.log(((number >> 11) + 1) / (2**53 + 2))
