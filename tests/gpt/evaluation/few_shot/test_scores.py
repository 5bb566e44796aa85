"""Scores against a plain one-at-a-time reading of the model; GPT-3's tasks through the harness."""

import dataclasses
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.evaluation.batching.scoring import Request, score
from gpt.evaluation.few_shot.gpt3_problems import TaskRule, WordList, make_problems, task_rules, words_of_python
from gpt.evaluation.few_shot.scores import few_shot_scores
from gpt.evaluation.few_shot.tasks import FewShotOptions, choose_tasks, open_tasks
from gpt.evaluation.perplexity import count_targets, validation_loss
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

CONFIG = ModelConfig(vocab_size=400, n_ctx=48, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
RULES = {rule.name: rule for rule in task_rules()}
WORDS = WordList(tuple(f"{a}{b}{c}{d}e" for a in "bcd" for b in "aeiou" for c in "lmnr" for d in "st"), "made here")


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=8)
    return model.requires_grad_(False)


# Perplexity


def test_validation_loss_and_entropy_equal_their_definitions(model: GPT) -> None:
    batches = [np.random.default_rng(i).integers(0, 400, size=(3 - i, 21)) for i in range(3)]
    loss = validation_loss(model, iter(batches))
    rows = torch.from_numpy(np.concatenate(batches))
    log_probs = model(rows[:, :-1]).log_softmax(-1).gather(2, rows[:, 1:, None])
    assert loss.tokens == 6 * 20
    assert loss.nats_per_token == pytest.approx(-float(log_probs.mean()), rel=1e-5)
    assert loss.perplexity == pytest.approx(math.exp(loss.nats_per_token))
    counts = Counter(rows[:, 1:].flatten().tolist())
    entropy = -sum(n / 120 * math.log(n / 120) for n in counts.values())
    assert count_targets(iter(batches), 400).entropy_nats == pytest.approx(entropy)


def test_entropy_of_even_and_of_certain_tokens() -> None:
    assert count_targets([np.arange(65)[None]], 65).entropy_nats == pytest.approx(math.log(64))
    assert count_targets([np.full((2, 9), 3)], 65).entropy_nats == 0.0


# Scores of token sequences


def test_batched_scores_equal_one_at_a_time(model: GPT) -> None:
    rng = random.Random(1)
    requests = []
    for _ in range(25):
        n = rng.randint(2, 49)
        requests.append(Request([rng.randrange(400) for _ in range(n)], rng.randint(0, n - 1)))
    seen: list[int] = []
    results = score(model, requests, batch_tokens=130, progress=seen.append)
    assert sum(seen) == 25
    assert len(seen) > 3, "several batches"
    for request, result in zip(requests, results, strict=True):
        log_probs, greedy = plain_score(model, request.tokens, request.n_scored)
        assert result.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert result.greedy == greedy


def plain_score(model: GPT, tokens: list[int], n_scored: int) -> tuple[list[float], list[bool]]:
    if not n_scored:
        return [], []
    scores = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    places = range(len(tokens) - n_scored, len(tokens))
    log_probs = [float(scores[place - 1, tokens[place]]) for place in places]
    return log_probs, [int(scores[place - 1].argmax()) == tokens[place] for place in places]


# The adapter


class Asked:
    """What the harness hands over, as far as an adapter looks at it."""

    def __init__(self, *arguments: Any) -> None:
        self.args = arguments


@pytest.fixture
def adapter(model: GPT, tokenizer: Tokenizer) -> Any:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    from gpt.evaluation.few_shot.harness import TriaxialLM

    return TriaxialLM(model, tokenizer, n_ctx=48, batch_tokens=200)


LONG = "the letters into a word, " * 12


