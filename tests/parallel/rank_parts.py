"""The parts of a run whose cost depends on the number of ranks, each run for N simulated ranks by the real code.

A part takes the number of ranks and a folder, and returns messages and bytes of all ranks together.
benchmarks/simulated_ranks.py measures time and memory; test_simulated_ranks.py holds the counts to n log n.
"""

import dataclasses
import json
import pickle
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from hang_reports import settings, waiting
from simulated_group import on_simulated_ranks
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from gpt.training.config import Retention
from launch.processes import rendezvous
from launch.processes.environment import ClusterEnvironment
from parallel.agreement import ALONE, combine, run_on_all_ranks
from parallel.checkpoint.files import FileRecord, write_file
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint
from parallel.checkpoint.index import read_index
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.local_tier import _candidates
from parallel.checkpoint.manifest import INDEX, MANIFEST, STATE, CheckpointManifest, encode_manifest, encode_state
from parallel.checkpoint.plan import _assign
from parallel.checkpoint.save import save_checkpoint
from parallel.health.hang_response import publish_verdict
from parallel.health.replica_check import ReplicaCheck
from parallel.health.reports import Member, by_machine, gather_reports, host_changes, take_lead
from parallel.health.stragglers import Stragglers
from parallel.health.verdict import decide
from parallel.layout.layout import Layout

