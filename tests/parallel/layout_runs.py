"""For tests: train one small model on many layouts with real gloo processes, and return the results.

A run is {"name", "world_size", "parallel": {...}, "model": {...}, "steps", "micro_batch_size"}. One with "count" takes
a single step, and tells what each rank held and sent. Each run has processes of its own, forked from one that has
imported torch: torch's caches remember process groups that are no more.
"""

import faulthandler
import gc
import hashlib
import json
import math
import os
import resource
import shutil
import tempfile
import time
from contextlib import nullcontext
from datetime import timedelta
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from core_stacks import native_stacks
from generated import beats_of_waiting, generated
from live_tensors import GatheredBlocks, Live, LiveMicroBatches, Peak, storage_of
from rank_server import rank_server

from gpt.adapters.config import AdapterConfig
from gpt.data.sampling import Samples
from gpt.inference.model import ForwardInputs
from gpt.inference.sampling_settings import Sampling
from gpt.losses.batch import Batch
from gpt.losses.marks import PADDING
from gpt.model.config import ModelConfig
from gpt.model.initialisation import Start, fill
from gpt.model.rope import angles_of
from gpt.training.config import Retention
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from launch.processes.local_ranks import RankFailed
from parallel.axes.gradients import local
from parallel.axes.initialisation import held_indices
from parallel.checkpoint.handle import verify_checkpoint
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.dry_run import held_bytes
from parallel.planner.traffic import CollectiveCounter

SEQUENCES, SEQ_LEN, VOCAB, SEED = 8, 16, 120, 5
SMALLEST_VOCAB = 97  # ids that every model here has
PROMPTS = [[5, 3, 60], [7], [90, 4, 8, 20, 20, 1, 3, 9, 77], [1, 2, 3, 4]]
MODEL = {"vocab_size": VOCAB, "n_ctx": 16, "n_layers": 4, "d_model": 32, "n_heads": 4}
MODERN = {
    "positions": "rope",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tied": False,
    "n_kv_heads": 2,
    "d_ff": 64,
}
TALKATIVE = {"vocab_size": 98, "vocab_multiple": 3, "init_std": 0.3}  # logits that tell tokens apart, some padding
STEPS = int(os.environ.get("TRIAXIAL_LAYOUT_STEPS", "4"))
LAUNCH_TIMEOUT_S = 600  # of the one launch; a hung collective ends itself after 90 s
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, max_gradient_norm=0.5)


def launch(folder, runs, *, timeout_s, **variables):
    """Train all runs, with more environment variables. Return the results by the name of the run."""
    runs_file, results = folder / "runs.json", {}
    runs_file.write_text(json.dumps(runs))
    ends_at = time.monotonic() + timeout_s
    for i, run in enumerate(runs):
        own = folder / f"run{i}"
        own.mkdir()
        rest_s = max(1.0, ends_at - time.monotonic())
        words = [i, runs_file, own]
        try:
            server = rank_server(**variables)
            server.run_ranks("layout_runs:work", words, nproc=run["world_size"], logs=own / "logs", timeout_s=rest_s)
        except RankFailed as error:
            kept = shutil.move(own, tempfile.mkdtemp(prefix="layout_runs_failed_"))
            stacks = native_stacks(Path(kept))
            raise RankFailed(f"run {run['name']!r}: {error}\n{stacks}output of the ranks, and cores: {kept}") from None
        results[run["name"]] = json.loads((own / "result.json").read_text())
        shutil.rmtree(own)
    return results


def run_of(name, world_size, parallel, *, steps=STEPS, **more):
    """An entry of RUNS.json."""
    return {"name": name, "world_size": world_size, "parallel": parallel, "steps": steps, **more}


