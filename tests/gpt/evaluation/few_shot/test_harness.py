"""The adapter's answers to lm-evaluation-harness, against plain forward passes and against its `hf` backend."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

pytest.importorskip("lm_eval", reason="needs the extra 'eval'")

from gpt.evaluation.few_shot.harness import TriaxialLM

CONFIG = ModelConfig(vocab_size=400, n_ctx=48, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
LONG = "the letters into a word, " * 12


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=8)
    return model.requires_grad_(False)


class HarnessRequest:
    """The part of the harness's Instance that an adapter reads."""

    def __init__(self, *arguments: Any) -> None:
        self.args = arguments


@pytest.fixture
def adapter(model: GPT, tokenizer: Tokenizer) -> Any:
    return TriaxialLM(model, tokenizer, n_ctx=48, batch_tokens=200)


def plain_score(model: GPT, tokens: list[int], n_scored: int) -> tuple[list[float], list[bool]]:
    """Score the last tokens by one plain forward pass."""
    if not n_scored:
        return [], []
    scores = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    positions = range(len(tokens) - n_scored, len(tokens))
    log_probs = [float(scores[position - 1, tokens[position]]) for position in positions]
    return log_probs, [int(scores[position - 1].argmax()) == tokens[position] for position in positions]


def test_log_likelihoods_equal_those_of_plain_forward_passes(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    pairs = [
        ("Q: What is", " 12 plus"),
        ("a ", "word"),
        ("", "Please"),
        (LONG, " end"),
        ("the rest", " "),
        ("x", ""),
        ("  ", "word"),  # white space alone, which the harness moves to the continuation
        (" ", ""),
    ]
    answers = adapter.loglikelihood([HarnessRequest(*pair) for pair in pairs])
    for (context, continuation), (log_prob, greedy) in zip(pairs, answers, strict=True):
        trailing = context[len(context.rstrip()) :]  # the harness moves trailing spaces to the continuation
        whole = tokenizer.encode(context + continuation)
        head = tokenizer.encode(context.rstrip()) or [tokenizer.end_of_document_id]
        tail = whole[len(tokenizer.encode(context[: len(context) - len(trailing)])) :]
        tokens = (head + tail)[-49:]
        log_probs, all_greedy = plain_score(model, tokens, len(tail))
        assert log_prob == pytest.approx(sum(log_probs), abs=1e-3)
        assert greedy == all(all_greedy)
    assert adapter.truncated == {LONG}


def test_a_greedy_continuation_is_reported_as_greedy(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    (text,) = adapter.generate_until([HarnessRequest("Q: What", {"until": [], "max_gen_toks": 3})])
    ids = tokenizer.encode("Q: What")
    tail = tokenizer.encode("Q: What" + text)[len(ids) :]
    ((_, greedy),) = adapter.loglikelihood([HarnessRequest("Q: What", text)])
    assert greedy == all(plain_score(model, ids + tail, len(tail))[1])


def test_rolling_log_likelihood_scores_every_token_once(adapter: Any, model: GPT, tokenizer: Tokenizer) -> None:
    """The windows are those of the harness: the first begins at the start, the last has a full context."""
    texts = ["short", LONG, "", "Q: What is 12 plus 34? " * 4]
    answers = adapter.loglikelihood_rolling([HarnessRequest(text) for text in texts])
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
    free = adapter.generate_until([HarnessRequest(c, {"until": [], "max_gen_toks": 10}) for c in contexts])
    for context, text in zip(contexts, free, strict=True):
        tokens = tokenizer.encode(context)[-38:]
        new: list[int] = []
        while len(new) < 10 and tokenizer.end_of_document_id not in new:
            scores = model(torch.tensor([tokens + new]))[0, -1, : tokenizer.vocab_size]
            new.append(int(scores.argmax()))
        assert text == tokenizer.decode(new)
    assert adapter.truncated == {LONG}
    stop = next(text[1] for text in free if len(text) > 2)
    cut = adapter.generate_until([HarnessRequest(c, {"until": [stop], "max_gen_toks": 10}) for c in contexts])
    assert cut == [text.partition(stop)[0] for text in free]
    assert cut != free


def test_answers_keep_the_order_of_requests_with_different_settings(adapter: Any) -> None:
    settings = [{"until": [], "max_gen_toks": n} for n in (2, 9)]
    requests = [HarnessRequest(f"Q: {'the ' * i}", settings[i % 2]) for i in range(7)]
    assert adapter.generate_until(requests) == [adapter.generate_until([request])[0] for request in requests]


def test_sampled_answers_to_one_question_differ(adapter: Any) -> None:
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0}
    answers = adapter.generate_until([HarnessRequest("Q:", settings)] * 4)
    assert len(set(answers)) > 1


def test_requests_that_exceed_the_context_are_refused(adapter: Any) -> None:
    with pytest.raises(ConfigError, match=r"asks for 48 new tokens.*n_ctx = 48"):
        adapter.generate_until([HarnessRequest("Q:", {"until": ["\n"], "max_gen_toks": 48})])
    with pytest.raises(ConfigError, match=r"continuation of \d+ tokens"):
        adapter.loglikelihood([HarnessRequest("Q:", LONG)])


def memorise(texts: list[list[int]], config: ModelConfig) -> GPT:
    """Train a small model until it reproduces these texts."""
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


def test_answers_equal_those_of_the_hf_backend(tmp_path: Path) -> None:
    """The exported model runs in lm_eval's `hf` backend, which needs `accelerate`. The tests above compare the same
    answers with plain forward passes."""
    pytest.importorskip("accelerate", reason="lm_eval's own backend needs it")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    transformers = pytest.importorskip("transformers")
    from gpt.convert.hugging_face.export import export

    source = tmp_path / "tokenizer.model"
    text = "Q: What is 12 plus 34? A: 46. Please unscramble the letters into a word, and write that word: the rest\n"
    train_sentencepiece(iter([text]), source, vocab_size=310)
    tokenizer = load_tokenizer(source)
    config = dataclasses.replace(CONFIG, vocab_size=310)
    whole = tokenizer.encode(text)
    model = memorise([whole[i : i + 49] for i in range(0, len(whole) - 49, 3)], config)  # so that its answers are text
    export(model.named_parameters(), config, tmp_path / "hf", tokenizer=tokenizer, tokenizer_file=source)
    peer = huggingface.HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"),
        batch_size=4,
        device="cpu",
    )
    ours = TriaxialLM(model, tokenizer, n_ctx=48)
    pairs = [HarnessRequest(*p) for p in [("Q: What is", " 12 plus"), ("a ", "word"), ("", "Please"), (LONG, " end")]]
    for a, b in zip(ours.loglikelihood(pairs), peer.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-3)
        assert a[1] == b[1]
    texts = [HarnessRequest(t) for t in ("short", LONG)]
    expected_rolling = peer.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected_rolling, abs=1e-3)
    settings = {"until": ["\n", "+"], "max_gen_toks": 10, "do_sample": False}
    questions = [HarnessRequest(c, settings) for c in ("Q:", "Please unscramble the letters", LONG, "the rest")]
    answers = ours.generate_until(questions)
    assert answers == peer.generate_until(questions, disable_tqdm=True)
    assert all(answers)
