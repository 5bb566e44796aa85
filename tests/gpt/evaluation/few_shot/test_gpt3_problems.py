"""The generated GPT-3 problems follow their rules and look like the published files."""

import gzip
import json
import re
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.gpt3_problems import (
    WordList,
    frequent_words,
    make_problems,
    task_rules,
    words_of_file,
    words_of_python,
)

GPT3_FILES = Path(__file__).resolve().parents[5] / "shared" / "data" / "gpt3"
RULES = {rule.name: rule for rule in task_rules()}
WORDS = WordList(tuple(f"{a}{b}{c}{d}e" for a in "bcd" for b in "aeiou" for c in "lmnr" for d in "st"), "made here")


def test_the_fifteen_tasks_have_the_labels_of_the_paper() -> None:
    labels = [rule.label for rule in task_rules()]
    assert labels == [
        "2D+",
        "2D-",
        "3D+",
        "3D-",
        "4D+",
        "4D-",
        "5D+",
        "5D-",
        "2Dx",
        "1DC",
        "CL",
        "A1",
        "A2",
        "RI",
        "RW",
    ]


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.about_words])
def test_arithmetic_problems(name: str) -> None:
    """Right answers, distinct questions, operands over the whole range, examples that are not scored."""
    problems = make_problems(RULES[name], seed=5, words=WORDS)
    assert (len(problems.scored), len(problems.examples)) == (2000, 200)
    everything = problems.scored + problems.examples
    assert len({p.question for p in everything}) == 2200
    operands = []
    for problem in everything:
        match = re.fullmatch(r"Q: What is (.+)\?\nA:", problem.question)
        assert match is not None
        words = match[1].replace("plus", "+").replace("minus", "-").replace("times", "*")
        assert re.fullmatch(r"[\d ()+*-]+", words)
        assert int(problem.answer) == eval(words)
        operands += [int(n) for n in re.findall(r"\d+", words)]
    digits = {"two": 2, "three": 3, "four": 4, "five": 5, "single": 1}[name.split("_")[1]]
    assert max(operands) < 10**digits
    assert max(operands) > 0.98 * 10**digits - 1.5
    assert min(operands) < max(1, 0.02 * 10**digits) or (digits == 1 and min(operands) == 1)
    assert sum(operands) / len(operands) == pytest.approx(10**digits / 2, rel=0.05)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.about_words])
def test_word_problems(name: str) -> None:
    words = WordList(tuple(f"{word}s{word}" for word in WORDS.words), "longer ones made here")
    problems = make_problems(RULES[name], seed=5, words=words)
    for problem in problems.scored + problems.examples:
        word, scrambled = problem.answer, problem.question.removesuffix(" =")
        assert word in words.words
        assert scrambled != word
        if name == "gpt3_cycle_letters_in_word":
            assert scrambled in {word[i:] + word[:i] for i in range(1, len(word))}
        elif name == "gpt3_mid_word_1_anagrams":
            assert (scrambled[0], scrambled[-1], sorted(scrambled)) == (word[0], word[-1], sorted(word))
        elif name == "gpt3_mid_word_2_anagrams":
            assert (scrambled[:2], scrambled[-2:], sorted(scrambled)) == (word[:2], word[-2:], sorted(word))
        elif name == "gpt3_random_insertion_in_word":
            assert (scrambled[::2], set(scrambled[1::2]) <= set(" .!/")) == (word, True)
        else:
            assert scrambled == word[::-1]
    assert not {p.answer for p in problems.scored} & {p.answer for p in problems.examples}


def test_words_without_a_middle_to_shuffle_are_left_out() -> None:
    """Words of five letters have one letter between the outer pairs, so A2 cannot use them."""
    with pytest.raises(ConfigError, match="made here: gpt3_mid_word_2_anagrams finds 0 words"):
        make_problems(RULES["gpt3_mid_word_2_anagrams"], seed=5, words=WORDS)


def test_problems_depend_only_on_the_seed() -> None:
    for name in ("gpt3_two_digit_addition", "gpt3_reversed_words"):
        first, again, other = (make_problems(RULES[name], seed=s, words=WORDS) for s in (1, 1, 2))
        assert first == again
        assert first.scored[:20] != other.scored[:20]


def test_word_lists_are_ordered_by_frequency(tmp_path: Path) -> None:
    text = (
        "alpha beta alpha Gamma delta delta delta four alphabetically123 extraordinarily supercalifragilistic naïveté"
    )
    assert frequent_words(text, source="x").words == ("delta", "alpha", "alphabetically")
    assert frequent_words(text, source="x", max_words=1).words == ("delta",)
    (tmp_path / "words").write_text("zebra\napple\nmango\n")
    assert words_of_file(tmp_path / "words").words == ("zebra", "apple", "mango")
    with pytest.raises(ConfigError, match=r"--words .* cannot be read"):
        words_of_file(tmp_path / "absent")
    ours = words_of_python()
    assert len(ours.words) > 1000
    assert all(5 <= len(word) <= 14 and word.isascii() and word.islower() for word in ours.words)
    assert ours.sha256 != frequent_words(text, source="x").sha256


@pytest.mark.skipif(not GPT3_FILES.is_dir(), reason="needs the files of openai/gpt-3 next to the repository")
@pytest.mark.parametrize("name", RULES)
def test_generated_problems_have_the_layout_of_the_published_files(name: str) -> None:
    """Every generated question has the layout of a published one, without the newlines before it."""
    plain, packed = (GPT3_FILES / f"{name.removeprefix('gpt3_')}.jsonl{end}" for end in ("", ".gz"))
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else plain.read_text()
    published = [json.loads(line) for line in text.splitlines()]
    layouts = {layout(row["context"].lstrip("\n").replace("\n\nA:", "\nA:")) for row in published}
    words = WordList(tuple(sorted({row["completion"].strip() for row in published})), "published")
    ours = make_problems(RULES[name], seed=0, words=words).scored
    assert {layout(problem.question) for problem in ours} <= layouts
    assert all(row["completion"].startswith(" ") for row in published)


def layout(question: str) -> str:
    if question.startswith("Q:"):
        return re.sub(r"\d+", "9", question)
    scrambled = question.removesuffix("=").removesuffix(" ")
    return (
        "w ="
        if re.fullmatch(r"[a-z]+", scrambled)
        else "w" + re.sub(r"[a-z][ .!/](?=[a-z])|[a-z]$", "", scrambled) + " ="
    )
