"""A run's checkpoint as a source of tensors, and the files that travel along."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.files.safetensors import TensorSpec
from launch.conversion.sources import (
    check_tokenizer_fits,
    checkpoint_source,
    copy_companions,
    copy_folders,
    copy_tokenizer,
    export_dtype,
    widest_first,
)
from launch.runs.saved_run import open_run


def test_a_checkpoint_gives_its_tensors_in_the_order_of_its_specs(exported: Path, megatron_runs: Any) -> None:
    saved = open_run(exported / "gpt")
    source = checkpoint_source(saved, weights_only=True)
    assert list(source.specs) == [name for name, _ in source.read()] == widest_first(source.specs)
    weights = dict(saved.weights())
    assert {name.removeprefix("model.") for name in source.specs} == weights.keys()
    assert all(torch.equal(tensor, weights[name.removeprefix("model.")]) for name, tensor in source.read())


def test_tensors_with_wider_elements_come_first() -> None:
    dtypes = {"a": torch.bfloat16, "b": torch.int64, "c": torch.float32, "d": torch.int64}
    assert widest_first({name: TensorSpec((1,), dtype) for name, dtype in dtypes.items()}) == ["b", "d", "c", "a"]


def test_an_export_has_the_dtype_of_the_import_unless_another_is_named(exported: Path) -> None:
    assert export_dtype(open_run(exported / "llama"), None) == torch.bfloat16
    assert export_dtype(open_run(exported / "llama"), "float16") == torch.float16
    assert export_dtype(open_run(exported / "gpt"), None) == torch.float32


def test_files_travel_along(exported: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    copy_tokenizer(open_run(exported / "gpt"), tmp_path / "a")
    copy_folders(exported / "gpt", tmp_path / "b")
    files = [sorted(path.name for path in (tmp_path / name / "tokenizer").iterdir()) for name in ("a", "b")]
    assert files[0] == files[1] == ["topics.model"]
    copy_companions(tmp_path / "c", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "c" / "chat_template.jinja").write_text("x")
    (tmp_path / "c" / "model.py").write_text("no text file that belongs to a model")
    copy_companions(tmp_path / "c", tmp_path / "d")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["chat_template.jinja"]


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    check_tokenizer_fits(tmp_path / "t", 500, folder=tmp_path, vocab_size=500)
    with pytest.raises(ConfigError, match=r"501 pieces, but .* a vocabulary of 500: it is another model's tokenizer"):
        check_tokenizer_fits(tmp_path / "t", 501, folder=tmp_path, vocab_size=500)
