"""On one CPU process the native engine runs no padding of rows whose lengths it knows, with equal results."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.model.config import ModelConfig
from gpt.post_training.grpo_loss import GroupPolicyLoss
from gpt.post_training.ppo.objectives import Policy, Value
from gpt.post_training.ppo_loss import PolicyLoss
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

N, T, ROWS = 6, 24, 3
MODEL = ModelConfig(vocab_size=50, n_ctx=T, n_layers=2, d_model=16, n_heads=2, positions="rope", init_std=0.2)
OBJECTIVES = {
    "policy": Policy(PolicyLoss(temperature=0.7)),
    "group, responses": Policy(GroupPolicyLoss(beta=0.1, average="response")),
    "group, tokens": Policy(GroupPolicyLoss(beta=0.1, average="token")),
    "value": Value(clip=0.2),
    "value, mean": Value(clip=0.2, pool="mean"),
}


@pytest.fixture(autouse=True)
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_engine(objective):
    parallel, batch = ParallelConfig(precision="fp32"), BatchConfig(ROWS, N * T)
    layout = resolve_layout(parallel, batch, model=MODEL, seq_len=T, world_size=1)
    settings = EngineSettings(MODEL, parallel, layout, OptimizerConfig(learning_rate=1e-3), ROWS, 3)
    return build_engine(settings, objective=objective, device=torch.device("cpu"))


def responses():
    """Rows of 4 to 24 tokens, of which the last ones are a response, and a row that does not count."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (N, T), generator=draw)
    total, prompt = torch.tensor([24, 4, 9, 13, 7, 20]), torch.tensor([5, 2, 8, 3, 6, 10])
    column = torch.arange(T)
    mask = (column >= prompt[:, None] - 1) & (column < total[:, None] - 1)
    names = ("old_log_probs", "reference_log_probs", "advantages", "old_values", "returns")
    extra = {name: torch.randn(N, T, generator=draw) for name in names}
    targets = tokens.roll(-1, dims=1).masked_fill(~mask, IGNORE)
    return Batch(tokens, targets, loss_mask=mask, lengths=total, extra=extra).without_rows([4]), total


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_gradients_are_those_of_padded_rows(name):
    batch, total = responses()
    engine, positions = make_engine(OBJECTIVES[name]), []
    engine.stages[0].model.blocks["1"].mlp.register_forward_hook(
        lambda module, args, output: positions.append(args[0].shape[:2].numel())
    )
    packed, padded = ((engine.token_values(b), dict(engine_gradients(engine, b))) for b in (batch, padded_only(batch)))
    assert positions == [int(part.sum()) for part in total.split(ROWS)] * 2 + [ROWS * T] * 4
    counted = batch.loss_mask
    torch.testing.assert_close(packed[0][counted], padded[0][counted], rtol=0, atol=1e-5)
    assert packed[0].shape == (N, T)
    assert not packed[0][torch.arange(T) >= total[:, None]].any()
    for key, gradient in padded[1].items():
        torch.testing.assert_close(packed[1][key], gradient, rtol=1e-5, atol=1e-5)


def padded_only(batch):
    return replace(batch, lengths=None)


def engine_gradients(engine, batch):
    engine.forward_backward(batch)
    gradients = [(name, gradient.clone()) for name, gradient in engine.named_gradients()]
    engine.optimizer_step(1e-3, discard=True)
    return gradients


def test_the_first_ratio_is_exactly_one():
    batch, _ = responses()
    engine = make_engine(OBJECTIVES["policy"])
    old = engine.token_values(batch)
    engine.forward_backward(replace(batch, extra={**batch.extra, "old_log_probs": old}))
    assert engine.optimizer_step(1e-3).loss.metrics["ratio_error"] == 0.0


def test_weights_are_gathered_once_for_all_minibatches(monkeypatch):
    """The values are those of minibatches on their own, bit for bit, with a heartbeat before each micro-batch."""
    engine, (batch, _) = make_engine(OBJECTIVES["policy"]), responses()
    gathered, beats, gather = [], [], FSDPParam.init_unsharded_param
    expected = torch.cat([engine.token_values(part) for part in batch.split(ROWS)])

    def counted(parameter):
        gathered.append(parameter)
        gather(parameter)

    monkeypatch.setattr(FSDPParam, "init_unsharded_param", counted)
    values = engine.token_values(batch, before_each=lambda: beats.append(len(gathered)))
    assert torch.equal(values, expected)
    assert len(gathered) == len(set(gathered)) == len(engine.parameters)
    assert beats == [0, len(gathered)]


def test_one_data_rank_divides_no_gradient():
    """FSDP would divide a copy of each gradient by the factor that it is given."""
    engine = make_engine(OBJECTIVES["policy"])
    groups = [group for m in engine._sharded_modules() for group in m._get_fsdp_state()._fsdp_param_groups]
    assert groups
    assert all(group.gradient_divide_factor is None for group in groups)
