"""Checksums find every damaged block of a token file, for every kind and position of damage."""

import binascii
import itertools
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData, ValidationData
from gpt.data.sampling import DamagedSamples
from gpt.errors import ConfigError
from gpt.token_files.checksums import BLOCK_BYTES, DamagedTokens, SummedFile
from gpt.token_files.files import TokenFile, TokenFileWriter, compare_sums, make_sums

SEQ_LEN = 64


def write(prefix: Path, *, n_documents: int = 600, n_tokens: int = 30) -> Path:
    draw = np.random.default_rng(1)
    with TokenFileWriter(prefix, vocab_size=1000) as writer:
        for _ in range(n_documents):
            writer.add_document(draw.integers(1, 1000, size=int(draw.integers(1, 2 * n_tokens))))
    return prefix


def sums_written_out(prefix: Path) -> bytes:
    """Compute the layout independently: the CRC-32 of each 4 KiB."""
    contents = [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]
    head = struct.pack("<8sQQ", b"TRIXSUM1", *map(len, contents))
    blocks = [data[i : i + 4096] for data in contents for i in range(0, len(data), 4096)]
    return head + struct.pack(f"<{len(blocks) + 1}I", binascii.crc32(head), *map(binascii.crc32, blocks))


def test_the_layout(tmp_path):
    for n in (0, 1, 600):
        assert (tmp_path / "a.sums").exists() == (n > 0)
        write(tmp_path / "a", n_documents=n)
        assert (tmp_path / "a.sums").read_bytes() == sums_written_out(tmp_path / "a")
    made = (tmp_path / "a.sums").read_bytes()
    (tmp_path / "a.sums").unlink()
    assert TokenFile(tmp_path / "a").unchecked == [tmp_path / "a"]
    assert compare_sums(tmp_path / "a") is None
    make_sums(tmp_path / "a")
    assert (tmp_path / "a.sums").read_bytes() == made
    assert TokenFile(tmp_path / "a").unchecked == []
    assert compare_sums(tmp_path / "a") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.sums"]


def test_writes_of_any_length_give_the_same_checksums(tmp_path):
    data = np.random.default_rng(2).bytes(5 * BLOCK_BYTES + 7)
    for number, cuts in enumerate(
        [[], [1], [4096], [4095, 4097], [8192, 8200, 9000, 20_000], [*range(0, 20_000, 999)]]
    ):
        with SummedFile(tmp_path / str(number)) as file:
            for first, stop in itertools.pairwise([0, *cuts, len(data)]):
                file.write(data[first:stop])
        assert (tmp_path / str(number)).read_bytes() == data
        expected = [binascii.crc32(data[i : i + 4096]) for i in range(0, len(data), 4096)]
        assert (file.sums.tolist(), file.n_bytes) == (expected, len(data))


def damage(path: Path, kind: str, draw: np.random.Generator) -> int:
    """Change a file in place; return the first byte that differs or is missing."""
    before = path.read_bytes()
    while True:
        data, at = bytearray(before), int(draw.integers(len(before)))
        if kind == "flip":
            data[at] ^= 1 << int(draw.integers(8))
        elif kind == "truncate":
            del data[at:]
        elif kind == "zero":
            end = at + int(draw.integers(1, 3 * BLOCK_BYTES))
            data[at:end] = bytes(len(data[at:end]))
        else:
            other, n = int(draw.integers(len(before))), int(draw.integers(1, 600))
            if abs(at - other) < n or max(at, other) + n > len(data):
                continue
            data[at : at + n], data[other : other + n] = data[other : other + n], data[at : at + n]
        if data != before:
            path.write_bytes(data)
            return next((i for i, (a, b) in enumerate(zip(before, data, strict=False)) if a != b), len(data))


