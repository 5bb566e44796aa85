"""MinHash signatures of the same texts by four programs, as contenders of benchmarks/dedup.py; measures nothing itself.

All compute 14 x 8 hash values over lower-cased word 5-grams. Ours is the whole stage: read a shard, sign, sort the band
keys, write. datatrove's is its whole first step (signatures written, read again, sorted, written) over documents in
memory. datasketch and rensa have no such step and only sign texts in memory.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.dedup.signatures import SignTask, sign_texts
from data_prep.dedup.sorted_rows import Limits
from data_prep.documents.shards import Document, write_shard

Block = Callable[[], dict[str, Any]]
N_GRAM, BANDS, ROWS = 5, 14, 8
WORD = re.compile(r"\w+")


def contender(name: str, texts: list[str], folder: Path) -> Block:
    """The named one's block of work: sign all texts. What it writes goes to `folder`."""
    block = {
        "triaxial": triaxial,
        "rensa": rensa,
        "datasketch": datasketch,
        "datatrove_words": datatrove_words,
        "datatrove": datatrove,
    }[name](texts, folder)
    block()  # warm
    return block


def triaxial(texts: list[str], folder: Path) -> Block:
    with write_shard(folder / "shard") as write:
        for number, text in enumerate(texts):
            write(Document(str(number), text))
    outputs = tuple(folder / name for name in ("rows", "about", "notes"))
    config = SignTask(FuzzyConfig(ngram_words=N_GRAM, bands=BANDS, rows=ROWS).setting, Limits())

    def block() -> dict[str, Any]:
        return {"documents": sign_texts(config, (folder / "shard",), outputs).facts["documents"]}

    return block


def shingles(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [" ".join(words[i : i + N_GRAM]) for i in range(max(len(words) - N_GRAM + 1, 1))]


def rensa(texts: list[str], _: Path) -> Block:
    from rensa import RMinHash

    def block() -> dict[str, Any]:
        matrix = RMinHash.digest_matrix_from_token_sets(map(shingles, texts), BANDS * ROWS, 42)
        return {"documents": matrix.len()}

    return block


def datasketch(texts: list[str], _: Path) -> Block:
    from datasketch import MinHash

    def block() -> dict[str, Any]:
        n = 0
        for text in texts:
            signed = MinHash(num_perm=BANDS * ROWS)
            signed.update_batch([shingle.encode() for shingle in shingles(text)])
            n += 1
        return {"documents": n}

    return block


def datatrove(texts: list[str], folder: Path) -> Block:
    """With its own word tokenizer, spaCy's."""
    return _datatrove(texts, folder, plain_words=False)


def datatrove_words(texts: list[str], folder: Path) -> Block:
    """With runs of word characters as words, like the others."""
    return _datatrove(texts, folder, plain_words=True)


def _datatrove(texts: list[str], folder: Path, *, plain_words: bool) -> Block:
    from datatrove.data import Document as TheirDocument
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.logging import logger
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    logger.remove()
    documents = [TheirDocument(text=text, id=str(number)) for number, text in enumerate(texts)]
    config = MinhashConfig(n_grams=N_GRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
    step = MinhashDedupSignature(str(folder), config)
    if plain_words:
        step.word_tokenizer = Words()

    def block() -> dict[str, Any]:
        step.run(iter(documents))
        return {"documents": len(documents)}

    return block
