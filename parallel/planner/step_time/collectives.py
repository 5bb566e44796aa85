"""The time of collectives by size and place: inside a node, or across nodes.

t = latency + x + sqrt(x * RAMP_S), where x is the time on the wire. The square root describes messages of medium size,
which do not reach the full bandwidth: it follows NCCL's table for 8 GPUs (stas00/ml-engineering) within 15%.
"""

import math
from dataclasses import dataclass

from parallel.planner.hardware.tables import Cluster

RAMP_S = 45e-6
LATENCY_S = 40e-6  # of an all-reduce of 8 GPUs in a node


@dataclass(frozen=True)
class RankGroup:
    """Ranks of one collective, of which `per_node` are in each node."""

    ranks: int
    per_node: int

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.per_node)


def group(cluster: Cluster, ranks: int, *, stride: int) -> RankGroup:
    """The group of `ranks` ranks whose numbers differ by `stride`."""
    per_node = min(ranks, max(1, cluster.node // stride))
    return RankGroup(ranks, per_node)


def all_gather_s(nbytes: float, among: RankGroup, cluster: Cluster) -> float:
    """Seconds of an all-gather or a reduce-scatter, of `nbytes` as gathered. An all-reduce takes both."""
    if among.ranks == 1 or nbytes <= 0:
        return 0.0
    link, net = cluster.gpu.link_gb_per_s * 1e9, cluster.network.gb_per_s * 1e9
    speed = link if among.nodes == 1 else min(link, net * among.per_node)
    latency = LATENCY_S + cluster.network.latency_us * 1e-6 * (among.nodes - 1)
    wire = nbytes * (among.ranks - 1) / among.ranks / speed
    return latency / 2 + wire + math.sqrt(wire * RAMP_S)


def send_s(nbytes: float, cluster: Cluster, *, stride: int) -> float:
    """Seconds of a message to the rank whose number is larger by `stride`."""
    inside = stride < cluster.node
    speed = (cluster.gpu.link_gb_per_s if inside else cluster.network.gb_per_s) * 1e9
    wire = nbytes / speed
    return 10e-6 + wire + math.sqrt(wire * RAMP_S) / 2
