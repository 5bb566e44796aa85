"""For tests: ports of this machine that nobody uses."""

import random
import socket


def free_ports(number: int) -> list[int]:
    """Ports below the range that the system hands out, so that no other test's connection takes one meanwhile."""
    ports: list[int] = []
    while len(ports) < number:
        port = random.SystemRandom().randrange(12_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and port not in ports:
                ports.append(port)
    return ports
