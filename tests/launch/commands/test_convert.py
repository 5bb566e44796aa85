"""`triaxial convert` to Hugging Face's layout, on a run directory as training leaves it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError


def test_transformers_loads_the_converted_model(
    made: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, triaxial: Any
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    assert triaxial("convert", made.directory, "--to", "hf", "--output", tmp_path / "hf", "--step", 10) == 0
    printed = capsys.readouterr().out
    assert "GPT-2 architecture" in printed
    assert "bit for bit" in printed
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    tokens = torch.randint(360, (2, 64), generator=torch.Generator().manual_seed(0))
    logits = theirs(tokens).logits.detach()
    assert float((made.models[10](tokens) - logits).abs().max() / logits.abs().max()) < 1e-5
    report = json.loads((tmp_path / "hf" / "triaxial_export.json").read_text())
    assert (report["step"], report["tokens_seen"]) == (10, 40960)
    assert report["max_relative_logit_error"] < 1e-5
    with pytest.raises(ConfigError, match="exists already"):
        triaxial("convert", made.directory, "--to", "hf", "--output", tmp_path / "hf")
    with pytest.raises(ConfigError, match="inside the run's checkpoints folder"):
        triaxial("convert", made.directory, "--to", "hf", "--output", made.directory / "checkpoints" / "hf")
