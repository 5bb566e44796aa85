"""The program of one rank of a preflight, which `launch.torchrun` starts: `python -m launch.preflight.rank`.

The ranks meet, report the facts of their nodes, check the shared folder and the clocks, and then follow the plans of
rank 0. The exit status is 0, or MISTAKE if anything is wrong: a restart would not help.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.preflight.board import Board, open_board
from launch.preflight.coordinator import Coordinator, Findings, answer
from launch.preflight.links import SLOWED, links
from launch.preflight.probe import Attempt
from launch.preflight.verdict import differences
from launch.processes.environment import ClusterEnvironment
from launch.processes.failures import MISTAKE
from launch.processes.rank_process import enter_process
from parallel.errors import ForgedMessage

SHARED_S = 15.0  # how long a file may take to appear on other nodes
MAX_SKEW_S = 2.0
MARGIN_S = 30.0


def main(argv: list[str] | None = None) -> int:
    """Run one rank. Every rank of the job calls it, with the same arguments."""
    enter_process(is_command=argv is None)
    parser = argparse.ArgumentParser(description="One rank of `triaxial doctor --nodes`.")
    parser.add_argument("--nodes", default="")
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--bad-nodes", type=Path)
    args = parser.parse_args(argv)
    environment = ClusterEnvironment.from_environment()
    # Not for rank 0: its search may take many attempts, and each of them has a limit.
    patience = None if environment.rank == 0 else _Patience(2 * args.limit_s + 2 * MARGIN_S)
    try:
        board = open_board(environment, timeout_s=args.limit_s)
        board.post(f"facts {environment.rank}", _facts(environment))
        if patience is None:
            findings = _lead(board, environment, args)
            board.post("end", dataclasses.asdict(findings))
            board.read_all({rank: f"left {rank}" for rank in range(1, environment.world_size)}, timeout_s=5)
        else:
            findings = _follow(board, environment, args, patience)
            board.post(f"left {environment.rank}", True)
    except RuntimeError as error:  # the base class of all errors of torch.distributed
        findings = _without_rank_0(environment, str(error))
    except ForgedMessage as error:
        findings = Findings(problems=[str(error)])
    return _report(findings, environment, args)


class _Patience:
    """Ends this process if rank 0 stops answering: a read from a store that is stopped never returns."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends_at = seconds, time.monotonic() + seconds
        threading.Thread(target=self._watch, daemon=True).start()

    def renew(self) -> None:
        self.ends_at = time.monotonic() + self.seconds

    def _watch(self) -> None:
        while time.monotonic() < self.ends_at:
            time.sleep(0.5)
        print("problem: rank 0 of the preflight stopped answering", file=sys.stderr, flush=True)
        os._exit(MISTAKE)


def _backend() -> str:
    import torch
    import torch.distributed as dist

    return "nccl" if torch.cuda.device_count() and dist.is_nccl_available() else "gloo"  # asks NVML, not CUDA


def _facts(environment: ClusterEnvironment) -> dict[str, Any]:
    """The facts about this rank for rank 0; the facts of the node come from its first rank."""
    import torch

    name = environment.node_name or socket.gethostname()
    found: dict[str, Any] = {"node": environment.node_rank, "name": name}
    if environment.local_rank == 0:
        here = links()
        found["facts"] = {
            **{"torch": torch.__version__, "triaxial": importlib.metadata.version("triaxial")},
            **{"nccl": here.get("nccl", "none"), "gpu driver": here.get("gpu driver", "none")},
            f"GPUs {SLOWED}": here.get("gpu clocks", "").count(SLOWED),
            **{"GPUs": torch.cuda.device_count(), "ranks": environment.local_world_size},
        }
    return found


def _lead(board: Board, environment: ClusterEnvironment, args: argparse.Namespace) -> Findings:
    """Rank 0: wait for all, compare their facts, then try all-reduces."""
    everyone = range(environment.world_size)
    facts = board.read_all({rank: f"facts {rank}" for rank in everyone}, timeout_s=args.limit_s)
    ranks: dict[int, list[int]] = {}
    for rank, found in sorted(facts.items()):
        ranks.setdefault(found["node"], []).append(rank)
    names = _names({found["node"]: found["name"] for found in facts.values()})
    coordinator = Coordinator(board, environment, ranks=ranks, names=names, backend=_backend(), limit_s=args.limit_s)
    findings = coordinator.findings
    _name_missing(findings, expected=args.nodes, names=names)
    silent = [rank for rank in everyone if rank not in facts]
    if silent:
        findings.problems.append(f"rank {', '.join(map(str, silent))} did not reach rank 0 within {args.limit_s:g} s")
    problems, warnings = differences({names[f["node"]]: f["facts"] for f in facts.values() if "facts" in f})
    for node, reason in problems:
        findings.accuse([node], f"node {node} {reason}")
    findings.warnings += warnings
    _compare_folders(board, facts, args.folder, names=names, findings=findings)
    return coordinator.examine()


