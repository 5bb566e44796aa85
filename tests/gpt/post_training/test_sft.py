"""The batches of supervised fine-tuning: which targets count, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt.data.config import CorpusConfig
from gpt.data.sampling import CorpusFiles, Samples
from gpt.data.sampling_rules import PackedDocuments
from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE, PADDING
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.heads import head_outputs
from gpt.model.initialisation import initialise
from gpt.post_training.config import SFTConfig
from gpt.post_training.sft import SFT
from gpt.token_files.files import TokenFileWriter
from gpt.training.objective import NextToken

SEQ_LEN, VOCAB = 23, 64
MODEL = ModelConfig(vocab_size=VOCAB, n_ctx=SEQ_LEN, n_layers=2, d_model=16, n_heads=4, positions="rope")


def conversations(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three conversations that fill one sample: tokens, and which of them are learned."""
    draw = np.random.default_rng(seed)
    return [(draw.integers(0, VOCAB, n), (draw.random(n) < 0.6).astype(np.int64)) for n in (9, 2, 13)]


def packed(parts: list[tuple[np.ndarray, np.ndarray]]) -> Samples:
    """One sample that holds these conversations, padded to SEQ_LEN + 1 tokens."""
    lengths = [len(tokens) for tokens, _ in parts]
    rest = SEQ_LEN + 1 - sum(lengths)
    ids = np.repeat(np.arange(len(parts)), lengths)
    return Samples(
        np.pad(np.concatenate([tokens for tokens, _ in parts]), (0, rest))[None],
        np.pad(ids, (0, rest), constant_values=PADDING)[None],
        {"learned": np.pad(np.concatenate([learned for _, learned in parts]), (0, rest))[None]},
        {"learned": np.array([sum(lengths)])},
    )


def gradients(batches: list[Batch], dtype: torch.dtype) -> tuple[float, int, dict[str, torch.Tensor]]:
    """The summed loss of batches, its count, and the gradient of the sum."""
    model = GPT(MODEL)
    initialise(model, MODEL, seed=1)
    model.to(dtype)
    objective, total, count = SFT(), 0.0, 0
    for batch in batches:
        hidden = model.hidden_states(batch.inputs, positions=batch.positions, mask=objective.attention_mask(batch))
        found = objective.loss(compile=False)(head_outputs(model.head, hidden), batch)
        found.sum.backward()
        total, count = total + found.sum.item(), count + int(found.count)
    return total, count, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_packed_conversations_learn_as_each_alone(dtype: torch.dtype, tolerance: float) -> None:
    """Loss, count and every gradient; tolerance relative to the largest entry of each gradient."""
    parts = conversations()
    together = gradients([SFT().batch(packed(parts))], dtype)
    alone = gradients([SFT().batch(packed([part])) for part in parts], dtype)
    assert together[1] == alone[1] == sum(int(learned[1:].sum()) for _, learned in parts)
    assert together[0] == pytest.approx(alone[0], rel=tolerance)
    for name, gradient in alone[2].items():
        scale = gradient.abs().max().item()
        assert (together[2][name] - gradient).abs().max().item() <= tolerance * scale, name


def test_a_target_counts_where_it_is_learned() -> None:
    """The mark belongs to the token itself, not to the position that predicts it."""
    parts = conversations()
    batch = SFT().batch(packed(parts))
    expected = []
    for tokens, learned in parts:
        expected += [*np.where(learned[1:], tokens[1:], IGNORE), IGNORE]
    assert batch.targets[0].tolist() == expected[:-1]
    assert batch.positions is not None
    assert batch.positions[0].tolist() == [*range(9), *range(2), *range(12)]


def test_rows_without_the_stream_are_learned_everywhere() -> None:
    """Pre-training text in a batch, or a whole validation corpus of it."""
    samples = packed(conversations())
    both = Samples(
        np.concatenate([samples.tokens] * 2),
        np.concatenate([samples.segment_ids, np.zeros_like(samples.tokens)]),  # type: ignore[list-item]
        {"learned": np.concatenate([samples.streams["learned"], np.zeros_like(samples.tokens)])},
        {"learned": np.array([SEQ_LEN + 1, 0])},
    )
    batch, plain = SFT().batch(both), NextToken().batch(both)
    assert batch.targets[0].tolist() == SFT().batch(samples).targets[0].tolist()
    assert batch.targets[1].tolist() == plain.targets[1].tolist() == samples.tokens[0, 1:].tolist()
    without = Samples(samples.tokens, samples.segment_ids)
    assert torch.equal(SFT().batch(without).targets, NextToken().batch(without).targets)


def test_the_section_builds_the_objective() -> None:
    assert SFTConfig().build(z_loss=1e-4) == SFT(1e-4)


def test_a_corpus_without_the_stream_is_named(tmp_path: Path) -> None:
    for name in ("text", "learned"):
        with TokenFileWriter(tmp_path / name, vocab_size=VOCAB) as file:
            file.add_document([1] * 8)
    text = str(tmp_path / "text")
    for corpus, expected in (
        (CorpusConfig(text), ["corpus 'text' has no stream 'learned': all of its tokens are learned"]),
        (CorpusConfig(text, streams={"learned": str(tmp_path / "learned")}), []),
    ):
        assert SFT().check_corpus(CorpusFiles(corpus, PackedDocuments(SEQ_LEN)), MODEL) == expected


def test_a_stream_of_another_length_is_refused() -> None:
    samples = packed(conversations()[:1])
    short = dataclasses.replace(samples, stream_lengths={"learned": np.array([4])})
    with pytest.raises(ConfigError, match="stream 'learned' has 4 tokens for a document of 9; write both"):
        SFT().batch(short)
