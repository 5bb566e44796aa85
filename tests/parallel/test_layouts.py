"""Every layout trains the same model: against one process, and that one against plain torch without our engine."""

import itertools
import math
import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed._symmetric_memory import is_symm_mem_enabled_for_group
from torch.nn import functional

from gpt.config import ModelConfig
from gpt.initialisation import initialise
from gpt.model import GPT
from parallel.gradients import squared_norm
from parallel.layout import BatchConfig, ParallelConfig, resolve_layout
from parallel.mesh import build_mesh
from parallel.tensor_parallel import allow_asynchronous

STEPS = int(os.environ.get("TRIAXIAL_LAYOUT_STEPS", "6"))
SAVED_AT = STEPS - 2
LAUNCH_TIMEOUT_S = 600  # of the one launch; a hung collective ends itself after 90 s
pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
MODERN = {
    "positions": "rope",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tied": False,
    "n_kv_heads": 2,
    "d_ff": 64,
}
UNEVEN = {"d_model": 20, "vocab_size": 97, "vocab_multiple": 1}  # over 8 ranks some weights leave a rank with nothing
GROUPED = {**MODERN, "n_layers": 2, "bias": True}  # 2 key-value heads
UNEVEN_GROUPS = {
    "d_model": 48,
    "n_heads": 12,
    "n_kv_heads": 6,
    "positions": "rope",
    "n_layers": 2,
}  # ranks need 2 of them
ONE_HEAD = {**MODERN, "n_layers": 1, "n_kv_heads": 1}
TALKATIVE = {"vocab_size": 98, "vocab_multiple": 3, "init_std": 0.3}  # logits that tell tokens apart, some padding
KEPT = [("gpt3", 1), ("gpt3", 2), ("modern", 2)]  # family, tensor ranks
UNEVEN_VOCAB = {"vocab_size": 98, "vocab_multiple": 3, "n_layers": 2}  # 99 rows, the last padding: 25, 25, 25, 24
Z_LOSSES = [
    ("z-loss, one", 1, {}, 1e-2),
    ("z-loss, tensor 2 x pipeline 2", 4, {"tensor": 2, "pipeline": 2}, 1e-2),
    ("without z-loss", 1, {}, 0.0),
]
COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()
LAYOUTS = {
    "one": (1, {}),
    "data 2": (2, {"data": 2}),
    "data 2, replicated": (2, {"data": 2, "zero_stage": 0}),
    "data 2, zero 2": (2, {"data": 2, "zero_stage": 2}),
    "data 2, zero 3": (2, {"data": 2, "zero_stage": 3}),
    "tensor 2": (2, {"tensor": 2}),
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
GENERATING = {
    **{name: LAYOUTS[name] for name in ("tensor 2 x pipeline 2", "data 2, zero 3")},
    "a rank with the head alone": (2, {"pipeline": 2, "split": [4, 0]}),
    "two stages a rank, in rounds": (2, {"pipeline": 2, "schedule": "interleaved_1f1b"}),
    "two stages a rank, as a V": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble"}),
}
# With compiled blocks; a step is of 2 micro-batches or more
COMPILED = {
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 2, dualpipev": (2, {"pipeline": 2, "schedule": "dualpipev"}),
    "data 2, zero 3, selective": (2, {"data": 2, "zero_stage": 3, "recompute": "selective"}),
    "tensor 2 x data 2": (4, {"tensor": 2, "data": 2}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("layouts")
    runs = []
    for name, (world_size, parallel) in LAYOUTS.items():
        micro = 1 if world_size == 8 or parallel.get("data") == 4 else 2
        runs.append(run(name, world_size, parallel, micro_batch_size=micro))
        if name in ("one", "tensor 2 x pipeline 2", "data 2, zero 3"):
            runs.append(run(f"modern, {name}", world_size, parallel, model=MODERN))
        if name in ("one", "tensor 2 x pipeline 2"):
            runs.append(run(f"bf16, {name}", world_size, {**parallel, "precision": "bf16"}))
    for size in (1, 4, 8):
        runs.append(run(f"bf16, one, micro-batch {size}", 1, {"precision": "bf16"}, micro_batch_size=size))
    runs += [run(name, n, parallel, model=TALKATIVE, steps=3, z_loss=z) for name, n, parallel, z in Z_LOSSES]
    runs.append(run("uneven, one", 1, {}, model=UNEVEN))
    runs.append(run("uneven, data 8", 8, {"data": 8, "zero_stage": 3}, model=UNEVEN, micro_batch_size=1))
    for family, model in (("grouped", GROUPED), ("uneven groups", UNEVEN_GROUPS), ("uneven vocabulary", UNEVEN_VOCAB)):
        runs.append(run(f"{family}, one", 1, {}, model=model))
        runs.append(run(f"{family}, tensor 4", 4, {"tensor": 4}, model=model))
    over_data = {"tensor": 4, "data": 2, "zero_stage": 3, "recompute": "full"}
    runs.append(run("grouped, tensor 4 x data 2", 8, over_data, model=GROUPED))
    runs.append(run("uneven vocabulary, tensor 4 x data 2", 8, over_data, model=UNEVEN_VOCAB))
    for family, model in (("gpt3", TALKATIVE), ("modern", {**MODERN, **TALKATIVE, "n_kv_heads": 1})):
        for name, (world_size, parallel) in {"one": (1, {}), **GENERATING}.items():
            generating = {"model": model, "steps": 2, "generate": True}
            runs.append(run(f"generate, {family}, {name}", world_size, parallel, **generating))
    selective = {"recompute": "selective"}
    for name, world_size, parallel in (
        ("one", 1, {}),
        ("data 2, zero 3", 2, {"data": 2, "zero_stage": 3}),
        ("tensor 2 x pipeline 2", 4, {"tensor": 2, "pipeline": 2}),
    ):
        runs.append(run(f"selective, {name}", world_size, {**parallel, **selective}))
    runs.append(run("modern, selective, tensor 2", 2, {"tensor": 2, **selective}, model=MODERN))
    for (family, tensor), recompute in itertools.product(KEPT, ("none", "selective", "full")):
        keys = {"tensor": tensor, "recompute": recompute, "precision": "bf16"}
        model = {**(MODERN if family == "modern" else {}), "n_layers": 2}
        runs.append(
            run(f"kept, {family}, {tensor}, {recompute}", tensor, keys, model=model, steps=1, measure_kept=True)
        )
    if COMPILER:
        runs.append(
            run(
                "compiled, selective",
                2,
                {"tensor": 2, "compile": True, **selective},
                model=ONE_HEAD,
                steps=3,
                generate=True,
            )
        )
        runs.append(run("one layer, one", 1, {}, model=ONE_HEAD, steps=3, generate=True))
        compiled = {"compile": True, "recompute": "full"}
        runs.append(run("compiled", 2, {"tensor": 2, **compiled}, model={"n_layers": 2}, steps=3))
        runs.append(run("two layers, one", 1, {}, model={"n_layers": 2}, steps=3))
        for name, (world_size, parallel) in COMPILED.items():
            runs.append(run(f"compiled, {name}", world_size, {"compile": True, **parallel}, steps=3))
    saved = str(folder / "checkpoints")
    runs.append(run("save", 4, {"tensor": 2, "pipeline": 2}, steps=SAVED_AT, save=saved))
    again = {"steps": 1, "load": saved, "resume_step": SAVED_AT, "resume_to": STEPS}
    runs.append(run("load, same layout", 4, {"tensor": 2, "pipeline": 2}, **again))
    runs.append(run("load, one", 1, {}, **again))
    runs.append(run("load, data 2", 2, {"data": 2}, **again))
    runs.append(
        run(
            "load, tensor 2 x pipeline 2 x data 2",
            8,
            LAYOUTS["tensor 2 x pipeline 2 x data 2"][1],
            micro_batch_size=1,
            **again,
        )
    )
    return program.launch(folder, runs, timeout_s=LAUNCH_TIMEOUT_S)


def run(name, world_size, parallel, *, steps=STEPS, **more):
    return {"name": name, "world_size": world_size, "parallel": parallel, "steps": steps, **more}


def largest_difference(ours, reference):
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


def plain_torch_run(program, model_keys, steps):
    """The same training in textbook torch: no engine, no process group, no sums and counts."""
    config = ModelConfig(**{**program.MODEL, **model_keys})
    model = GPT(config)
    initialise(model, config, seed=program.SEED)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=program.OPTIMIZER.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms = [], []
    for step in range(steps):
        tokens = program.tokens_of_step(step)
        logits = model(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), program.OPTIMIZER.max_gradient_norm)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("family", ["gpt3", "modern"])
def test_one_process_equals_textbook_torch(results, program, family):
    losses, norms = plain_torch_run(program, MODERN if family == "modern" else {}, STEPS)
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


@pytest.mark.parametrize("name", ["tensor 2 x pipeline 2", "data 2, zero 3"])
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


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
def test_compiled_blocks_with_recomputation_and_tensor_ranks(results):
    ours, reference = results["compiled"], results["two layers, one"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_layouts_equal_one_process(results, name):
    ours, reference = results[f"compiled, {name}"], results["one"]
    assert ours["compiled_graphs"] > 0
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"][:3]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"][:3]) < 1e-4


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs g++ and Python's headers on a CPU")
def test_compiled_modern_blocks_with_copied_key_value_heads_and_selective_recomputation(results):
    ours, reference = results["compiled, selective"], results["one layer, one"]
    assert_same_continuations(ours["greedy"], reference["greedy"])
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4


@pytest.mark.parametrize("name", ["one", "data 2, zero 3", "tensor 2 x pipeline 2", "modern"])
def test_selective_recomputation_changes_nothing(results, name):
    ours = results["modern, selective, tensor 2" if name == "modern" else f"selective, {name}"]
    reference = results["modern, one" if name == "modern" else "one"]
    if name == "one":
        assert ours["losses"] == reference["losses"]
        assert ours["final_weights"] == reference["final_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4 * (1 if name != "modern" else 10)


def test_recomputation_keeps_what_the_formulas_say(results, program):
    """Bytes per token and layer in bf16 (docs/parallelism.md), measured as the storages alive after a block has run."""
    for family, tensor in KEPT:
        config = ModelConfig(**{**program.MODEL, **(MODERN if family == "modern" else {})})
        d, kv, ff = config.d_model, config.kv_heads * config.d_head, config.ff_width
        wide = 2 if family == "modern" else 1  # gate and up
        products = d + 2 * kv + d + wide * ff  # q, k, v, attention's own output, first half of the MLP
        statistics = 4 * config.n_heads / tensor  # attention's log-sum-exp, fp32
        formula = {"full": 2 * d / tensor, "selective": 2 * (2 * d + products) / tensor + statistics}
        kept = {
            way: results[f"kept, {family}, {tensor}, {way}"]["kept_bytes"] / (program.SEQUENCES * program.SEQ_LEN)
            for way in ("none", "selective", "full")
        }
        assert kept["full"] < kept["selective"] < kept["none"]
        assert math.isclose(kept["full"], formula["full"])
        assert math.isclose(kept["selective"], formula["selective"])
        if family == "gpt3":
            assert math.isclose(kept["none"], (28 / tensor + 4) * d, rel_tol=0.03)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("family", ["gpt3", "modern"])
def test_generation_over_a_layout_equals_one_process(results, family, name):
    """Tokens, their log-probabilities and stops, with prompts of unequal lengths that stop at unequal times; and the
    training that follows."""
    ours, reference = results[f"generate, {family}, {name}"], results[f"generate, {family}, one"]
    for way in ("greedy", "warm"):
        assert_same_continuations(ours[way], reference[way])
    assert all(token < TALKATIVE["vocab_size"] for tokens, _, _ in ours["warm"] for token in tokens), "never padding"
    assert len({len(tokens) for way in ("greedy", "warm") for tokens, _, _ in reference[way]}) > 1, "some stop early"
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5


def assert_same_continuations(ours, reference):
    for (tokens, log_probs, stopped), (their_tokens, their_log_probs, they_stopped) in zip(
        ours, reference, strict=True
    ):
        assert (tokens, stopped) == (their_tokens, they_stopped)
        assert log_probs == pytest.approx(their_log_probs, rel=1e-4, abs=1e-4)


def test_tensor_ranks_are_entered_for_asynchronous_messages():
    """Without it the compiler's pass leaves every message as it is, and says nothing."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
        name = mesh.get_group().group_name
        assert not is_symm_mem_enabled_for_group(name)
        allow_asynchronous(mesh)
        assert is_symm_mem_enabled_for_group(name)
    finally:
        dist.destroy_process_group()


def test_the_norm_of_many_gradients_is_exact():
    """fp32 sums on a CPU lose 1e-3 of a norm over tens of millions of equal elements: 4 million show it."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        layout = resolve_layout(
            ParallelConfig(), BatchConfig(1, 16), model=ModelConfig(64, 16, 1, 16, 1), seq_len=16, world_size=1
        )
        parameter = torch.nn.Parameter(torch.empty(4_000_000))
        parameter.grad = torch.full_like(parameter, 0.1)
        squared = squared_norm([parameter], build_mesh(layout, torch.device("cpu")), counted_elsewhere=set())
    finally:
        dist.destroy_process_group()
    assert math.isclose(float(squared), 4_000_000 * float(parameter.grad[0]) ** 2, rel_tol=1e-9)


def test_bf16_layouts_round_no_worse_than_one_process(results):
    """docs/adr/0006: other micro-batch splits of one process round each sequence's forward pass alike, tensor ranks
    round it anew. So what counts is the distance of each from the run in fp32; distances between them are printed."""
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
    """Saved on tensor 2 x pipeline 2 two steps before the end; the same layout goes on bit for bit."""
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
