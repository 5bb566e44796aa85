"""Our adapter for lm-evaluation-harness gives the answers of its `hf` backend on the same model.

The peer needs `accelerate`. The model is a small Llama of random weights; the rehearsed test uses SmolLM2, which a tool
in ../shared writes.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.evaluation.few_shot.gpt3_problems import words_of_python
from gpt.evaluation.few_shot.tasks import FewShotOptions, open_tasks
from gpt.tokenizer.special_tokens import special_tokens_of
from launch.main import main
from launch.runs.saved_run import load_run

pytest.importorskip("accelerate", reason="lm_eval's own backend needs it: pip install accelerate")
transformers = pytest.importorskip("transformers", reason="needs the extra 'eval'")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'eval'")
huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs the extra 'eval'")


class HarnessRequest:
    """The parts of the harness's Instance that a backend reads."""

    def __init__(self, *arguments: Any) -> None:
        self.args = arguments
        self.arguments = arguments
        self.task_name = None


def random_llama(folder: Path, *, adds_begin: bool) -> Path:
    """Save a Llama with grouped queries and a byte-level BPE with bos and eos. `adds_begin`: bos before every text."""
    text = tokenizers.Tokenizer(tokenizers.models.BPE())
    text.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|begin|>", "<|end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    text.train_from_iterator(
        ["Q: What is 12 plus 34? A: 46. Please unscramble the letters into a word: the rest"], trainer
    )
    if adds_begin:
        text.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
        )
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=text.get_vocab_size(),  # only the peer would write tokens that no text encodes to
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=text, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    return folder


def our_and_peer_backend(folder: Path, run: Path, *, batch_size: int, **settings: Any) -> tuple[Any, Any]:
    from gpt.evaluation.few_shot.harness import TriaxialLM

    assert main(["convert", str(folder), "--to", "triaxial", "--output", str(run)]) == 0
    loaded = load_run(run)
    saved = loaded.saved
    special = special_tokens_of(run / "hugging_face", saved.tokenizer_file, saved.tokenizer)
    n_ctx = saved.model_config.n_ctx
    ours = TriaxialLM(loaded.model, saved.tokenizer, n_ctx=n_ctx, special=special, **settings)
    peer = huggingface.HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch_size)
    return ours, peer


LONG = "the letters into a word, 12 plus 34 " * 20


@pytest.mark.parametrize("adds_begin", [False, True])
def test_all_kinds_of_requests_get_the_answers_of_the_hf_backend(tmp_path: Path, adds_begin: bool) -> None:
    """With common prefixes read once, and with every request read whole. Log-likelihoods differ by about 1e-5 nats."""
    folder = random_llama(tmp_path / "hf", adds_begin=adds_begin)
    ours, peer = our_and_peer_backend(folder, tmp_path / "run", batch_size=5, batch_tokens=600)
    rng = random.Random(2)
    shots = "Q: What is 12 plus 34?\nA: 46\n\nQ: What is 1 plus 2?\nA: 3\n\n"
    questions = [f"{shots}Q: What is {rng.randrange(99)} plus {rng.randrange(99)}?\nA:" for _ in range(25)]
    pairs = [(question, f" {choice}") for question in questions for choice in (4, 46, "the", "unscramble the rest")]
    pairs += [
        ("", "Please"),
        ("", "the rest of it"),
        ("ends in spaces  ", "word"),
        (LONG, " end"),
        ("a", "b"),
        ("a", "b"),
    ]
    asked = [HarnessRequest(*pair) for pair in pairs]
    texts = [HarnessRequest(text) for text in ("short", LONG, "Q: What is 12 plus 34?\nA: 46", "")]
    free = [HarnessRequest(text, {"until": [], "max_gen_toks": 12}) for text in (*questions, LONG, "a word")]
    likely = peer.loglikelihood(asked, disable_tqdm=True)
    rolling = peer.loglikelihood_rolling(texts, disable_tqdm=True)
    written = peer.generate_until(free, disable_tqdm=True)
    letters = sorted({letter for text in written for letter in text if letter.isascii() and letter.isalpha()})
    stops = letters[::3]  # the peer treats a stop string of broken characters differently
    until = [HarnessRequest(one.args[0], {"until": stops, "max_gen_toks": 12, "do_sample": False}) for one in free]
    cut = peer.generate_until(until, disable_tqdm=True)
    assert cut != written
    for sharing in (True, False):
        ours.sharing = sharing
        for pair, a, b in zip(pairs, ours.loglikelihood(asked), likely, strict=True):
            assert a[0] == pytest.approx(b[0], abs=1e-3), pair
            assert a[1] == b[1], pair
        assert ours.loglikelihood_rolling(texts) == pytest.approx(rolling, abs=1e-3)
        assert ours.generate_until(free) == written
        assert ours.generate_until(until) == cut


@pytest.mark.rehearse
@pytest.mark.timeout(3600)
def test_smollm2_on_two_hundred_questions(smollm2: Path, tmp_path: Path) -> None:
    """Two-digit addition and cycled letters, with 0 and 10 examples, own and shared.

    Every log-likelihood and greedy flag is equal, and so the accuracy; so are some written answers. Prints the largest
    difference.
    """
    ours, peer = our_and_peer_backend(smollm2, tmp_path / "run", batch_size=8)
    largest = 0.0
    names = ("gpt3_two_digit_addition", "gpt3_cycle_letters_in_word")
    for same, shots, limit in ((True, (0, 10), 200), (False, (10,), 30)):
        options = FewShotOptions(names, shots, limit, words_of_python(), same_examples=same, answers="likelihood")
        for key, task in open_tasks(options).generated.items():
            task.build_all_requests(limit=limit)
            a, b = ours.loglikelihood(task.instances), peer.loglikelihood(task.instances, disable_tqdm=True)
            difference = max(abs(x[0] - y[0]) for x, y in zip(a, b, strict=True))
            print(f"{key}, {len(a)} items, the same examples {same}: largest difference {difference:.2e} nats")
            assert [x[1] for x in a] == [y[1] for y in b]
            largest = max(largest, difference)
        for key, task in open_tasks(
            FewShotOptions(names, shots, 20, words_of_python(), same_examples=same)
        ).generated.items():
            task.build_all_requests(limit=20)
            assert ours.generate_until(task.instances) == peer.generate_until(task.instances, disable_tqdm=True), key
    assert largest < 1e-3
