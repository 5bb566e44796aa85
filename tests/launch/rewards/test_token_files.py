"""Rankings next to token files, as preparation writes them and as a stranger may."""

import json
import os

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files.files import TokenFileWriter
from launch.rewards.token_files import ranked_prompts


@pytest.fixture
def side_file(tmp_path):
    for name, values in (("train", [5, 6, 7, 2, 5, 6, 2]), ("train_marks", [0, 0, 0, 1, 0, 0, 2])):
        with TokenFileWriter(tmp_path / name, vocab_size=320) as file:
            for _ in range(2):
                file.add_document(np.array(values))
    return tmp_path / "train_rankings.jsonl"


def read(side_file):
    return ranked_prompts(side_file.parent / "train", tokenizer=side_file.parent / "x", fingerprint="0")


def write(path, *lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def test_line_i_describes_document_i(side_file):
    assert [prompt.prompt_id for prompt in read(side_file)] == ["0", "1"], "without the file"
    write(side_file, {"prompt_id": "p", "labeller": "Anna", "scores": [0.5, None]}, {"prompt_id": "q"})
    first, second = read(side_file)
    assert (first.prompt_id, first.labeller, second.prompt_id, second.labeller) == ("p", "Anna", "q", "")
    assert first.levels.tolist() == [0, 1]
    assert first.scores[0] == 0.5
    assert np.isnan([first.scores[1], *second.scores]).all()


def test_a_name_may_hold_characters_at_which_python_divides_lines(side_file):
    write(side_file, {"labeller": "A\u2028B\x85C\u2029"}, {"prompt_id": "q"})
    assert [prompt.labeller for prompt in read(side_file)] == ["A\u2028B\x85C\u2029", ""]


def test_scores_that_no_number_holds_are_unknown(side_file):
    write(side_file, {"scores": [10**400, -1e300]}, {"scores": ["x", {}]})
    assert all(np.isnan(prompt.scores).all() for prompt in read(side_file))


def test_faults_are_one_line(side_file):
    for data, message in ((b"{}\n", "has 1 lines for 2 documents"), (b"{}\n[]\n", "must be a JSON object"),
                          (b"\xff\n{}\n", "not UTF-8"), (b"[" * 100_000, "nested too deeply")):  # fmt: skip
        side_file.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            read(side_file)
    side_file.unlink()
    os.mkfifo(side_file)
    with pytest.raises(ConfigError, match="a named pipe"):
        read(side_file)
