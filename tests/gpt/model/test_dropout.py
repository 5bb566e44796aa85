"""Dropout masks against the same hash in numpy, and a model with dropout against masks applied by hand."""

import numpy as np
import pytest
import torch

from gpt.model.config import ModelConfig
from gpt.model.dropout import BlockDropout, ResidualDropout, position_keys, row_keys, scrambled
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

CONFIG = ModelConfig(vocab_size=50, n_ctx=16, n_layers=3, d_model=32, n_heads=4)


def lowbias32(x: np.ndarray) -> np.ndarray:
    """The published hash, on unsigned numbers."""
    x = x.astype(np.uint32)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def test_the_hash_is_lowbias32() -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    found = scrambled(torch.from_numpy(x.view(np.int32))).numpy().view(np.uint32)
    assert (found == lowbias32(x)).all()


def ones(rows: np.ndarray, *, layer: int = 0, part: int = 0, rate: float = 0.2, d: int = 256) -> torch.Tensor:
    """Dropout of ones (b, 64, d)."""
    keys = position_keys(torch.from_numpy(rows), length=64)
    return ResidualDropout(keys, rate).of_layer(layer)(torch.ones(len(rows), 64, d), part)


def test_the_share_and_the_mean_are_right() -> None:
    rows = row_keys(3, np.arange(16))
    for rate in (0.1, 0.2, 0.5):
        y = ones(rows, rate=rate)
        n, dropped = y.numel(), float((y == 0).double().mean())
        assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / n) ** 0.5), "5 standard errors"
        assert y.max().item() == pytest.approx(1 / (1 - rate))
        columns = (y == 0).double().mean((0, 1))
        assert columns.std().item() == pytest.approx((rate * (1 - rate) / (16 * 64)) ** 0.5, rel=0.3)


def test_masks_of_rows_positions_layers_and_parts_are_unrelated() -> None:
    rows = row_keys(3, np.arange(8))
    base = (ones(rows) == 0).double() - 0.2
    others = {
        "row": (ones(row_keys(3, np.arange(8) + 1)) == 0).double() - 0.2,
        "seed": (ones(row_keys(4, np.arange(8))) == 0).double() - 0.2,
        "layer": (ones(rows, layer=1) == 0).double() - 0.2,
        "part": (ones(rows, part=1) == 0).double() - 0.2,
        "position": base.roll(1, 1),
        "channel": base.roll(1, 2),
    }
    for name, other in others.items():
        correlation = float((base * other).mean() / 0.16)
        assert abs(correlation) < 5 / base.numel() ** 0.5, name


def test_a_part_of_a_sequence_has_its_part_of_the_mask() -> None:
    rows = torch.from_numpy(row_keys(1, np.arange(4)))
    keys, x = position_keys(rows, length=16), torch.randn(4, 16, 8)
    whole = ResidualDropout(keys, 0.3).of_layer(2)(x, 1)
    share = ResidualDropout(keys[1:3, 4:8], 0.3).of_layer(2)(x[1:3, 4:8], 1)
    assert torch.equal(share, whole[1:3, 4:8])


def test_a_model_drops_what_each_layer_adds() -> None:
    """Against masks from numpy, applied around the layers by hand in float64; gradients by autograd of both."""
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=1)
    model.double()
    rows = row_keys(7, np.array([4, 9]))
    tokens, rate = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0)), 0.25
    dropout = ResidualDropout(position_keys(torch.from_numpy(rows), length=16), rate)
    model.hidden_states(tokens, dropout=dropout).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    x = model.embed(tokens)  # type: ignore[misc]
    u = np.uint32
    with np.errstate(over="ignore"):
        keys = lowbias32(rows.view(u)[:, None] ^ np.arange(16, dtype=u) * u(0x2545F491))
        for layer, block in enumerate(model.blocks.values()):
            of_layer = lowbias32(keys + u(layer * 0x3C6EF372 % 2**31))
            for part in range(2):
                of_part = lowbias32(of_layer + u(part * 0x1B873593))[..., None]
                bits = lowbias32(of_part ^ np.arange(32, dtype=u) * u(0x1E3779B1)) & u(0x7FFFFFFF)
                kept = torch.from_numpy(bits >= u(rate * 2**31)).double() / (1 - rate)
                norm, inner = [(block.attention_norm, block.attention), (block.mlp_norm, block.mlp)][part]
                x = x + inner(norm(x)) * kept
    model.norm(x).square().sum().backward()  # type: ignore[misc]
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert found[name] is not None
            torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)


def test_without_dropout_a_block_computes_what_it_did() -> None:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=1)
    tokens = torch.arange(16)[None]
    nothing = ResidualDropout(position_keys(torch.zeros(1, dtype=torch.int32), length=16), 0.0)
    assert torch.equal(model.hidden_states(tokens), model.hidden_states(tokens, dropout=nothing))


@pytest.mark.parametrize("rate", [0.2])
def test_compiled_code_draws_the_same_mask(rate: float) -> None:
    dropout = BlockDropout(position_keys(torch.from_numpy(row_keys(1, np.arange(2))), length=16), rate)
    x = torch.randn(2, 16, 64)
    compiled = torch.compile(lambda y: dropout(y, 1))
    assert torch.equal(compiled(x), dropout(x, 1))


@pytest.mark.gpu
def test_a_gpu_drops_what_a_cpu_drops() -> None:
    keys = position_keys(torch.from_numpy(row_keys(3, np.arange(16))), length=64)
    x = torch.randn(16, 64, 256)
    for part in (0, 1):
        on_gpu = ResidualDropout(keys.cuda(), 0.2).of_layer(2)(x.cuda(), part)
        assert torch.equal(on_gpu.cpu(), ResidualDropout(keys, 0.2).of_layer(2)(x, part))
