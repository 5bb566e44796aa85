"""Token files for data_loading.py: real ones of any described size that take hardly any room, and small full ones."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.data.config import CorpusConfig
from gpt.token_files.files import DTYPES, HEADER, MAGIC, TokenFileWriter

VOCAB_SIZE = 50_257
SEQ_LEN = 2048
SEED = 1234
BLOCK = 1 << 20  # documents at once
# Table 2.2 of arXiv 2005.14165: billions of tokens, and weights. Its run reads 300 of these 499 billion.
TABLE_2_2 = {
    "common_crawl": (410, 60),
    "webtext2": (19, 22),
    "books1": (12, 8),
    "books2": (55, 8),
    "wikipedia": (3, 3),
}


def gpt3_mixture(folder: Path, n_tokens: int, *, document_tokens: int) -> tuple[CorpusConfig, ...]:
    """Corpora of `n_tokens` in all, in the proportions of table 2.2, as sparse files; those that exist stay."""
    folder.mkdir(parents=True, exist_ok=True)
    corpora = []
    total = sum(billions for billions, _ in TABLE_2_2.values())
    for name, (billions, weight) in TABLE_2_2.items():
        n_documents = max(1, round(n_tokens * billions / total / document_tokens))
        prefix = folder / f"{name}-{n_documents}x{document_tokens}"
        if not Path(f"{prefix}.idx").exists():
            write_sparse(prefix, n_documents=n_documents, document_tokens=document_tokens)
        corpora.append(CorpusConfig(path=str(prefix), weight=float(weight), name=name))
    return tuple(corpora)


def write_sparse(prefix: Path, *, n_documents: int, document_tokens: int) -> None:
    """A whole index beside a .bin of nothing but holes: any reader opens it, and finds every token to be 0."""
    dtype = np.dtype("<u2")
    code = next(code for code, kind in DTYPES.items() if np.dtype(kind) == np.uint16)
    with open(f"{prefix}.bin", "wb") as tokens:
        tokens.truncate(n_documents * document_tokens * dtype.itemsize)
    partial = Path(f"{prefix}.idx.partial")
    blocks = [(first, min(first + BLOCK, n_documents)) for first in range(0, n_documents, BLOCK)]
    with partial.open("wb") as index:
        index.write(HEADER.pack(MAGIC, 1, code, n_documents, n_documents + 1))
        for first, last in blocks:
            index.write(np.full(last - first, document_tokens, dtype="<i4").tobytes())
        for first, last in blocks:
            index.write((np.arange(first, last, dtype="<i8") * (document_tokens * dtype.itemsize)).tobytes())
        for first, last in blocks:
            index.write(np.arange(first, last, dtype="<i8").tobytes())
        index.write(np.array([n_documents], dtype="<i8").tobytes())
    os.replace(partial, f"{prefix}.idx")


def full_corpus(prefix: Path, n_tokens: int) -> CorpusConfig:
    """A token file with something in it: random ids in documents of log-normal length, 750 tokens on average."""
    if not Path(f"{prefix}.idx").exists():
        generator = np.random.default_rng(SEED)
        lengths = document_lengths(n_tokens, generator)
        with TokenFileWriter(prefix, vocab_size=VOCAB_SIZE) as writer:
            for length in lengths:
                writer.add_document(generator.integers(VOCAB_SIZE, size=length, dtype=np.uint16))
    return CorpusConfig(path=str(prefix))


def without_sums(corpus: CorpusConfig) -> CorpusConfig:
    """The same files under names beside which there are no checksums."""
    for suffix in (".bin", ".idx"):
        link = Path(f"{corpus.path}-unchecked{suffix}")
        if not link.exists():
            os.link(f"{corpus.path}{suffix}", link)
    return CorpusConfig(path=f"{corpus.path}-unchecked")


def run_samples(n_tokens: int) -> int:
    """Sequences of the run that reads such a mixture, as GPT-3 did its own: 300 tokens of 499."""
    return n_tokens * 300 // sum(billions for billions, _ in TABLE_2_2.values()) // SEQ_LEN


def document_lengths(n_tokens: int, generator: np.random.Generator) -> Sequence[int]:
    """Lengths that add up to `n_tokens`."""
    drawn = generator.lognormal(mean=np.log(750) - 0.5, sigma=1.0, size=max(1, n_tokens // 500)).astype(np.int64) + 1
    lengths = drawn[np.cumsum(drawn) <= n_tokens].tolist()
    rest = n_tokens - sum(lengths)
    return [*lengths, rest] if rest else lengths
