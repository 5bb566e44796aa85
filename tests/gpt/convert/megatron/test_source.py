"""A torch_dist checkpoint as a source of tensors, written by our own writer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.convert.megatron.names import from_megatron, stacked_shapes, to_megatron
from gpt.convert.megatron.source import check_format, find_checkpoint, is_megatron, open_source
from gpt.convert.round_trip import main_dtype
from gpt.convert.torch_formats.dcp_writer import Part, write_torch_dist
from gpt.errors import ConfigError


def write(folder: Path, config: Any, model: Any, dtype: torch.dtype = torch.bfloat16) -> Path:
    folder.mkdir(parents=True)
    parts = (
        Part(entry.megatron_name, (0,) * t.dim() if entry.layer is None else (entry.layer, *(0,) * t.dim()), t)
        for entry, t in to_megatron(config, model.named_parameters())
    )
    write_torch_dist(folder, parts, shapes=stacked_shapes(config), dtype=dtype)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return folder


def test_weights_come_back_from_a_checkpoint_without_arguments(
    tmp_path: Path, small_config: Any, random_model: Any
) -> None:
    config = small_config("llama")
    model = random_model(config)
    source = open_source(write(tmp_path / "x", config, model), model=config)
    assert main_dtype(source) == torch.bfloat16
    assert list(source.specs) == [title for title, _ in source.read()]
    back = dict(from_megatron(config, source.read()))
    for name, weight in model.named_parameters():
        assert torch.equal(back[name], weight[: len(back[name])].to(torch.bfloat16)), name
    with pytest.raises(ConfigError, match="do not contain the number of heads"):
        open_source(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"are missing, 'embedding\.position_embeddings\.weight' is the first"):
        open_source(tmp_path / "x", model=small_config("gpt2", norm="rmsnorm", tied=False))


def test_a_checkpoint_is_found_in_the_folder_of_megatron_lm(tmp_path: Path) -> None:
    assert not is_megatron(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    assert is_megatron(tmp_path)
    for name in ("iter_0000007", "iter_0000012"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(tmp_path).name == "iter_0000012"
    assert find_checkpoint(tmp_path, 7).name == "iter_0000007"
    with pytest.raises(ConfigError, match="no checkpoint iter_0000008; it holds iter_0000007, iter_0000012"):
        find_checkpoint(tmp_path, 8)
    with pytest.raises(ConfigError, match="--step 8 is invalid"):
        find_checkpoint(tmp_path / "iter_0000007", 8)
    with pytest.raises(ConfigError, match="no such folder"):
        find_checkpoint(tmp_path / "gone")


def test_other_formats_and_unfinished_saves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its save was not completed"):
        check_format(tmp_path)
    (tmp_path / "mp_rank_00").mkdir()
    with pytest.raises(ConfigError, match="older format"):
        check_format(tmp_path)
    for text, words in (("[]", "does not name the format"), ('{"sharded_backend": "zarr"}', "'zarr' is not supported")):
        (tmp_path / "metadata.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            check_format(tmp_path)
