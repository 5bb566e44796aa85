"""The two checkpoint stores of an engine, in one process: both restore the same state, bit for bit.

tests/parallel/engines/test_layouts.py and tests/launch/training/ have them on several ranks.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.config import Retention
from gpt.training.engine import Engine
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.local_tier import find_newest_local
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings, sharding_signature
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

MODEL = ModelConfig(vocab_size=64, n_ctx=16, n_layers=1, d_model=16, n_heads=2)
KEEP = Retention(2)


@pytest.fixture(autouse=True)
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def settings() -> EngineSettings:
    parallel, batch = ParallelConfig(precision="fp32"), BatchConfig(micro_batch_size=2, global_batch_tokens=32)
    layout = resolve_layout(parallel, batch, model=MODEL, seq_len=16, world_size=1)
    return EngineSettings(MODEL, parallel, layout, OptimizerConfig(learning_rate=0.01), 2, seed=1)


def new_engine() -> Engine:
    return build_engine(settings(), objective=NextToken(), device=torch.device("cpu"))


def take_step(engine: Engine, step: int) -> float:
    tokens = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(step))
    engine.forward_backward(Batch(tokens[:, :-1], tokens[:, 1:]))
    return engine.optimizer_step(0.01).loss.mean


def test_both_stores_restore_weights_and_optimizer(tmp_path: Path) -> None:
    engine = new_engine()
    shared, local = engine.checkpoints.shared, engine.checkpoints.local
    for step in (1, 2):
        take_step(engine, step)
    estimate = shared.estimate(tmp_path / "shared", state={"run_id": "r"}, step=2)
    shared.start_save(tmp_path / "shared", step=2, state={"run_id": "r"}, keep=KEEP)
    local.start_save(tmp_path / "local", step=2, state={"run_id": "r"}, keep=KEEP)  # waits for the first
    (of_shared,), (of_local,) = shared.finished(wait=False), local.finished(wait=True)
    assert (of_shared.error, of_local.error) == (None, None)
    assert abs(estimate.size_bytes - of_shared.bytes) < 100, "the state is a little longer"
    assert shared.finished(wait=True) == local.finished(wait=True) == []
    expected = [take_step(engine, step) for step in (3, 4)]

    found, _ = find_latest(tmp_path / "shared")
    signature = sharding_signature(settings())
    found_local, messages, _ = find_newest_local(tmp_path / "local", run_id="r", layout=signature)
    assert found is not None
    assert found_local is not None, messages
    for store, checkpoint in ((shared, found), (local, found_local)):
        store.load(checkpoint)
        assert [take_step(engine, step) for step in (3, 4)] == expected
    fresh = new_engine()
    fresh.checkpoints.shared.load(found)
    assert [take_step(fresh, step) for step in (3, 4)] == expected


def test_weights_alone_leave_the_optimizer_as_it_is(tmp_path: Path) -> None:
    engine = new_engine()
    first = take_step(engine, 1)
    path = engine.checkpoints.shared.save(tmp_path, step=1, state={}, keep=KEEP)
    assert path == tmp_path / "step-000000001"
    other = new_engine()
    found, _ = find_latest(tmp_path)
    assert found is not None
    other.checkpoints.shared.load_weights(found)
    assert other.weights_digest() == engine.weights_digest()
    after = [take_step(one, 2) for one in (engine, other)]
    assert after[0] == after[1] != first, "the weights are the same"
    assert other.weights_digest() != engine.weights_digest(), "the moments are not"


def test_only_optional_weights_may_be_missing_or_of_another_shape(tmp_path: Path) -> None:
    path = new_engine().checkpoints.shared.save(tmp_path, step=1, state={}, keep=KEEP)
    found = verify_checkpoint(path)
    untied = replace(settings(), model=replace(MODEL, tied=False))
    wider = replace(settings(), model=replace(MODEL, vocab_size=640))
    for changed, name in ((untied, "head.weight"), (wider, "embed.tokens.weight")):
        engine = build_engine(changed, objective=NextToken(), device=torch.device("cpu"))
        for optional in ((), ("blocks.",)):
            with pytest.raises(ConfigError, match=name):
                engine.checkpoints.shared.load_weights(found, optional=optional)
        assert engine.checkpoints.shared.load_weights(found, optional=("embed.", "head.")) == [name]


def test_the_newest_is_loaded_and_later_ones_are_discarded(tmp_path: Path) -> None:
    engine = new_engine()
    shared = engine.checkpoints.shared
    digests = {}
    for step in (1, 2):
        take_step(engine, step)
        digests[step] = engine.weights_digest()
        shared.save(tmp_path, step=step, state={"step": step}, keep=KEEP)
    assert shared.load_newest(tmp_path, at_most=0) is None
    state = shared.load_newest(tmp_path, at_most=1)
    assert state is not None
    assert (state["step"], engine.weights_digest()) == (1, digests[1])
    shared.discard_after(tmp_path, step=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000001"]
