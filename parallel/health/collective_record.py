"""Read a rank's collectives from torch's flight recorder, and find where ranks begin to differ. No torch."""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt.files.json_text import decode_json

ANSWER_TIMEOUT_S = 1.0
CONTEXT = 6  # preceding collectives that must match before we expect the same one to follow
RECENT = 12  # how many of the last collectives are checked; a rank that left one out stops within this number
BACKGROUND_GROUP = "checkpoints"  # the group of background saves, whose collectives come from a thread of their own


@dataclass(frozen=True)
class RecordedCollective:
    """One communication that a rank issued, as torch's flight recorder has it."""

    group: str  # torch's name of the process group, the same on all its ranks
    about: str  # the purpose of the group, if its creator gave one
    kind: str  # all_reduce, all_gather, ...
    number: int  # sequence number within its group
    sizes: str
    done: bool
    created_ns: int

    @property
    def is_background(self) -> bool:
        """Return whether it belongs to a background save, and so does not show how far training is."""
        return self.about == BACKGROUND_GROUP

    @property
    def signature(self) -> tuple[str, str, str]:
        """The parts that must be equal on all ranks of the group, and from step to step."""
        return self.group, self.kind, self.sizes

    def __str__(self) -> str:
        return f"{self.kind} {self.sizes}, number {self.number} of group {self.about}"


def read_collectives(socket_path: str) -> list[RecordedCollective] | None:
    """Ask the flight recorder of a process over its socket; oldest first. None if it does not answer.

    A thread of torch answers, without Python's global lock.
    """
    request = b"POST /handler/fr_trace_json HTTP/1.1\r\nHost: rank\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer, ends_at = b"", time.monotonic() + ANSWER_TIMEOUT_S
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect(socket_path)
            connection.sendall(request)
            while more := connection.recv(1 << 16):
                answer += more
                if time.monotonic() > ends_at:
                    return None
        return parse_collectives(decode_json(answer.partition(b"\r\n\r\n")[2]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def parse_collectives(trace: dict[str, Any]) -> list[RecordedCollective]:
    """Parse the entries of torch's flight recorder, format version 2."""
    collectives = []
    for entry in sorted(trace["entries"], key=lambda entry: int(entry["record_id"])):
        group, about = entry["process_group"]
        collectives.append(
            RecordedCollective(
                group=group,
                about=group if about in ("", "undefined") else about,
                kind=str(entry["profiling_name"]).partition(":")[2] or entry["profiling_name"],
                number=int(entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]),
                sizes=f"{entry['input_sizes']} {'/'.join(sorted(set(entry['input_dtypes'])))}".strip(),
                done=bool(entry["retired"]) or entry["state"] == "completed",
                created_ns=int(entry["time_created_ns"]),
            )
        )
    return collectives


def departures(collectives: Sequence[RecordedCollective]) -> list[str]:
    """Describe where a rank left its pattern: it left a collective out, or issued one too many.

    Training repeats itself: the same CONTEXT collectives are followed by the same one in every step. Only the last
    RECENT collectives are checked, against all earlier ones.
    """
    signatures = [collective.signature for collective in collectives]
    abouts = {collective.group: collective.about for collective in collectives}
    followers: dict[tuple[Any, ...], dict[tuple[str, str, str], int]] = {}
    found = []
    for i in range(CONTEXT, len(signatures)):
        known = followers.setdefault(tuple(signatures[i - CONTEXT : i]), {})
        times = sum(known.values())
        if known and signatures[i] not in known and times >= 2 and i >= len(signatures) - RECENT:
            usual = " or ".join(f"{kind} {sizes} of group {abouts[group]}" for group, kind, sizes in known)
            found.append(f"{collectives[i]} came where {usual} had come {times} times before")
        known[signatures[i]] = known.get(signatures[i], 0) + 1
    return found
