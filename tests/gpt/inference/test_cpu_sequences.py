"""A model over whole sequences gives the outputs of the model over each sequence alone, with no work for padding."""

import copy

import pytest
import torch

from gpt.inference.cpu_model import BlockedLinear, can_pack
from gpt.inference.cpu_sequences import STEP_ROWS, SequenceModel
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.model.masks import AttentionMask

SIZES = {"vocab_size": 101, "n_ctx": 200, "n_layers": 3, "d_model": 32, "n_heads": 4, "init_std": 0.2}
MODERN = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "d_ff": 48}
CONFIGS = {
    "gpt3": ModelConfig(**SIZES),
    "llama": ModelConfig(**SIZES, **MODERN, n_kv_heads=2, tied=False),
    "smollm2": ModelConfig(**SIZES, **MODERN, n_kv_heads=1, tied=True),
    "mixed": ModelConfig(**SIZES, **{**MODERN, "bias": True, "norm": "layernorm"}),
}
LENGTHS = (1, 150, 40, 3, 17, 33, 129, 200, 2, 2, *[1] * 60)  # several slices of tokens, and of ends

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this build of torch has no oneDNN"
)


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> GPT:
    """A model with a head of 5 outputs. Random values in every weight make each of them affect the result."""
    model = GPT(config, head=torch.nn.Linear(config.d_model, 5))
    initialise(model, config, seed=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).requires_grad_(False)


def sequences(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(101, (length,), generator=generator) for length in lengths]


def outputs(model: GPT, *, causal: bool, ends_only: bool) -> torch.Tensor:
    mask = None if causal else AttentionMask("full")
    alone = [model(one.unsqueeze(0), mask=mask)[0] for one in sequences()]
    return torch.cat([one[-1:] if ends_only else one for one in alone])


def packed_outputs(model: GPT, *, causal: bool, ends_only: bool) -> torch.Tensor:
    packed = SequenceModel(copy.deepcopy(model))
    return packed(torch.cat(sequences()), LENGTHS, causal=causal, ends_only=ends_only)


@pytest.mark.parametrize("ends_only", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_outputs_equal_those_of_each_sequence_alone(config: ModelConfig, causal: bool, ends_only: bool) -> None:
    """Tolerance 1e-5 of the largest output."""
    model = model_of(config)
    wanted = outputs(model, causal=causal, ends_only=ends_only)
    found = packed_outputs(model, causal=causal, ends_only=ends_only)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@torch.inference_mode()
def test_a_context_may_be_shorter_than_the_rows_that_fill_a_slice() -> None:
    model = model_of(ModelConfig(**{**SIZES, "n_ctx": 8}))
    tokens = sequences((5,))[0]
    packed = SequenceModel(copy.deepcopy(model))(tokens, [5], causal=True, ends_only=False)
    torch.testing.assert_close(packed, model(tokens.unsqueeze(0))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="this processor has no bf16 kernels")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_bf16_is_as_close_to_fp32_as_the_model_itself(config: ModelConfig, causal: bool) -> None:
    model = model_of(config, torch.bfloat16)
    exact = outputs(copy.deepcopy(model).float(), causal=causal, ends_only=False)
    usual = (outputs(model, causal=causal, ends_only=False).float() - exact).square().mean().sqrt()
    error = (packed_outputs(model, causal=causal, ends_only=False).float() - exact).square().mean().sqrt()
    assert error < 1.2 * usual


@torch.inference_mode()
def test_rows_are_few_and_of_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps code for each number of rows. The last block's MLP works for the ends of sequences alone."""
    packed, found, forward = SequenceModel(model_of(CONFIGS["llama"])), [], BlockedLinear.forward

    def counted(self: BlockedLinear, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        found.append((self, len(x)))
        return forward(self, x, *rest)

    monkeypatch.setattr(BlockedLinear, "forward", counted)
    sizes = set()
    for n in (1, 3, 16, 30):
        for length in range(1, 60, 7):
            found.clear()
            packed(torch.cat(sequences((length,) * n)), [length] * n, causal=True, ends_only=True)
            rows = [sum(size for layer, size in found if layer is block.down) for block in packed.blocks]
            assert max(rows[:-1]) < n * length + STEP_ROWS
            assert rows[-1] < n + STEP_ROWS
            sizes |= {size for _, size in found}
    assert sizes == {16, 32, 48, *range(64, 513, 64)}


def test_the_weights_of_the_model_are_freed() -> None:
    model = model_of(CONFIGS["llama"])
    packed = SequenceModel(model)
    assert not model.blocks
    assert {name.split(".")[0] for name, _ in packed.named_parameters()} == {"embed", "head"}
