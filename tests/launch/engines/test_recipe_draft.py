"""A recipe that is being written: order, origins, gaps, and foreign texts that cannot leave their comment."""

import tomllib

import pytest

from gpt.errors import ConfigError
from launch.engines.recipe_draft import RecipeDraft


def whole() -> RecipeDraft:
    draft = RecipeDraft("A title.")
    draft.set("train.total_tokens", 10_000, "steps")
    draft.set("run.directory", "runs/x")
    draft.leave("model.vocab_size", 0, "the size", example=100)
    for key, value in (("n_ctx", 8), ("n_layers", 1), ("d_model", 8), ("n_heads", 2)):
        draft.set(f"model.{key}", value)
    draft.set("data.tokenizer", "t")
    draft.set("data.train", [{"path": "a"}])
    draft.set("data.seq_len", 8)
    draft.set("batch.micro_batch_size", 1)
    draft.set("batch.global_batch_tokens", 8)
    draft.set("optimizer.learning_rate", 1e-3)
    draft.set("schedule.warmup_tokens", 0)
    draft.set("schedule.shape", "constant")
    return draft


def test_sections_come_in_the_order_of_a_recipe_with_the_origin_of_each_value() -> None:
    text = whole().text()
    assert text.startswith("# A title.\n# To fill in: model.vocab_size.\n")
    assert [line for line in text.splitlines() if line.startswith("[")][:3] == ["[run]", "[model]", "[data]"]
    assert "vocab_size = 0  # FILL IN: the size" in text
    assert "total_tokens = 10_000  # steps" in text


def test_given_values_win_and_fill_gaps() -> None:
    draft = RecipeDraft("A title.")
    draft.override(["--model.vocab_size", "50", "--run.seed=3"])
    draft.leave("model.vocab_size", 0, "the size", example=100)
    draft.set("run.seed", 4, "another program")
    assert (draft.get("model.vocab_size"), draft.get("run.seed"), draft.gaps) == (50, 3, {})


def test_values_that_contradict_each_other_are_refused() -> None:
    draft = whole()
    draft.set("model.n_heads", 3)
    with pytest.raises(ConfigError, match=r"model\.d_model = 8 does not divide"):
        draft.text()


def test_foreign_text_stays_inside_its_comment_or_string() -> None:
    draft = whole()
    draft.set("run.directory", 'a"\n[model]\nn_layers = 7', "--save x\n[model]")
    draft.lacks("--x\nn_layers = 9", "a reason")
    draft.unknown.append("\x1b[2J")
    table = tomllib.loads(draft.text())
    assert table["model"]["n_layers"] == 1
    assert table["run"]["directory"].startswith('a"')
    assert "\x1b" not in draft.text()
