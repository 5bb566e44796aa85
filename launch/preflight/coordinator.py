"""Rank 0 of a preflight: plan one all-reduce after the other until the nodes at fault are known."""

import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from launch.preflight.board import Board
from launch.preflight.probe import MARGIN_S, Attempt, ProbeResult, try_all_reduce
from launch.preflight.verdict import Pair, blame, bus_bytes_per_s, pair_rounds, slow_pairs, slow_ranks
from launch.processes.environment import ClusterEnvironment

GRACE_S = 5.0  # for messages
PAIR_LIMIT_S = 20.0
SIZE_BYTES = {"nccl": 2**28, "gloo": 2**22}
AS_CAUSE = {"nccl": "problem", "gloo": "warning"}  # slowness: other programs may share a CPU and its network


@dataclass
class Findings:
    """The report of a preflight. `bad_nodes`: the nodes to leave out, each with the first reason."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bad_nodes: dict[str, str] = field(default_factory=dict)

    def accuse(self, nodes: Iterable[str], reason: str) -> None:
        """Add a problem of these nodes."""
        self.problems.append(reason)
        self.bad_nodes = dict.fromkeys(nodes, reason) | self.bad_nodes


class Coordinator:
    """Plans attempts and reads their outcomes. `ranks`: the ranks of each node; `names`: the name of each node."""

    def __init__(
        self,
        board: Board,
        environment: ClusterEnvironment,
        *,
        ranks: dict[int, list[int]],
        names: dict[int, str],
        backend: str,
        limit_s: float,
    ) -> None:
        self.board, self.environment, self.backend, self.limit_s = board, environment, backend, limit_s
        self.ranks, self.names = ranks, names
        self.findings = Findings()
        self.errors: dict[int, str] = {}  # the last one of each rank
        self.plans = 0

    def examine(self) -> Findings:
        """Reduce over all nodes; on failure find the cause, else compare the nodes' speeds."""
        nodes = sorted(self.ranks)
        outcomes = self._attempt([nodes], limit_s=self.limit_s, computes=True)
        if self._all_ok(outcomes, nodes):
            self._say_speed(nodes, outcomes)
        else:
            nodes = self._isolate(nodes, outcomes)
        self._compare_ranks(outcomes)
        self._compare_pairs(nodes)
        return self.findings

    def _attempt(
        self, groups: Sequence[Collection[int]], *, limit_s: float, computes: bool = False
    ) -> dict[int, ProbeResult]:
        """Let groups of nodes reduce at the same time. Returns the outcomes of the ranks that have answered."""
        self.plans += 1
        members = tuple(tuple(rank for node in group for rank in self.ranks[node]) for group in groups)
        plan = Attempt(self.plans, members, SIZE_BYTES[self.backend], limit_s, computes)
        ends_at = time.monotonic() + limit_s + MARGIN_S + GRACE_S
        self.board.post(f"plan {plan.number}", dataclasses.asdict(plan))
        answer(self.board, self.environment, plan, backend=self.backend)
        names = {rank: f"outcome {plan.number} {rank}" for group in members for rank in group}
        found = self.board.read_all(names, timeout_s=max(GRACE_S, ends_at - time.monotonic()))
        outcomes = {rank: ProbeResult(**outcome) for rank, outcome in found.items()}
        self.errors |= {rank: outcome.error for rank, outcome in outcomes.items() if outcome.error}
        return outcomes

    def _all_ok(self, outcomes: dict[int, ProbeResult], nodes: Iterable[int]) -> bool:
        return all(rank in outcomes and outcomes[rank].ok for node in nodes for rank in self.ranks[node])

    def _isolate(self, nodes: list[int], outcomes: dict[int, ProbeResult]) -> list[int]:
        """After a failure of all nodes together: accuse nodes and links. Returns the nodes that work together."""
        left = self._without_own_faults(nodes, outcomes)
        if len(left) < len(nodes) and self._try_others(left):
            return left
        if any(len(self.ranks[node]) > 1 for node in left):
            left = self._each_alone(left)
        before = len(left)
        tried, failed, left = self._all_pairs(left)
        if len(left) == 2 and failed:
            self._accuse_links(failed, both=True)
            return []
        if len(tried) > 1 and len(failed) == len(tried):
            self._no_pair_works(left)
            return []
        bad, links = blame(tried, failed)
        for node in bad:
            self.findings.accuse(
                [self.names[node]], f"node {self.names[node]} can reduce with no other node{self._error(node)}"
            )
        self._accuse_links(links)
        ends = {node for link in links for node in link[1:]}
        left = [node for node in left if node not in bad and node not in ends]
        if bad or links or len(left) < before:
            self._try_others(left)
        elif not self.findings.problems:
            self.findings.problems.append(
                f"all nodes together fail, though every pair of them works{self._error(*nodes)}. If they are many, "
                "give them more time: --limit-s"
            )
        return left

    def _no_pair_works(self, nodes: list[int]) -> None:
        self.findings.accuse(
            [self.names[node] for node in nodes],
            "no two nodes can reduce together. Look at the network between them: the interface (NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME), the firewall, the fabric manager",
        )

    def _without_own_faults(self, nodes: list[int], outcomes: dict[int, ProbeResult]) -> list[int]:
        """Accuse the nodes with a rank that did not answer, or that failed before others had a part in it."""
        left = []
        for node in nodes:
            reasons = []
            for rank in self.ranks[node]:
                found = outcomes.get(rank)
                if found is None:
                    reasons.append(f"rank {rank} does not answer")
                elif found.is_own_fault:
                    reasons.append(f"rank {rank} failed at phase '{found.phase}': {found.error}")
            if reasons:
                more = f" (and {len(reasons) - 1} more ranks)" if len(reasons) > 1 else ""
                self.findings.accuse([self.names[node]], f"node {self.names[node]}: {reasons[0]}{more}")
            else:
                left.append(node)
        return left

    def _each_alone(self, nodes: list[int]) -> list[int]:
        """Let the ranks of each node reduce among themselves, and accuse the nodes where they cannot."""
        outcomes = self._attempt([[node] for node in nodes], limit_s=self._pair_limit_s)
        left = self._without_own_faults(nodes, outcomes)
        failed = [node for node in left if not self._all_ok(outcomes, [node])]
        for node in failed:
            error = next(outcomes[rank].error for rank in self.ranks[node] if not outcomes[rank].ok)
            self.findings.accuse(
                [self.names[node]], f"node {self.names[node]}: its own ranks cannot reduce together: {error}"
            )
        return [node for node in left if node not in failed]

    def _all_pairs(self, nodes: list[int]) -> tuple[list[Pair], list[Pair], list[int]]:
        """Let pairs of nodes reduce. Returns the pairs tried, those that failed, and the nodes that still answer."""
        tried: list[Pair] = []
        failed: list[Pair] = []
        for pairs in pair_rounds(nodes):
            groups = [pair for pair in pairs if set(pair) <= set(nodes)]
            if not groups:
                continue
            outcomes = self._attempt(groups, limit_s=self._pair_limit_s)
            nodes = [
                *self._without_own_faults([node for pair in groups for node in pair], outcomes),
                *(node for node in nodes if not any(node in pair for pair in groups)),
            ]
            tried += groups
            failed += [pair for pair in groups if not self._all_ok(outcomes, pair)]
        alive = set(nodes)
        return [p for p in tried if set(p) <= alive], [p for p in failed if set(p) <= alive], sorted(nodes)

    @property
    def _pair_limit_s(self) -> float:
        return min(self.limit_s, PAIR_LIMIT_S)

    def _accuse_links(self, links: Iterable[Pair], *, both: bool = False) -> None:
        """Accuse the links. The others work without one node of each, so leave out only the second."""
        for a, b in links:
            first, second = self.names[a], self.names[b]
            self.findings.accuse(
                [first, second] if both else [second],
                f"nodes {first} and {second} cannot reduce together, though each can alone{self._error(a, b)}",
            )

    def _error(self, *nodes: int) -> str:
        """The message of a rank of these nodes, for the end of a line."""
        said = [self.errors[rank] for node in nodes for rank in self.ranks[node] if rank in self.errors]
        return f": {said[0]}" if said else ""

    def _try_others(self, nodes: list[int]) -> bool:
        """Let the nodes that are not accused reduce, and report the result. True if they can."""
        if not nodes:
            return False
        outcomes = self._attempt([nodes], limit_s=self.limit_s)
        if self._all_ok(outcomes, nodes):
            self._say_speed(nodes, outcomes, prefix="without the bad nodes: ")
            return True
        return False

    def _say_speed(self, nodes: list[int], outcomes: dict[int, ProbeResult], prefix: str = "") -> None:
        ranks = [rank for node in nodes for rank in self.ranks[node]]
        seconds, latency_s = (max(getattr(outcomes[rank], name) for rank in ranks) for name in ("seconds", "latency_s"))
        speed = bus_bytes_per_s(SIZE_BYTES[self.backend], len(ranks), seconds)
        self.findings.lines.append(
            f"{prefix}all-reduce: {len(ranks)} rank{'s' if len(ranks) > 1 else ''} on {len(nodes)} "
            f"node{'s' if len(nodes) > 1 else ''} "
            f"({self.backend}), {SIZE_BYTES[self.backend] >> 20} MiB in {seconds * 1e3:.3g} ms "
            f"(bus {speed / 1e9:.3g} GB/s), 8 bytes in {latency_s * 1e3:.3g} ms"
        )

    def _compare_ranks(self, outcomes: dict[int, ProbeResult]) -> None:
        """Name the ranks whose matrix product is slow."""
        speeds = {rank: found.gflops for rank, found in outcomes.items() if found.gflops}
        for rank in slow_ranks(speeds):
            (node,) = (node for node, ranks in self.ranks.items() if rank in ranks)
            self._slow(
                [self.names[node]],
                f"node {self.names[node]}: rank {rank} computes at {speeds[rank]:.0f} GFLOP/s, the median rank at "
                f"{sorted(speeds.values())[len(speeds) // 2]:.0f}",
            )

    def _compare_pairs(self, nodes: list[int]) -> None:
        """Name the nodes and links whose pairs are slow; a slow pair is measured twice. Needs three nodes."""
        if len(nodes) < 3:
            return
        speeds: dict[Pair, float] = {}
        for pairs in pair_rounds(nodes):
            self._measure(pairs, speeds)
        for pair in slow_pairs(speeds):
            self._measure([pair], speeds)
        slow = slow_pairs(speeds)
        shown = [f"{speed / 1e9:.3g}" for speed in (min(speeds.values()), max(speeds.values()))] if speeds else []
        self.findings.lines.append(f"pairs of nodes: {' to '.join(shown)} GB/s" if shown else "pairs of nodes: none")
        bad, links = blame(list(speeds), slow)
        for node in bad:
            self._slow([self.names[node]], f"node {self.names[node]} is slow with every other node")
        for a, b in links:
            names = [self.names[a], self.names[b]]
            self._slow(
                names, f"the link between nodes {names[0]} and {names[1]} is slow: {speeds[a, b] / 1e9:.3g} GB/s"
            )

    def _measure(self, pairs: Sequence[Pair], speeds: dict[Pair, float]) -> None:
        """Let pairs of nodes reduce, and keep the best speed of each."""
        outcomes = self._attempt(pairs, limit_s=self._pair_limit_s)
        for pair in pairs:
            if self._all_ok(outcomes, pair):
                ranks = [rank for node in pair for rank in self.ranks[node]]
                seconds = max(outcomes[rank].seconds for rank in ranks)
                speed = bus_bytes_per_s(SIZE_BYTES[self.backend], len(ranks), seconds)
                speeds[pair] = max(speeds.get(pair, 0.0), speed)

    def _slow(self, nodes: Iterable[str], text: str) -> None:
        if AS_CAUSE[self.backend] == "problem":
            self.findings.accuse(nodes, text)
        else:
            self.findings.warnings.append(text)


def answer(board: Board, environment: ClusterEnvironment, plan: Attempt, *, backend: str) -> None:
    """Take part in a planned attempt, and post the outcome; nothing if this rank has no part in it."""
    if plan.group_of(environment.rank):
        outcome = try_all_reduce(environment, plan, backend=backend)
        board.post(f"outcome {plan.number} {environment.rank}", dataclasses.asdict(outcome))
