"""Start the ranks of a preflight on this node, as training would: by `launch.torchrun` and its sealed rendezvous."""

import math
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import ConfigError
from launch.processes.failures import MISTAKE

TOGETHER_FAILED = 3  # exit status of a node if the nodes together failed; the reason is printed


@dataclass(frozen=True)
class Check:
    """What to check: the nodes (a number, or names with commas), where they meet, and the time that each step has."""

    nodes: str
    endpoint: str | None
    nproc_per_node: int
    limit_s: float
    bad_nodes: Path | None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--nodes {self.nodes} is invalid: must be a number from 1, or names with commas")
        if self.count > 1 and not self.endpoint:
            raise ConfigError("--rdzv-endpoint is missing: must be HOST:PORT of one node, the same on every node")
        if self.nproc_per_node < 1:
            raise ConfigError(f"--nproc-per-node {self.nproc_per_node} is invalid: must be 1 or more")
        if not 1 <= self.limit_s < math.inf:
            raise ConfigError(f"--limit-s {self.limit_s:g} is invalid: must be 1 or more")
        if self.bad_nodes is not None and not (folder := self.bad_nodes.resolve().parent).is_dir():
            raise ConfigError(f"--bad-nodes {self.bad_nodes} is invalid: {folder} is no folder")

    @property
    def count(self) -> int:
        """The number of nodes."""
        return int(self.nodes) if self.nodes.isdecimal() else len([name for name in self.nodes.split(",") if name])


def check_nodes(check: Check) -> int:
    """Run the preflight; each node calls it at the same time. Returns 0, 1 if this node failed, or TOGETHER_FAILED.

    Nodes that do not come within the limit are named by the others, which start without them.
    """
    from launch import torchrun

    settings = f"last_call_timeout={max(1, round(check.limit_s))},join_timeout={round(2 * check.limit_s) + 60}"
    words = [f"--nnodes=1:{check.count}", f"--nproc-per-node={check.nproc_per_node}", "--max-restarts=0"]
    if check.count > 1:
        words += [f"--rdzv-endpoint={check.endpoint}", "--rdzv-id=preflight", f"--rdzv-conf={settings}"]
    words += ["-m", "launch.preflight.rank", "--nodes", check.nodes, "--limit-s", f"{check.limit_s:g}"]
    if check.bad_nodes is not None:
        words += ["--bad-nodes", str(check.bad_nodes.resolve())]
    status = torchrun.main(words)
    return TOGETHER_FAILED if status == MISTAKE else min(status, 1)
