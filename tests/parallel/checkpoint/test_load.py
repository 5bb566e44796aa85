"""Loads: in place on any number of ranks, whole tensors in one process, and by PyTorch's own reader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt.errors import ConfigError
from gpt.training.config import Retention
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import load_checkpoint, read_tensors
from parallel.checkpoint.save import save_checkpoint


def test_numbers_are_rounded_on_request(tmp_path: Path) -> None:
    tensors = {"weight": torch.randn(40, 3), "count": torch.arange(4)}
    path = save_checkpoint(tmp_path, step=1, tensors=tensors, state={}, keep=Retention(1))
    half = {"weight": torch.zeros(40, 3, dtype=torch.bfloat16)}
    with pytest.raises(ConfigError, match="bfloat16 here but"):
        load_checkpoint(verify_checkpoint(path), tensors=half)
    load_checkpoint(verify_checkpoint(path), tensors=half, rounded=True)
    assert torch.equal(half["weight"], tensors["weight"].bfloat16())
    with pytest.raises(ConfigError, match="it comes from another model"):
        load_checkpoint(verify_checkpoint(path), tensors={"count": torch.zeros(4)}, rounded=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorch_reads_our_shards(tmp_path: Path, cases: Any) -> None:
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    path = save_checkpoint(tmp_path, step=1, tensors=cases.some_tensors(1.0), state={}, keep=Retention(1))
    target = cases.some_tensors(0.0)
    load(target, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(cases.same(target[name], tensor) for name, tensor in cases.some_tensors(1.0).items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, cases: Any) -> None:
    path = save_checkpoint(tmp_path, step=1, tensors=cases.some_tensors(1.0), state={}, keep=Retention(1))
    for wrong, words in [
        ({"w": torch.zeros(41, 5)}, [r"'w'", r"\[41, 5\]", r"\[40, 5\]", "another model"]),
        ({"w": torch.zeros(40, 5).half()}, [r"'w'", "float16", "float32"]),
        ({"w": torch.zeros(40, 5), "layers.3.w": torch.zeros(1)}, [r"no tensor 'layers\.3\.w'"]),
        ({"w": torch.zeros(40, 5, device="meta")}, [r"'w'", "meta"]),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_checkpoint(verify_checkpoint(path), tensors=wrong)
        for word in words:
            assert caught.match(word)
        assert wrong["w"].is_meta or not wrong["w"].any()
    with pytest.raises(ConfigError, match=r"not requested here, such as 'b'"):
        load_checkpoint(verify_checkpoint(path), tensors={"w": torch.zeros(40, 5)}, complete=True)


def test_saved_on_four_ranks_read_by_one(four: Path, cases: Any) -> None:
    path = four / "run" / "step-000000010"
    reference = load_file(four / "reference.safetensors")
    target = {name: torch.zeros_like(tensor) for name, tensor in reference.items()}
    load_checkpoint(verify_checkpoint(path), tensors=target)
    assert all(cases.same(tensor, reference[name]) for name, tensor in target.items())
    read = dict(read_tensors(verify_checkpoint(path)))
    assert len(read) == len(reference) + 5
    assert all(cases.same(read[name], tensor) for name, tensor in reference.items())


def test_saved_on_four_ranks_loaded_by_two(four: Path, cases: Any) -> None:
    assert cases.run_job("ranks", "two", four, 2) == [0, 0]
