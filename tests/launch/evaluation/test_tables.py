"""The tables of `triaxial evaluate`, as text."""

import io

from rich.console import Console

from gpt.evaluation.few_shot.scores import TaskScore
from launch.evaluation.tables import print_clean_subset, print_few_shot, print_texts, print_validation


def console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=160), file


def cells(text: str, first: str) -> list[str]:
    """Return the words of the line that begins with `first`."""
    return next(line.split() for line in text.splitlines() if line.strip().startswith(first))


def test_few_shot_scores_have_a_column_for_each_number_of_examples() -> None:
    printer, file = console()
    scores = [
        TaskScore("gpt3_two_digit_addition", "2D+", 0, "exact_match", 0.25, 0.01, 100, 0),
        TaskScore("gpt3_two_digit_addition", "2D+", 1, "exact_match", 0.5, None, 100, 3),
        TaskScore("gpt3_reversed_words", "RW", 1, "exact_match", 0.125, 0.005, 100, 0),
    ]
    print_few_shot(printer, scores)
    text = file.getvalue()
    assert "Few-shot exact match ± standard error, 100 questions per task" in " ".join(text.split())
    assert cells(text, "2D+") == ["2D+", "gpt3_two_digit_addition", "25.0%", "±", "1.0", "50.0%"]
    assert cells(text, "RW") == ["RW", "gpt3_reversed_words", "12.5%", "±", "0.5"]
    assert "lost their beginning: 2D+ with 1: 3 of 100" in text


def test_clean_and_dirty_items_have_a_row_each() -> None:
    printer, file = console()
    split = TaskScore("a", "a", 0, "acc", 0.5, 0.1, 10, 0, 0.75, 0.2, 8, None, None, 2)
    print_clean_subset(printer, [split, TaskScore("b", "b", 0, "acc", 0.5, 0.1, 10, 0)])
    text = file.getvalue()
    assert cells(text, "a ") == ["a", "acc", "0", "all", "10", "50.0%", "±", "10.0"]
    assert cells(text, "clean") == ["clean", "8", "75.0%", "±", "20.0"]
    assert cells(text, "dirty") == ["dirty", "2"]
    assert "not in the overlap analysis: b" in text


def test_losses_of_corpora_and_of_texts() -> None:
    printer, file = console()
    values = {"loss_nats": 3.0, "unigram_entropy_nats": 4.5, "tokens": 1024, "perplexity": 20.0855}
    print_validation(printer, {"step": 10, "tokens_seen": 40960, "validation": {"wiki": values}})
    assert cells(file.getvalue(), "wiki") == ["wiki", "1,024", "3.0000", "4.5000", "+1.5000", "20.09"]
    print_validation(printer, {"step": 10, "tokens_seen": 40960, "validation": {}})
    assert "the run names no validation corpus" in file.getvalue()
    nats = {"nats_per_token": 2.0, "nats_per_word": None, "nats_per_byte": 0.5}
    figures = {**nats, "tokens": 7, "words": 0, "bytes": 28}
    print_texts(printer, {"window": 16, "stride": 4, "texts": {"t.txt": figures}, "together": figures})
    assert cells(file.getvalue(), "t.txt") == ["t.txt", "token", "7", "2.0000", "2.8854", "7.39"]
    assert cells(file.getvalue(), "word") == ["word", "0"]
    assert cells(file.getvalue(), "all texts")[:3] == ["all", "texts", "token"]
