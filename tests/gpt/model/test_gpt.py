"""The model against transformers' GPT-2 and Llama with equal weights, its masks, and the paper's parameter counts."""

from typing import Any

import pytest
import torch

from gpt.convert.hugging_face.names import from_hugging_face
from gpt.inference.kv_cache import make_cache
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra 'hf'")


# Table 2.1 of arXiv 2005.14165: layers, width, heads, billions of parameters. Where its width is no multiple of its
# heads (XL: 2048 / 24, 13B: 5140 / 40), the nearest that is: 16 heads of 128, and a width of 5120.
GPT3_SIZES = {
    "125M": (12, 768, 12, 0.125),
    "350M": (24, 1024, 16, 0.350),
    "760M": (24, 1536, 16, 0.760),
    "1.3B": (24, 2048, 16, 1.3),
    "2.7B": (32, 2560, 32, 2.7),
    "6.7B": (32, 4096, 32, 6.7),
    "13B": (40, 5120, 40, 13.0),
    "175B": (96, 12288, 96, 175.0),
}


def small(**settings: object) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 101, "n_ctx": 24, "n_layers": 3, "d_model": 32, "n_heads": 4, **settings})  # type: ignore[arg-type]


def llama(**settings: object) -> ModelConfig:
    modern = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
    return small(**{**modern, "tied": False, "d_ff": 48, **settings})


def random_model(config: ModelConfig) -> GPT:
    """Large weights, and norms and biases far from 1 and 0, so that each affects the output."""
    model = GPT(config)
    initialise(model, config, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def with_their_weights(config: ModelConfig, theirs: torch.nn.Module) -> GPT:
    model = GPT(config).requires_grad_(False)
    parameters = dict(model.named_parameters())
    stored = {name: p for name, p in theirs.named_parameters() if not (config.tied and name == "lm_head.weight")}
    for name, tensor in from_hugging_face(config, stored.items()):
        parameters.pop(name)[: tensor.size(0)] = tensor.detach()
    assert not parameters, "a parameter that the table does not fill"
    return model


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def tokens_for(config: ModelConfig, *shape: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(3))


def test_equals_gpt2_of_transformers(transformers: Any) -> None:
    config = small()
    theirs = shaken(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=101, n_positions=24, n_embd=32, n_layer=3, n_head=4)
        )
    )
    tokens = tokens_for(config, 2, 24)
    assert relative_error(with_their_weights(config, theirs)(tokens), theirs(tokens).logits) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"n_kv_heads": 4, "rope_theta": 10_000.0, "tied": False},
        {"n_kv_heads": 2, "rope_theta": 500_000.0, "tied": True},
        {"n_kv_heads": 1, "rope_theta": 10_000.0, "tied": False, "bias": True},
    ],
)
def test_equals_llama_of_transformers(transformers: Any, settings: dict[str, object]) -> None:
    config = llama(**settings)
    theirs = shaken(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=101,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=24,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                attention_bias=config.bias,
                mlp_bias=config.bias,
                tie_word_embeddings=config.tied,
            )
        )
    )
    tokens = tokens_for(config, 2, 24)
    assert relative_error(with_their_weights(config, theirs)(tokens), theirs(tokens).logits) < 1e-5


@pytest.mark.parametrize("size", GPT3_SIZES)
def test_parameters_of_gpt3_sizes(size: str) -> None:
    n_layers, d_model, n_heads, billions = GPT3_SIZES[size]
    config = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=n_layers, d_model=d_model, n_heads=n_heads)
    assert config.parameters / 1e9 == pytest.approx(billions, rel=0.02)  # the paper rounds to two or three digits
    with torch.device("meta"):
        model = GPT(config)
    padding = (config.padded_vocab_size - config.vocab_size) * d_model
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters + padding


