"""The shipped recipes of reward models: InstructGPT's settings, and layouts that fit."""

from pathlib import Path

import numpy as np
import pytest

from gpt.token_files.files import TokenFileWriter
from launch.config.run_config import layout_of, read_run_config
from launch.training.build import check_data, check_objective, open_data

N_PROMPTS = 64


@pytest.fixture
def _rankings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token files where the recipes name them: 9 completions of 40 tokens a prompt."""
    monkeypatch.chdir(tmp_path)
    marks = np.zeros(9 * 40, dtype=np.int64)
    marks[39::40] = np.arange(1, 10)
    for split in ("train", "validation"):
        with (
            TokenFileWriter(Path("data/rankings") / split, vocab_size=50000) as tokens,
            TokenFileWriter(Path("data/rankings") / f"{split}_marks", vocab_size=10) as stream,
        ):
            for _ in range(N_PROMPTS):
                tokens.add_document(np.ones(9 * 40, dtype=np.int64))
                stream.add_document(marks)


@pytest.mark.usefixtures("_rankings")
def test_the_settings_of_6b_are_the_papers() -> None:
    config = read_run_config("reward_6b", [])
    assert config.objective.kind == "reward"
    assert (config.optimizer.learning_rate, config.optimizer.beta1, config.optimizer.beta2) == (9e-6, 0.9, 0.95)
    assert config.batch.global_batch_tokens == 64 * config.data.seq_len, "64 prompts a step"
    assert config.data.seq_len == 9 * config.model.n_ctx, "nine whole conversations"
    assert config.train.total_tokens == N_PROMPTS * config.data.seq_len, "one epoch"
    assert (config.schedule.shape, config.schedule.warmup_tokens, config.schedule.final_fraction) == ("cosine", 0, 0.1)
    assert config.schedule.decay_tokens == config.train.total_tokens
    assert config.model == read_run_config("gpt3_6.7b", []).model
    assert str(config.run.start_from) == "runs/sft_6b"
    layout = layout_of(config, 16)
    assert (layout.tensor, layout.data, layout.micro_batches) == (4, 4, 16)
    check_objective(config)
    assert check_data(config, *open_data(config)) == []


@pytest.mark.usefixtures("_rankings")
def test_smollm2_reads_rankings() -> None:
    config = read_run_config("reward_smollm2", [])
    assert config.model == read_run_config("sft_smollm2", ["--train.total_tokens", "4096"]).model
    assert layout_of(config, 1).micro_batches == 8
    check_objective(config)
    assert check_data(config, *open_data(config)) == []
