"""Published problems, numbers of examples, the two forms of answers, normalised likelihoods and clean subsets."""

import gzip
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.clean_subset import read_overlap
from gpt.evaluation.few_shot.gpt3_problems import Problem, WordList, task_rules
from gpt.evaluation.few_shot.published_problems import published_problems
from gpt.evaluation.few_shot.scores import TaskScore, few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, OpenTasks, open_tasks
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.config import TrainConfig
from gpt.training.few_shot_probe import make_few_shot_probe

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

GPT3_FILES = Path(__file__).resolve().parents[5] / "shared" / "data" / "gpt3"
CONFIG = ModelConfig(vocab_size=400, n_ctx=96, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
RULES = {rule.name: rule for rule in task_rules()}
WORDS = WordList(tuple(f"{a}{b}{c}{d}e" for a in "bcd" for b in "aeiou" for c in "lmnr" for d in "st"), "made here")
ADD, LETTERS = "gpt3_two_digit_addition", "gpt3_cycle_letters_in_word"


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=8)
    return model.requires_grad_(False)


def options(*tasks: str, shots: tuple[int, ...] = (0,), limit: int | None = None, **more: Any) -> FewShotOptions:
    return FewShotOptions(tasks=tasks, shots=shots, limit=limit, words=WORDS, **more)


def log_likelihood(model: GPT, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, bool, int]:
    """Read plainly: the sum, whether each token is the likeliest, and how many there are."""
    head = tokenizer.encode(context)
    tail = tokenizer.encode(context + continuation)[len(head) :]
    log_probs = model(torch.tensor([[*head, *tail][:-1]]))[0, len(head) - 1 :].log_softmax(-1)
    greedy = [int(row.argmax()) == token for row, token in zip(log_probs, tail, strict=True)]
    return sum(float(row[token]) for row, token in zip(log_probs, tail, strict=True)), all(greedy), len(tail)


# Published problems


@pytest.fixture
def published(tmp_path: Path) -> Path:
    rng = random.Random(1)
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "two_digit_addition.jsonl").open("w") as file:
        for _ in range(30):
            a, b = rng.randrange(100), rng.randrange(100)
            row = {"context": f"\n\nQ: What is {a} plus {b}?\n\nA:", "completion": f" {a + b}"}
            file.write(json.dumps(row) + "\n")
    rows = [{"context": f"\n{word[2:]}{word[:2]} =", "completion": f" {word}"} for word in WORDS.words[:40]]
    packed = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "cycle_letters_in_word.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    return folder


def test_published_problems_keep_their_numbers_and_take_the_papers_layout(published: Path) -> None:
    problems = published_problems(RULES[ADD], published)
    rows = [json.loads(line) for line in (published / "two_digit_addition.jsonl").read_text().splitlines()]
    assert (len(problems.scored), len(problems.examples)) == (27, 3)
    for row, problem in zip(rows, problems.scored + problems.examples, strict=True):
        a, b = map(int, re.findall(r"\d+", row["context"]))
        assert problem == Problem(f"Q: What is {a} plus {b}?\nA:", str(a + b))
    words = published_problems(RULES[LETTERS], published)
    assert words.scored[0].question == f"{WORDS.words[0][2:]}{WORDS.words[0][:2]} ="
    tasks = open_tasks(options(ADD, LETTERS, shots=(2,), gpt3_data=published))
    task = tasks.generated[f"{ADD}/2"]
    task.build_all_requests()
    shown = r"Q: What is \d+ plus \d+\?\nA: \d+\n\n"
    assert all(re.fullmatch(rf"({shown}){{2}}Q: .*\?\nA:", instance.args[0]) for instance in task.instances)
    assert tasks.sources() == {"same_examples": False, "gpt3_data": str(published)}


