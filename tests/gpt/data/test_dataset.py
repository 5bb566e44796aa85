"""Training and validation samples from real token files: contents, order, and errors."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData, ValidationData
from gpt.data.fingerprint import fingerprint, fingerprint_differences
from gpt.errors import ConfigError

SEQ_LEN = 8
IDS = 1_000_000  # token ids in these files name the file and the position, so a row shows where it was read


def write_corpus(prefix: Path, lengths: list[int], *, first_id: int = 0) -> str:
    """A .bin/.idx pair in Megatron's layout, written by hand, whose token ids count up from `first_id`."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    np.arange(first_id, first_id + sum(lengths), dtype="<i4").tofile(f"{prefix}.bin")
    write_index(prefix, lengths, code=4, width=4)
    return str(prefix)


def write_index(prefix: Path, lengths: list[int], *, code: int, width: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * width
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
        + np.array(lengths, dtype="<i4").tobytes()
        + starts.astype("<i8").tobytes()
        + np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    )


LENGTHS = {
    "books": [90, 1, 37, 40],  # 168 tokens: 20 windows
    "web": [5, 0, 0, 12, 3, 1, 1, 64, 15, 300],  # 401: exactly 50 windows; empty documents inside
    "wiki": [25],  # 25: 3 windows
}
FIRST_ID = {"books": 0, "web": 100_000, "wiki": 200_000}
N_WINDOWS = {"books": 20, "web": 50, "wiki": 3}
WEIGHTS = {"books": 0.25, "web": 0.6, "wiki": 0.15}


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[CorpusConfig, ...]:
    return tuple(
        CorpusConfig(path=write_corpus(tmp_path / name, LENGTHS[name], first_id=FIRST_ID[name]), weight=WEIGHTS[name])
        for name in LENGTHS
    )


def training(corpora: tuple[CorpusConfig, ...], *, seed: int = 3, vocab_size: int = IDS) -> TrainingData:
    return TrainingData(
        DataConfig(tokenizer="none", train=tuple(corpora), seq_len=SEQ_LEN), seed=seed, vocab_size=vocab_size
    )


# --- reading