def largest_difference(ours, reference):
    """Between the figures of two runs, relative to the second's."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


def assert_same_continuations(ours, reference):
    for (tokens, log_probs, stopped), (their_tokens, their_log_probs, they_stopped) in zip(
        ours, reference, strict=True
    ):
        assert (tokens, stopped) == (their_tokens, they_stopped)
        for ours_now, theirs_now in zip(log_probs, their_log_probs, strict=True):
            assert math.isclose(ours_now, theirs_now, rel_tol=1e-4, abs_tol=1e-4), (log_probs, their_log_probs)


def tokens_of_step(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, SMALLEST_VOCAB, (SEQUENCES, SEQ_LEN + 1), generator=generator)


def settings_of(run):
    model = ModelConfig(**{**MODEL, **run.get("model", {})})
    parallel = ParallelConfig(**{"precision": "fp32", **run["parallel"]})
    batch = BatchConfig(run.get("micro_batch_size", 2), SEQUENCES * SEQ_LEN)
    layout = resolve_layout(parallel, batch, model=model, seq_len=SEQ_LEN, world_size=run["world_size"])
    adapter = AdapterConfig(**run["adapter"]) if "adapter" in run else None
    return EngineSettings(model, parallel, layout, OPTIMIZER, batch.micro_batch_size, SEED, adapter=adapter)


def build(run):
    settings = settings_of(run)
    engine = build_engine(settings, objective=NextToken(run.get("z_loss", 0.0)), device=torch.device("cpu"))
    if settings.adapter is not None:
        fill_adapters(engine)
    return engine


@torch.no_grad()
def fill_adapters(engine):
    """Give each B numbers other than 0, which do not depend on the layout: else A has no gradient."""
    for name, parameter in engine.parameters:
        if name.endswith(".adapter.b"):
            part, indices = local(parameter), held_indices(parameter)
            fill(part, name, Start(std=0.1), seed=SEED, shape=tuple(parameter.shape), indices=indices)


def gradients_of(engine, batch):
    """The whole gradients of a batch by name: a few elements of each, and its norm."""
    engine.forward_backward(batch)
    mine = {name: [*g.flatten()[::23].tolist(), float(g.norm())] for name, g in engine.named_gradients()}
    engine.optimizer_step(0.0, discard=True)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: values for found in everyone for name, values in found.items()}


def logits_of(engine, tokens):
    """Logits after every token (b, t), as evaluation asks for them."""
    indices = torch.arange(tokens.numel())
    with engine.as_model() as model, torch.no_grad():
        inputs = ForwardInputs(tokens.to(model.device), torch.arange(tokens.size(1)).unsqueeze(0))
        return model.next_logits(inputs, indices=indices)


def whole_weights_digest(engine):
    """A digest of every weight, each gathered whole. Equal models have equal digests on all layouts."""
    mine = {}
    for name, parameter in engine.parameters:
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        digest = hashlib.sha256(full.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        assert mine.setdefault(name, digest) == digest, f"{name} differs between the stages of a rank"
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    merged = {}
    for names in everyone:
        for name, digest in names.items():
            assert merged.setdefault(name, digest) == digest, f"{name} differs between ranks"
    return hashlib.sha256(json.dumps(sorted(merged.items())).encode()).hexdigest()


def documents_of_step(step):
    """The numbers of the documents that the tokens of a step are of, (SEQUENCES, SEQ_LEN + 1); a few end in padding."""
    generator = torch.Generator().manual_seed(step + 1_000_000)
    ids = (torch.rand(SEQUENCES, SEQ_LEN + 1, generator=generator) < 0.2).long().cumsum(1)
    ids[0] = 0  # one document fills the row
    ids[1, 11:] = PADDING
    return ids


def batch_of_step(step, rows, *, documents):
    tokens = tokens_of_step(step)[rows]
    if not documents:
        return Batch(tokens[:, :-1], tokens[:, 1:])
    return NextToken().batch(Samples(tokens.numpy(), documents_of_step(step)[rows].numpy()))


def train(engine, steps, first_step=0, *, documents=False):
    share = SEQUENCES // engine.data_size
    rows = slice(engine.data_rank * share, (engine.data_rank + 1) * share)
    losses, norms, metrics = [], [], []
    for step in range(first_step, steps):
        engine.forward_backward(batch_of_step(step, rows, documents=documents))
        result = engine.optimizer_step(OPTIMIZER.learning_rate)
        losses.append(result.loss.mean)
        norms.append(result.gradient_norm)
        metrics.append(dict(result.loss.metrics))
    return losses, norms, metrics


def counted_step(engine, *, peaks):
    """The bytes that each rank holds after the gradients of a step, those it sends in the step, and its peak."""
    share = SEQUENCES // engine.data_size
    mine = tokens_of_step(0)[engine.data_rank * share : (engine.data_rank + 1) * share]
    batch = Batch(mine[:, :-1], mine[:, 1:])
    if peaks:  # inputs and targets in one storage and keys of rows, as the dry run has them
        batch = Batch(*[mine[:, 1:].contiguous()] * 2, row_keys=torch.zeros(len(mine), dtype=torch.int32))
    peak = Peak(engine)
    with CollectiveCounter(engine.mesh) as counter, peak if peaks else nullcontext():
        engine.forward_backward(batch)
        held = held_bytes(engine)
        engine.optimizer_step(OPTIMIZER.learning_rate)
    traffic = [[key.axis, key.kind, key.ranks, n.count, n.bytes] for key, n in sorted(counter.traffic.items())]
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(
        ranks, {"held": held, "traffic": traffic, "peak": {"activations": peak.activations, "all": peak.all}}
    )
    return ranks


def step_with_other_bits(engine):
    """Differences between the replicas of ranks after a step in which rank 1 computed other gradients of norms."""
    tokens = tokens_of_step(0)
    engine.forward_backward(Batch(tokens[:, :-1], tokens[:, 1:]))
    for name, parameter in engine.parameters:
        if "norm" in name and dist.get_rank() == 1:
            local(parameter.grad).mul_(1.01)
    engine.optimizer_step(OPTIMIZER.learning_rate)
    return engine.check_replicas()


def counted_live(live):
    """By rank, the most micro-batches alive at once in training, and how many are left after it."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (live.peak, len(live.saved)))
    return {"by_rank": [peak for peak, _ in everyone], "left": sum(left for _, left in everyone)}


