"""Messages between the ranks of a preflight: JSON in torch's TCP store, sealed with the secret of the job."""

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from gpt.files.json_text import decode_json
from launch.processes.environment import ClusterEnvironment, job_secret
from launch.processes.sealing import Seal

POLL_S = 0.05


@dataclass(frozen=True)
class Board:
    """Named messages that every rank can write and read. `seal` is None if the launcher gave no secret."""

    store: Store
    seal: Seal | None

    def post(self, name: str, message: Any) -> None:
        """Write a message. RuntimeError: the store does not answer."""
        text = json.dumps(message).encode()
        store: Any = self.store  # its stub takes text only
        store.set(name, text if self.seal is None else self.seal.close(text))

    def read(self, name: str, *, timeout_s: float) -> Any:
        """Wait for a message. RuntimeError: it did not come in time. ForgedMessage: somebody else wrote it."""
        self.store.wait([name], timedelta(seconds=max(0.1, timeout_s)))
        found = bytes(self.store.get(name))
        return decode_json((found if self.seal is None else self.seal.open(found)).decode())

    def read_all(self, names: dict[int, str], *, timeout_s: float) -> dict[int, Any]:
        """Wait for several messages; returns those that came in time, by their numbers."""
        ends_at = time.monotonic() + timeout_s
        waiting, found = dict(names), {}
        while waiting:
            come = [number for number, name in waiting.items() if self.store.check([name])]
            for number in come:
                found[number] = self.read(waiting.pop(number), timeout_s=1)
            if time.monotonic() > ends_at:
                break
            if waiting and not come:
                time.sleep(POLL_S)
        return found


def open_store(environment: ClusterEnvironment, *, serves: bool, timeout_s: float, prefix: str) -> Store:
    """A connection to the job's store; `serves`: it is in this process. RuntimeError: nothing answers in time."""
    assert environment.master_addr is not None
    assert environment.master_port is not None
    store = TCPStore(
        environment.master_addr,
        environment.master_port,
        environment.world_size,
        serves,
        timeout=timedelta(seconds=timeout_s / 2),  # torch tries to connect twice
        wait_for_workers=False,
        multi_tenant=True,
    )
    store.set_timeout(timedelta(seconds=timeout_s))
    return PrefixStore(prefix, store)


def open_board(environment: ClusterEnvironment, *, timeout_s: float) -> Board:
    """The board of this rank. Rank 0 serves it unless the launcher does."""
    secret = job_secret()
    serves = environment.rank == 0 and not environment.agent_store
    store = open_store(environment, serves=serves, timeout_s=timeout_s, prefix="preflight")
    return Board(store, None if secret is None else Seal.of(secret, "messages of the preflight"))
