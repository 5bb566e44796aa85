"""The shipped recipe of a moderation classifier reads what it names, and fits."""

from pathlib import Path

import numpy as np
import pytest

from gpt.token_files.files import TokenFileWriter
from gpt.token_files.label_states import encode_states, label_values
from launch.config.run_config import layout_of, read_run_config
from launch.training.build import check_data, check_objective, open_data

N_TEXTS, LENGTH = 1200, 64


@pytest.fixture
def _labelled_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token files where the recipe names them: texts of 64 tokens."""
    monkeypatch.chdir(tmp_path)
    states = np.random.default_rng(0).integers(0, 3, size=(N_TEXTS, 8)).astype(np.int8)
    for split in ("train", "validation"):
        with (
            TokenFileWriter(Path("data/moderation") / split, vocab_size=49152) as tokens,
            TokenFileWriter(Path("data/moderation") / f"{split}_labels", vocab_size=label_values(8)) as stream,
        ):
            for code in encode_states(states)[:, 0]:
                tokens.add_document(np.ones(LENGTH, dtype=np.int64))
                stream.add_document([0] * (LENGTH - 1) + [int(code)])


@pytest.mark.usefixtures("_labelled_texts")
def test_smollm2_reads_labelled_texts() -> None:
    config = read_run_config("moderation_smollm2", [])
    assert config.objective.kind == "classifier"
    assert config.model == read_run_config("reward_smollm2", ["--train.total_steps", "40"]).model
    assert layout_of(config, 1).micro_batches == 8
    assert config.batch.global_batch_tokens // LENGTH == 256, "the paper's batch, for texts of this length"
    assert config.train.total_tokens == 3 * N_TEXTS * LENGTH, "three epochs"
    check_objective(config)
    assert check_data(config, *open_data(config)) == []
