"""Bring the ranks of a run together within a time limit, or name the missing rank.

On one node, the launcher ends all ranks when one dies. It does not notice a dead rank on another node, and torch's own
errors name only a key or a socket. Each rank therefore writes to the store when it has started and when it has joined.
"""

import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from launch.processes.environment import JOB_SECRET, ClusterEnvironment, job_secret
from launch.processes.sealing import seal_object_collectives
from parallel.layout.gloo_groups import use_one_gloo_worker

LINGER_S = 3.0  # the last rank may time out this much later than the first; then rank 0 keeps the store for this long
NOT_SEALED = (
    f"triaxial: warning: {JOB_SECRET} is not set: anyone who reaches the ports of these nodes can run code as you. "
    "Start the ranks with `python -m launch.torchrun`, as slurm/train.sbatch does"
)


class StartUpError(RuntimeError):
    """A rank did not start, or died while starting; the message names it."""


def join_processes(environment: ClusterEnvironment, device: torch.device, *, timeout_s: int) -> None:
    """Initialise the default process group. Every rank calls it; a single process opens no connection.

    If a rank does not start or dies here, all others raise a StartUpError that names it, a few seconds after
    `timeout_s` at the latest. The group's collectives have the same timeout.
    """
    seal_object_collectives()
    use_one_gloo_worker()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if environment.master_addr is None:  # started by neither torchrun nor our own launcher
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    if environment.rank == 0 and environment.local_world_size < environment.world_size and job_secret() is None:
        print(NOT_SEALED, file=sys.stderr, flush=True)
    ends_at = time.monotonic() + timeout_s
    store: Store = _open_store(environment, timeout_s)
    if environment.agent_store:  # torchrun keeps this store over restarts, with entries and addresses of dead ranks
        restarts = environment.restart.count if environment.restart is not None else 0
        # Rank 0's own store is fresh at each start: no prefix, since agents on several nodes may count differently.
        store = PrefixStore(f"start {restarts}", store)
    try:
        wait_for_all_ranks(store, environment, timeout_s=max(1.0, ends_at - time.monotonic()))
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        _call("joined", store, environment)
    except RuntimeError as error:  # the base class of all errors of torch.distributed
        message = _who_is_missing(store, environment, ends_at=ends_at, timeout_s=timeout_s)
        raise StartUpError(message) from error


def _open_store(environment: ClusterEnvironment, timeout_s: int) -> Store:
    """The store at the master's address, which the agent or rank 0 serves; does not wait for other ranks."""
    assert environment.master_addr is not None
    assert environment.master_port is not None
    is_server = environment.rank == 0 and not environment.agent_store
    listener = None
    if is_server and environment.local_world_size == environment.world_size:
        # The store has no authentication, and torch would listen on all interfaces.
        listener = _listener(environment.master_addr, environment.master_port)
    try:
        store = TCPStore(
            environment.master_addr,
            environment.master_port,
            environment.world_size,
            is_server,
            timeout=timedelta(seconds=timeout_s / 2),  # torch tries to connect twice
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listener,
        )
        store.set_timeout(timedelta(seconds=timeout_s))
        return store
    except RuntimeError as error:
        if is_server:
            raise
        server = "the launcher of node 0" if environment.agent_store else "rank 0"
        raise StartUpError(
            f"{server} did not start within {timeout_s} s (run.collective_timeout_s): no answer at "
            f"{environment.master_addr}:{environment.master_port}. See its output on its node for the reason"
        ) from error


def _listener(address: str, port: int) -> int:
    """The descriptor of a socket bound to this address only; torch takes it over."""
    family, kind, protocol, _, socket_address = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(socket_address)
        return bound.detach()


def wait_for_all_ranks(store: Store, environment: ClusterEnvironment, *, timeout_s: float) -> None:
    """Wait until every rank has called this. Each rank sends a few messages, whatever the number of ranks."""
    _call("here", store, environment)
    store.wait(["all here"], timedelta(seconds=timeout_s))


def _call(word: str, store: Store, environment: ClusterEnvironment) -> None:
    """Write to the store that this rank has reached this point. The last rank writes that all have."""
    store.set(f"{word} {environment.rank}", "yes")
    if store.add(f"number {word}", 1) == environment.world_size:
        store.set(f"all {word}", "yes")


def _who_is_missing(store: Store, environment: ClusterEnvironment, *, ends_at: float, timeout_s: int) -> str:
    """After an error: wait while ranks may still be joining, then name those that have not written to the store.

    One rank asks the store for all others, and writes the message there. A rank sends only a few messages, for any
    number of ranks.
    """
    try:
        started = store.check(["all here"])
        if started:
            _call("joined", store, environment)
            with suppress(dist.DistStoreError):  # not all: a rank died
                store.wait(["all joined"], timedelta(seconds=max(0.1, ends_at + LINGER_S - time.monotonic())))
        if store.add("number asking", 1) > 1:
            with suppress(dist.DistStoreError):  # the rank that asks has died
                store.wait(["missing"], timedelta(seconds=LINGER_S))
        if not store.check(["missing"]):
            key = "joined" if started else "here"
            silent = _without_entry(store, key, range(environment.world_size))
            store.set("missing", _missing_words(silent, environment, started=started, timeout_s=timeout_s))
        message = store.get("missing").decode()
        if environment.rank == 0:
            time.sleep(LINGER_S)
        return message
    except RuntimeError:  # the store is gone
        return f"rank 0 of {environment.world_size} ended while the ranks joined. See its output for the reason"


def _without_entry(store: Store, word: str, ranks: range) -> list[int]:
    """Return the ranks that have not called. Bisect, since the store only answers whether all keys of a list exist."""
    if store.check([f"{word} {rank}" for rank in ranks]):
        return []
    if len(ranks) == 1:
        return list(ranks)
    half = len(ranks) // 2
    return _without_entry(store, word, ranks[:half]) + _without_entry(store, word, ranks[half:])


def _missing_words(silent: list[int], environment: ClusterEnvironment, *, started: bool, timeout_s: int) -> str:
    if not silent:
        return "the ranks could not join into a process group, though none of them died"
    what = "died while the ranks joined" if started else f"did not start within {timeout_s} s"
    return (
        f"{_named(silent)} of {environment.world_size} {what} (run.collective_timeout_s = {timeout_s}). See "
        f"{'its' if len(silent) == 1 else 'their'} output on the node for the reason"
    )


def _named(ranks: Iterable[int]) -> str:
    """'rank 3', 'ranks 3, 5' or 'ranks 3, 5, 7, 8 and 40 more'."""
    shown = list(ranks)
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return f"rank{'s' if len(shown) > 1 else ''} {', '.join(map(str, shown[:4]))}{more}"
