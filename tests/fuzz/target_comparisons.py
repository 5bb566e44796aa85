"""Files of `triaxial compare` and `triaxial answer`: generated answers, votes, and the questions of MT-bench."""

import json
from argparse import Namespace
from pathlib import Path

from fuzzing import Target

from launch.commands.judging.compare import write as write_page
from launch.comparison.answers import ComparedSettings, answers_of
from launch.comparison.prompts import read_texts_to_continue
from launch.comparison.questions import answered_prompts, make_questions, prompt_record
from launch.comparison.vote_report import report
from launch.comparison.votes import ANSWERS, read_key, read_votes
from launch.comparison.win_rates import summarise
from launch.evaluation.judge_questions import answer_line, read_questions
from launch.generation.prompt_file import write_lines
from launch.runs.saved_run import open_run

PROMPTS = ["Which colour has the sky?", "Name a fruit.", "Count to three ü."]
TEXTS = {"sft": ["Blue.", "An apple.", "1 2 3"], "ppo": ["It is blue.", "A pear", "one two three"]}


def write_votes(folder: Path) -> None:
    """The key of a comparison, and two labellers' votes."""
    asked = answered_prompts(PROMPTS, TEXTS, seed=0)
    (folder / ANSWERS).write_text("".join(json.dumps(prompt_record(one)) + "\n" for one in asked))
    for name in ("Anna", "Ben"):
        lines = []
        for number, question in enumerate(make_questions(asked, seed=0)[0]):
            sides = (question.left, 1), (question.right, 1 + number % 2)
            completions = [{"text": side.text, "rank": rank, "id": side.answer_id} for side, rank in sides]
            lines.append({"prompt": question.prompt.prompt, "completions": completions, "labeller": name})
        (folder / f"votes-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def count_votes(folder: Path) -> None:
    """As `triaxial compare DIR --votes FILE --json FILE` prints and writes them."""
    votes, n_replaced = read_votes(sorted(folder.glob("votes-*")), read_key(folder))
    figures: list[object] = []
    report(summarise(votes), n_replaced, figures.append)
    json.dumps(figures).encode()


def write_answers(folder: Path) -> None:
    """The answers of two models to three prompts, as `triaxial generate --output` writes them."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    for name, texts in TEXTS.items():
        lines = [{"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, texts, strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare_answers(folder: Path) -> None:
    """As `triaxial compare a.jsonl b.jsonl` reads them and writes its page."""
    prompts = read_texts_to_continue(folder / "prompts.jsonl")
    settings: ComparedSettings = None  # type: ignore[assignment]  # of models that answer here
    for name in TEXTS:
        if not (folder / f"{name}.jsonl").is_file():
            open_run(folder / f"{name}.jsonl")  # raises
    answers = {name: answers_of(folder / f"{name}.jsonl", prompts, settings) for name in TEXTS}
    output = folder.parent / "compared"
    write_page(Namespace(seed=0, output=output), answered_prompts([p.shown for p in prompts], answers, seed=0))
    assert len(read_key(output)) == len(TEXTS) * len(prompts)


def write_questions(folder: Path) -> None:
    """Questions of two turns."""
    lines = [{"question_id": 81 + n, "category": "math", "turns": [prompt, "Why?"]} for n, prompt in enumerate(PROMPTS)]
    (folder / "question.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ask(folder: Path) -> None:
    """As `triaxial answer` reads them, and writes the answers of a model."""
    questions = read_questions(folder / "question.jsonl")
    lines = [answer_line(question, ["a", "b"], model_id="m") for question in questions]
    write_lines(folder.parent / "answers.jsonl", lines)
    for line in (folder.parent / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: 1 / 0)  # NaN is no JSON


TARGETS = (
    Target("comparison_votes", write_votes, count_votes, cases=100),
    Target("generated_answers", write_answers, compare_answers, cases=80),
    Target("judge_questions", write_questions, ask, cases=60),
)