def samples(data: TrainingData) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Return the samples of one epoch by position, and the errors of refused positions."""
    fed, refused = {}, {}
    for first in range(0, data.n_samples[0], 16):
        positions = np.arange(first, min(first + 16, data.n_samples[0]))
        try:
            fed.update(zip(positions.tolist(), data.read(positions).tokens.tolist(), strict=True))
        except DamagedSamples as error:
            refused.update({int(positions[row]): str(what) for row, what in error.rows.items()})
            whole = np.array([p for row, p in enumerate(positions) if row not in error.rows], dtype=np.int64)
            fed.update(zip(whole.tolist(), data.read(whole).tokens.tolist(), strict=True))
    return fed, refused


@pytest.mark.parametrize("times", [3, pytest.param(25, marks=pytest.mark.rehearse)])
def test_random_damage_is_refused_and_no_wrong_token_is_read(tmp_path, times):
    """Four kinds of damage to both files. Files that open are read whole: samples as in training, and documents."""
    prefix = write(tmp_path / "a")
    corpus, draw = CorpusConfig(str(prefix)), np.random.default_rng(3)
    training = TrainingData(DataConfig(tokenizer="none", train=(corpus,), seq_len=SEQ_LEN), seed=1, vocab_size=1000)
    right, none = samples(training)
    assert (len(right), none) == (training.n_samples[0], {})
    starts = [TokenFile(prefix).document_start(n) for n in range(601)]
    original = {suffix: Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")}
    for suffix, kind, _ in itertools.product(original, ("flip", "truncate", "zero", "swap"), range(times)):
        path = Path(f"{prefix}{suffix}")
        at = damage(path, kind, draw)
        block = at // BLOCK_BYTES * BLOCK_BYTES
        said = rf"a{suffix}: bytes {block:,} to [\d,]+ have the checksum [0-9a-f]{{8}}, but a\.sums says [0-9a-f]{{8}}"
        if kind == "truncate":
            said = rf"a{suffix}: {at:,} bytes, but a\.sums was made of {len(original[suffix]):,}"
        assert re.search(said, compare_sums(prefix)[0]), (kind, at, compare_sums(prefix))
        data, refusal = None, ""
        try:
            data = TrainingData(DataConfig(tokenizer="none", train=(corpus,), seq_len=SEQ_LEN), seed=1, vocab_size=1000)
        except DamagedTokens as error:
            refusal = str(error)
        if data is None:
            assert re.search(said, refusal) or suffix == ".idx", (
                "the message may name another part of the index, such as its header"
            )
            assert kind == "truncate" or suffix == ".idx"
            assert "a.sums" in refusal
        else:
            fed, refused = samples(data)
            assert all(right[position] == ids for position, ids in fed.items()), f"wrong tokens: {kind} at {at}"
            assert fed.keys() | refused.keys() == right.keys()
            found = [*refused.values()]
            for document in range(601) if suffix == ".idx" else ():
                try:
                    assert data.files[0].tokens.document_start(document) == starts[document], f"{kind} at {at}"
                except DamagedTokens as error:
                    found.append(str(error))
            lengths = range(34, 34 + 4 * 600)  # lengths of documents; we read only the last one
            assert found or (at in lengths and kind in ("flip", "swap", "zero")), f"{kind} at {at} was not noticed"
            assert any(re.search(said, what) for what in found) or suffix == ".idx"
        path.write_bytes(original[suffix])
    again = TrainingData(DataConfig(tokenizer="none", train=(corpus,), seq_len=SEQ_LEN), seed=1, vocab_size=1000)
    assert samples(again)[0] == right


def test_a_file_that_is_cut_off_later_is_damaged_too(tmp_path):
    write(tmp_path / "a")
    data = ValidationData(
        CorpusConfig(str(tmp_path / "a")), DataConfig(tokenizer="none", train=(), seq_len=SEQ_LEN), vocab_size=1000
    )
    before = data.read(range(0, 3)).tokens.tolist()
    with (tmp_path / "a.bin").open("r+b") as tokens:
        tokens.truncate(BLOCK_BYTES + 5)
    assert data.read(range(0, 3)).tokens.tolist() == before
    with pytest.raises(DamagedSamples, match=r"a\.bin became shorter .* ends before byte [\d,]+"):
        data.read(range(data.n_samples - 1, data.n_samples))
    with (tmp_path / "a.sums").open("r+b") as sums:
        sums.truncate(30)
    with pytest.raises(DamagedSamples, match=r"a\.sums became shorter"):
        data.read(range(0, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", "is not a checksum file"),
        (lambda data: b"x" * len(data), "is not a checksum file"),
        (lambda data: data[:-4], r"a\.sums is damaged"),
        (lambda data: data[:9] + b"\x01" + data[10:], r"a\.sums is damaged"),
    ],
)
def test_damaged_checksums_are_distinguished_from_damaged_tokens(tmp_path, change, said):
    write(tmp_path / "a", n_documents=3)
    path = tmp_path / "a.sums"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=f"{said}.* `triaxial prepare checksum --replace {tmp_path / 'a'}`"):
        TokenFile(tmp_path / "a")
    make_sums(tmp_path / "a")
    assert TokenFile(tmp_path / "a").unchecked == []


def test_checksums_of_files_with_another_size_are_refused(tmp_path):
    write(tmp_path / "a", n_documents=3)
    sums = (tmp_path / "a.sums").read_bytes()
    write(tmp_path / "a", n_documents=4)
    (tmp_path / "a.sums").write_bytes(sums)
    with pytest.raises(DamagedTokens, match=r"a\.bin: [\d,]+ bytes, but a\.sums was made of .* --replace"):
        TokenFile(tmp_path / "a")
