"""Brings the ranks of a run together within a stated time, or says which of them is missing; trains nothing.

Under one torch elastic agent a rank's death ends the others at once. Of a rank on another node nobody tells, and
torch's own errors name a key or a socket. So ranks leave word in the store: that they are here, that they have joined.
"""

import socket
import time
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from launch.processes.environment import ClusterEnvironment

LINGER_S = 3.0  # so much later than the first the last rank may give up; rank 0 keeps the store as long again


class StartUpError(RuntimeError):
    """A rank did not start, or died while it did; the message names it."""


def join_processes(environment: ClusterEnvironment, device: torch.device, *, timeout_s: int) -> None:
    """Initialise the default process group. Every rank calls it; a single process talks to nobody.

    StartUpError on all others when a rank does not come, or dies here: within `timeout_s` seconds and a few, and in
    words that name it. The group's collectives have the same timeout.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if environment.master_addr is None:  # neither torchrun nor our own launcher
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    ends_at = time.monotonic() + timeout_s
    store: Store = _open_store(environment, timeout_s)
    if environment.agent_store:  # torchrun keeps it for all its restarts, with words and addresses of ranks that died
        restarts = environment.restart.count if environment.restart is not None else 0
        # Not where rank 0 keeps it, new at every start: torchrun's agents on several nodes may count differently.
        store = PrefixStore(f"start {restarts}", store)
    try:
        _call_the_roll(store, environment, timeout_s=max(1.0, ends_at - time.monotonic()))
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        store.set(f"joined {environment.rank}", "yes")
    except RuntimeError as error:  # torch.distributed's own are all of this kind
        message = _who_is_missing(store, environment, ends_at=ends_at, timeout_s=timeout_s)
        raise StartUpError(message) from error


def _open_store(environment: ClusterEnvironment, timeout_s: int) -> Store:
    """The store at the master's address, which the agent or rank 0 keeps; waits for no other rank."""
    assert environment.master_addr is not None
    assert environment.master_port is not None
    keeps_it = environment.rank == 0 and not environment.agent_store
    listener = None
    if keeps_it and environment.local_world_size == environment.world_size:
        # torch itself listens on all interfaces, and the store asks nobody who he is
        listener = _listener(environment.master_addr, environment.master_port)
    try:
        store = TCPStore(
            environment.master_addr,
            environment.master_port,
            environment.world_size,
            keeps_it,
            timeout=timedelta(seconds=timeout_s / 2),  # torch tries to connect twice
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener,
        )
        store.set_timeout(timedelta(seconds=timeout_s))
        return store
    except RuntimeError as error:
        if keeps_it:
            raise
        keeper = "the launcher of node 0" if environment.agent_store else "rank 0"
        raise StartUpError(
            f"{keeper} did not start within {timeout_s} s (run.collective_timeout_s): no answer at "
            f"{environment.master_addr}:{environment.master_port}; what it wrote on its node says why"
        ) from error


def _listener(address: str, port: int) -> int:
    """A socket bound to this address alone, as a descriptor that torch takes over."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        return bound.detach()


def _call_the_roll(store: Store, environment: ClusterEnvironment, *, timeout_s: float) -> None:
    """Wait until every rank has called this; a few messages a rank, however many there are."""
    store.set(f"here {environment.rank}", "yes")
    if store.add("number here", 1) == environment.world_size:
        store.set("all here", "yes")
    store.wait(["all here"], timedelta(seconds=timeout_s))


def _who_is_missing(store: Store, environment: ClusterEnvironment, *, ends_at: float, timeout_s: int) -> str:
    """After an error: wait as long as ranks may still be joining, then name those that left no word of how it went."""
    ranks = range(environment.world_size)
    try:
        store.set(f"joined {environment.rank}", "no")
        started = store.check(["all here"])
        while (
            started and time.monotonic() < ends_at + LINGER_S and not store.check([f"joined {rank}" for rank in ranks])
        ):
            time.sleep(0.5)
        word = "joined" if started else "here"
        silent = [rank for rank in ranks if not store.check([f"{word} {rank}"])]
        if environment.rank == 0:
            time.sleep(LINGER_S)
    except RuntimeError:  # the store is no more
        return f"rank 0 of {environment.world_size} ended while the ranks joined; what it wrote says why"
    if not silent:
        return "the ranks could not join into a process group, though none of them died"
    what = "died while the ranks joined" if started else f"did not start within {timeout_s} s"
    return (
        f"{_named(silent)} of {environment.world_size} {what} (run.collective_timeout_s = {timeout_s}); what "
        f"{'it' if len(silent) == 1 else 'they'} wrote on the node says why"
    )


def _named(ranks: Iterable[int]) -> str:
    """'rank 3', 'ranks 3, 5' or 'ranks 3, 5, 7, 8 and 40 more'."""
    shown = list(ranks)
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return f"rank{'s' if len(shown) > 1 else ''} {', '.join(map(str, shown[:4]))}{more}"
