"""Files of prompts: which lines are read, how jobs are batched, and which characters an output line can have."""

import json
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.files.json_text import without_nan
from gpt.inference.sampling import Sampling
from launch.generation.jobs import GenerationJob, GenerationSettings
from launch.generation.prompt_file import batches_of, read_lines, write_lines


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


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    assert without_nan([1, -0.5, float("nan"), {"x": (float("-inf"), "nan")}]) == [1, -0.5, None, {"x": [None, "nan"]}]


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