def _names(found: dict[int, str]) -> dict[int, str]:
    """The name of each node; two launchers on one machine get their numbers too."""
    doubled = [name for name in found.values() if list(found.values()).count(name) > 1]
    return {node: f"{name}#{node}" if name in doubled else name for node, name in sorted(found.items())}


def _name_missing(findings: Findings, *, expected: str, names: dict[int, str]) -> None:
    """Accuse the nodes that did not come to the rendezvous. `expected`: their number, or names with commas."""
    if not expected:
        return
    if expected.isdecimal():
        if len(names) < int(expected):
            findings.problems.append(
                f"{len(names)} of {expected} nodes came to the rendezvous: {', '.join(names.values())}. See the output "
                "of the others"
            )
        return
    for name in expected.split(","):
        if name and name not in names.values():
            findings.accuse([name], f"node {name} did not come to the rendezvous. See its output")


def _compare_folders(
    board: Board, facts: dict[int, Any], folder: Path, *, names: dict[int, str], findings: Findings
) -> None:
    """Every node must see a new file in the folder, and have the same time of day."""
    token = secrets.token_hex(8)
    file = folder.resolve() / f".preflight-{token}"
    try:
        file.write_text(token, encoding="utf-8")
    except OSError as error:
        here, reason = names[facts[0]["node"]], (error.strerror or "").lower()
        findings.accuse([here], f"node {here} cannot write a file in {file.parent}: {reason}")
        token = ""  # nothing to look for
    try:
        board.post("look", {"file": str(file), "token": token, "now": time.time()})
        first = {found["node"]: rank for rank, found in sorted(facts.items(), reverse=True)}
        seen = board.read_all({node: f"seen {rank}" for node, rank in first.items() if rank}, timeout_s=SHARED_S + 5)
    finally:
        with suppress(OSError):
            file.unlink()
    for node, found in seen.items():
        if not found["sees"]:
            findings.accuse(
                [names[node]],
                f"node {names[node]} does not see a new file in {file.parent}: the folder is not shared",
            )
        if abs(found["skew_s"]) > MAX_SKEW_S:
            findings.warnings.append(
                f"the clock of node {names[node]} differs by {found['skew_s']:+.1f} s from that of {names[0]}"
            )


def _follow(board: Board, environment: ClusterEnvironment, args: argparse.Namespace, patience: _Patience) -> Findings:
    """All ranks but 0: answer the requests of rank 0 until it ends."""
    wait_s, backend = patience.seconds - MARGIN_S, _backend()
    look = board.read("look", timeout_s=wait_s)
    skew_s = time.time() - look["now"]
    board.post(f"seen {environment.rank}", {"skew_s": skew_s, "sees": _sees(Path(look["file"]), look["token"])})
    number = 1
    while True:
        patience.renew()
        ends_at = time.monotonic() + wait_s
        while not board.store.check([f"plan {number}"]):
            if board.store.check(["end"]):
                return Findings(**board.read("end", timeout_s=1))
            if time.monotonic() > ends_at:
                raise RuntimeError(f"no plan within {wait_s:g} s")
            time.sleep(0.05)
        plan = Attempt.from_message(board.read(f"plan {number}", timeout_s=1))
        answer(board, environment, plan, backend=backend)
        number += 1


def _sees(file: Path, token: str) -> bool:
    """Whether the file of rank 0 appears here; True if there is none."""
    ends_at = time.monotonic() + SHARED_S
    while token:
        try:
            return file.read_text(encoding="utf-8") == token
        except OSError:
            if time.monotonic() > ends_at:
                return False
            time.sleep(0.2)
    return True


def _without_rank_0(environment: ClusterEnvironment, error: str) -> Findings:
    """The report of a rank that cannot reach rank 0."""
    return Findings(
        problems=[
            f"no answer from rank 0 at {environment.master_addr}:{environment.master_port}. See its output: its node, "
            f"or the link to it, is at fault ({error.splitlines()[0][:200] if error else 'no reason given'})"
        ]
    )


def _report(findings: Findings, environment: ClusterEnvironment, args: argparse.Namespace) -> int:
    """Print the findings once on each node, and write the bad nodes once, each with the reason."""
    if environment.local_rank == 0:
        # One write, so that the lines of several nodes into one file do not mix. Problems come last, where one looks.
        here = f"node {environment.node_name or socket.gethostname()}: " if args.nodes not in ("", "1") else ""
        lines = [*findings.lines, *(f"warning: {text}" for text in findings.warnings)]
        lines += [f"problem: {text}" for text in findings.problems]
        sys.stdout.write("".join(f"{here}{text}\n" for text in lines))
        sys.stdout.flush()
    if environment.rank == 0 and args.bad_nodes is not None and findings.bad_nodes:
        with args.bad_nodes.open("a", encoding="utf-8") as file:
            file.write("".join(f"{name}\t{reason}\n" for name, reason in findings.bad_nodes.items()))
    return MISTAKE if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
