"""For tests: `triaxial train` on new local ranks, which are recorded and, where the plan says so, broken.

A plan is a list of {"name", "nproc", "words": [...], "faults": [...], "kill": {"rank", "call"}, "terms", "disk",
"ail", "digests"}.
Each rank writes one line per optimizer step to NAME/rank0.jsonl (and so on) in a folder. Its output goes
to NAME/rank0.txt, its exit status to NAME/rank0.status.

- A fault is {"rank", "step", "micro_batch", "value", "where"}: in that micro-batch of that step, the loss ("loss") or
  the gradient that comes back to this rank's stage ("gradient") is multiplied by the value.
- "kill" kills the rank at the optimizer step number "call".
- "terms" are {"rank", "during", "call", "times"}: this rank receives so many SIGTERM in that call of "step" or "save".
- "disk" is {"rank", "file", "other"}: when that rank opens the file it gets the other one, as from its own disk.
- "ail" is a fault of ailing_ranks.py.
- With "digests", each line has the digests of all whole weights after the step. The first line also has, in "began",
  those of all tensors of a checkpoint before the step.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from free_ports import free_ports
from rank_server import rank_server

from launch.processes.local_ranks import RankFailed


def launch(folder, plan, *, timeout_s=600):
    """Run a plan in a folder. Return the runs by name, each with "failed", "status", "ranks" and "written"."""
    for run in plan:
        own = folder / run["name"]
        own.mkdir()
        (own / "run.json").write_text(json.dumps(run))
        (port,) = free_ports(1)
        words = [own, port]
        try:
            rank_server().run_ranks(
                "watched_ranks:work", words, nproc=run["nproc"], logs=own / "logs", timeout_s=timeout_s
            )
            failed = ""
        except RankFailed as error:
            failed = str(error)
        (own / "failed.json").write_text(json.dumps(failed))
    return {run["name"]: seen(folder / run["name"], run["nproc"]) for run in plan}


def seen(folder, nproc):
    """Return the records, outputs and exit statuses of the ranks of a run."""
    files = [folder / f"rank{rank}.jsonl" for rank in range(nproc)]
    ranks = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    written = [(folder / f"rank{rank}.txt").read_text() for rank in range(nproc)]
    status = [int(file.read_text()) for file in sorted(folder.glob("rank*.status"))]
    return {
        "failed": json.loads((folder / "failed.json").read_text()),
        "status": status,
        "ranks": ranks,
        "written": written,
    }


def work(rank, folder, port):
    """Run one rank of a run."""
    folder = Path(folder)
    run = json.loads((folder / "run.json").read_text())
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(run["nproc"]), "MASTER_ADDR": "127.0.0.1"}
    )
    os.environ.update({"LOCAL_WORLD_SIZE": str(run["nproc"]), "MASTER_PORT": port})
    with (folder / f"rank{rank}.txt").open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    if run.get("ail", {}).get("rank") == rank:
        import ailing_ranks

        ailing_ranks.ail(run["ail"])
    Watch(rank, run, folder / f"rank{rank}.jsonl").install()
    from launch.main import main as triaxial

    (folder / f"rank{rank}.status").write_text(str(triaxial(["train", *run["words"]])))
    sys.stdout.flush()


class Watch:
    """Wraps the engine's optimizer step and each stage's forward, from outside."""

    def __init__(self, rank, run, path):
        self.rank, self.path, self.digests = rank, path, run.get("digests", False)
        self.faults = {(f["step"], f["micro_batch"]): f for f in run.get("faults", []) if f["rank"] == rank}
        kill = run.get("kill") or {}
        self.kill_at = kill["call"] if kill.get("rank") == rank else None
        self.terms = {(t["during"], t["call"]): t["times"] for t in run.get("terms", []) if t["rank"] == rank}
        disk = run.get("disk") or {}
        self.disk = {disk["file"]: disk["other"]} if disk.get("rank") == rank else {}
        self.calls = self.saves = self.micro_batches = 0
        self.tokens = []

    def install(self):
        from parallel.axes.stage import ModelStage
        from parallel.engines.checkpoints import SharedCheckpoints
        from parallel.engines.native import NativeEngine

        if self.disk:
            opened = os.open
            os.open = lambda path, *args, **kwargs: opened(self.disk.get(str(path), path), *args, **kwargs)
        forward, step = ModelStage.forward, NativeEngine.optimizer_step
        forward_backward, start_save = NativeEngine.forward_backward, SharedCheckpoints.start_save

        def broken_forward(stage, *args, **kwargs):
            return self.breaking(stage, forward(stage, *args, **kwargs))

        def watched_forward_backward(engine, batch):
            self.tokens = [
                [*row, end] for row, end in zip(batch.inputs.tolist(), batch.targets[:, -1].tolist(), strict=True)
            ]
            return forward_backward(engine, batch)

        def watched_step(engine, *args, **kwargs):
            return self.step(engine, lambda: step(engine, *args, **kwargs))

        def watched_save(store, *args, **kwargs):
            self.saves += 1
            self.terminate("save", self.saves)
            return start_save(store, *args, **kwargs)

        ModelStage.forward, NativeEngine.optimizer_step = broken_forward, watched_step
        NativeEngine.forward_backward, SharedCheckpoints.start_save = watched_forward_backward, watched_save

    def terminate(self, during, call):
        for _ in range(self.terms.get((during, call), 0)):
            os.kill(os.getpid(), signal.SIGTERM)

    def breaking(self, stage, out):
        import torch

        if not torch.is_grad_enabled():
            return out
        fault = self.faults.get((self.calls + 1, self.micro_batches))
        self.micro_batches += 1
        if fault is None:
            return out
        value = float(fault["value"])
        if fault["where"] == "loss":
            loss_sum, *others = stage.totals[-1]
            stage.totals[-1] = (loss_sum * value, *others)
            return out * value
        out.register_hook(lambda gradient: gradient * value)
        return out

    def step(self, engine, take):
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.terminate("step", self.calls)
        from parallel.health.weight_digests import weight_digests

        began = weight_digests(engine.tensors.by_name().items()) if self.digests and self.calls == 1 else {}
        before = self.bits(engine)
        result = take()
        self.micro_batches = 0
        line = {
            "loss": result.loss.mean.hex(),
            "norm": result.gradient_norm.hex(),
            "skipped": result.skipped,
            "unchanged": before == self.bits(engine),
            "tokens": self.tokens,
            "data_rank": engine.data_rank,
        }
        if self.digests:
            line["began"] = began
            line["digests"] = weight_digests(engine.parameters)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    def bits(self, engine):
        """Return a digest of this rank's part of weights and moments."""
        digest = hashlib.sha256()
        for _, parameter in engine.parameters:
            for tensor in (parameter.data, *engine.optimizer.tensors_of(parameter).values()):
                digest.update(getattr(tensor, "_local_tensor", tensor).detach().contiguous().numpy().tobytes())
        return digest.hexdigest()
