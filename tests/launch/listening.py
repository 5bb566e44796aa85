"""For tests: the ports and sockets on which a process and its children listen, from /proc/net."""

import os
import socket
from pathlib import Path

LISTENING = "0A"


def sockets(pid):
    """Inodes of the sockets that a process holds."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def listeners(pids):
    """(address, port) on which one of these processes listens by TCP, over IPv4 and IPv6."""
    mine = set().union(*(sockets(pid) for pid in pids))
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and words[9] in mine:
                address, port = words[1].split(":")
                raw = bytes.fromhex(address)
                raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.append((socket.inet_ntop(family, raw), int(port, 16)))
    return found


def udp_sockets(pids):
    mine = set().union(*(sockets(pid) for pid in pids))
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("udp", "udp6")]
    return [line for lines in tables for line in lines if line.split()[9] in mine]


def unix_sockets(pids):
    """(path, True if other users may connect) of the named unix sockets of these processes."""
    mine = set().union(*(sockets(pid) for pid in pids))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {(words[7], open_to_others(words[7])) for words in lines if words[6] in mine and len(words) > 7}


def open_to_others(path):
    if path.startswith("@"):
        return True  # an abstract socket has no file and therefore no permissions
    return all(file.stat().st_mode & 0o077 for file in (Path(path), *Path(path).parents))


def family_of(pid):
    """A process and all its descendants, whichever of its threads started them."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for thread in threads for child in thread.read_text().split()]
    return [pid, *(each for child in children for each in family_of(int(child)))]