def test_loglikelihood_equals_reading_the_model_plainly(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    pairs = [("Q: What is", " 12 plus"), ("a ", "word"), ("", "Please"), (LONG, " end"), ("the rest", " "), ("x", "")]
    answers = adapter.loglikelihood([Asked(*pair) for pair in pairs])
    for (context, continuation), (log_prob, greedy) in zip(pairs, answers, strict=True):
        moved = context[len(context.rstrip()) :]  # the harness moves spaces at the end to the continuation
        whole = tokenizer.encode(context + continuation)
        head = tokenizer.encode(context.rstrip()) if context else [tokenizer.end_of_document_id]
        tail = whole[len(tokenizer.encode(context[: len(context) - len(moved)])) :]
        tokens = (head + tail)[-49:]
        log_probs, all_greedy = plain_score(model, tokens, len(tail))
        assert log_prob == pytest.approx(sum(log_probs), abs=1e-3)
        assert greedy == all(all_greedy)
    assert adapter.truncated == {LONG}


def test_a_greedy_continuation_is_called_greedy(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    (text,) = adapter.generate_until([Asked("Q: What", {"until": [], "max_gen_toks": 3})])
    ids = tokenizer.encode("Q: What")
    tail = tokenizer.encode("Q: What" + text)[len(ids) :]
    ((_, greedy),) = adapter.loglikelihood([Asked("Q: What", text)])
    assert greedy == all(plain_score(model, ids + tail, len(tail))[1])


def test_rolling_loglikelihood_predicts_every_token_once(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    """Windows as the harness cuts them: the first from the document's start, the last with a full context."""
    texts = ["short", LONG, "", "Q: What is 12 plus 34? " * 4]
    answers = adapter.loglikelihood_rolling([Asked(text) for text in texts])
    for text, answer in zip(texts, answers, strict=True):
        ids = [tokenizer.end_of_document_id, *tokenizer.encode(text)]
        expected, done = 0.0, 1
        while done < len(ids):
            stop = min(done + 48, len(ids))
            start = max(0, stop - 49)
            expected += sum(plain_score(model, ids[start:stop], stop - done)[0])
            done = stop
        assert answer == pytest.approx(expected, abs=1e-3)


def test_generate_until_cuts_at_the_first_stop_and_sorts_back(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    contexts = ["Q:", "Please unscramble the letters", LONG, "the rest", "a", "Q: What is 12 plus 34? A:"]
    free = adapter.generate_until([Asked(c, {"until": [], "max_gen_toks": 10}) for c in contexts])
    for context, text in zip(contexts, free, strict=True):
        tokens = tokenizer.encode(context)[-38:]
        new: list[int] = []
        while len(new) < 10 and tokenizer.end_of_document_id not in new:
            scores = model(torch.tensor([tokens + new]))[0, -1, : tokenizer.vocab_size]
            new.append(int(scores.argmax()))
        assert text == tokenizer.decode(new)
    assert adapter.truncated == {LONG}
    stop = next(text[1] for text in free if len(text) > 2)
    cut = adapter.generate_until([Asked(c, {"until": [stop], "max_gen_toks": 10}) for c in contexts])
    assert cut == [text.partition(stop)[0] for text in free]
    assert cut != free


def test_requests_with_different_settings_come_back_in_order(adapter: Any) -> None:
    settings = [{"until": [], "max_gen_toks": n} for n in (2, 9)]
    requests = [Asked(f"Q: {'the ' * i}", settings[i % 2]) for i in range(7)]
    assert adapter.generate_until(requests) == [adapter.generate_until([request])[0] for request in requests]


def test_sampled_answers_to_one_question_differ(adapter: Any) -> None:
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0}
    answers = adapter.generate_until([Asked("Q:", settings)] * 4)
    assert len(set(answers)) > 1


def test_requests_that_cannot_fit_are_refused(adapter: Any) -> None:
    with pytest.raises(ConfigError, match=r"asks for 48 new tokens.*n_ctx = 48"):
        adapter.generate_until([Asked("Q:", {"until": ["\n"], "max_gen_toks": 48})])
    with pytest.raises(ConfigError, match=r"continuation of \d+ tokens"):
        adapter.loglikelihood([Asked("Q:", LONG)])


def test_equals_the_harness_own_backend(tmp_path: Path) -> None:
    """Against lm_eval's `hf` backend on the exported model. It needs `accelerate`, which nothing else here does; the
    tests above compare the same answers with the model itself."""
    pytest.importorskip("accelerate", reason="lm_eval's own backend needs it")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    transformers = pytest.importorskip("transformers")
    from gpt.convert.hugging_face.export import export
    from gpt.evaluation.few_shot.harness import TriaxialLM

    source = tmp_path / "tokenizer.model"
    text = "Q: What is 12 plus 34? A: 46. Please unscramble the letters into a word, and write that word: the rest\n"
    train_sentencepiece(iter([text]), source, vocab_size=310)
    tokenizer = load_tokenizer(source)
    config = dataclasses.replace(CONFIG, vocab_size=310)
    whole = tokenizer.encode(text)
    model = memorise([whole[i : i + 49] for i in range(0, len(whole) - 49, 3)], config)  # so that it answers in text
    export(model.named_parameters(), config, tmp_path / "hf", tokenizer=tokenizer, tokenizer_file=source)
    theirs = huggingface.HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"),
        batch_size=4,
        device="cpu",
    )
    ours = TriaxialLM(model, tokenizer, n_ctx=48)
    pairs = [Asked(*p) for p in [("Q: What is", " 12 plus"), ("a ", "word"), ("", "Please"), (LONG, " end")]]
    for a, b in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-3)
        assert a[1] == b[1]
    texts = [Asked(t) for t in ("short", LONG)]
    theirs_rolling = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs_rolling, abs=1e-3)
    settings = {"until": ["\n", "+"], "max_gen_toks": 10, "do_sample": False}
    questions = [Asked(c, settings) for c in ("Q:", "Please unscramble the letters", LONG, "the rest")]
    answers = ours.generate_until(questions)
    assert answers == theirs.generate_until(questions, disable_tqdm=True)
    assert all(answers)


