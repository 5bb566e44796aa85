"""For tests: flip a bit of a replica on one rank, keep training, and record what the replica check finds.

A plan is a list of {"name", "nproc", "words": [...], "trials", "bits": [first, last], "seed"}. Each entry gets an
engine on new ranks. Each of its trials starts from the same weights and moments, and trains with the real loop until it
ends. The results go to NAME.json in the folder of the plan, as a list of {"rank", "bit", "flipped", "flipped_at",
"found", "found_at", "digests"}. Steps count optimizer steps; "found" is the message of the error or null; "digests" is
the number of different SHA-256 of that tensor on all ranks at the end.
"""

import hashlib
import json
import random
from datetime import timedelta
from pathlib import Path

from rank_server import rank_server


def launch(folder, plan, *, timeout_s):
    """Run a plan in a folder. Return the results by name."""
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    for i, task in enumerate(plan):
        logs = folder / f"{task['name']} logs"
        rank_server().run_ranks("flip_trials:try_flips", [path, i], nproc=task["nproc"], logs=logs, timeout_s=timeout_s)
    return {task["name"]: json.loads((folder / f"{task['name']}.json").read_text()) for task in plan}


def try_flips(rank, plan_path, index):
    """Run one rank of a task."""
    import torch
    import torch.distributed as dist

    from gpt.telemetry.time_ledger import TimeLedger
    from launch.config.run_config import layout_of, read_run_config
    from launch.training.build import build_engine, build_objective
    from launch.training.resume import fresh_start

    folder, task = Path(plan_path).parent, json.loads(Path(plan_path).read_text())[int(index)]
    config = read_run_config(task["words"][0], task["words"][1:])
    store = dist.FileStore(str(folder / f"{task['name']}.store"), task["nproc"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=task["nproc"], timeout=timedelta(seconds=90))
    layout = layout_of(config, task["nproc"])
    engine = build_engine(
        config, layout, torch.device("cpu"), fresh_start(config), TimeLedger(None), objective=build_objective(config)
    )
    trials = Trials(task, config, rank, engine)
    found = [trials.next() for _ in range(task["trials"])]
    if rank == 0:
        (folder / f"{task['name']}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


class Trials:
    """The trials of one engine. Every rank draws the same numbers, and only one rank flips a bit."""

    def __init__(self, task, config, rank, engine):
        from launch.training.build import build_run, open_data

        self.nproc, self.bits, self.rank, self.random = task["nproc"], task["bits"], rank, random.Random(task["seed"])
        self.config, self.engine, self.step = config, engine, engine.optimizer_step
        self.run, (self.data, _) = build_run(config, {}, peak_flops_per_s=0.0), open_data(config)
        self.train()
        self.held = engine._replica_check.held  # tensors with replicas elsewhere, under the same names on every rank
        self.kept = [tensor.clone() for tensor in self.tensors()]

    def tensors(self):
        from parallel.axes.gradients import local

        for _, parameter in self.engine.parameters:
            for tensor in (parameter.data, *self.engine.optimizer.tensors_of(parameter).values()):
                yield local(tensor)

    def next(self):
        import torch

        for tensor, kept in zip(self.tensors(), self.kept, strict=True):
            tensor.copy_(kept)
        one, kind = self.random.choice(self.held), self.random.randrange(3)
        tensor = one.tensors[kind].view(-1)
        index, bit = self.random.randrange(tensor.numel()), self.random.randint(*self.bits)
        who, when = self.random.randrange(self.nproc), self.random.randrange(self.run.replica_check_every_steps)
        taken = []

        def step(*args, **kwargs):
            if len(taken) == when and self.rank == who:
                tensor[index : index + 1].view(torch.int32).bitwise_xor_(torch.tensor(1 << bit, dtype=torch.int32))
            result = self.step(*args, **kwargs)
            taken.append(result.skipped)
            return result

        self.engine.optimizer_step = step
        found = self.train()
        return {
            "rank": who,
            "bit": bit,
            "flipped": f"{('model.', 'optimizer.exp_avg.', 'optimizer.exp_avg_sq.')[kind]}{one.name}",
            "flipped_at": when,
            "found": found,
            "found_at": len(taken),
            "digests": len(set(self.everywhere(hashlib.sha256(tensor.numpy().tobytes()).hexdigest()))),
        }

    def everywhere(self, value):
        import torch.distributed as dist

        values = [None] * self.nproc
        dist.all_gather_object(values, value)
        return values

    def train(self):
        """Run the real loop until the replica check raises; return its message, or None. Save nothing."""
        from gpt.health.watchers import UNWATCHED
        from gpt.telemetry.time_ledger import TimeLedger
        from gpt.training.config import ReplicaMismatch
        from gpt.training.loop import TrainingLoop
        from gpt.training.objective import NextToken
        from launch.training.resume import fresh_start

        parts = dict.fromkeys(("metrics", "sampler", "probe", "watch"))
        parts |= {"heartbeat": UNWATCHED, "ledger": TimeLedger(None)}
        state = fresh_start(self.config).state
        loop = TrainingLoop(self.run, self.engine, NextToken(), self.data, {}, state=state, **parts)
        loop.save = lambda **_: None  # at the end
        try:
            loop.train()
        except ReplicaMismatch as error:
            return str(error)
        return None