def kept_bytes(engine):
    """What one block holds for backward, its output (the next block's input) counted and its input not; bytes."""
    block = next(iter(engine.stages[0].model.blocks.values()))
    parallel = engine.settings.parallel
    width = SEQ_LEN // (parallel.tensor if parallel.sequence_parallel else 1)
    x = torch.randn(SEQUENCES, width, engine.settings.model.d_model, dtype=torch.bfloat16, requires_grad=True)
    angles = angles_of(engine.settings.model, None, length=SEQ_LEN, device=torch.device("cpu"))
    with torch.no_grad():
        block(x, angles)  # gathers the weights, which are not to be counted
    with Live() as live:
        y = block(x, angles)
    gc.collect()
    for known in (x, *block.parameters()):
        live.storages.pop(storage_of(known), None)
    kept = sum(live.storages.values())
    y.sum().backward()
    engine.optimizer.clear_gradients()
    return kept


def run_one(run):
    engine = build(run)
    if run.get("count"):
        return counted_step(engine, peaks=run.get("peak", False))
    if run.get("other_bits"):
        return {"differences": step_with_other_bits(engine)}
    result = {"initial_weights": whole_weights_digest(engine)}
    if run.get("generate"):
        for way, sampling in (("greedy", Sampling()), ("warm", Sampling(temperature=1.3, top_k=20))):
            continued = generated(engine, PROMPTS, max_new_tokens=6, sampling=sampling, stop_ids=range(30), seed=3)
            result[way] = [(c.tokens, c.log_probs, c.stopped) for c in continued]
        result["beats"] = beats_of_waiting(engine, PROMPTS)
    if run.get("gradients"):
        share = SEQUENCES // engine.data_size
        rows = slice(engine.data_rank * share, (engine.data_rank + 1) * share)
        result["gradients"] = gradients_of(engine, batch_of_step(20_000, rows, documents=False))
    documents = run.get("documents", False)
    gathered = GatheredBlocks(engine) if run.get("count_gathered") else None
    live = LiveMicroBatches(engine) if run.get("count_live") else None
    parts = [train(engine, 1, documents=documents)] if engine.settings.parallel.compile else []
    result["compiled_in_first_step"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] if parts else 0
    parts.append(train(engine, run["steps"], first_step=len(parts), documents=documents))
    result["losses"], result["norms"], result["metrics"] = ([*chain(*lists)] for lists in zip(*parts, strict=True))
    if live is not None:
        result["live"] = counted_live(live)
    if engine.settings.parallel.compile:
        result["compiled_graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    share = SEQUENCES // engine.data_size
    rows = slice(engine.data_rank * share, (engine.data_rank + 1) * share)
    parts = batch_of_step(10_000, rows, documents=documents).split(max(1, share // 2))
    totals = engine.evaluate(parts)  # several batches may be in a pipeline at once
    result["evaluated"], result["evaluated_tokens"] = totals.mean, totals.tokens
    result["logits"] = logits_of(engine, tokens_of_step(10_001)[:2, :7]).double().flatten()[::97].tolist()
    if gathered is not None:
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, max(gathered.counts))
        result["gathered_blocks"] = everyone
    if ways := run.get("measure_kept"):
        engines = {way: build({**run, "parallel": {**run["parallel"], "recompute": way}}) for way in ways}
        result["kept_bytes"] = {way: kept_bytes(each) for way, each in engines.items()}
    if run.get("save"):
        directory, state = Path(run["save"]), {"step": run["steps"]}
        engine.checkpoints.shared.save(directory, step=run["steps"], state=state, keep=Retention(1))
    if run.get("load"):
        (path,) = Path(run["load"]).glob("step-*")
        checkpoint = verify_checkpoint(path)
        engine.checkpoints.shared.load(checkpoint)
        assert checkpoint.state["step"] == run["resume_step"]
        resumed = train(engine, run["resume_to"], first_step=checkpoint.step)
        result["resumed_losses"], result["resumed_norms"], _ = resumed
    result["final_weights"] = whole_weights_digest(engine)
    local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for _, p in engine.parameters)
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, local)
    result["local_parameters"] = counts
    return result


def work(rank, i, runs_file, folder):
    """One rank of run `i`; rank 0 writes what the run found."""
    faulthandler.enable()  # for the stacks of a rank that aborts; its core goes to the current folder
    own = Path(folder, f"rank{rank}")
    own.mkdir()
    os.chdir(own)
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    torch.set_num_threads(1)
    run = json.loads(Path(runs_file).read_text())[int(i)]
    store = dist.FileStore(f"{folder}/store", run["world_size"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=run["world_size"], timeout=timedelta(seconds=90))
    if run.get("abort") == rank:
        os.abort()
    result = run_one(run)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result))
