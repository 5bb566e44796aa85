"""Published problems: their order, their layout, and files that are refused."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.gpt3_problems import Problem, WordList, task_rules
from gpt.evaluation.few_shot.published_problems import MAX_BYTES, published_problems
from gpt.evaluation.few_shot.tasks import FewShotOptions, open_tasks

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

GPT3_FILES = Path(__file__).resolve().parents[5] / "shared" / "data" / "gpt3"
RULES = {rule.name: rule for rule in task_rules()}
ADD, LETTERS = "gpt3_two_digit_addition", "gpt3_cycle_letters_in_word"


def test_published_problems_keep_their_order_and_get_the_papers_layout(
    published: Path, options: Callable[..., FewShotOptions], words: WordList
) -> None:
    problems = published_problems(RULES[ADD], published)
    rows = [json.loads(line) for line in (published / "two_digit_addition.jsonl").read_text().splitlines()]
    assert (len(problems.scored), len(problems.examples)) == (27, 3)
    for row, problem in zip(rows, problems.scored + problems.examples, strict=True):
        a, b = map(int, re.findall(r"\d+", row["context"]))
        assert problem == Problem(f"Q: What is {a} plus {b}?\nA:", str(a + b))
    scrambled = published_problems(RULES[LETTERS], published)
    assert scrambled.scored[0].question == f"{words.words[0][2:]}{words.words[0][:2]} ="
    tasks = open_tasks(options(ADD, LETTERS, shots=(2,), gpt3_data=published))
    task = tasks.generated[f"{ADD}/2"]
    task.build_all_requests()
    shown = r"Q: What is \d+ plus \d+\?\nA: \d+\n\n"
    assert all(re.fullmatch(rf"({shown}){{2}}Q: .*\?\nA:", instance.args[0]) for instance in task.instances)
    assert tasks.sources() == {"same_examples": False, "gpt3_data": str(published)}


@pytest.mark.skipif(not GPT3_FILES.is_dir(), reason="needs the files of openai/gpt-3 next to the repository")
def test_all_fifteen_published_files_are_read() -> None:
    for rule in task_rules():
        problems = published_problems(rule, GPT3_FILES)
        n = 10_000 if rule.about_words else 2_000
        assert (len(problems.scored), len(problems.examples)) == (n - 200, 200)
        assert all(p.answer == p.answer.strip() for p in problems.scored)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("two_digit_addition.jsonl", None, "has no two_digit_addition.jsonl or two_digit_addition.jsonl.gz"),
        (
            "two_digit_addition.jsonl",
            b'{"context": "\\nasinoc =", "completion": " casino"}\n' * 20,
            "line 1 is not a problem",
        ),
        ("two_digit_addition.jsonl", b'{"question": "What?"}\n', "line 1 is not"),
        ("two_digit_addition.jsonl", b"[1]\n", "line 1 is not"),
        ("two_digit_addition.jsonl", b"\xff\xfe", "cannot be read"),
        ("two_digit_addition.jsonl.gz", b"not packed", "cannot be read"),
        ("two_digit_addition.jsonl.gz", gzip.compress(bytes(MAX_BYTES + 1), 1), "has more than 67,108,864 bytes"),
        (
            "two_digit_addition.jsonl",
            b'{"context": "Q: What is 1 plus 2?\\n\\nA:", "completion": " 3"}\n' * 9,
            "has 9 problems",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str, options: Callable[..., FewShotOptions]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        open_tasks(options(ADD, gpt3_data=tmp_path))
    assert "\n" not in str(raised.value)


def test_a_missing_folder_and_a_useless_one_are_refused(tmp_path: Path, options: Callable[..., FewShotOptions]) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        open_tasks(options(ADD, gpt3_data=tmp_path / "absent"))
    with pytest.raises(ConfigError, match="names none of them"):
        open_tasks(options("hellaswag_absent", gpt3_data=tmp_path))
