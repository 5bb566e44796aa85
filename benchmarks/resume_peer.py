"""The peer of resume_time.py: the same tensors in plain torch, FSDP2 and AdamW, loaded by torch.distributed.checkpoint
as torchtitan's trainer does it, up to the end of the first step. torchrun starts it:

    resume_peer.py RECIPE CHECKPOINT (save | resume)

The main rank of `resume` prints one JSON object: seconds by phase since it started, and the wall clock at the end.
"""

import json
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from gpt.model.gpt import GPT
from gpt.telemetry.time_ledger import process_started_at
from launch.config.run_config import RunConfig, read_run_config


def build(config: RunConfig) -> tuple[GPT, torch.optim.AdamW]:
    """Each block and the rest sharded over the ranks, allocated and not filled."""
    with torch.device("meta"):
        model = GPT(config.model)
    model.to_empty(device="cpu")
    model.tie()
    for block in model.blocks.values():
        fully_shard(block)
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate, fused=True)


def step(model: GPT, optimizer: torch.optim.AdamW, config: RunConfig) -> None:
    """One step on this rank's share of a batch."""
    ranks, micro, seq_len = dist.get_world_size(), config.batch.micro_batch_size, config.data.seq_len
    draw = torch.Generator().manual_seed(dist.get_rank())
    n = config.batch.global_batch_tokens // seq_len // ranks
    for part in torch.randint(0, 512, (n, seq_len + 1), generator=draw).split(micro):
        logits = model(part[:, :-1])
        (functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()) * len(part) / n).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    recipe, folder, what = sys.argv[1:]
    at = [("imports", time.monotonic())]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    dist.barrier()
    at.append(("joining", time.monotonic()))
    config = read_run_config(recipe, [])
    model, optimizer = build(config)
    if what == "save":
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.to_local(), std=0.02)
        step(model, optimizer, config)
    at.append(("building", time.monotonic()))
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    if what == "save":
        dcp.save(state, checkpoint_id=folder)
        return
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    at.append(("loading", time.monotonic()))
    step(model, optimizer, config)
    at.append(("first step", time.monotonic()))
    if dist.get_rank() == 0:
        started_at = before = process_started_at()
        ended_time, phases = time.time(), {}
        for name, moment in at:
            phases[name], before = moment - before, moment
        print(json.dumps({"phases_s": phases, "ended_time": ended_time, "lived_s": before - started_at}), flush=True)


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
