"""The shared memory between a rank and its monitor: what the rank is doing, and how long it may take. No torch.

The monitor reads without a lock and may see half of a beat, so it trusts only a state that it has seen twice.
"""

import struct
from dataclasses import dataclass
from mmap import mmap

LAYOUT = struct.Struct("<QqdB24s")  # number of the beat, step, allowed seconds, status, phase
ALARM_AT, NOTE_AT, SIZE = 63, 64, 1024  # byte offsets of the alarm flag and of the note; size of the whole
RUNNING, LOST, FAILED, ENDED = range(4)
STATUS = ("running", "lost its peers", "failed", "ended")


@dataclass(frozen=True)
class Beat:
    """The last state that a rank reported. `note` is the error, if it lost its peers or failed."""

    number: int
    step: int
    allowed_s: float
    status: int
    phase: str
    note: str = ""


def write_beat(shared: mmap, beat: Beat) -> None:
    """Write a beat. The note comes first, because the status refers to it."""
    if beat.note:
        text = beat.note.encode()[: SIZE - NOTE_AT - 1]
        shared[NOTE_AT : NOTE_AT + len(text) + 1] = text + b"\0"
    LAYOUT.pack_into(shared, 0, beat.number, beat.step, beat.allowed_s, beat.status, beat.phase.encode()[:24])


def read_beat(shared: mmap) -> Beat:
    """Read the last beat."""
    number, step, allowed_s, status, phase = LAYOUT.unpack_from(shared, 0)
    note = shared[NOTE_AT:SIZE].partition(b"\0")[0].decode(errors="replace")
    return Beat(number, step, allowed_s, status, phase.rstrip(b"\0").decode(errors="replace"), note)
