"""Pairs of one prompt on several lines become one ranking."""

import json
from pathlib import Path

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import conversation_of
from data_prep.conversations.read import read_file, read_task
from data_prep.documents.shards import read_shard
from data_prep.inputs.config import InputConfig

PAIRS = [("q", "a", "b"), ("q", "a", "c"), ("q", "b", "c"), ("other", "a", "b"), ("q", "a", "d")]


def read(folder: Path, *, join: bool) -> tuple[list[tuple[str, dict[str, int]]], list[dict[str, object]]]:
    """The prompt and the levels of each document, and the counts of the three steps."""
    folder.mkdir(exist_ok=True)
    file = folder / "pairs.jsonl"
    lines = [json.dumps({"prompt": prompt, "chosen": better, "rejected": worse}) for prompt, better, worse in PAIRS]
    file.write_text("\n".join(lines) + "\n")
    task = read_task(InputConfig(paths=(str(file),)), ConversationsConfig("rankings", join_pairs=join))
    outputs = folder / "shard", folder / "trace"
    result = read_file(task, (file,), outputs)
    found = [conversation_of(document) for document in read_shard(outputs[0])]
    levels = [(one.prompt[0].text, {answer.text: answer.level for answer in one.answers}) for one in found]
    return levels, [counts.as_dict() for counts in result.counts]


def test_pairs_that_follow_each_other_are_joined(tmp_path: Path) -> None:
    """The last pair of `q` comes after another prompt, so it stays alone: a file is read once, in its order."""
    found, (reading, completions, conversations) = read(tmp_path, join=True)
    assert found == [("q", {"a": 2, "b": 1, "c": 0}), ("other", {"a": 1, "b": 0}), ("q", {"a": 1, "d": 0})]
    assert reading["documents_out"] == 5
    assert completions["documents_out"] == 7
    assert (conversations["documents_in"], conversations["documents_out"]) == (5, 3)
    assert conversations["dropped"] == {"joined_pair": 2}


def test_joining_can_be_switched_off(tmp_path: Path) -> None:
    found, _ = read(tmp_path, join=False)
    assert [(prompt, list(levels)) for prompt, levels in found] == [(p, [a, b]) for p, a, b in PAIRS]
