"""What can be seen of one process from outside: stacks, collectives, state, sockets; decides nothing, imports no torch.

All of it also answers while another thread of that process holds Python's global lock.
"""

import ctypes
import json
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER_S = 1.0  # so long may a process take to show its stacks, and again to tell its collectives
CONTEXT = 6  # so many collectives must have come before, for what then followed to be expected again
LATELY = 12  # so many of the last ones are looked at: who left one out comes no further than to one that does not fit
BESIDE = "checkpoints"  # the group of saves beside training, whose collectives a thread of their own issues
CRASHES = {
    "Aborted": "SIGABRT",
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
}
STOPPED = "Tt"  # states of a process that a signal or a debugger holds


@dataclass(frozen=True)
class Collective:
    """One communication that a rank issued, as torch's flight recorder has it."""

    group: str  # torch's name of the process group, the same on all its ranks
    about: str  # what the group is for, where whoever made it has said so
    kind: str  # all_reduce, all_gather, ...
    number: int  # the how manieth of its group
    sizes: str
    done: bool
    created_ns: int

    @property
    def is_beside(self) -> bool:
        """Of a save beside training: it says nothing of where training stands."""
        return self.about == BESIDE

    @property
    def what(self) -> tuple[str, str, str]:
        """What must be equal on all ranks of the group, and from step to step."""
        return self.group, self.kind, self.sizes

    def __str__(self) -> str:
        return f"{self.kind} {self.sizes}, number {self.number} of group {self.about}"


@dataclass(frozen=True)
class Link:
    """A TCP connection whose other end does not acknowledge what was sent."""

    local: str
    remote: str
    unacknowledged_bytes: int
    retransmits: int


# ---- the process, as the kernel shows it ----------------------------------------------------------------------------


def process_state(pid: int) -> str:
    """R, S, D, T, Z and so on, see proc(5); empty when there is no such process."""
    return _stat_fields(pid)[0]


def process_started_at(pid: int) -> str:
    """A number that tells the process from a later one with its pid; empty when there is no such process."""
    fields = _stat_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def is_alive(pid: int, started_at: str) -> bool:
    """Whether the process still runs: not a later one with its pid, nor what is left of it until its parent looks."""
    fields = _stat_fields(pid)
    return len(fields) > 19 and fields[19] == started_at and fields[0] not in "ZX"


def signal_of_death(pid: int) -> str:
    """What signal ended the process, "" where none did; "" as well once its parent has looked."""
    fields = _stat_fields(pid)
    if fields[0] != "Z" or len(fields) < 50:
        return ""
    number = int(fields[49]) & 0x7F  # the status as wait(2) has it
    names = {known.value: known.name for known in signal.Signals}
    return names.get(number, f"signal {number}") if number else ""


def catches(pid: int, signal_number: int) -> bool:
    """Whether the process has a handler for the signal, which would end it otherwise."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal_number - 1) & 1)


def waits_in_kernel(pid: int) -> str:
    """The kernel's function in which the main thread waits, where the kernel tells it."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text(encoding="ascii").strip("0\n")
    except OSError:
        return ""


def dead_links(pid: int) -> list[Link]:
    """Connections of the process that send again and again: its peer's machine, or the network between, is silent."""
    inodes = set()
    for entry in _list(f"/proc/{pid}/fd"):
        target = _link_target(f"/proc/{pid}/fd/{entry}")
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return [link for inode, link in _tcp_links(pid) if inode in inodes and link.retransmits >= 2]


def addresses_of(pid: int) -> list[str]:
    """IP addresses from which the process speaks."""
    inodes = {_link_target(f"/proc/{pid}/fd/{entry}")[8:-1] for entry in _list(f"/proc/{pid}/fd")}
    found = {link.local.rpartition(":")[0] for inode, link in _tcp_links(pid) if inode in inodes}
    return sorted(found - {"0.0.0.0", "::"})


def _tcp_links(pid: int) -> list[tuple[str, Link]]:
    """Every TCP connection of the process's network: its inode, and what is known of it. See proc(5), /proc/net/tcp."""
    links = []
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            timer, retransmits = fields[5].partition(":")[0], int(fields[6], 16)
            sends_again = retransmits if timer == "01" else 0  # another timer: the peer is there, but does not read
            link = Link(_address(fields[1]), _address(fields[2]), int(fields[4].partition(":")[0], 16), sends_again)
            links.append((fields[9], link))
    return links


def _address(text: str) -> str:
    """'0100007F:1F90' is 127.0.0.1:8080; 32-bit words in this machine's order."""
    words, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
    ip = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return f"{ip.removeprefix('::ffff:')}:{int(port, 16)}"


