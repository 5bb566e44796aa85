"""For tests: `triaxial train` on new local ranks, one of which is killed at a call of a function.

A run is {"name", "nproc", "words", "path", "kill"}: `words` lists the commands' words, which run one after the other.
A kill is {"rank", "at": "module:function", "call", "after", "signal"}. "after" kills when the call has returned, else
before it begins. "path" is where Python finds the reward functions. Output goes to NAME/rank0.txt (and so on), exit
statuses to NAME/rank0.status.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from free_ports import free_ports
from rank_server import rank_server

from launch.processes.local_ranks import RankFailed


def launch(folder: Path, run: dict[str, Any], *, timeout_s: float = 400) -> str:
    """Run in FOLDER/NAME. Returns how it failed, "" if it did not."""
    own = folder / run["name"]
    own.mkdir(parents=True)
    (own / "run.json").write_text(json.dumps(run))
    words = ("ppo_program:work", [own, ",".join(map(str, free_ports(len(run["words"]))))])
    try:
        rank_server().run_ranks(*words, nproc=run["nproc"], logs=own / "logs", timeout_s=timeout_s)
    except RankFailed as error:
        return str(error)
    status = [int((own / f"rank{rank}.status").read_text()) for rank in range(run["nproc"])]
    return "" if not any(status) else f"{status}: {(own / 'rank0.txt').read_text()}"


def work(rank: int, folder: str, ports: str) -> None:
    """Run one rank. `ports`: of each command, where its ranks meet."""
    own = Path(folder)
    run = json.loads((own / "run.json").read_text())
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(run["nproc"]), "MASTER_ADDR": "127.0.0.1"}
    )
    os.environ["LOCAL_WORLD_SIZE"] = str(run["nproc"])
    sys.path.insert(0, run["path"])
    with (own / f"rank{rank}.txt").open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    kill = run.get("kill")
    if kill and kill["rank"] == rank:
        kill_at(kill)
    from launch.main import main as triaxial

    status = 0
    for words, port in zip(run["words"], ports.split(","), strict=True):
        os.environ["MASTER_PORT"] = port
        status = max(status, triaxial(["train", *words]))
    (own / f"rank{rank}.status").write_text(str(status))
    sys.stdout.flush()


def kill_at(kill: dict[str, Any]) -> None:
    """Kill this process at a call, counted from 1, of a function "module:function" or "module:Class.method"."""
    call, after, number = kill["call"], kill.get("after", False), getattr(signal, kill.get("signal", "SIGKILL"))
    module, _, path = kill["at"].partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), number)
        result = original(*args, **kwargs)
        if calls == call and after:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, counted)
