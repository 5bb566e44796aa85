"""The port that ranks of one machine meet at."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.processes.rank_group import reserved_port
from launch.processes.rendezvous import _listener

LOCAL = "127.0.0.1"
ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bind no second socket")
def test_nobody_but_rank_0_gets_the_reserved_port():
    with reserved_port() as port:
        with reserved_port() as other, socket.socket() as stranger:
            assert other != port
            with pytest.raises(OSError, match="in use"):
                stranger.bind((LOCAL, port))
        with socket.socket(fileno=_listener(LOCAL, port)) as store:
            store.listen()
            with socket.create_connection((LOCAL, port), timeout=5):
                pass
        with socket.socket(fileno=_listener(LOCAL, port)) as store:  # after a restart, with connections in TIME_WAIT
            store.listen()


EIGHT_PORTS = """
import fcntl, socket, struct
from launch.processes.rank_group import reserved_port

with socket.socket() as loopback:  # up and running
    fcntl.ioctl(loopback, 0x8914, struct.pack("16sH14x", b"lo", 0x41))
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("40000 40007")
server = socket.create_server(("127.0.0.1", 30000))
with reserved_port() as port:
    clients = [socket.create_connection(("127.0.0.1", 30000)) for _ in range(7)]
    assert sorted([port, *(client.getsockname()[1] for client in clients)]) == list(range(40000, 40008))
    try:
        socket.create_connection(("127.0.0.1", 30000))
    except OSError as error:
        print(error.strerror)
"""


def test_connections_of_others_avoid_the_reserved_port():
    """In a network of its own, with eight ports."""
    apart = ["unshare", "--net", sys.executable, "-c", EIGHT_PORTS]
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a network namespace")
    done = subprocess.run(apart, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "Cannot assign requested address\n", done.stderr