@pytest.mark.skipif(not GPT3_FILES.is_dir(), reason="the files of openai/gpt-3 are not beside the repository")
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
        (
            "two_digit_addition.jsonl",
            b'{"context": "Q: What is 1 plus 2?\\n\\nA:", "completion": " 3"}\n' * 9,
            "has 9 problems",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        open_tasks(options(ADD, gpt3_data=tmp_path))
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        open_tasks(options(ADD, gpt3_data=tmp_path / "absent"))
    with pytest.raises(ConfigError, match="names none of them"):
        open_tasks(options("hellaswag_absent", gpt3_data=tmp_path))


# Examples and answers


def test_the_papers_numbers_of_examples_where_they_fit(tokenizer: Tokenizer) -> None:
    words = WordList(tuple(f"{word}{word}" for word in WORDS.words * 9), "longer ones made here")
    made = open_tasks(FewShotOptions((ADD, "gpt3_reversed_words"), (), None, words, paper_shots=True))
    assert list(made.generated) == [f"{ADD}/{k}" for k in (0, 1, 50)] + [
        f"gpt3_reversed_words/{k}" for k in (0, 1, 100)
    ]
    fitting, notes = made.that_fit(tokenizer, n_ctx=100)
    assert list(fitting.generated) == [f"{name}/{k}" for name in (ADD, "gpt3_reversed_words") for k in (0, 1)]
    assert notes == ["left out, since their examples do not fit into 100 tokens: 2D+ with 50, RW with 100"]
    assert made.that_fit(tokenizer, n_ctx=10_000)[0].generated == made.generated
    kept, notes = open_tasks(options(ADD, shots=(7,))).that_fit(tokenizer, n_ctx=20)
    assert (list(kept.generated), notes) == ([f"{ADD}/7"], []), "what is asked for by number stays"


def test_the_same_examples_for_every_question(model: GPT, tokenizer: Tokenizer) -> None:
    def contexts(**more: Any) -> list[str]:
        task = open_tasks(options(ADD, shots=(3,), **more)).generated[f"{ADD}/3"]
        task.build_all_requests(limit=5)
        return [instance.args[0] for instance in task.instances]

    shared = contexts(same_examples=True)
    assert len({context.rpartition("\n\n")[0] for context in shared}) == 1
    assert len(set(shared)) == 5
    assert len({context.rpartition("\n\n")[0] for context in contexts()}) == 5
    assert contexts(same_examples=True) == shared


@pytest.mark.parametrize("same", [True, False])
def test_likelihood_of_the_right_answer(model: GPT, tokenizer: Tokenizer, same: bool) -> None:
    tasks = open_tasks(options(ADD, shots=(2,), limit=12, answers="likelihood", same_examples=same))
    accuracy, mean = few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    task = tasks.generated[f"{ADD}/2"]
    plain = [log_likelihood(model, tokenizer, *instance.args) for instance in task.instances]
    assert (accuracy.metric, mean.metric) == ("acc", "log_likelihood")
    assert accuracy.value == pytest.approx(sum(greedy for _, greedy, _ in plain) / 12)
    assert mean.value == pytest.approx(sum(value for value, _, _ in plain) / 12, abs=1e-4)
    spread = math.sqrt(sum((value - mean.value) ** 2 for value, _, _ in plain) / 11 / 12)
    assert mean.standard_error == pytest.approx(spread, abs=1e-4)


# Choices of the harness's own tasks


CHOICES = [" the", " rest", " unscramble the letters", " word"]


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A multiple-choice task whose data is a file: 12 questions, and 3 examples in another split."""
    from lm_eval import tasks as harness_tasks

    for split, n in (("test", 12), ("train", 3)):
        rows = [{"q": f"{split} Q: {i} plus {i * i}", "choices": CHOICES, "gold": i % 4} for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        f"""task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl, train: {tmp_path}/train.jsonl}}, cache_dir: {tmp_path}/c}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    manager = harness_tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda: manager)
    return "own_choices"