RANKS_PER_NODE = 8
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Messages (or file operations) and bytes, of all ranks together. None: the part counts only bytes."""

    messages: int | None
    bytes: int


class CountingStore:
    """Counts the messages to a store and their bytes."""

    def __init__(self, store: dist.Store) -> None:
        self.store, self.messages, self.bytes = store, 0, 0

    def _count(self, *words: str) -> None:
        self.messages += 1
        self.bytes += sum(8 + len(word) for word in words)

    def set(self, key: str, value: str) -> None:
        self._count(key, value)
        self.store.set(key, value)

    def add(self, key: str, amount: int) -> int:
        self._count(key)
        return self.store.add(key, amount)

    def get(self, key: str) -> bytes:
        value = self.store.get(key)
        self._count(key, "x" * len(value))
        return value

    def check(self, keys: list[str]) -> bool:
        self._count(*keys)
        return self.store.check(keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        self._count(*keys)
        if not self.store.check(keys) and timeout > timedelta(hours=1):
            return  # this thread plays the other ranks as well: they come later
        self.store.wait(keys, timedelta(milliseconds=10))


def _tcp_store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _rank(rank: int, n_ranks: int) -> ClusterEnvironment:
    return ClusterEnvironment(rank=rank, world_size=n_ranks, master_addr="127.0.0.1", master_port=1)


def roll_call(n_ranks: int, folder: Path) -> Cost:
    """Every rank calls, on a real TCP store."""
    store = CountingStore(_tcp_store())
    for rank in range(n_ranks):
        rendezvous.wait_for_all_ranks(store, _rank(rank, n_ranks), timeout_s=7200)
    return Cost(store.messages, store.bytes)


def missing_rank(n_ranks: int, folder: Path) -> Cost:
    """All but one rank called; the others find out which one is missing. Rank 0 is played last, without its pause."""
    store = CountingStore(_tcp_store())
    for rank in range(n_ranks - 1):
        rendezvous.wait_for_all_ranks(store, _rank(rank, n_ranks), timeout_s=7200)
    before = store.messages, store.bytes
    for rank in range(1, n_ranks - 1):
        said = rendezvous._who_is_missing(store, _rank(rank, n_ranks), ends_at=time.monotonic(), timeout_s=1)
        assert said.startswith(f"rank {n_ranks - 1} of {n_ranks} did not start"), said
    return Cost(store.messages - before[0], store.bytes - before[1])


def monitor_settings(n_ranks: int, folder: Path) -> Cost:
    """What the monitors of all ranks get on their standard input."""
    members = [Member(f"node-{r // 8:05}", f"boot id of {r // 8:05}", 1000 + r, "12345") for r in range(n_ranks)]
    machines, hosts = by_machine(members), host_changes([member.host for member in members])
    mine = dataclasses.replace(settings(folder, 0), world_size=n_ranks, members=machines[0], hosts=hosts)
    size_bytes = len(json.dumps(dataclasses.asdict(mine)))
    return Cost(None, n_ranks * (size_bytes + len(pickle.dumps(machines[0]))))


class FileCounter:
    """Counts the files that this process opens, and the entries of the folders that it lists, until `stop`."""

    def __init__(self, entries: int) -> None:
        self.costs = {"open": 1, "os.listdir": entries, "os.scandir": entries}
        self.total, self.counts = 0, True
        sys.addaudithook(self._see)

    def _see(self, event: str, _: object) -> None:
        if self.counts:
            self.total += self.costs.get(event, 0)

    def stop(self) -> int:
        self.counts = False  # an audit hook cannot be removed
        return self.total


def hang_verdict(n_ranks: int, folder: Path) -> Cost:
    """Each monitor leaves its report and asks who decides; one reads all reports, decides and publishes."""
    ours = dataclasses.replace(settings(folder / "hangs", 0, world_size=n_ranks), hosts=((0, "node0"),))
    reports = folder / "hangs" / "now"
    reports.mkdir(parents=True)
    frames = tuple(
        f"/venv/lib/python3.11/site-packages/torch/distributed/file_{i}.py:{i} in function" for i in range(20)
    )
    sent = 0
    for rank in range(n_ranks):
        number = 39 if rank == n_ranks // 2 else 40
        text = json.dumps(dataclasses.asdict(waiting(rank, number=number, frames=frames)), indent=1)
        sent += (reports / f"rank-{rank:05}.json").write_text(text)
    files = FileCounter(n_ranks)
    leaders = [rank for rank in range(n_ranks) if take_lead(dataclasses.replace(ours, rank=rank), reports)]
    assert leaders == [0]
    found: dict = {}
    gather_reports(ours, reports, found)
    decision = publish_verdict(ours, reports, [found[name] for name in sorted(found)])
    assert decision["ranks"] == (n_ranks // 2,), decision["lines"]
    return Cost(files.stop(), 2 * sent)


class CountedLookups(dict):
    """The counts of a report; it counts how often a rule looks at them."""

    def __init__(self, values: dict, looks: list[int]) -> None:
        super().__init__(values)
        self.looks = looks

    def get(self, key, default=None):
        self.looks[0] += 1
        return super().get(key, default)

    def items(self):
        self.looks[0] += len(self)
        return super().items()


def verdict_rules(n_ranks: int, folder: Path) -> Cost:
    """Decide on four faults, each in half of the ranks: behind, died, stopped, silent. Messages: looks at counts."""
    half, looks = n_ranks // 2, [0]
    for lost in ({"number": 39}, {"status": "died"}, {"state": "T"}):
        reports = [
            waiting(rank, **{"counts": CountedLookups({"0": 39 if rank < half else 40}, looks), **extra})
            for rank in range(n_ranks)
            for extra in [lost if rank < half else {}]
        ]
        verdict = decide(reports, world_size=n_ranks)
        assert verdict.ranks == tuple(range(half)), verdict
    assert decide(reports[half:], world_size=n_ranks).kind == "silent"
    return Cost(looks[0], 0)


def agreements_of_a_save(n_ranks: int, folder: Path) -> Cost:
    """The three agreements of a save, and the measurements that ranks compare after it."""

    def save() -> None:
        run_on_all_ranks(lambda: Path("runs/x/checkpoints/.saving-step-000000123-0123456789abcdef"), None, path=folder)
        run_on_all_ranks(lambda: {"shard-00000.safetensors": FileRecord(1, "0" * 64)}, None, path=folder)
        run_on_all_ranks(lambda: None, None, path=folder)
        combine((1.0, 2.0, 3), max, None)

    traffic = on_simulated_ranks(save, n_ranks)
    return Cost(traffic.collectives, traffic.bytes)


def replica_check(n_ranks: int, folder: Path) -> Cost:
    """Find the replicas of 40 weights with two moments each, and compare them five times."""
    weights = [(f"blocks.{i}.weight", torch.ones(16)) for i in range(40)]

    def check() -> None:
        comparison = ReplicaCheck(
            [(name, weight, (weight, weight, weight)) for name, weight in weights], kinds=("m.", "a.", "b."), device=CPU
        )
        for _ in range(5):
            assert comparison.compare() == []

    traffic = on_simulated_ranks(check, n_ranks)
    return Cost(traffic.collectives, traffic.bytes)


def stragglers(n_ranks: int, folder: Path) -> Cost:
    """Compare the times of one measured step."""
    layout = Layout(1, 1, data=n_ranks, data_shard=1, micro_batches=1, split=(1,), v_shaped=False)

    def compare() -> None:
        watch = Stragglers(layout, CPU, every_steps=1)
        watch._measured = (1.0, 0.1)
        watch.compare()

    traffic = on_simulated_ranks(compare, n_ranks)
    return Cost(traffic.collectives, traffic.bytes)


def events(n_ranks: int, folder: Path) -> Cost:
    """Gather the findings of ranks after an evaluation, usually none."""
    traffic = on_simulated_ranks(lambda: combine([], lambda lists: [one for one in lists if one], None), n_ranks)
    return Cost(traffic.collectives, traffic.bytes)


def local_tier(n_ranks: int, folder: Path) -> Cost:
    """Find the newest save that all ranks hold in the local tier."""
    held = {100: "0123456789abcdef-1", 200: "0123456789abcdef-2"}
    mine = (held, ["skipped step-000000300: it is damaged"], False)
    traffic = on_simulated_ranks(lambda: combine(mine, lambda all_: _candidates(all_, folder), None), n_ranks)
    return Cost(traffic.collectives, traffic.bytes)


def load(n_ranks: int, folder: Path) -> Cost:
    """Load a checkpoint of 100 small tensors on all ranks: agreements, and DCP's plans."""
    tensors = {f"model.blocks.{i}.attention.weight": torch.zeros(4) for i in range(100)}
    path = save_checkpoint(folder, step=1, tensors=tensors, state={}, keep=Retention(1), group=ALONE)
    checkpoint = verify_checkpoint(path, group=ALONE)
    traffic = on_simulated_ranks(lambda: load_checkpoint(checkpoint, tensors=tensors, complete=True), n_ranks)
    return Cost(traffic.collectives, traffic.bytes)