# The tasks


def choose(*names: str) -> list[TaskRule]:
    return choose_tasks(names)[0]


def test_names_of_tasks_and_groups() -> None:
    assert [len(choose(name)) for name in ("gpt3", "gpt3_arithmetic", "gpt3_words", "gpt3_reversed_words")] == [
        15,
        10,
        5,
        1,
    ]
    assert len(choose("gpt3_words", "gpt3", "gpt3_reversed_words")) == 15
    assert choose_tasks(["gpt3_words", "hellaswag"])[1] == ["hellaswag"]


def options(
    *tasks: str, shots: tuple[int, ...] = (0,), limit: int | None = None, words: WordList = WORDS
) -> FewShotOptions:
    return FewShotOptions(tasks=tasks, shots=shots, limit=limit, words=words)


def test_prompts_of_a_task() -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    tasks = open_tasks(options("gpt3_two_digit_addition", "gpt3_reversed_words", shots=(0, 2))).generated
    for task in tasks.values():
        task.build_all_requests(limit=3)
        assert len(task.instances) == 3
    prompts = {key: [instance.args[0] for instance in task.instances] for key, task in tasks.items()}
    assert all(re.fullmatch(r"Q: What is \d+ plus \d+\?\nA:", p) for p in prompts["gpt3_two_digit_addition/0"])
    shown = r"Q: What is \d+ plus \d+\?\nA: \d+\n\n"
    assert all(re.fullmatch(rf"({shown}){{2}}Q: .*\?\nA:", p) for p in prompts["gpt3_two_digit_addition/2"])
    instruction = "Please unscramble the letters into a word, and write that word:\n"
    assert all(re.fullmatch(rf"{instruction}[a-z]+ =", p) for p in prompts["gpt3_reversed_words/0"])
    assert all(
        re.fullmatch(rf"{instruction}([a-z]+ = [a-z]+\n){{2}}[a-z]+ =", p) for p in prompts["gpt3_reversed_words/2"]
    )
    assert len(set(prompts["gpt3_reversed_words/2"])) == 3, "each question has examples of its own"
    again = open_tasks(options("gpt3_reversed_words", shots=(2,))).generated["gpt3_reversed_words/2"]
    again.build_all_requests(limit=2)
    assert [i.args[0] for i in again.instances] == prompts["gpt3_reversed_words/2"][:2], "whatever else is evaluated"


def memorise(texts: list[list[int]], config: ModelConfig = CONFIG) -> GPT:
    """A small model trained until it knows these texts by heart."""
    model = GPT(config)
    initialise(model, config, seed=0)
    width = max(map(len, texts))
    tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


