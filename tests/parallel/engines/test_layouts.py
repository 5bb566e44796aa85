"""Every layout trains the same model: against one process, and that one against plain torch without our engine."""

import itertools
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from layout_runs import (
    LAUNCH_TIMEOUT_S,
    MODEL,
    MODERN,
    OPTIMIZER,
    SEED,
    STEPS,
    TALKATIVE,
    largest_difference,
    launch,
    run_of,
    tokens_of_step,
)
from torch.nn import functional

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from launch.processes.local_ranks import RankFailed

SAVED_AT = STEPS - 2
pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
UNEVEN = {"d_model": 20, "vocab_size": 97, "vocab_multiple": 1}  # over 8 ranks some weights leave a rank with nothing
GROUPED = {**MODERN, "n_layers": 2, "bias": True}  # 2 key-value heads
UNEVEN_GROUPS = {
    "d_model": 48,
    "n_heads": 12,
    "n_kv_heads": 6,
    "positions": "rope",
    "n_layers": 2,
}  # ranks need 2 of them
UNEVEN_VOCAB = {"vocab_size": 98, "vocab_multiple": 3, "n_layers": 2}  # 99 rows, the last padding: 25, 25, 25, 24
Z_LOSSES = [
    ("z-loss, one", 1, {}, 1e-2),
    ("z-loss, tensor 2 x pipeline 2", 4, {"tensor": 2, "pipeline": 2}, 1e-2),
    ("without z-loss", 1, {}, 0.0),
]
LAYOUTS = {
    "one": (1, {}),
    "data 2": (2, {"data": 2}),
    "data 2, replicated": (2, {"data": 2, "zero_stage": 0}),
    "data 2, zero 2": (2, {"data": 2, "zero_stage": 2}),
    "data 2, zero 3": (2, {"data": 2, "zero_stage": 3}),
    "tensor 2": (2, {"tensor": 2}),
    "tensor 2, whole sequences": (2, {"tensor": 2, "sequence_parallel": False}),
    "tensor 2 x pipeline 2, whole sequences": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": False}),
    "tensor 2 x pipeline 2, zero bubble, whole sequences": (
        4,
        {"tensor": 2, "pipeline": 2, "schedule": "zbv_zero_bubble", "sequence_parallel": False},
    ),
    "tensor 2 x data 2, zero 3, selective, whole sequences": (
        4,
        {"tensor": 2, "data": 2, "zero_stage": 3, "recompute": "selective", "sequence_parallel": False},
    ),
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 2, gpipe": (2, {"pipeline": 2, "schedule": "gpipe"}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "tensor 2 x pipeline 2, recompute": (4, {"tensor": 2, "pipeline": 2, "recompute": "full"}),
    "tensor 2 x data 2, replicated": (4, {"tensor": 2, "data": 2, "zero_stage": 0}),
    "data 4, hybrid": (4, {"data": 4, "data_shard": 2}),
    "tensor 2 x data 4, hybrid, zero 3, recompute": (
        8,
        {"tensor": 2, "data": 4, "data_shard": 2, "zero_stage": 3, "recompute": "full"},
    ),
    "tensor 2 x pipeline 2, offload": (
        4,
        {"tensor": 2, "pipeline": 2, "offload": True},
    ),  # on a CPU the code path alone
    "data 2, zero 3, offload": (2, {"data": 2, "zero_stage": 3, "offload": True}),
    "tensor 2 x pipeline 2 x data 2": (8, {"tensor": 2, "pipeline": 2, "data": 2}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    runs = []
    for name, (world_size, parallel) in LAYOUTS.items():
        micro = 1 if world_size == 8 or parallel.get("data") == 4 else 2
        runs.append(run_of(name, world_size, parallel, micro_batch_size=micro))
        if name in ("one", "tensor 2 x pipeline 2", "tensor 2 x pipeline 2, whole sequences", "data 2, zero 3"):
            runs.append(run_of(f"modern, {name}", world_size, parallel, model=MODERN))
        if name in ("one", "tensor 2 x pipeline 2"):
            runs.append(run_of(f"bf16, {name}", world_size, {**parallel, "precision": "bf16"}))
    for size in (1, 4, 8):
        runs.append(run_of(f"bf16, one, micro-batch {size}", 1, {"precision": "bf16"}, micro_batch_size=size))
    runs += [run_of(name, n, parallel, model=TALKATIVE, steps=3, z_loss=z) for name, n, parallel, z in Z_LOSSES]
    runs.append(run_of("uneven, one", 1, {}, model=UNEVEN))
    runs.append(run_of("uneven, data 8", 8, {"data": 8, "zero_stage": 3}, model=UNEVEN, micro_batch_size=1))
    for family, model in (("grouped", GROUPED), ("uneven groups", UNEVEN_GROUPS), ("uneven vocabulary", UNEVEN_VOCAB)):
        runs.append(run_of(f"{family}, one", 1, {}, model=model))
        runs.append(run_of(f"{family}, tensor 4", 4, {"tensor": 4}, model=model))
        whole = {"tensor": 4, "sequence_parallel": False}
        runs.append(run_of(f"{family}, tensor 4, whole sequences", 4, whole, model=model))
    over_data = {"tensor": 4, "data": 2, "zero_stage": 3, "recompute": "full"}
    runs.append(run_of("grouped, tensor 4 x data 2", 8, over_data, model=GROUPED))
    runs.append(run_of("uneven vocabulary, tensor 4 x data 2", 8, over_data, model=UNEVEN_VOCAB))
    runs.append(run_of("other bits", 2, LAYOUTS["tensor 2, whole sequences"][1], model=MODERN, other_bits=True))
    saved = str(folder / "checkpoints")
    runs.append(run_of("save", 4, {"tensor": 2, "pipeline": 2}, steps=SAVED_AT, save=saved))
    again = {"steps": 1, "load": saved, "resume_step": SAVED_AT, "resume_to": STEPS}
    runs.append(run_of("load, same layout", 4, {"tensor": 2, "pipeline": 2}, **again))
    runs.append(run_of("load, one", 1, {}, **again))
    runs.append(run_of("load, data 2", 2, {"data": 2}, **again))
    runs.append(
        run_of(
            "load, tensor 2 x pipeline 2 x data 2",
            8,
            LAYOUTS["tensor 2 x pipeline 2 x data 2"][1],
            micro_batch_size=1,
            **again,
        )
    )
    return launch(folder, runs, timeout_s=LAUNCH_TIMEOUT_S)


def plain_torch_run(model_keys, steps):
    """The same training in textbook torch: no engine, no process group, no sums and counts."""
    config = ModelConfig(**{**MODEL, **model_keys})
    model = GPT(config)
    initialise(model, config, seed=SEED)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms = [], []
    for step in range(steps):
        tokens = tokens_of_step(step)
        logits = model(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_gradient_norm)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("family", ["gpt3", "modern"])
def test_one_process_equals_textbook_torch(results, family):
    losses, norms = plain_torch_run(MODERN if family == "modern" else {}, STEPS)
    ours = results["one" if family == "gpt3" else "modern, one"]
    assert largest_difference(ours["losses"], losses) < 1e-5
    assert largest_difference(ours["norms"][:1], norms[:1]) < 1e-4
    assert largest_difference(ours["norms"], norms) < 1e-3


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one"])
def test_layout_equals_one_process(results, name):
    ours, reference = results[name], results["one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert ours["evaluated_tokens"] == reference["evaluated_tokens"]
    assert math.isclose(ours["evaluated"], reference["evaluated"], rel_tol=1e-5)
    assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)


def test_replicas_stay_equal_if_a_rank_computes_other_bits(results):
    """As on CUDA, where a backward pass may not be deterministic. Every rank has the whole gradients of norms."""
    assert results["other bits"]["differences"] is None


def test_z_loss_on_a_layout_equals_one_process(results):
    """Also its figure, of which the ranks of the first stage know nothing."""
    ours, reference, without = (
        results[name] for name in ("z-loss, tensor 2 x pipeline 2", "z-loss, one", "without z-loss")
    )
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    z_losses = [[metrics["z_loss"] for metrics in result["metrics"]] for result in (ours, reference)]
    assert largest_difference(*z_losses) < 1e-5
    assert min(z_losses[0]) > 0.1
    assert reference["losses"][0] == without["losses"][0], "the loss that is told has none of it"
    assert reference["norms"][0] != without["norms"][0]
    assert without["metrics"] == [{}] * 3


@pytest.mark.parametrize("name", ["tensor 2 x pipeline 2", "tensor 2 x pipeline 2, whole sequences", "data 2, zero 3"])
def test_modern_architecture_equals_one_process(results, name):
    ours, reference = results[f"modern, {name}"], results["modern, one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"][:1], reference["norms"][:1]) < 1e-4
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-3


def test_uneven_and_empty_shards_equal_one_process(results):
    ours, reference = results["uneven, data 8"], results["uneven, one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert min(ours["local_parameters"]) < max(ours["local_parameters"])
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "grouped, tensor 4",
        "grouped, tensor 4, whole sequences",
        "uneven groups, tensor 4, whole sequences",
        "uneven vocabulary, tensor 4, whole sequences",
        "grouped, tensor 4 x data 2",
        "uneven groups, tensor 4",
        "uneven vocabulary, tensor 4",
        "uneven vocabulary, tensor 4 x data 2",
    ],
)
def test_tensor_ranks_that_do_not_divide_equal_one_process(results, name):
    """Neither key-value heads nor vocabulary rows need divide."""
    ours, reference = results[name], results[name.split(",")[0] + ", one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)


def test_bf16_layouts_round_no_worse_than_one_process(results):
    """docs/adr/0006: micro-batch splits of one process round a sequence's forward pass equally; tensor ranks do not.
    The test therefore compares each with the run in fp32, and prints the distances between them."""
    exact = results["one"]["losses"]
    splits = [results[f"bf16, one, micro-batch {size}"]["losses"] for size in (1, 4, 8)] + [
        results["bf16, one"]["losses"]
    ]
    layout = results["bf16, tensor 2 x pipeline 2"]["losses"]
    among = max(largest_difference(a, b) for a, b in itertools.permutations(splits, 2))
    between = max(largest_difference(layout, split) for split in splits)
    rounding = max(largest_difference(split, exact) for split in splits)
    print(
        f"largest relative loss difference in bf16: splits of one process {among:.1e}, layout and splits {between:.1e}"
    )
    print(f"and from fp32: splits {rounding:.1e}, layout {largest_difference(layout, exact):.1e}")
    assert among < 2e-4
    assert largest_difference(layout, exact) < 2 * rounding
    assert between < 4 * among


@pytest.mark.parametrize("name", ["same layout", "one", "data 2", "tensor 2 x pipeline 2 x data 2"])
def test_resuming_continues_the_curve(results, name):
    """Saved on tensor 2 x pipeline 2, two steps before the end. The same layout continues bit for bit."""
    ours = results[f"load, {name}"]
    undisturbed = results["tensor 2 x pipeline 2"]
    if name == "same layout":
        assert ours["resumed_losses"] == undisturbed["losses"][SAVED_AT:]
        assert ours["final_weights"] == undisturbed["final_weights"]
    assert largest_difference(ours["resumed_losses"], undisturbed["losses"][SAVED_AT:]) < 1e-5
    assert largest_difference(ours["resumed_norms"], undisturbed["norms"][SAVED_AT:]) < 1e-4


def test_weights_are_sharded(results):
    """Each rank of ZeRO-3 over 2 holds half, of tensor 2 x pipeline 2 about a quarter."""
    whole = sum(results["one"]["local_parameters"])
    assert all(abs(n / whole - 1 / 2) < 0.02 for n in results["data 2, zero 3"]["local_parameters"])
    assert all(n == whole for n in results["data 2, replicated"]["local_parameters"])
    assert all(n < 0.45 * whole for n in results["tensor 2 x pipeline 2"]["local_parameters"])


@pytest.mark.rehearse
def test_a_rank_that_aborts_is_not_run_again_and_its_stacks_are_kept(tmp_path):
    with pytest.raises(RankFailed, match=r"rank 1 of 2 failed first \(killed by SIGABRT") as failure:
        launch(tmp_path, [run_of("aborts", 2, {"data": 2}, abort=1)], timeout_s=300)
    kept = Path(re.findall(r"output of the ranks, and cores: (\S+)", str(failure.value))[-1])
    assert "[rank 1] Fatal Python error: Aborted\n[rank 1] Current thread 0x" in str(failure.value)
    if shutil.which("gdb") and list(kept.rglob("core*")):
        assert re.search(r"^#\d+ .*\babort\b", str(failure.value), re.MULTILINE)
    shutil.rmtree(kept.parent)


MALLOC_CHECKS = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
DEBUG_LIBRARIES = [*map(str, Path("/").glob("lib*/*/libc_malloc_debug.so.0"))]  # glibc 2.34 and later need it


@pytest.mark.rehearse
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DEBUG_LIBRARIES, reason="no library of glibc that checks malloc")
def test_no_rank_damages_the_heap(tmp_path):
    """An abort in malloc was seen once in some thousand launches of pipelines. The stacks and the core are kept."""
    loops = int(os.environ.get("MALLOC_LOOPS", "30"))
    pipelines = [run_of(f"pipeline {i}", 4, {"tensor": 2, "pipeline": 2}, steps=2) for i in range(loops)]
    variables = {**MALLOC_CHECKS, "LD_PRELOAD": DEBUG_LIBRARIES[0]}
    found = launch(tmp_path, pipelines, timeout_s=3500, **variables)
    assert len({tuple(result["losses"]) for result in found.values()}) == 1
