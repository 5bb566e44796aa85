"""A beat survives its way through shared memory."""

import mmap
import struct

from parallel.health.heartbeat import FAILED, NOTE_AT, RUNNING, SIZE, Beat, read_beat, write_beat


def test_a_beat_is_read_as_it_was_written():
    shared = mmap.mmap(-1, SIZE)
    beat = Beat(7, 1234, 300.5, FAILED, "validation", note="ValueError: nö")
    write_beat(shared, beat)
    assert read_beat(shared) == beat


def test_long_names_and_notes_are_cut_and_the_last_note_stays():
    shared = mmap.mmap(-1, SIZE)
    write_beat(shared, Beat(1, 0, 1.0, FAILED, "p" * 99, note="n" * 9999))
    found = read_beat(shared)
    assert (found.phase, found.note) == ("p" * 24, "n" * (SIZE - NOTE_AT - 1))
    write_beat(shared, Beat(2, 0, 1.0, RUNNING, "data"))
    assert read_beat(shared).note == found.note
    assert struct.calcsize("<QqdB24s") < 63, "the alarm flag comes after it"
