"""The shipped recipes of supervised fine-tuning: InstructGPT's settings, and layouts that fit."""

from pathlib import Path

import numpy as np
import pytest

from gpt.token_files.files import TokenFileWriter
from launch.config.run_config import RunConfig, layout_of, read_run_config
from launch.training.build import check_objective, open_data

N_DOCUMENTS, LENGTH = 64, 40
# learning rate and demonstrations a step (arXiv 2203.02155, appendix C.1); the base model; GPUs of the comment
PAPER = {
    "sft_1.3b": (9.65e-6, 32, "gpt3_1.3b", 8),
    "sft_6b": (9.65e-6, 32, "gpt3_6.7b", 16),
    "sft_175b": (5.03e-6, 8, "gpt3_175b", 64),
}


@pytest.fixture
def demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token files where the recipes name them."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        for name, vocab_size in ((split, 50000), (f"{split}_learned", 2)):
            with TokenFileWriter(Path("data/instruct") / name, vocab_size=vocab_size) as file:
                for _ in range(N_DOCUMENTS):
                    file.add_document(np.ones(LENGTH, dtype=np.int64))


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.usefixtures("demonstrations")
def test_settings_are_the_papers(name: str) -> None:
    config = read_run_config(name, [])
    learning_rate, batch, base, gpus = PAPER[name]
    assert config.optimizer.learning_rate == learning_rate
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
    assert config.batch.global_batch_tokens == batch * config.data.seq_len
    assert config.data.sampling == "document", "a sample is one demonstration"
    assert config.train.total_tokens == 16 * N_DOCUMENTS * config.data.seq_len, "16 epochs"
    assert (config.schedule.warmup_tokens, config.schedule.final_fraction) == (0, 0.1)
    assert (config.schedule.shape, config.schedule.decay_tokens) == ("cosine", config.train.total_tokens)
    assert config.train.residual_dropout == 0.2
    assert config.model == read_run_config(base, []).model
    assert str(config.run.start_from) == f"runs/{base}"
    assert layout_of(config, gpus).data * config.parallel.tensor * config.parallel.pipeline == gpus
    check_and_open(config)


@pytest.mark.usefixtures("demonstrations")
def test_smollm2_is_packed() -> None:
    config = read_run_config("sft_smollm2", [])
    samples = -(-N_DOCUMENTS // ((config.data.seq_len + 1) // LENGTH))
    assert config.train.total_tokens == 2 * samples * config.data.seq_len
    check_and_open(config)


def check_and_open(config: RunConfig) -> None:
    check_objective(config)
    data, validation = open_data(config)
    assert set(data.read(np.arange(2)).streams) == {"learned"}
    assert list(validation) == ["instruct"]