@pytest.mark.parametrize("config", [small(tied=False), llama(n_kv_heads=2), llama(bias=True), small(bias=False)])
def test_parameter_count_is_that_of_the_module(config: ModelConfig) -> None:
    padding = (config.padded_vocab_size - config.vocab_size) * config.d_model * (1 if config.tied else 2)
    assert sum(parameter.numel() for parameter in GPT(config).parameters()) == config.parameters + padding


@pytest.mark.parametrize("config", [small(), llama(n_kv_heads=2)])
def test_no_position_sees_a_later_one(config: ModelConfig) -> None:
    model = random_model(config)
    tokens = tokens_for(config, 2, 20)
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % config.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert (before[:, 11:] - after[:, 11:]).abs().amax(dim=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("config", [small(), llama(n_kv_heads=2)])
def test_causal_mask_given_equals_none(config: ModelConfig) -> None:
    model = random_model(config)
    tokens = tokens_for(config, 2, 20)
    mask = torch.ones(20, 20, dtype=torch.bool).tril()
    torch.testing.assert_close(model(tokens, mask=mask), model(tokens))


def test_full_mask_sees_everything() -> None:
    config = small()
    model = random_model(config)
    tokens = tokens_for(config, 1, 12)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % config.vocab_size
    full = torch.ones(12, 12, dtype=torch.bool)
    difference = (model(tokens, mask=full) - model(changed, mask=full)).abs().amax(dim=-1)
    assert difference.min() > 1e-4


def test_prefix_mask_sees_both_ways_within_the_prefix_only() -> None:
    config = small()
    model = random_model(config)
    tokens = tokens_for(config, 1, 12)
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    mask[:5, :5] = True
    base = model(tokens, mask=mask)
    for place, changes_the_first in ((4, True), (5, False)):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % config.vocab_size
        difference = (base - model(changed, mask=mask)).abs().amax(dim=-1)[0]
        assert bool(difference[0] > 1e-4) is changes_the_first, place


@pytest.mark.parametrize("config", [small(), llama(n_kv_heads=2)])
def test_masked_padding_with_positions_equals_no_padding(config: ModelConfig) -> None:
    model = random_model(config)
    tokens = tokens_for(config, 1, 10)
    padded = torch.cat([torch.full((1, 6), 7), tokens], dim=1)
    place = torch.arange(16)
    mask = (place <= place[:, None]) & ((place >= 6) | (place == place[:, None]))
    positions = (place - 6).clamp(min=0).unsqueeze(0)
    torch.testing.assert_close(model(padded, positions=positions, mask=mask)[:, 6:], model(tokens))


@pytest.mark.parametrize("config", [small(), llama(n_kv_heads=2)])
def test_pieces_of_the_model_compose_to_the_whole(config: ModelConfig) -> None:
    """What a pipeline does: blocks split in three, embedding and head at the ends."""
    model = random_model(config)
    tokens = tokens_for(config, 2, 20)
    x: torch.Tensor = tokens
    for i in range(3):
        piece = GPT(config, range(i, i + 1), first=i == 0, last=i == 2)
        piece.load_state_dict({k: v for k, v in model.state_dict().items() if k in piece.state_dict()})
        x = piece(x)
    assert torch.equal(x, model(tokens))


@pytest.mark.parametrize("config", [small(), llama(n_kv_heads=2), llama(tied=True, bias=True)])
def test_cached_logits_equal_uncached(config: ModelConfig) -> None:
    """Fed one token at a time, and a prompt first: to rounding of fp32, since sums run in another order."""
    model = random_model(config)
    tokens = tokens_for(config, 3, 24)
    whole = model(tokens)
    for prompt in (1, 13):
        cache = make_cache(model, 24)
        pieces = [model(tokens[:, :prompt], cache=cache)]
        pieces += [model(tokens[:, i : i + 1], positions=torch.tensor([[i]]), cache=cache) for i in range(prompt, 24)]
        assert relative_error(torch.cat(pieces, dim=1), whole) < 1e-5
