"""The shipped recipe of DPO: the paper's settings, and data that it takes."""

from pathlib import Path

import numpy as np
import pytest

from gpt.token_files.files import TokenFileWriter
from launch.config.run_config import layout_of, read_run_config
from launch.training.build import check_data, check_objective, open_data


@pytest.fixture
def _rankings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token files where the recipe names them: 2 completions of 40 tokens a prompt."""
    monkeypatch.chdir(tmp_path)
    marks, learned = np.zeros(80, dtype=np.int64), np.ones(80, dtype=np.int64)
    marks[39::40] = (2, 1)
    for split in ("train", "validation"):
        for name, values in ((split, learned), (f"{split}_learned", learned), (f"{split}_marks", marks)):
            with TokenFileWriter(Path("data/rankings") / name, vocab_size=50000) as writer:
                for _ in range(64):
                    writer.add_document(values)


@pytest.mark.usefixtures("_rankings")
def test_the_settings_are_the_papers() -> None:
    config = read_run_config("dpo_smollm2", [])
    assert vars(config.objective) == {"kind": "dpo", "beta": 0.1}
    assert config.optimizer.learning_rate == 1e-6
    assert config.schedule.shape == "constant"
    assert config.model == read_run_config("reward_smollm2", []).model
    assert layout_of(config, 1).micro_batches == 32, "prompts a step"
    check_objective(config)
    assert check_data(config, *open_data(config)) == []
