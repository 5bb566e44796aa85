"""Starting weights: the distribution against scipy-free references, and any piece against the whole."""

import math
from statistics import NormalDist

import pytest
import torch

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import Start, fill, hash_bits, initialise, normal, start_of

CONFIG = ModelConfig(vocab_size=300, n_ctx=32, n_layers=3, d_model=48, n_heads=4)


def test_normal_is_the_inverse_of_the_normal_distribution():
    counter = torch.arange(20_000)
    uniform = ((hash_bits(counter, 99) >> 11).double() + 0.5) * 2.0**-53 + 0.5
    expected = [NormalDist().inv_cdf(u) for u in uniform.tolist()]
    torch.testing.assert_close(normal(counter, 99), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_far_tails_are_right():
    """The branch beyond r = 5 (|x| > 6.6) is reached by a few in 10^11: check the formula there directly."""
    from gpt.model.initialisation import _tail

    for p in (1e-3, 1e-8, 1e-12, 1e-15):
        ours = float(_tail(torch.tensor([p - 0.5], dtype=torch.float64))[0])
        rounded = 0.5 - abs(p - 0.5)  # the probability that 0.5 - |q| still holds in float64
        assert math.isclose(ours, NormalDist().inv_cdf(rounded), rel_tol=1e-9)


def test_moments_and_independence_of_neighbours():
    x = normal(torch.arange(1_000_000), 7)
    assert abs(float(x.mean())) < 0.004
    assert abs(float(x.var()) - 1) < 0.006
    assert abs(float((x**4).mean()) - 3) < 0.05
    for lag in (1, 2, 48, 1024):
        assert abs(float((x[:-lag] * x[lag:]).mean())) < 0.004


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ((0, 7), (0, 48)),
        ((5, 6), (3, 4)),
        ((2, 290), (17, 48)),
        ((299, 300), (0, 1)),
    ],
)
def test_any_piece_holds_what_the_whole_holds_there(rows, columns):
    whole, piece = torch.empty(300, 48), torch.empty(rows[1] - rows[0], columns[1] - columns[0])
    for out, r, c in ((whole, (0, 300), (0, 48)), (piece, rows, columns)):
        fill(out, "w", Start(std=0.02), seed=1, shape=(300, 48), indices=[torch.arange(*r), torch.arange(*c)])
    assert torch.equal(piece, whole[rows[0] : rows[1], columns[0] : columns[1]])


def test_threads_and_chunks_change_nothing():
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = torch.empty(700, 333)
        fill(out, "w", Start(std=1.0), seed=3, shape=(700, 333), indices=[torch.arange(700), torch.arange(333)])
        results.append(out)
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_every_parameter_starts_as_gpt3_says():
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=11)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            std = 0.02 / math.sqrt(6) if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0.02
            assert abs(float(parameter.detach().std()) / std - 1) < 0.06, name
    weights = [p.flatten()[:48] for n, p in model.named_parameters() if p.dim() == 2]
    assert len({tuple(w.tolist()) for w in weights}) == len(weights), "each parameter draws its own numbers"


def test_seed_decides():
    models = [GPT(CONFIG) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialise(model, CONFIG, seed=seed)
    first, same, other = (model.embed.tokens.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_rule_knows_the_modern_parts():
    assert start_of("blocks.0.mlp.gate.weight", CONFIG).std == 0.02
    assert start_of("norm.weight", CONFIG).constant == 1.0


@pytest.mark.parametrize("shape", [(), (5,), (6, 5), (4, 3, 2, 5)])
def test_a_parameter_of_any_rank_is_filled_piece_by_piece_as_whole(shape):
    start = Start(std=0.5)
    whole = torch.empty(shape)
    fill(whole, "front.kernel", start, seed=3, shape=shape, indices=[torch.arange(size) for size in shape])
    assert whole.unique().numel() == whole.numel()
    if not shape:
        return
    half = torch.arange(shape[0])[1::2]
    part = torch.empty(len(half), *shape[1:])
    indices = [half, *(torch.arange(size) for size in shape[1:])]
    fill(part, "front.kernel", start, seed=3, shape=shape, indices=indices)
    assert torch.equal(part, whole[half])


@pytest.mark.gpu
def test_a_gpu_fills_the_bits_that_a_cpu_does():
    models = [GPT(CONFIG), GPT(CONFIG).to("cuda")]
    for model in models:
        initialise(model, CONFIG, seed=5)
    for (name, on_cpu), (_, on_gpu) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(on_cpu, on_gpu.cpu()), name
