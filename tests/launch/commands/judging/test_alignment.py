"""`triaxial choose`, `tax` and `toxicity` with a real model and Python functions."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.post_training.analysis.toxicity import toxicity_of
from launch.commands.arguments.toxicity import check_arguments
from launch.commands.judging.choose import choice_table
from launch.commands.judging.tax import open_tasks
from launch.commands.judging.toxicity import toxicity_table
from launch.evaluation.checkpoint_choice import ranked_checkpoints
from launch.main import main


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `alignment_scores` on the Python path."""
    (tmp_path / "alignment_scores.py").write_text(
        "def share(prompts, texts):\n"
        "    return [None if not text else text.count('e') / len(text) for text in texts]\n"
        "def loud(prompts, texts):\n    return [2.0 for _ in texts]\n"
        "def broken(prompts, texts):\n    raise ValueError('no model')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_toxicity_is_measured_by_group_of_prompts(made: Any, tmp_path: Path, module: None, capsys: Any) -> None:
    prompts = [
        {"prompt": {"text": "The parser", "toxicity": 0.1}, "continuation": {"text": "x"}},
        {"prompt": {"text": "for each", "toxicity": 0.9}},
        {"prompt": "A list"},
    ]
    words = ["--prompts", write(tmp_path / "p.jsonl", prompts), "--n", 3, "--max-new-tokens", 8, "--device", "cpu"]
    words = ["toxicity", made.directory, *words, "--scorer"]
    more = ["--output", tmp_path / "texts.jsonl", "--json", tmp_path / "t.json"]
    assert main([str(word) for word in [*words, "alignment_scores:share", *more]]) == 0
    found, texts = json.loads((tmp_path / "t.json").read_text()), lines(tmp_path / "texts.jsonl")
    scores = np.array([[one["score"] for one in line["continuations"]] for line in texts])
    assert scores.shape == (3, 3)
    assert len(np.unique(scores)) > 3, "each continuation has its own seed"
    assert found["all prompts"]["expected_maximum"]["estimate"] == pytest.approx(scores.max(1).mean())
    assert found["all prompts"]["probability"]["estimate"] == pytest.approx((scores.max(1) >= 0.5).mean())
    assert found["toxic prompts"]["expected_maximum"]["estimate"] == pytest.approx(scores[1].max())
    assert found["other prompts"]["prompts"] == 1
    assert [line["toxicity"] for line in texts] == [0.1, 0.9, None]
    capsys.readouterr()
    for scorer, said in (
        ("alignment_scores:loud", "gave the score 2: must be from 0 to 1"),
        ("alignment_scores:broken", "raised ValueError: no model"),
        ("nowhere", "no such run"),
    ):
        assert main([str(word) for word in [*words, scorer]]) == 2
        assert said in capsys.readouterr().err
    words[1] = tmp_path / "no_run"
    assert main([str(word) for word in [*words, "nowhere"]]) == 2
    assert "--scorer nowhere is invalid" in capsys.readouterr().err, "before the model is opened"


def test_the_checkpoint_with_the_best_answers_is_chosen(made: Any, tmp_path: Path, module: None, capsys: Any) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "The parser"}, {"prompt": "for each"}])
    words = ["choose", made.directory, "--prompts", prompts, "--max-new-tokens", 6, "--device", "cpu", "--reward"]
    found = tmp_path / "c.json"
    assert main([str(word) for word in [*words, "alignment_scores:share", "--json", found]]) == 0
    table = json.loads(found.read_text())
    rewards = [one["reward"] for one in table]
    assert rewards == sorted(rewards, reverse=True)
    chosen = made.directory / "chosen.json"
    try:
        assert json.loads(chosen.read_text())["step"] == table[0]["step"]
        capsys.readouterr()
        assert (
            main(["generate", str(made.directory), "--step", "best", "--prompt", "The", "--max-new-tokens", "1"]) == 0
        )
    finally:
        chosen.unlink()
    assert main([str(word) for word in [*words[:1], tmp_path, *words[2:], "alignment_scores:share"]]) == 2
    assert "it has no checkpoints" in capsys.readouterr().err


def test_the_alignment_tax_is_measured_item_by_item(made: Any, tmp_path: Path, capsys: Any) -> None:
    """The same model before and after pays none; and the answers that it left serve in place of a run."""
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    words = ["--tasks", "gpt3_two_digit_addition", "--num-fewshot", "0", "--limit", "3", "--answers", "likelihood"]
    words += ["--log-samples", str(tmp_path / "samples"), "--device", "cpu", "--json", str(tmp_path / "tax.json")]
    assert main(["tax", str(made.directory), str(made.directory), *words]) == 0
    first = json.loads((tmp_path / "tax.json").read_text())
    assert first
    assert all(one["items"] == 3 and one["difference"]["estimate"] == 0 for one in first)
    file = next((tmp_path / "samples" / "after").iterdir())
    changed = lines(file)
    metric = first[0]["metric"]
    changed[0][metric] = float(changed[0][metric]) + 3.0
    write(file, changed)
    folders = [str(tmp_path / "samples" / name) for name in ("before", "after")]
    assert main(["tax", *folders, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again[0]["difference"]["estimate"] == pytest.approx(1.0)
    changed[1]["doc_hash"] = "another"
    write(file, changed)
    capsys.readouterr()
    assert main(["tax", *folders]) == 2
    assert "question 1 differs between the two evaluations" in capsys.readouterr().err
    assert main(["tax", str(made.directory), folders[1]]) == 2
    assert "--log-samples is missing" in capsys.readouterr().err


def test_mistakes_are_found_without_a_model() -> None:
    good = {"n": 1, "max_new_tokens": 1, "seed": 0, "temperature": 1.0}
    check_arguments(Namespace(**good))
    for wrong, message in (({"n": 0}, "--n 0 is invalid"), ({"temperature": 0.0}, "all continuations would be equal")):
        with pytest.raises(ConfigError, match=message):
            check_arguments(Namespace(**{**good, **wrong}))
    assert open_tasks(Namespace(tasks=None, log_samples=None), needed=False) is None
    only_truthful_qa = Namespace(tasks=None, log_samples=None, truthful_qa=Path("q.jsonl"))
    with pytest.raises(ConfigError, match="--log-samples is missing"):
        open_tasks(only_truthful_qa, needed=True)
    assert only_truthful_qa.tasks == ["none"], "and not those of GPT-3 too"
    assert toxicity_table({"all prompts": toxicity_of(np.array([[0.2, 0.9]]))}).row_count == 1
    assert choice_table(ranked_checkpoints([1, 2], [[0.5], [1.5]])).row_count == 2
