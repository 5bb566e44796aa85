"""Rankings and demonstrations in files of JSON lines are encoded as `triaxial prepare` does."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.conversations.chat_format import ChatEncoder, choose_format
from data_prep.conversations.config import ConversationsConfig
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main
from launch.rewards.texts import read_texts
from launch.rewards.token_files import demonstrations, ranked_prompts

RANKINGS = [
    {
        "prompt": f"What is {number} and one?",
        "completions": [
            {"text": f"It is {number + 1}.", "rank": 1},
            {"text": "I do not know.", "rank": 3},
            {"text": "One, certainly.", "rank": 2},
        ],
        "labeller": f"person {number % 2}",
    }
    for number in range(12)
]
UNUSABLE = [
    {"prompt": "Why?", "completions": [{"text": "So.", "rank": 1}]},
    {"prompt": "Who?", "completions": [{"text": "He.", "rank": 1}, {"text": "She.", "rank": 1}]},
    {"words": "no conversation"},
]
DEMONSTRATIONS = [{"instruction": f"Name the number {number}.", "output": f"{number}."} for number in range(5)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path, kind, tokenizer):
    with ChatEncoder(choose_format(ConversationsConfig(kind), tokenizer), tokenizer) as encoder:
        return read_texts(path, kind, encoder)


def test_texts_have_the_tokens_of_a_prepared_corpus(tiny_corpus, tmp_path):
    tokenizer = tiny_corpus.folder / "topics.model"
    for kind, records in (("rankings", RANKINGS), ("demonstrations", DEMONSTRATIONS)):
        write(tmp_path / f"{kind}.jsonl", records)
        recipe = f"""
[input]
paths = ["{tmp_path}/{kind}.jsonl"]
[output]
folder = "{tmp_path}/{kind}"
validation_fraction = 0.2
[conversations]
kind = "{kind}"
[tokenizer]
path = "{tokenizer}"
[dedup_minhash]
enabled = false
"""
        (tmp_path / f"{kind}.toml").write_text(recipe)
        assert main(["prepare", str(tmp_path / f"{kind}.toml")]) == 0
    fingerprint = load_tokenizer(tokenizer).fingerprint
    prepared = [
        prompt
        for split in ("train", "validation")
        for prompt in ranked_prompts(tmp_path / "rankings" / split, tokenizer=tokenizer, fingerprint=fingerprint)
    ]
    found = read(tmp_path / "rankings.jsonl", "rankings", tokenizer)
    assert not found.left_out
    assert len(found.rankings) == len(prepared) == len(RANKINGS)
    by_id = {prompt.prompt_id: prompt for prompt in prepared}
    for prompt in found.rankings:
        same = by_id[prompt.prompt_id]
        assert (prompt.labeller, prompt.levels.tolist()) == (same.labeller, same.levels.tolist())
        assert [ids.tolist() for ids in prompt.completions] == [ids.tolist() for ids in same.completions]
    with pytest.raises(ConfigError, match=r"made these token files, but the run's tokenizer is other\.model"):
        ranked_prompts(tmp_path / "rankings" / "train", tokenizer=Path("other.model"), fingerprint="0" * 64)
    shown = read(tmp_path / "demonstrations.jsonl", "demonstrations", tokenizer).demonstrations
    corpus = [
        ids.tolist()
        for split in ("train", "validation")
        for ids in demonstrations(tmp_path / "demonstrations" / split, tokenizer=tokenizer, fingerprint=fingerprint)
    ]
    assert sorted(ids.tolist() for ids in shown) == sorted(corpus)


def test_records_that_cannot_be_used_are_counted(tiny_corpus, tmp_path):
    tokenizer = tiny_corpus.folder / "topics.model"
    found = read(write(tmp_path / "some.jsonl", [*RANKINGS, *UNUSABLE]), "rankings", tokenizer)
    assert len(found.rankings) == len(RANKINGS)
    assert found.left_out == {"one_completion": 1, "all_tied": 1, "unknown_shape": 1}
    with pytest.raises(ConfigError, match=r"none\.jsonl is invalid: it has no rankings that can be used \(1 one_compl"):
        read(write(tmp_path / "none.jsonl", UNUSABLE), "rankings", tokenizer)


def test_a_file_of_rankings_is_scored(reward_run, tmp_path, capsys):
    file = write(tmp_path / "some.jsonl", [*RANKINGS, *UNUSABLE])
    words = ["--rankings", str(file), "--json", str(tmp_path / "scores.json")]
    assert main(["score", str(reward_run.run), *words]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # lines are folded, by the length of the path too
    assert "left out 1 one_completion, 1 all_tied, 1 unknown_shape" in printed
    result = json.loads((tmp_path / "scores.json").read_text())["rankings"]
    assert (result["overall"]["pairs"], result["overall"]["prompts"]) == (3 * len(RANKINGS), len(RANKINGS))
    assert result["nan"] == 0
    assert np.isfinite(result["loss"])
