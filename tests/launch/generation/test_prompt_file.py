"""Files of prompts: which lines are read, how jobs are batched, and which characters an output line can have."""

import json
from pathlib import Path

import pytest
import torch

from gpt.errors import ConfigError
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import GREEDY, Sampling
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.generation.jobs import GenerationJob, GenerationSettings
from launch.generation.prompt_file import batches_of, continue_jobs, read_lines, write_lines


def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\n{"prompt": "b", "seed": 3}')
    first, second = read_lines(path)
    assert (first.fields, first.where) == ({"prompt": "a"}, f"--input {path}, line 1")
    assert (second.fields, second.where) == ({"prompt": "b", "seed": 3}, f"--input {path}, line 3")
    path.write_bytes(b'{"prompt": "a"}\n[1]')
    with pytest.raises(ConfigError, match="line 2 must be an object with a text 'prompt'"):
        read_lines(path)
    path.write_bytes(b'{"prompt": "a"}\n' + b"[" * 200_000)
    with pytest.raises(ConfigError, match="line 2 is not JSON: it is nested too deeply"):
        read_lines(path)


def test_output_lines_can_be_read_back(tmp_path: Path) -> None:
    """Non-ASCII text stays readable; a lone surrogate, which UTF-8 does not have, is escaped."""
    lines = [{"text": "naïve €"}, {"text": "\ud800"}]
    write_lines(tmp_path / "out.jsonl", lines)
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == lines
    assert "naïve €" in written[0]


def test_log_probs_that_json_lacks_are_written_as_null(tmp_path: Path) -> None:
    """The log-probabilities of a model whose weights are not finite are NaN, which JSON does not have."""
    train_sentencepiece(iter(["The parser reads the source.\n"] * 3), tmp_path / "small.model", vocab_size=280)
    tokenizer = load_tokenizer(tmp_path / "small.model")
    model = GPT(ModelConfig(vocab_size=280, n_ctx=8, n_layers=1, d_model=8, n_heads=1))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    jobs = [GenerationJob({"prompt": "The"}, tokenizer.encode("The")[:2], 3, seed=0)]
    settings = GenerationSettings(GREEDY, (), (), None, 100)
    lines = continue_jobs(LocalModel(model), tokenizer, jobs, settings, n_ctx=8, shows=False)
    write_lines(tmp_path / "out.jsonl", lines)
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in written
    assert json.loads(written)["log_probs"] == [None, None, None]


def test_batches_hold_jobs_of_similar_length_within_the_limits() -> None:
    sizes = [(3, 5), (30, 5), (4, 50), (10, 10), (29, 6), (1, 1), (2, 7)]
    jobs = [GenerationJob({}, [0] * prompt, new, 0) for prompt, new in sizes]
    for size, tokens, ranks in ((None, 120, 1), (3, 10_000, 1), (None, 10_000, 3), (1, 10_000, 1), (None, 1, 1)):
        batches = list(batches_of(jobs, GenerationSettings(Sampling(), (), (), size, tokens), data_size=ranks))
        assert sorted(i for batch in batches for i in batch) == list(range(7))
        assert len(batches) >= ranks
        for batch in batches:
            width = max(sizes[i][0] for i in batch) + max(sizes[i][1] for i in batch)
            assert len(batch) == 1 or (width * len(batch) <= tokens and len(batch) <= (size or 7))
    assert list(batches_of(jobs, GenerationSettings(Sampling(), (), (), 3, 10_000), data_size=1)) == [
        [2, 1, 4],
        [3, 6, 0],
        [5],
    ]
