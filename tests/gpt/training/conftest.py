"""A run of one process that takes less than a second: its data, its engine and its files."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData, ValidationData
from gpt.data.skipped import SkippedData
from gpt.health.spikes import SpikeConfig, SpikeDetector
from gpt.model.config import ModelConfig
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from gpt.telemetry.time_ledger import TimeLedger
from gpt.token_files.files import TokenFileWriter
from gpt.training.config import CheckpointConfig, FaultConfig, TrainConfig
from gpt.training.loop import TrainingLoop
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from gpt.training.run import LoopState, Run
from gpt.training.schedule import ScheduleConfig, constant_batch
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

SEQ_LEN, STEP_TOKENS, VOCAB = 8, 32, 40
MODEL = ModelConfig(vocab_size=VOCAB, n_ctx=SEQ_LEN, n_layers=1, d_model=16, n_heads=2)
NO_SPIKES = SpikeConfig(action="off")


@pytest.fixture(scope="module")
def process_group():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Prefix of a corpus of 2000 tokens, which repeats itself so that a model can learn it."""
    prefix = tmp_path_factory.mktemp("corpus") / "numbers"
    with TokenFileWriter(prefix, vocab_size=VOCAB) as file:
        for start in range(10):
            file.add_document((np.arange(200) + start) % VOCAB)
    return prefix


@pytest.fixture
def small(tmp_path):
    """Functions that make the parts of a small run in `tmp_path`."""
    folder = tmp_path / "run"

    def run_of(*, steps=4, checkpoint=None, faults=None, spike=NO_SPIKES, **train):
        return Run(
            config=TrainConfig(total_tokens=steps * STEP_TOKENS, validation_tokens=16 * SEQ_LEN, **train),
            checkpoint=checkpoint or CheckpointConfig(in_background=False),
            faults=faults or FaultConfig(),
            spike=spike,
            model=MODEL,
            schedule=ScheduleConfig(warmup_tokens=STEP_TOKENS, shape="constant"),
            peak_learning_rate=1e-2,
            seq_len=SEQ_LEN,
            batch=constant_batch(STEP_TOKENS),
            micro_batch_size=2,
            peak_flops_per_s=0.0,
            log_every_steps=1,
            replica_check_every_steps=2,
            directory=folder,
            local_checkpoints=None,
            saved_state={"config": {}},
        )

    def engine_of():
        batch = BatchConfig(2, STEP_TOKENS)
        parallel = ParallelConfig(precision="fp32")
        layout = resolve_layout(parallel, batch, model=MODEL, seq_len=SEQ_LEN, world_size=1)
        settings = EngineSettings(MODEL, parallel, layout, OptimizerConfig(learning_rate=1e-2), 2, 5)
        return build_engine(settings, objective=NextToken(), device=torch.device("cpu"))

    def data_of(prefix):
        config = DataConfig(tokenizer="none", train=(CorpusConfig(str(prefix)),), seq_len=SEQ_LEN)
        validation = ValidationData(config.train[0], config, vocab_size=VOCAB)
        return TrainingData(config, seed=1, vocab_size=VOCAB), {"numbers": validation}

    def state_of(run, *, step=0):
        return LoopState(step, SkippedData(), SpikeDetector(run.spike))

    def metrics_of():
        return MetricsWriter(MetricsConfig(wandb="disabled"), folder, run_config={}, resume_step=None)

    def train(run, engine, prefix, *, state=None, **more):
        data, validation = data_of(prefix)
        with metrics_of() as metrics:
            loop = TrainingLoop(
                run,
                engine,
                NextToken(),
                data,
                validation,
                state=state or state_of(run),
                metrics=metrics,
                ledger=TimeLedger(None),
                **more,
            )
            return loop.train()

    def lines(name):
        path = folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def events():
        return [(event["kind"], event["text"]) for event in lines("events.jsonl")]

    return SimpleNamespace(
        folder=folder,
        run_of=run_of,
        engine_of=engine_of,
        data_of=data_of,
        state_of=state_of,
        metrics_of=metrics_of,
        train=train,
        lines=lines,
        events=events,
        replace=dataclasses.replace,
    )


def damage(prefix: Path, copy: Path, *, token: int) -> Path:
    """Copy the corpus with its checksums, and change one token of the copy."""
    for ending in (".bin", ".idx", ".sums"):
        Path(f"{copy}{ending}").write_bytes(Path(f"{prefix}{ending}").read_bytes())
    content = bytearray(Path(f"{copy}.bin").read_bytes())
    content[2 * token] ^= 1
    Path(f"{copy}.bin").write_bytes(content)
    return copy


@pytest.fixture
def damaged(corpus, tmp_path):
    return damage(corpus, tmp_path / "damaged", token=1234)


@pytest.fixture(scope="module")
def mixed_corpus(tmp_path_factory):
    """A corpus of several checksum blocks, of which one is damaged in a copy with the same name."""
    prefix = tmp_path_factory.mktemp("mixed") / "numbers"
    with TokenFileWriter(prefix, vocab_size=VOCAB) as file:
        for start in range(40):
            file.add_document((np.arange(200) + start) % VOCAB)
    copy = damage(prefix, tmp_path_factory.mktemp("damaged") / "numbers", token=1000)
    return SimpleNamespace(whole=prefix, damaged=copy)
