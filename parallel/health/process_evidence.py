"""Inspect one process from outside: state, sockets and Python stacks. No torch.

Everything here works even while another thread of that process holds Python's global lock.
"""

import ctypes
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STACKS_TIMEOUT_S = 1.0  # how long a process may take to write its stacks
CRASHES = {
    "Aborted": "SIGABRT",
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
}
STOPPED = "Tt"  # states of a process that a signal or a debugger has stopped


@dataclass(frozen=True)
class Link:
    """A TCP connection whose peer does not acknowledge what was sent."""

    local: str
    remote: str
    unacknowledged_bytes: int
    retransmits: int


# ---- the process, as the kernel shows it ----------------------------------------------------------------------------


def process_state(pid: int) -> str:
    """Return the state letter of proc(5), such as R, S, D, T or Z. Empty if there is no such process."""
    return _stat_fields(pid)[0]


def process_started_at(pid: int) -> str:
    """Return a number that distinguishes the process from a later one with its pid. Empty if there is none."""
    fields = _stat_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def is_alive(pid: int, started_at: str) -> bool:
    """Return whether the same process still runs. A zombie, or a later process with the same pid, does not count."""
    fields = _stat_fields(pid)
    return len(fields) > 19 and fields[19] == started_at and fields[0] not in "ZX"


def exit_of_parent(pid: int) -> Callable[[float], bool]:
    """Return a function that waits some seconds for the end of our parent process, and returns whether it came."""
    try:
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
    except (AttributeError, OSError):  # an old kernel, or the parent is gone
        return lambda seconds: time.sleep(seconds) or os.getppid() != pid  # type: ignore[func-returns-value]
    return lambda seconds: bool(poll.poll(seconds * 1000)) or os.getppid() != pid


def signal_of_death(pid: int) -> str:
    """Return the signal that ended a zombie process. Empty if no signal did, or its parent has reaped it already."""
    fields = _stat_fields(pid)
    if fields[0] != "Z" or len(fields) < 50:
        return ""
    number = int(fields[49]) & 0x7F  # the status as in wait(2)
    names = {known.value: known.name for known in signal.Signals}
    return names.get(number, f"signal {number}") if number else ""


def catches(pid: int, signal_number: int) -> bool:
    """Return whether the process has a handler for the signal. Without one, the signal would end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal_number - 1) & 1)


def waits_in_kernel(pid: int) -> str:
    """Return the kernel function in which the main thread waits. Empty if the kernel does not show it."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text(encoding="ascii").strip("0\n")
    except OSError:
        return ""


def dead_links(pid: int) -> list[Link]:
    """Return connections that retransmit: the peer's machine, or the network to it, does not respond."""
    inodes = set()
    for entry in _list(f"/proc/{pid}/fd"):
        target = _link_target(f"/proc/{pid}/fd/{entry}")
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return [link for inode, link in _tcp_links(pid) if inode in inodes and link.retransmits >= 2]


def addresses_of(pid: int) -> list[str]:
    """Return the local IP addresses of the process's connections."""
    inodes = {_link_target(f"/proc/{pid}/fd/{entry}")[8:-1] for entry in _list(f"/proc/{pid}/fd")}
    found = {link.local.rpartition(":")[0] for inode, link in _tcp_links(pid) if inode in inodes}
    return sorted(found - {"0.0.0.0", "::"})


def _tcp_links(pid: int) -> list[tuple[str, Link]]:
    """Return every TCP connection of the process's network namespace with its inode. See proc(5), /proc/net/tcp."""
    links = []
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            timer, retransmits = fields[5].partition(":")[0], int(fields[6], 16)
            # timer 01 retransmits; with another timer the peer is there, but does not read
            retransmits = retransmits if timer == "01" else 0
            link = Link(_address(fields[1]), _address(fields[2]), int(fields[4].partition(":")[0], 16), retransmits)
            links.append((fields[9], link))
    return links


def _address(text: str) -> str:
    """Parse an address of /proc/net/tcp: '0100007F:1F90' is 127.0.0.1:8080, in 32-bit words of this machine's order."""
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
    """Have the process write the stacks of all its threads into the open `file`, and return them.

    The process must have registered the signal with faulthandler. A `stopped` process is continued for this; the caller
    stops it again. Empty if the process does not answer within STACKS_TIMEOUT_S: it ended, or waits in the kernel for a
    disk. Also empty if it no longer has the handler, because it is about to end.
    """
    start = os.fstat(file).st_size
    try:
        if catches(pid, signal_number) and stopped:
            signal_main_thread(pid, signal_number)  # before it continues, so that the handler runs first
        elif catches(pid, signal_number):
            os.kill(pid, signal_number)
        if stopped:
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return ""
    if not catches(pid, signal_number):
        return ""
    text, ends_at = b"", time.monotonic() + STACKS_TIMEOUT_S
    while time.monotonic() < ends_at:
        time.sleep(0.03)
        more = os.pread(file, 1 << 20, start)
        if more and more == text:
            break
        text = more
    return text.decode(errors="replace")


def signal_main_thread(pid: int, signal_number: int) -> None:
    """Send a signal to the main thread only. Sent to the process, another thread could take it while this one runs."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None or tgkill(pid, pid, signal_number) != 0:
        os.kill(pid, signal_number)


def crash_report(file: int) -> tuple[str, str]:
    """Return the signal of a crash and the stacks that faulthandler wrote into `file`. Two empty strings if none."""
    text = os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
    _, found, stacks = text.rpartition("Fatal Python error: ")
    return (CRASHES.get(stacks.partition("\n")[0], ""), f"{found}{stacks}") if found else ("", "")


def main_frames(stacks: str, thread: int) -> list[str]:
    """Return the stack of the thread with this identity, innermost first, as 'file.py:12 in function'."""
    for block in re.split(r"\n(?=Thread 0x|Current thread 0x)", stacks):
        heading, _, lines = block.partition("\n")
        if f"0x{thread:016x}" in heading:
            found = re.findall(r'File "(.*)", line (\d+|\?\?\?) in (.*)', lines)
            return [f"{path}:{line} in {function}" for path, line, function in found]
    return []


def short_frame(frame: str) -> str:
    """Shorten the path of a frame to its last two parts."""
    path, _, rest = frame.partition(":")
    return f"{'/'.join(Path(path).parts[-2:])}:{rest}"