def _stat_fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return [""]


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _link_target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


# ---- Python's stacks ------------------------------------------------------------------------------------------------


def read_stacks(pid: int, *, signal_number: int, file: int, stopped: bool = False) -> str:
    """Have the process write all its threads' stacks into the open `file`, by the signal that faulthandler waits for.

    Empty when it does not answer within ANSWER_S: it ended, or waits in the kernel for a disk that does not answer. So
    it is when it does not wait for the signal any more, since it is about to end. One that is `stopped` is let go.
    """
    start = os.fstat(file).st_size
    try:
        if catches(pid, signal_number) and stopped:
            signal_main_thread(pid, signal_number)  # before it goes on, so that it is served first
        elif catches(pid, signal_number):
            os.kill(pid, signal_number)
        if stopped:
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return ""
    if not catches(pid, signal_number):
        return ""
    text, ends_at = b"", time.monotonic() + ANSWER_S
    while time.monotonic() < ends_at:
        time.sleep(0.03)
        more = os.pread(file, 1 << 20, start)
        if more and more == text:
            break
        text = more
    return text.decode(errors="replace")


def signal_main_thread(pid: int, signal_number: int) -> None:
    """Send it to this thread alone: of a process, another thread could take it while this one runs on."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None or tgkill(pid, pid, signal_number) != 0:
        os.kill(pid, signal_number)


def last_words(file: int) -> tuple[str, str]:
    """The signal of which the process crashed and its stacks then, as faulthandler has left them in `file`; or ""."""
    text = os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
    _, found, stacks = text.rpartition("Fatal Python error: ")
    return (CRASHES.get(stacks.partition("\n")[0], ""), f"{found}{stacks}") if found else ("", "")


def main_frames(stacks: str, thread: int) -> list[str]:
    """The stack of the thread with this identity, innermost first, as 'file.py:12 in function'."""
    for block in re.split(r"\n(?=Thread 0x|Current thread 0x)", stacks):
        heading, _, lines = block.partition("\n")
        if f"0x{thread:016x}" in heading:
            found = re.findall(r'File "(.*)", line (\d+|\?\?\?) in (.*)', lines)
            return [f"{path}:{line} in {function}" for path, line, function in found]
    return []


def short_frame(frame: str) -> str:
    """A frame with the last two parts of its path."""
    path, _, rest = frame.partition(":")
    return f"{'/'.join(Path(path).parts[-2:])}:{rest}"


# ---- collectives ----------------------------------------------------------------------------------------------------


def read_collectives(socket_path: str) -> list[Collective] | None:
    """What the process's flight recorder holds, oldest first, asked over its socket; None when it does not answer.

    The answer comes from a thread of torch's that needs no Python.
    """
    request = b"POST /handler/fr_trace_json HTTP/1.1\r\nHost: rank\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer, ends_at = b"", time.monotonic() + ANSWER_S
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(socket_path)
            connection.sendall(request)
            while more := connection.recv(1 << 16):
                answer += more
                if time.monotonic() > ends_at:
                    return None
        return parse_collectives(json.loads(answer.partition(b"\r\n\r\n")[2]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def parse_collectives(trace: dict[str, Any]) -> list[Collective]:
    """The entries of torch's flight recorder, format version 2."""
    collectives = []
    for entry in sorted(trace["entries"], key=lambda entry: int(entry["record_id"])):
        group, about = entry["process_group"]
        collectives.append(
            Collective(
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


def departures(collectives: Sequence[Collective]) -> list[str]:
    """Where a rank did something else than every time before, in words: a collective left out, or one too many.

    Training repeats itself: what follows the same CONTEXT collectives is the same in every step. Only the LATELY last
    ones are judged, by those before them.
    """
    whats = [collective.what for collective in collectives]
    abouts = {collective.group: collective.about for collective in collectives}
    followers: dict[tuple[Any, ...], dict[tuple[str, str, str], int]] = {}
    found = []
    for i in range(CONTEXT, len(whats)):
        known = followers.setdefault(tuple(whats[i - CONTEXT : i]), {})
        if known and whats[i] not in known and sum(known.values()) >= 2 and i >= len(whats) - LATELY:
            usual = " or ".join(f"{kind} {sizes} of group {abouts[group]}" for group, kind, sizes in known)
            found.append(f"{collectives[i]} came where {usual} had come {sum(known.values())} times before")
        known[whats[i]] = known.get(whats[i], 0) + 1
    return found
