"""Our adapters against PEFT's LoRA on the same Llama of transformers, with equal A and B."""

import dataclasses

import pytest
import torch
from layout_runs import SEED, settings_of, tokens_of_step

from gpt.adapters.config import AdapterConfig
from gpt.convert.hugging_face.config import config_json
from gpt.convert.hugging_face.names import table, to_hugging_face
from gpt.losses.batch import Batch
from gpt.model.gpt import GPT
from gpt.model.initialisation import Start, fill, initialise
from gpt.training.objective import NextToken
from parallel.adapters.attach import attach_adapters
from parallel.engines.choose import build_engine

MODEL = {
    "positions": "rope",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "n_kv_heads": 2,
    "d_ff": 64,
    "n_layers": 2,
    "vocab_multiple": 1,
    "init_std": 0.2,
}
TARGETS = {"blocks.*.attention.q": "q_proj", "blocks.*.attention.out": "o_proj", "blocks.*.mlp.*": None}
PEFT_TARGETS = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def settings():
    return settings_of({"world_size": 1, "parallel": {}, "model": MODEL})


def adapter_of(*, rank_stabilized):
    return AdapterConfig(rank=4, alpha=10.0, targets=tuple(TARGETS), rank_stabilized=rank_stabilized)


def number_of(name, tensor):
    """The same numbers for a parameter of both libraries: base weights by the seed, and A and B from their names."""
    part = torch.empty(tensor.shape, dtype=torch.float32)
    indices = [torch.arange(size) for size in tensor.shape]
    fill(part, name, Start(std=0.1), seed=SEED, shape=tuple(tensor.shape), indices=indices)
    return part


def peft_model(config, weights, adapters, adapter, dtype):
    """PEFT's model with the same base weights and adapters, and its LoRA parameters by our names."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    described = transformers.LlamaConfig(**config_json(config, dtype=torch.float32))
    base = transformers.LlamaForCausalLM(described)
    missing, unexpected = base.load_state_dict(dict(to_hugging_face(config, weights.items())), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if config.tied else [], [])
    lora = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=PEFT_TARGETS,
        use_rslora=adapter.rank_stabilized,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, lora).to(dtype)
    hf_names = {
        entry.names[0].removesuffix(".weight"): entry.hf_name.removesuffix(".weight") for entry in table(config)
    }
    theirs = dict(model.named_parameters())
    ours = {}
    for name in adapters:
        projection, _, part = name.rpartition(".adapter.")
        ours[name] = theirs[f"base_model.model.{hf_names[projection]}.lora_{part.upper()}.default.weight"]
        with torch.no_grad():
            ours[name].copy_(adapters[name])
    assert {id(p) for p in ours.values()} == {id(p) for p in theirs.values() if p.requires_grad}
    return model, ours


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_loss_and_gradients_equal_peft_in_float64(settings, rank_stabilized):
    config, adapter = settings.model, adapter_of(rank_stabilized=rank_stabilized)
    model = GPT(config)
    initialise(model, config, seed=SEED)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.device("meta"):
        model = GPT(config)
    attach_adapters(model, adapter, None)
    model.to(torch.float64).to_empty(device="cpu")
    model.tie()
    parameters = dict(model.named_parameters())
    adapters = {name: number_of(name, p) for name, p in parameters.items() if ".adapter." in name}
    with torch.no_grad():
        for name, values in (weights | adapters).items():
            parameters[name].copy_(values)
    theirs, named = peft_model(config, weights, adapters, adapter, torch.float64)
    tokens = tokens_of_step(0)
    logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    their_logits = theirs(tokens[:, :-1]).logits
    their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    their_loss.backward()
    # not closer, because transformers computes angles and norms in fp32
    assert (logits - their_logits).norm() / their_logits.norm() < 1e-6
    assert abs(loss - their_loss) / their_loss < 1e-6
    for name, parameter in named.items():
        difference = (parameters[name].grad - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 1e-5, name


def test_an_engine_trains_as_peft_does(process_group, settings):
    adapter = adapter_of(rank_stabilized=False)
    engine = build_engine(
        dataclasses.replace(settings, adapter=adapter), objective=NextToken(), device=torch.device("cpu")
    )
    parameters = {name: p.data.to_local() if hasattr(p.data, "to_local") else p.data for name, p in engine.parameters}
    for name, values in parameters.items():
        if ".adapter." in name:
            values.copy_(number_of(name, values))
    weights = {name: p.clone() for name, p in parameters.items() if ".adapter." not in name}
    adapters = {name: p.clone() for name, p in parameters.items() if ".adapter." in name}
    theirs, named = peft_model(settings.model, weights, adapters, adapter, torch.float32)
    before = {name: values.clone() for name, values in weights.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(3):
        tokens = tokens_of_step(step)
        loss = torch.nn.functional.cross_entropy(theirs(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        engine.forward_backward(Batch(tokens[:, :-1], tokens[:, 1:]))
        gradients = dict(engine.named_gradients())
        assert gradients.keys() == named.keys()
        for name, parameter in named.items():
            difference = float((gradients[name] - parameter.grad).norm() / parameter.grad.norm())
            assert difference < 1e-5 * (1 if step == 0 else 10), (step, name, difference)
        torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        optimizer.step()
        result = engine.optimizer_step(3e-3)
        assert result.loss.mean == pytest.approx(loss.item(), rel=1e-5)
    for name, values in before.items():
        assert torch.equal(parameters[name], values), name
