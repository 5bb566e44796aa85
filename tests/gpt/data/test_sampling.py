"""Samples by window and by document: what is read, which document each token has, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData, ValidationData
from gpt.data.sampling import (
    CorpusFiles,
    DamagedSamples,
    Samples,
    blank_samples,
    made_up_samples,
    read_samples,
)
from gpt.data.sampling_rules import Documents, PackedDocuments, Windows
from gpt.errors import ConfigError
from gpt.losses.marks import PADDING
from gpt.token_files.files import TokenFileWriter

SEQ_LEN = 4
LENGTHS = [3, 7, 0, 1, 5, 4]  # 20 tokens, whose ids count up from 0
STARTS = [0, 3, 10, 10, 11, 16]


def write(prefix: Path, lengths: list[int], *, first_id: int = 0) -> str:
    """Write documents of these lengths, whose ids count up, so that a row shows where it was read."""
    with TokenFileWriter(prefix, vocab_size=1000) as file:
        for length in lengths:
            file.add_document(np.arange(first_id, first_id + length))
            first_id += length
    return str(prefix)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path / "corpus", LENGTHS)


def read(files: CorpusFiles, numbers: list[int | None], *, segments: bool = False, vocab_size: int = 1000) -> Samples:
    wanted = [None if number is None else (files, number) for number in numbers]
    return read_samples(wanted, corpora=[files], seq_len=SEQ_LEN, vocab_size=vocab_size, segments=segments)


def test_windows_share_one_token_with_their_neighbours(path: str) -> None:
    files = CorpusFiles(CorpusConfig(path), Windows(SEQ_LEN))
    assert files.n_samples == 4, "19 tokens have a predecessor: 4 windows, and 3 tokens in none"
    samples = read(files, [2, 0])
    assert samples.tokens.tolist() == [[8, 9, 10, 11, 12], [0, 1, 2, 3, 4]]
    assert samples.segment_ids is None
    assert samples.streams == {}


def test_windows_number_their_documents_if_asked(path: str) -> None:
    """The first document in a window has number 0, wherever it began. An empty document has no number."""
    samples = read(CorpusFiles(CorpusConfig(path), Windows(SEQ_LEN)), [0, 1, 2], segments=True)
    assert samples.segment_ids is not None
    assert samples.segment_ids.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 2, 2]]


def test_documents_are_cut_or_padded(path: str) -> None:
    files = CorpusFiles(CorpusConfig(path), Documents(SEQ_LEN))
    assert files.n_samples == len(LENGTHS)
    samples = read(files, list(range(len(LENGTHS))))
    assert samples.segment_ids is not None, "short samples need them, whether asked for or not"
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        held = min(length, SEQ_LEN + 1)
        assert samples.tokens[row].tolist() == [*range(start, start + held), *[0] * (SEQ_LEN + 1 - held)]
        assert samples.segment_ids[row].tolist() == [*[0] * held, *[PADDING] * (SEQ_LEN + 1 - held)]


def test_a_blank_row_holds_nothing(path: str) -> None:
    files = CorpusFiles(CorpusConfig(path), Documents(SEQ_LEN))
    samples = read(files, [None, 4])
    assert samples.segment_ids is not None
    assert samples.tokens.tolist() == [[0] * 5, [11, 12, 13, 14, 15]]
    assert samples.segment_ids.tolist() == [[PADDING] * 5, [0] * 5]
    blank = blank_samples(2, [files], seq_len=SEQ_LEN, segments=False)
    assert len(blank) == 2
    assert blank.segment_ids is not None
    assert (blank.segment_ids == PADDING).all()


def test_made_up_samples_have_the_shape_of_real_ones(tmp_path: Path) -> None:
    """No file is opened. All positions are in one document, so attention is not skipped as it is in padding."""
    for sampling, document_mask in (("window", False), ("window", True), ("document", False), ("packed", False)):
        corpus = CorpusConfig(write(tmp_path / "tokens", LENGTHS), streams={"mask": write(tmp_path / "mask", LENGTHS)})
        config = DataConfig(
            tokenizer="none", train=(corpus,), seq_len=SEQ_LEN, sampling=sampling, document_mask=document_mask
        )
        real = TrainingData(config, seed=1, vocab_size=1000).blank(3)
        nowhere = CorpusConfig("/nowhere", streams={"mask": "/nowhere/mask"})
        samples = made_up_samples(3, dataclasses.replace(config, train=(nowhere,)))
        assert samples.tokens.shape == real.tokens.shape
        assert samples.streams["mask"].shape == real.streams["mask"].shape
        assert samples.stream_lengths["mask"].tolist() == [SEQ_LEN + 1] * 3
        assert (samples.segment_ids is None) == (real.segment_ids is None)
        assert samples.segment_ids is None or (samples.segment_ids == 0).all()


def with_streams(folder: Path, sampling: Any, **lengths: list[int]) -> CorpusFiles:
    """The corpus with streams whose ids count up from 100."""
    streams = {name: write(folder / name, sizes, first_id=100) for name, sizes in lengths.items()}
    return CorpusFiles(CorpusConfig(write(folder / "tokens", LENGTHS), streams=streams), sampling)


def test_streams_have_the_same_part_of_each_document(tmp_path: Path) -> None:
    """By document, a stream may have another length, such as one label a document."""
    files = with_streams(tmp_path, Documents(SEQ_LEN), mask=LENGTHS, label=[1] * 6)
    samples = read(files, [1, None, 4])
    assert samples.streams["mask"].tolist() == [[103, 104, 105, 106, 107], [0] * 5, [111, 112, 113, 114, 115]]
    assert samples.streams["label"].tolist() == [[101, 0, 0, 0, 0], [0] * 5, [104, 0, 0, 0, 0]]
    assert samples.stream_lengths["mask"].tolist() == [5, 0, 5]
    assert samples.stream_lengths["label"].tolist() == [1, 0, 1]


def test_streams_have_the_same_window(tmp_path: Path) -> None:
    samples = read(with_streams(tmp_path, Windows(SEQ_LEN), mask=LENGTHS), [3])
    assert samples.streams["mask"].tolist() == [[112, 113, 114, 115, 116]]
    assert samples.tokens.tolist() == [[12, 13, 14, 15, 16]]


def test_a_row_of_a_corpus_without_the_stream_has_length_0(tmp_path: Path) -> None:
    plain = CorpusFiles(CorpusConfig(write(tmp_path / "plain", LENGTHS)), Windows(SEQ_LEN))
    marked = with_streams(tmp_path, Windows(SEQ_LEN), mask=LENGTHS)
    wanted = [(plain, 0), (marked, 0)]
    samples = read_samples(wanted, corpora=[plain, marked], seq_len=SEQ_LEN, vocab_size=1000, segments=False)
    assert samples.stream_lengths["mask"].tolist() == [0, 5]


def test_a_stream_with_another_number_of_documents_is_refused(tmp_path: Path) -> None:
    for sampling in (Windows(SEQ_LEN), Documents(SEQ_LEN)):
        with pytest.raises(ConfigError, match=r"stream 'mask': .*mask\.idx has 5 documents, but .*tokens\.idx has 6"):
            with_streams(tmp_path, sampling, mask=LENGTHS[:-1])


def test_windows_of_a_stream_with_another_number_of_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream 'mask': .*mask\.idx has 21 tokens, but .*tokens\.idx has 20"):
        with_streams(tmp_path, Windows(SEQ_LEN), mask=[*LENGTHS[:-1], 5])


def test_a_stream_whose_documents_begin_elsewhere_is_refused(tmp_path: Path) -> None:
    files = with_streams(tmp_path, Windows(SEQ_LEN), mask=[3, 7, 0, 2, 4, 4])
    assert read(files, [0, 1]).streams["mask"].tolist() == [[100, 101, 102, 103, 104], [104, 105, 106, 107, 108]]
    with pytest.raises(ConfigError, match=r"corpus 'tokens', stream 'mask': its documents begin elsewhere .* 8 to 13"):
        read(files, [0, 2])


@pytest.mark.parametrize("by_document", [False, True])
def test_an_id_outside_the_vocabulary_names_its_position(path: str, by_document: bool) -> None:
    files = CorpusFiles(CorpusConfig(path), Documents(SEQ_LEN) if by_document else Windows(SEQ_LEN))
    assert read(files, [0], vocab_size=5).tokens.max() < 5
    message = r"corpus\.bin: token 12 of 20 is id 12, but vocab_size = 12 has ids 0 to 11"
    with pytest.raises(ConfigError, match=message):
        read(files, [None, 0, 4 if by_document else 2], vocab_size=12)


def test_a_corpus_without_a_sample_says_why(tmp_path: Path) -> None:
    short = write(tmp_path / "short", [4])
    with pytest.raises(ConfigError, match=r"short\.bin has 4 tokens, but one sample of seq_len = 4 needs 5"):
        CorpusFiles(CorpusConfig(short), Windows(SEQ_LEN))
    assert CorpusFiles(CorpusConfig(short), Documents(SEQ_LEN)).n_samples == 1
    empty = write(tmp_path / "empty", [])
    with pytest.raises(ConfigError, match=r"empty\.bin has no documents"):
        CorpusFiles(CorpusConfig(empty), Documents(SEQ_LEN))
    with pytest.raises(ConfigError, match=r"empty\.bin has no documents"):
        CorpusFiles(CorpusConfig(empty), PackedDocuments(SEQ_LEN))


# --- documents packed whole


def test_packed_samples_hold_whole_documents(path: str) -> None:
    """Of lengths 3, 7, 0, 1, 5, 4, with a seq_len of 4: 7 is cut after 5 tokens, and 1 does not fit with 5."""
    files = CorpusFiles(CorpusConfig(path), PackedDocuments(SEQ_LEN))
    samples = read(files, list(range(files.n_samples)))
    assert samples.segment_ids is not None
    tokens = [row[ids != PADDING].tolist() for row, ids in zip(samples.tokens, samples.segment_ids, strict=True)]
    assert tokens == [[0, 1, 2], [3, 4, 5, 6, 7], [10], [11, 12, 13, 14, 15], [16, 17, 18, 19]]
    assert isinstance(files.sampling, PackedDocuments)
    assert files.sampling.n_cut == 1


def test_packed_documents_are_numbered_and_streams_follow(tmp_path: Path) -> None:
    lengths = [2, 0, 1, 1, 3]
    stream = write(tmp_path / "mask", lengths, first_id=100)
    corpus = CorpusConfig(write(tmp_path / "tokens", lengths), streams={"mask": stream})
    samples = read(CorpusFiles(corpus, PackedDocuments(SEQ_LEN)), [0, None, 1])
    assert samples.segment_ids is not None
    assert samples.segment_ids.tolist() == [[0, 0, 1, 2, PADDING], [PADDING] * 5, [0, 0, 0, PADDING, PADDING]]
    assert samples.streams["mask"].tolist() == [[100, 101, 102, 103, 0], [0] * 5, [104, 105, 106, 0, 0]]
    assert samples.stream_lengths["mask"].tolist() == [4, 0, 3]


def test_a_stream_of_packed_documents_with_other_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream 'mask': .*mask\.idx has 21 tokens, but .*tokens\.idx has 20"):
        with_streams(tmp_path, PackedDocuments(SEQ_LEN), mask=[*LENGTHS[:-1], 5])
    files = with_streams(tmp_path, PackedDocuments(SEQ_LEN), mask=[3, 7, 0, 2, 4, 4])
    with pytest.raises(ConfigError, match=r"corpus 'tokens', stream 'mask': its documents begin elsewhere"):
        read(files, list(range(files.n_samples)))


def test_windows_next_to_packed_documents_stay_whole(tmp_path: Path) -> None:
    """Their documents are kept apart only if `data.document_mask` asks for it."""
    windows = CorpusFiles(CorpusConfig(write(tmp_path / "text", LENGTHS)), Windows(SEQ_LEN))
    packed = CorpusFiles(CorpusConfig(write(tmp_path / "talk", [2, 2])), PackedDocuments(SEQ_LEN))
    for segments, of_window in ((False, [0, 0, 0, 0, 0]), (True, [0, 0, 0, 1, 1])):
        samples = read_samples(
            [(windows, 0), (packed, 0)],
            corpora=[windows, packed],
            seq_len=SEQ_LEN,
            vocab_size=1000,
            segments=segments,
        )
        assert samples.segment_ids is not None
        assert samples.segment_ids.tolist() == [of_window, [0, 0, 1, 1, PADDING]]


# --- damaged files


def damaged(folder: Path, *, ending: str, sampling: Any) -> str:
    """A corpus of many blocks, of whose .bin or .idx a byte in the middle has changed."""
    path = write_many(folder / "corpus")
    file = Path(path + ending)
    content = bytearray(file.read_bytes())
    content[len(content) * 9 // 10] ^= 1
    file.write_bytes(content)
    return path


def write_many(prefix: Path) -> str:
    with TokenFileWriter(prefix, vocab_size=1000) as file:
        file.add_documents(np.arange(400_000) % 997, np.full(200_000, 2, dtype=np.int32))
    return str(prefix)


def test_damaged_tokens_name_their_rows(tmp_path: Path) -> None:
    path = damaged(tmp_path, ending=".bin", sampling=Windows(SEQ_LEN))
    files = CorpusFiles(CorpusConfig(path), Windows(SEQ_LEN))
    with pytest.raises(DamagedSamples) as error:
        read(files, [0, 360_000 // SEQ_LEN, None])
    assert error.value.rows.keys() == {1}
    assert "corpus.bin" in str(error.value.rows[1])


def test_a_damaged_index_names_the_rows_of_its_documents(tmp_path: Path) -> None:
    """Announcing samples looks into the index too, but leaves the error to the read, which knows the row."""
    path = damaged(tmp_path, ending=".idx", sampling=Documents(SEQ_LEN))
    corpus = CorpusConfig(path)
    config = DataConfig(tokenizer="none", train=(corpus,), seq_len=SEQ_LEN, sampling="document")
    data = ValidationData(corpus, config, vocab_size=1000)
    rows = list(range(0, data.n_samples, 1000))
    with pytest.raises(DamagedSamples) as error:
        data.read(rows)
    bad = sorted(error.value.rows)
    assert 0 < len(bad) < len(rows)
    assert all("corpus.idx" in str(reason) for reason in error.value.rows.values())
    fine = [number for row, number in enumerate(rows) if row not in bad]
    assert len(data.read(fine)) == len(fine)
    TrainingData(config, seed=0, vocab_size=1000).announce(np.arange(0, data.n_samples, 1000))