def test_a_sample_is_a_window_of_the_stream_and_an_epoch_reads_each_once(corpora: tuple[CorpusConfig, ...]) -> None:
    rows = training(corpora).read(np.arange(600)).tokens
    assert rows.dtype == np.int64
    assert rows.shape == (600, SEQ_LEN + 1)
    assert np.array_equal(rows, rows[:, :1] + np.arange(SEQ_LEN + 1))  # neighbours in the file, across documents
    for name, n_samples in N_WINDOWS.items():
        starts = rows[(rows[:, 0] // 100_000) == FIRST_ID[name] // 100_000, 0] - FIRST_ID[name]
        assert abs(len(starts) - 600 * WEIGHTS[name]) <= 1
        for epoch in range(len(starts) // n_samples):
            one = np.sort(starts[epoch * n_samples : (epoch + 1) * n_samples])
            assert np.array_equal(one, np.arange(n_samples) * SEQ_LEN)


def test_the_state_is_the_number_of_samples_consumed(corpora: tuple[CorpusConfig, ...]) -> None:
    """A new object at position 217 continues as the old one would have, for any number of ranks and any batch size."""
    whole = training(corpora).read(np.arange(400)).tokens
    resumed = training(corpora)
    assert np.array_equal(resumed.read(np.arange(217, 400)).tokens, whole[217:])
    for ranks, per_step in [(1, 40), (2, 20), (5, 8)]:
        step_rows = []
        for step in range(10):
            for rank in range(ranks):
                begin = step * ranks * per_step + rank * per_step
                step_rows.append(training(corpora).read(np.arange(begin, begin + per_step)).tokens)
        assert np.array_equal(np.concatenate(step_rows), whole)


def test_order_depends_on_names_and_not_on_paths(corpora: tuple[CorpusConfig, ...], tmp_path: Path) -> None:
    moved = tuple(
        CorpusConfig(
            path=write_corpus(tmp_path / "elsewhere" / f"{c.name}_v2", LENGTHS[c.name], first_id=FIRST_ID[c.name]),
            weight=c.weight,
            name=c.name,
        )
        for c in reversed(corpora)
    )
    assert np.array_equal(training(corpora).read(np.arange(300)).tokens, training(moved).read(np.arange(300)).tokens)
    assert fingerprint(training(corpora)) == fingerprint(training(moved))
    assert not np.array_equal(
        training(corpora).read(np.arange(300)).tokens, training(corpora, seed=4).read(np.arange(300)).tokens
    )


def test_locate_names_the_documents_that_a_batch_read(corpora: tuple[CorpusConfig, ...]) -> None:
    data = training(corpora)
    rows = data.read(np.arange(300)).tokens
    documents_seen = set()
    for position in range(300):
        place = data.locate(position)
        assert place.first_token == place.window * SEQ_LEN == rows[position, 0] - FIRST_ID[place.corpus]
        assert place.prefix.name == place.corpus
        begins = np.concatenate([[0], np.cumsum(LENGTHS[place.corpus])])
        tokens = [
            FIRST_ID[place.corpus] + begins[span.document] + span.offset_tokens + i
            for span in place.documents
            for i in range(span.n_tokens)
        ]
        assert tokens == rows[position].tolist()
        for span in place.documents:
            assert span.n_tokens >= 1
            assert span.offset_tokens + span.n_tokens <= LENGTHS[place.corpus][span.document]
            documents_seen.add((place.corpus, span.document))
    assert ("web", 5) in documents_seen  # one token long, in the middle of a window
    assert ("web", 1) not in documents_seen  # empty


def test_locate_names_an_empty_document(corpora: tuple[CorpusConfig, ...]) -> None:
    """Each sample by document names its document, also one without tokens, in the middle and at the end."""
    path = Path(corpora[1].path).with_name("ends")
    corpus = CorpusConfig(path=write_corpus(path, [*LENGTHS["web"], 0]))
    config = DataConfig(tokenizer="none", train=(corpus,), seq_len=SEQ_LEN, sampling="document")
    data = TrainingData(config, seed=3, vocab_size=IDS)
    places = [data.locate(position) for position in range(data.n_samples[0])]
    found = {place.window: [(span.document, span.n_tokens) for span in place.documents] for place in places}
    lengths = [*LENGTHS["web"], 0]
    assert found == {number: [(number, min(length, SEQ_LEN + 1))] for number, length in enumerate(lengths)}


def test_locate_counts_the_epochs_and_agrees_with_epochs(corpora: tuple[CorpusConfig, ...]) -> None:
    data = training(corpora)
    places = [data.locate(position) for position in range(250)]
    consumed = data.epochs(250)
    for name, n_samples in N_WINDOWS.items():
        mine = [place.epoch for place in places if place.corpus == name]
        assert mine == [i // n_samples for i in range(len(mine))]
        assert consumed[name] == len(mine) / n_samples
    assert data.epochs(0) == {"books": 0.0, "web": 0.0, "wiki": 0.0}
    assert data.epochs(10**12)["web"] == pytest.approx(0.6e12 / 50)


def test_reads_past_four_billion_tokens(tmp_path: Path) -> None:
    """A sparse file of 2**33 tokens, 17 GB that take no room: positions and byte offsets do not wrap."""
    n_tokens, lengths = 2**33 + 5, [2**31 - 1] * 4 + [9]
    prefix = tmp_path / "long"
    write_index(prefix, lengths, code=8, width=2)
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(n_tokens * 2)
        file.seek((n_tokens - 5) * 2)
        file.write(np.arange(1, 6, dtype="<u2").tobytes())
    data = TrainingData(
        DataConfig(tokenizer="none", train=(CorpusConfig(path=str(prefix)),), seq_len=4), seed=0, vocab_size=IDS
    )
    assert data.n_samples == [2**31 + 1]
    last = (
        ValidationData(
            CorpusConfig(path=str(prefix)), DataConfig(tokenizer="none", train=(), seq_len=4), vocab_size=IDS
        )
        .read(range(2**31, 2**31 + 1))
        .tokens
    )
    assert last.tolist() == [[1, 2, 3, 4, 5]]
    assert data.read(np.arange(2**40, 2**40 + 16)).tokens.shape == (16, 5)
    place = data.locate(2**40)
    begin = place.documents[0].document * (2**31 - 1) + place.documents[0].offset_tokens
    assert begin == place.first_token


def test_a_corpus_in_several_files_is_the_same_corpus(corpora: tuple[CorpusConfig, ...], tmp_path: Path) -> None:
    """Windows that run over the borders of files included; another cut between the files changes nothing."""
    (tmp_path / "set").mkdir()
    first = FIRST_ID["web"]
    for number, lengths in enumerate([LENGTHS["web"][:4], LENGTHS["web"][4:8], LENGTHS["web"][8:]]):
        write_corpus(tmp_path / "set" / f"web-{number:05d}-of-00003", lengths, first_id=first)
        first += sum(lengths)
    cut = (corpora[0], CorpusConfig(path=str(tmp_path / "set" / "web"), weight=WEIGHTS["web"]), corpora[2])
    whole, parts = training(corpora), training(cut)
    parts.announce(np.arange(300))
    assert np.array_equal(parts.read(np.arange(300)).tokens, whole.read(np.arange(300)).tokens)
    assert fingerprint(parts) == fingerprint(whole)
    assert [parts.locate(n).documents for n in range(300)] == [whole.locate(n).documents for n in range(300)]


def test_validation_is_read_in_file_order(corpora: tuple[CorpusConfig, ...]) -> None:
    web = ValidationData(corpora[1], DataConfig(tokenizer="none", train=(), seq_len=SEQ_LEN), vocab_size=IDS)
    assert web.n_samples == 50
    first = 100_000 + np.arange(50)[:, None] * SEQ_LEN
    assert np.array_equal(web.read(range(0, 50)).tokens, first + np.arange(SEQ_LEN + 1))
    assert np.array_equal(web.read(range(7, 9)).tokens, web.read(range(0, 50)).tokens[7:9])
    assert web.read(range(3, 3)).tokens.shape == (0, SEQ_LEN + 1)
    with pytest.raises(AssertionError):
        web.read(range(49, 51))


def test_an_empty_share_of_a_batch_is_an_empty_array(corpora: tuple[CorpusConfig, ...]) -> None:
    assert training(corpora).read(np.arange(0)).tokens.shape == (0, SEQ_LEN + 1)


def test_importing_the_dataset_leaves_torch_out() -> None:
    subprocess.run(
        [sys.executable, "-c", "import gpt.data.dataset, sys; sys.exit('torch' in sys.modules)"],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )


# --- errors


def test_an_id_beyond_the_vocabulary_names_file_position_and_id(corpora: tuple[CorpusConfig, ...]) -> None:
    limit = 100_300  # web token 300 has this id
    assert training(corpora[:1], vocab_size=limit).read(np.arange(20)).tokens.max() < limit
    data = training(corpora[1:2], vocab_size=limit)
    bad = [p for p in range(50) if data.locate(p).first_token + SEQ_LEN >= 300]
    fine = [p for p in range(50) if p not in bad]
    assert data.read(np.array(fine)).tokens.max() == 100_296
    at_edge = next(p for p in bad if data.locate(p).first_token <= 300)
    with pytest.raises(ConfigError, match=r"web\.bin: token 300 of 401 is id 100300, but vocab_size = 100300") as error:
        data.read(np.array([*fine, at_edge]))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"web\.bin: token 300 of 401"):
        ValidationData(corpora[1], DataConfig(tokenizer="none", train=(), seq_len=SEQ_LEN), vocab_size=limit).read(
            range(0, 50)
        )


def test_a_negative_id_is_refused(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "minus", [20], first_id=-3)
    with pytest.raises(ConfigError, match=r"token 0 of 20 is id -3"):
        ValidationData(
            CorpusConfig(path=path), DataConfig(tokenizer="none", train=(), seq_len=SEQ_LEN), vocab_size=IDS
        ).read(range(0, 1))


@pytest.mark.parametrize(("length", "fits"), [(SEQ_LEN, False), (SEQ_LEN + 1, True), (0, False), (1, False)])
def test_a_corpus_shorter_than_one_window_is_refused(tmp_path: Path, length: int, fits: bool) -> None:
    corpus = CorpusConfig(path=write_corpus(tmp_path / "short", [length]))
    if fits:
        assert training((corpus,)).read(np.array([0, 1, 2])).tokens[:, 0].tolist() == [0, 0, 0]
        return
    message = rf"short\.bin has {length} tokens, but one sample of seq_len = 8 needs 9"
    with pytest.raises(ConfigError, match=message):
        training((corpus,))
    with pytest.raises(ConfigError, match=message):
        ValidationData(corpus, DataConfig(tokenizer="none", train=(), seq_len=SEQ_LEN), vocab_size=IDS)


# --- the fingerprint in a checkpoint


def test_fingerprints_survive_json_and_say_in_words_what_differs(
    corpora: tuple[CorpusConfig, ...], tmp_path: Path
) -> None:
    saved = json.loads(json.dumps(fingerprint(training(corpora))))
    assert saved == fingerprint(training(corpora))
    assert fingerprint_differences(saved, fingerprint(training(corpora))) == []

    longer = CorpusConfig(path=write_corpus(tmp_path / "grown" / "books", [200]), weight=0.5)
    code = CorpusConfig(path=write_corpus(tmp_path / "code", [50]))
    now = fingerprint(
        TrainingData(DataConfig(tokenizer="none", train=(longer, corpora[1], code), seq_len=4), seed=9, vocab_size=IDS)
    )
    assert fingerprint_differences(saved, now) == [
        "the seed was 3 and is now 9",
        "seq_len was 8 and is now 4",
        "corpus 'wiki' is gone",
        "corpus 'code' is new",
        "the weight of corpus 'books' was 0.25 and is now 0.5",
        "the number of tokens of corpus 'books' was 168 and is now 200",
        "the number of documents of corpus 'books' was 4 and is now 1",
    ]