def test_right_answers_count_and_standard_errors_are_theirs(tokenizer: Tokenizer) -> None:
    """A third of the answers are known by heart: the score must be that third and whatever else is right by chance,
    its error sqrt(p (1 - p) / (n - 1))."""
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    problems = make_problems(RULES["gpt3_three_digit_addition"], seed=0, words=WORDS).scored[:30]
    model = memorise([tokenizer.encode(f"{p.question} {p.answer}\n") for p in problems[::3]])
    right = []
    for problem in problems:
        text = tokenizer.encode(problem.question)
        for _ in range(8):
            text.append(int(model(torch.tensor([text]))[0, -1, : tokenizer.vocab_size].argmax()))
        right.append(tokenizer.decode(text).removeprefix(problem.question).partition("\n")[0] == f" {problem.answer}")
    assert all(right[::3])
    assert not all(right)
    tasks = open_tasks(options("gpt3_three_digit_addition", limit=30))
    (result,) = few_shot_scores(model, tokenizer, tasks, n_ctx=48)
    p = sum(right) / 30
    assert result.value == pytest.approx(p)
    assert result.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 29))
    assert (result.task, result.label, result.shots, result.items) == ("gpt3_three_digit_addition", "3D+", 0, 30)


def test_whole_suite_through_the_harness(model: GPT, tokenizer: Tokenizer) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    words = words_of_python()
    told: list[tuple[int, int]] = []
    scores = few_shot_scores(
        model,
        tokenizer,
        open_tasks(options("gpt3", shots=(0, 3), limit=4, words=words)),
        n_ctx=48,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [(s.label, s.shots) for s in scores] == [(rule.label, k) for rule in task_rules() for k in (0, 3)]
    assert {s.items for s in scores} == {4}
    assert {s.value for s in scores} == {0.0}, "a random model adds nothing up"
    assert told[-1] == (120, 120)
    cut = {s.label: s.truncated for s in scores if s.shots == 3}
    assert cut["5D+"] == 4, "three examples do not fit into 48 tokens"
    assert all(s.truncated == 0 for s in scores if s.shots == 0 and s.label == "2D+")


def test_the_harness_own_task_runs_offline(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the harness whose data is a file here, as a user's own would be: choices by log-likelihood."""
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    from lm_eval import tasks as harness_tasks

    (tmp_path / "data.jsonl").write_text(
        "".join(
            json.dumps({"q": f"Q: {i}", "choices": [" the", " rest", " word"], "gold": i % 3}) + "\n" for i in range(9)
        )
    )
    (tmp_path / "own.yaml").write_text(
        f"""task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}, cache_dir: {tmp_path}/cache}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    manager = harness_tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda: manager)
    (result,) = few_shot_scores(model, tokenizer, open_tasks(options("own_choices")), n_ctx=48)
    right = 0
    for i in range(9):
        totals = []
        for choice in (" the", " rest", " word"):
            ids = tokenizer.encode(f"Q: {i}")
            tail = tokenizer.encode(f"Q: {i}{choice}")[len(ids) :]
            totals.append(sum(plain_score(model, ids + tail, len(tail))[0]))
        right += totals.index(max(totals)) == i % 3
    assert (result.task, result.metric, result.items) == ("own_choices", "acc", 9)
    assert result.value == pytest.approx(right / 9)
    with pytest.raises(ConfigError, match=r"unknown task 'own_choicess'; did you mean 'own_choices'"):
        open_tasks(options("own_choicess"))
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(ConfigError, match="own_choices could not be loaded"):
        open_tasks(options("own_choices"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: options("gpt3", shots=(-1,)), "--num-fewshot -1"),
        (lambda: options("gpt3", shots=()), "--num-fewshot"),
        (lambda: options("gpt3", limit=0), "--limit 0"),
        (
            lambda: open_tasks(options("gpt3_reversed_words", shots=(13,))),
            "--num-fewshot 13 is invalid: .* has 12 problems for examples",
        ),
    ],
)
def test_impossible_options_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
