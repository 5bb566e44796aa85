"""The k texts with the smallest keys of a stream, whatever the order of the stream and its split into parts.

A text's hash is a function of the seed and its id alone. It draws at random (the texts with the smallest hashes are a
uniform sample without replacement) and breaks ties of equal keys.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.moderation.measures.ranking import Floats

Hashes = NDArray[np.uint64]
Strings = NDArray[np.object_]


def hashes_of(ids: Sequence[str], seed: int) -> Hashes:
    """Return a hash of each id, (n,), uniform in 64 bits and keyed by the seed."""
    key = seed.to_bytes(16, "little")

    def one(text_id: str) -> bytes:
        return hashlib.blake2b(text_id.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()

    return np.frombuffer(b"".join(map(one, ids)), dtype="<u8").astype(np.uint64)


def uniform(hashes: Hashes) -> Floats:
    """Return a number in the open interval (0, 1) for each hash."""
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


@dataclass(frozen=True)
class Candidates:
    """Texts in the order of (key, hash, id), each id once: those of a stream with the smallest keys. All (m,)."""

    keys: Floats
    hashes: Hashes
    ids: Strings
    groups: Strings

    def __len__(self) -> int:
        return len(self.keys)

    def by_hash(self) -> "Candidates":
        """Return the same texts in the order of their hashes: a random order."""
        return self.take(np.lexsort((self.ids.astype(str), self.hashes)))

    def take(self, index: Any) -> "Candidates":
        return Candidates(self.keys[index], self.hashes[index], self.ids[index], self.groups[index])


def no_candidates() -> Candidates:
    empty = np.empty(0, dtype=object)
    return Candidates(np.empty(0), np.empty(0, dtype=np.uint64), empty, empty)


def smallest(parts: Sequence[Candidates], capacity: int) -> Candidates:
    """Return the `capacity` texts with the smallest keys of all parts.

    An id that occurs several times counts once, with its smallest key. The result depends on neither order nor split.
    """
    keys = np.concatenate([part.keys for part in parts])
    hashes = np.concatenate([part.hashes for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    groups = np.concatenate([part.groups for part in parts])
    if not len(keys):
        return no_candidates()
    order = np.lexsort((groups.astype(str), ids.astype(str), hashes, keys))
    _, first = np.unique(ids[order].astype(str), return_index=True)
    kept = order[np.sort(first)][:capacity]
    return Candidates(keys[kept], hashes[kept], ids[kept], groups[kept])


def candidates_json(candidates: Candidates) -> dict[str, Any]:
    """Return a JSON value that `read_candidates` reads. A hash is text, because JSON readers round large integers."""
    return {
        "keys": candidates.keys.tolist(),
        "hashes": [f"{value:016x}" for value in candidates.hashes.tolist()],
        "ids": candidates.ids.tolist(),
        "groups": candidates.groups.tolist(),
    }


def read_candidates(value: Any, *, where: str) -> Candidates:
    """Return the candidates of a parsed JSON value. ConfigError: the value is something else."""
    try:
        columns = [value["keys"], value["hashes"], value["ids"], value["groups"]]
        if len({len(column) for column in columns}) != 1 or not all(
            isinstance(text, str) for column in columns[1:] for text in column
        ):
            raise ValueError
        keys = np.array(columns[0], dtype=np.float64)
        hashes = np.array([int(text, 16) for text in columns[1]], dtype=np.uint64)
        if not np.isfinite(keys).all():
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ConfigError(f"{where} is damaged: remove it to start the selection again.") from None
    return Candidates(keys, hashes, _strings(columns[2]), _strings(columns[3]))


def candidates_of(keys: Floats, hashes: Hashes, ids: Sequence[str], groups: Sequence[str]) -> Candidates:
    """Return texts as candidates, in any order. All (n,)."""
    return Candidates(keys, hashes, _strings(ids), _strings(groups))


def _strings(values: Sequence[str]) -> Strings:
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found
