"""Rules that cut a file into samples; packing against a loop, on single files and sets of shards."""

from pathlib import Path

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.sampling_rules import Documents, PackedDocuments, Windows, next_fit, sampling_of
from gpt.token_files.checksums import DamagedTokens
from gpt.token_files.files import TokenFile, TokenFileWriter

SEQ_LEN = 15


def write(prefix: Path, lengths: list[int]) -> str:
    with TokenFileWriter(prefix, vocab_size=1000) as file:
        file.add_documents(np.arange(sum(lengths)) % 997, np.array(lengths, dtype=np.int32))
    return str(prefix)


def one_by_one(lengths: list[int], room: int) -> list[tuple[int, int]]:
    """The spans of the samples, by a loop over documents with tokens."""
    spans: list[tuple[int, int]] = []
    open_span, start = False, 0
    for length in lengths:
        if length and open_span and start + length - spans[-1][0] <= room:
            spans[-1] = (spans[-1][0], start + length)
        elif length:
            spans.append((start, start + min(length, room + 1)))
            open_span = length <= room
        start += length
    return spans


def random_lengths(seed: int, n: int) -> list[int]:
    draw = np.random.default_rng(seed)
    return np.where(draw.random(n) < 0.2, 0, draw.geometric(0.15, n)).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_packing_is_next_fit(seed: int, tmp_path: Path) -> None:
    lengths = random_lengths(seed, 5 + 20 * seed)
    file = TokenFile(Path(write(tmp_path / "tokens", lengths)))
    rule = PackedDocuments(SEQ_LEN).of(file)
    expected = one_by_one(lengths, SEQ_LEN)
    assert [rule.span(file, sample) for sample in range(rule.count(file))] == expected
    assert rule.n_cut == sum(length > SEQ_LEN + 1 for length in lengths)
    assert sum(stop - start for start, stop in expected) == sum(min(length, SEQ_LEN + 1) for length in lengths)


def test_blocks_of_documents_are_packed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = np.concatenate(([0], np.cumsum(random_lengths(1, 500))))
    whole = next_fit(starts, 16)
    monkeypatch.setattr("gpt.data.sampling_rules._CHUNK", 7)
    assert next_fit(starts, 16).tolist() == whole.tolist()


def test_a_set_of_shards_is_packed_as_one_file(tmp_path: Path) -> None:
    lengths = random_lengths(3, 300)
    one = TokenFile(Path(write(tmp_path / "one", lengths)))
    for number, part in enumerate((lengths[:100], [], lengths[100:])):
        write(tmp_path / f"set-{number:05d}-of-00003", part)
    shards = TokenFile(tmp_path / "set")
    assert shards.document_starts().tolist() == one.document_starts().tolist()
    assert one.document_starts().tolist() == [one.document_start(i) for i in range(one.n_documents + 1)]
    rules = [PackedDocuments(SEQ_LEN).of(file) for file in (one, shards)]
    assert rules[0].count(one) == rules[1].count(shards)
    assert [rules[0].span(one, i) for i in range(50)] == [rules[1].span(shards, i) for i in range(50)]


def test_a_damaged_index_is_found_when_it_is_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", [3] * 2000)
    index = Path(f"{path}.idx")
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    with pytest.raises(DamagedTokens, match=r"tokens\.idx"):
        PackedDocuments(SEQ_LEN).of(TokenFile(Path(path)))
    Path(f"{path}.sums").unlink()
    with pytest.raises(DamagedTokens, match=r"tokens\.idx: document 1,498 does not begin in the file"):
        PackedDocuments(SEQ_LEN).of(TokenFile(Path(path)))


def test_an_epoch_reads_each_sample_once_and_the_ledger_names_its_documents(tmp_path: Path) -> None:
    lengths = random_lengths(5, 200)
    corpus = CorpusConfig(write(tmp_path / "tokens", lengths))
    data = TrainingData(
        DataConfig(tokenizer="none", train=(corpus,), seq_len=SEQ_LEN, sampling="packed"), seed=1, vocab_size=1000
    )
    n = data.n_samples[0]
    spans = []
    for position in range(n):
        found = data.locate(position)
        spans.append((found.first_token, found.first_token + sum(part.n_tokens for part in found.documents)))
        assert all(part.offset_tokens == 0 for part in found.documents), "samples begin with a document"
        for part in found.documents:
            assert part.n_tokens == min(lengths[part.document], SEQ_LEN + 1)
    assert sorted(spans) == one_by_one(lengths, SEQ_LEN)
    assert spans != sorted(spans)
    assert data.epochs(3 * n) == {"tokens": 3.0}


def test_the_recipe_chooses_the_rule() -> None:
    rules = {"window": Windows(SEQ_LEN), "document": Documents(SEQ_LEN), "packed": PackedDocuments(SEQ_LEN)}
    for sampling, rule in rules.items():
        config = DataConfig(tokenizer="none", train=(), seq_len=SEQ_LEN, sampling=sampling)  # type: ignore[arg-type]
        assert sampling_of(config, CorpusConfig("a")) == rule
        for own, of_corpus in rules.items():
            assert sampling_of(config, CorpusConfig("a", sampling=own)) == of_corpus  # type: ignore[arg-type]
