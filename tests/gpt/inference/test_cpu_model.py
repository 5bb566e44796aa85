"""A packed model gives the logits, scores and generated tokens of the model that it was made from."""

import copy

import pytest
import torch

from gpt.evaluation.batching.scoring import Request, plan_scores, score
from gpt.inference.cpu_model import BlockedLinear, can_pack, pack, slice_sizes
from gpt.inference.generation import generate
from gpt.inference.kv_cache import make_cache
from gpt.inference.sampling_settings import Sampling
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

SIZES = {"vocab_size": 101, "n_ctx": 40, "n_layers": 3, "d_model": 32, "n_heads": 4, "init_std": 0.2}
MODERN = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "d_ff": 48}
CONFIGS = {
    "gpt3": ModelConfig(**SIZES),
    "llama": ModelConfig(**SIZES, **MODERN, n_kv_heads=2, tied=False),
    "smollm2": ModelConfig(**SIZES, **MODERN, n_kv_heads=1, tied=True),
    "mixed": ModelConfig(**SIZES, **{**MODERN, "bias": True, "norm": "layernorm"}, n_kv_heads=2),
}
PROMPTS = [[5, 3, 60], [7], list(range(20)), [1, 2, 3, 4, 5, 6, 7, 8], [9]]

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this build of torch has no oneDNN"
)


def plain_and_packed(config: ModelConfig, *, rows: int, dtype: torch.dtype = torch.float32) -> tuple[GPT, GPT]:
    """Return a model and its packed copy. Random values in every weight make each of them affect the result."""
    model = GPT(config)
    initialise(model, config, seed=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model = model.to(dtype).requires_grad_(False)
    packed = copy.deepcopy(model)
    pack(packed, rows=rows)
    return model, packed


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_logits_equal_those_of_the_model(config: ModelConfig, rows: int) -> None:
    """Of whole texts and of single steps with a cache, with positions given and counted."""
    model, packed = plain_and_packed(config, rows=rows)
    tokens = torch.randint(101, (rows, 24), generator=torch.Generator().manual_seed(3))
    whole = model(tokens)
    assert relative_error(packed(tokens), whole) < 1e-5
    cache = make_cache(packed, 24)
    parts = [packed(tokens[:, :9], cache=cache)]
    parts += [packed(tokens[:, i : i + 1], positions=torch.tensor([[i]]), cache=cache) for i in range(9, 24)]
    assert relative_error(torch.cat(parts, dim=1), whole) < 1e-5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.2, top_k=30, repetition_penalty=1.1)])
def test_generated_tokens_equal_those_of_the_model(config: ModelConfig, sampling: Sampling) -> None:
    model, packed = plain_and_packed(config, rows=5)
    ours, theirs = (
        generate(m, PROMPTS, n_ctx=40, max_new_tokens=20, sampling=sampling, stop_ids=[17]) for m in (packed, model)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.stopped) == (b.tokens, b.stopped)
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="this processor has no bf16 kernels")
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_bf16_is_as_close_to_fp32_as_the_model_itself(config: ModelConfig, rows: int) -> None:
    model, packed = plain_and_packed(config, rows=rows, dtype=torch.bfloat16)
    exact = copy.deepcopy(model).float()
    tokens = torch.randint(101, (rows, 24), generator=torch.Generator().manual_seed(3))
    reference = exact(tokens)
    assert packed(tokens).dtype == torch.bfloat16
    error, usual = (relative_error(m(tokens).float(), reference) for m in (packed, model))
    assert error < 1.5 * usual


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_scores_equal_those_of_the_model(config: ModelConfig) -> None:
    """With packed rows, in which a token attends only to its own sequence, and with rows that continue the cache."""
    model, packed = plain_and_packed(config, rows=64)
    shared = list(range(60, 95))
    requests = [Request([*shared, number, number + 1, 60], 2) for number in range(40)]
    requests += [Request([*prompt, 3], 1) for prompt in PROMPTS]
    assert any(planned.extends_cache for planned in plan_scores(requests, batch_tokens=64)[0].passes)
    for ours, theirs in zip(*(score(m, requests, batch_tokens=64) for m in (packed, model)), strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=2e-5)
        assert ours.greedy == theirs.greedy


def test_packing_frees_the_original_weights() -> None:
    _, packed = plain_and_packed(CONFIGS["llama"], rows=1)
    assert {name.split(".")[0] for name, _ in packed.named_parameters()} == {"embed"}


@torch.inference_mode()
def test_a_weight_meets_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the lengths of the texts: oneDNN keeps compiled code for each number. Results are the model's."""
    model, packed = plain_and_packed(CONFIGS["llama"], rows=1024)
    found, forward = set(), BlockedLinear.forward

    def counted(self: BlockedLinear, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        found.add(x.shape[:-1].numel())
        return forward(self, x, *rest)

    packed.head = torch.nn.Identity()
    model.head = torch.nn.Identity()
    monkeypatch.setattr(BlockedLinear, "forward", counted)
    for rows in (2, 3, 7, 13, 29, 41):
        for length in range(33, 41):
            tokens = torch.randint(101, (rows, length), generator=torch.Generator().manual_seed(rows))
            assert relative_error(packed(tokens), model(tokens)) < 1e-5
    assert found <= {16, 32, 48, 64, *range(64, 513, 64)}, sorted(found)


def test_slices_hold_every_row_and_have_few_sizes() -> None:
    assert [slice_sizes(n) for n in (1, 7, 64)] == [[1], [7], [64]]  # a step of generation is one slice
    assert slice_sizes(1488) == [512, 512, 448, 16]
    assert all(sum(slice_sizes(n)) == n for n in range(1, 5000))
    sizes = {size for n in range(16, 4097, 16) for size in slice_sizes(n)}  # those of `moderate serve`
    assert len(sizes) == 11