def _save_plan(rank: int, n_ranks: int, *, n_tensors: int) -> SavePlan:
    """The plan of a rank that holds the `rank`-th of `n_ranks` equal parts of each tensor."""
    items = []
    for i in range(n_tensors):
        name, offsets = f"model.blocks.{i}.weight", torch.Size([4 * rank])
        chunk = ChunkStorageMetadata(offsets, torch.Size([4]))
        data = TensorWriteData(chunk, TensorProperties(dtype=torch.float32), torch.Size([4 * n_ranks]))
        items.append(WriteItem(MetadataIndex(name, offsets, rank), WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items)


def save_plan(n_ranks: int, folder: Path) -> Cost:
    """Rank 0 plans a save of 8 tensors that are sharded over all ranks. Bytes: the plans, and the index."""
    plans = [_save_plan(rank, n_ranks, n_tensors=8) for rank in range(n_ranks)]
    index = _assign(plans)[0].index
    assert index is not None
    (folder / INDEX).write_bytes(index)
    return Cost(None, n_ranks * len(pickle.dumps(plans[-1])) + len(index))


def manifest(n_ranks: int, folder: Path) -> Cost:
    """Write and read the manifest and the index of a checkpoint of as many shards, once. Bytes: one reader's."""
    index = _assign([_save_plan(rank, n_ranks, n_tensors=8) for rank in range(n_ranks)])[0].index
    assert index is not None
    final = folder / "step-000000001"
    final.mkdir()
    files = {f"shard-{rank:05d}.safetensors": FileRecord(1000, "0" * 64) for rank in range(n_ranks)}
    files[INDEX] = write_file(final / INDEX, [index])
    files[STATE] = write_file(final / STATE, [encode_state({})])
    text = encode_manifest(CheckpointManifest(1, n_ranks, "2", 32 * 4 * n_ranks, files))
    write_file(final / MANIFEST, [text])
    header = read_checkpoint_header(final)
    assert len(read_index(final, header.manifest)) == 8
    return Cost(None, len(text) + len(index))


PARTS: dict[str, Callable[[int, Path], Cost]] = {
    "roll call": roll_call,
    "naming a missing rank": missing_rank,
    "monitors' settings": monitor_settings,
    "reports and verdict": hang_verdict,
    "rules of the verdict": verdict_rules,
    "agreements of a save": agreements_of_a_save,
    "replica check": replica_check,
    "straggler report": stragglers,
    "events of an evaluation": events,
    "local tier at resume": local_tier,
    "load, with its plans": load,
    "plan of a save": save_plan,
    "manifest and index": manifest,
}