def marks(path: Path, sets: dict[str, list[bool]]) -> Path:
    """A file as `triaxial prepare overlap` writes it."""
    rows = [
        {"set": name, "index": i, "id": "", "dirty": one, "grams": 5, "hits": int(one), "documents": int(one)}
        for name, dirty in sets.items()
        for i, one in enumerate(dirty)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_choices_by_every_rule_on_all_clean_and_dirty_items(
    own_task: str, model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    dirty = [i in (1, 5, 6, 10) for i in range(12)]
    file = marks(tmp_path / "examples.jsonl", {own_task: dirty, "another": [True]})
    asked = options(own_task, normalise=("tokens", "answer"), clean_subset=file)
    scores = {score.metric: score for score in few_shot_scores(model, tokenizer, open_tasks(asked), n_ctx=96)}
    assert list(scores) == ["acc", "acc_per_token", "acc_over_answer"]
    alone = [log_likelihood(model, tokenizer, "Answer:", choice)[0] for choice in CHOICES]
    right: dict[str, list[bool]] = {metric: [] for metric in scores}
    for i in range(12):
        plain = [log_likelihood(model, tokenizer, f"test Q: {i} plus {i * i}", choice) for choice in CHOICES]
        values = {
            "acc": [value for value, _, _ in plain],
            "acc_per_token": [value / n for value, _, n in plain],
            "acc_over_answer": [value - other for (value, _, _), other in zip(plain, alone, strict=True)],
        }
        for metric, found in values.items():
            right[metric].append(found.index(max(found)) == i % 4)
    assert len({tuple(values) for values in right.values()}) == 3, "the rules differ on these questions"
    for metric, score in scores.items():
        for part, chosen in (
            ("", right[metric]),
            ("clean_", [r for r, d in zip(right[metric], dirty, strict=True) if not d]),
            ("dirty_", [r for r, d in zip(right[metric], dirty, strict=True) if d]),
        ):
            p, n = sum(chosen) / len(chosen), len(chosen)
            assert getattr(score, f"{part}value") == pytest.approx(p)
            assert getattr(score, f"{part}standard_error") == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
            assert getattr(score, f"{part}items") == n


def test_the_harness_own_tasks_with_examples(own_task: str, model: GPT, tokenizer: Tokenizer) -> None:
    tasks = open_tasks(options(own_task, shots=(2,), same_examples=True))
    (score,) = few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    assert (score.shots, score.items) == (2, 12)
    contexts = [instance.args[0] for instance in tasks.loaded[0]["tasks"][own_task].instances]
    assert len({context.rpartition("\n\n")[0] for context in contexts}) == 1
    with pytest.raises(ConfigError, match="--num-fewshot 4 is invalid: own_choices has 3 examples"):
        open_tasks(options(own_task, shots=(4,)))
    with pytest.raises(ConfigError, match="paper is only valid for the gpt3 tasks"):
        open_tasks(options(own_task, shots=(), paper_shots=True))
    with pytest.raises(ConfigError, match="--normalise length is invalid: the rules are tokens and answer"):
        open_tasks(options(own_task, normalise=("length",)))


def test_tasks_asked_again_show_the_same_examples(own_task: str, model: GPT, tokenizer: Tokenizer) -> None:
    """As a model that trains is asked every so many tokens: its scores at two steps are of the same questions."""
    tasks = open_tasks(options(own_task, shots=(2,)))
    asked = []
    for _ in range(2):
        few_shot_scores(model, tokenizer, tasks, n_ctx=96)
        asked.append([instance.args for instance in tasks.loaded[0]["tasks"][own_task].instances])
    assert len({context.rpartition("\n\n")[0] for context, _ in asked[0]}) > 1, "each question draws its own"
    assert asked[0] == asked[1]


def test_answers_that_cannot_be_written_are_found_before_any_question(own_task: str, tokenizer: Tokenizer) -> None:
    """Not by a model that has trained for hours."""
    tasks = open_tasks(options(ADD, own_task))
    tasks.check_answers(n_ctx=96)
    with pytest.raises(ConfigError, match=f"--tasks {ADD}/0: a task asks for 8 new tokens, which leaves no room"):
        tasks.check_answers(n_ctx=8)
    task = tasks.loaded[0]["tasks"][own_task]
    task.OUTPUT_TYPE = "generate_until"
    task.set_config(key="generation_kwargs", value={"until": ["."]})
    with pytest.raises(ConfigError, match=f"--tasks {own_task}: a task asks for 256 new tokens"):
        tasks.check_answers(n_ctx=256)
    tasks.check_answers(n_ctx=257)
    task.set_config(key="generation_kwargs", value={"num_beams": 4})
    with pytest.raises(ConfigError, match=f"--tasks {own_task}: .* num_beams = 4"):
        tasks.check_answers(n_ctx=257)
    config = TrainConfig(total_tokens=100, few_shot_every_tokens=10, few_shot_tasks=(ADD,), few_shot_examples=(0,))
    with pytest.raises(ConfigError, match=f"train.few_shot_tasks {ADD}/0: a task asks for 8 new tokens"):
        make_few_shot_probe(config, tokenizer, n_ctx=8)


# Clean subsets


def test_clean_subset_of_published_problems(published: Path, model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = marks(tmp_path / "examples.jsonl", {ADD: [i % 3 == 0 for i in range(30)]})
    asked = options(ADD, LETTERS, limit=20, gpt3_data=published, clean_subset=file, answers="likelihood")
    tasks = open_tasks(asked)
    scores = few_shot_scores(model, tokenizer, tasks, n_ctx=96)
    by_name = {(score.task, score.metric): score for score in scores}
    split, other = by_name[ADD, "log_likelihood"], by_name[LETTERS, "log_likelihood"]
    plain = [log_likelihood(model, tokenizer, *i.args)[0] for i in tasks.generated[f"{ADD}/0"].instances]
    assert (split.clean_items, split.dirty_items) == (13, 7)
    assert split.dirty_value == pytest.approx(sum(plain[::3]) / 7, abs=1e-4)
    assert split.clean_value == pytest.approx((sum(plain) - sum(plain[::3])) / 13, abs=1e-4)
    assert (other.clean_items, other.clean_value) == (None, None)


def test_what_no_item_is_has_no_score(published: Path, model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = marks(tmp_path / "examples.jsonl", {ADD: [False] * 30})
    (score,) = few_shot_scores(
        model, tokenizer, open_tasks(options(ADD, limit=3, gpt3_data=published, clean_subset=file)), n_ctx=96
    )
    assert (score.clean_items, score.dirty_items, score.dirty_value) == (3, 0, None)
    assert score.clean_value == score.value


def ask(tasks: OpenTasks, model: GPT, tokenizer: Tokenizer) -> list[TaskScore]:
    return few_shot_scores(model, tokenizer, tasks, n_ctx=96)


def test_an_overlap_analysis_of_something_else_is_refused(
    published: Path, model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    short = marks(tmp_path / "short.jsonl", {ADD: [False] * 29})
    with pytest.raises(ConfigError, match="has 29 examples, but the task has 30 items"):
        ask(open_tasks(options(ADD, limit=3, gpt3_data=published, clean_subset=short)), model, tokenizer)
    with pytest.raises(ConfigError, match=r"Add --gpt3-data DIR"):
        open_tasks(options(ADD, clean_subset=short))
    other = marks(tmp_path / "other.jsonl", {"sum of digits": [False]})
    with pytest.raises(ConfigError, match="holds 'sum of digits', and none of these is asked"):
        open_tasks(options(ADD, gpt3_data=published, clean_subset=other))
    rows = short.read_text().splitlines()
    (tmp_path / "gap.jsonl").write_text("\n".join(rows[:3] + rows[4:]))
    with pytest.raises(ConfigError, match="is incomplete"):
        read_overlap(tmp_path / "gap.jsonl", [ADD])
    (tmp_path / "wrong.jsonl").write_text('{"set": "x", "index": "0", "dirty": true}\n')
    with pytest.raises(ConfigError, match=r"wrong.jsonl line 1 is no line of an examples.jsonl"):
        read_overlap(tmp_path / "wrong.jsonl", ["x"])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_overlap(tmp_path / "absent", ["x"])
