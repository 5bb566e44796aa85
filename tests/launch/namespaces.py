"""For tests: three network namespaces of this machine, each with an address on one bridge, as three machines have."""

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

SUBNET = "10.213.77"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def three_machines() -> Iterator[tuple[list[str], list[str]]]:
    """Names of the namespaces, and of the ports that connect them to the bridge. Skips the test where it may not."""
    tag = f"tx{time.monotonic_ns() % 10**8}"  # the kernel takes its time to forget a name
    with contextlib.ExitStack() as stack:

        def made(kind: list[str], name: str) -> None:
            ip(*kind, "add", name, *(["type", "bridge"] if kind == ["link"] else []))
            stack.callback(subprocess.run, ["ip", *kind, "del", name], check=False, capture_output=True)

        try:
            made(["link"], tag)
            ip("link", "set", tag, "up")
            spaces, ports = [f"{tag}n{rank}" for rank in range(3)], [f"{tag}p{rank}" for rank in range(3)]
            for rank, (space, port) in enumerate(zip(spaces, ports, strict=True)):
                made(["netns"], space)
                ip("link", "add", port, "type", "veth", "peer", "name", "wire", "netns", space)
                ip("link", "set", port, "master", tag, "up")
                ip("-n", space, "addr", "add", f"{SUBNET}.{rank + 1}/24", "dev", "wire")
                ip("-n", space, "link", "set", "wire", "up")
                ip("-n", space, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this machine lets no test make networks ({getattr(error, 'stderr', '') or error})")
        yield spaces, ports
