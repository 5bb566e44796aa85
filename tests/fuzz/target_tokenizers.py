"""Tokenizer files: sentencepiece models, tokenizer.json, GPT-2's pair, and the settings of special tokens."""

import json
import tempfile
from pathlib import Path

from fuzzing import Target

from gpt.convert.hugging_face.tokenizer import write_tokenizer
from gpt.tokenizer.byte_pair import END_OF_DOCUMENT, printable_bytes
from gpt.tokenizer.faults import try_tokenizer
from gpt.tokenizer.special_tokens import special_tokens_of
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

TEXTS = ("A text of words, 123 numbers.\n\tand  blanks\u2581 é 日本語 \U0001f600\ud800", "", " ", "<|endoftext|>")


def use(tokenizer: Tokenizer) -> None:
    """Encode and decode, as generation does."""
    for ids in tokenizer.encode_batch(TEXTS):
        tokenizer.decode(ids)
    for array in tokenizer.encode_arrays(TEXTS):
        tokenizer.decode(array.tolist())
    tokenizer.decode([i for i in (0, 1, 2, tokenizer.vocab_size // 2, tokenizer.vocab_size - 1) if i >= 0])
    tokenizer.decode([tokenizer.end_of_document_id])


def write_model(folder: Path) -> None:
    train_sentencepiece(iter(["a text of words and of 0123456789 numbers"] * 3), folder / "x.model", vocab_size=300)


def read_model(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "x.model")
    use(tokenizer)
    with tempfile.TemporaryDirectory() as out:  # as an export does
        write_tokenizer(folder / "x.model", Path(out), tokenizer=tokenizer, n_ctx=64)


def write_json(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        source = Path(work) / "x.model"
        write_tokenizer(source, folder, tokenizer=load_tokenizer(source), n_ctx=64)
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    table["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": r"\s+\w"}, "behavior": "Isolated", "invert": False}
    table["normalizer"] = {"type": "Replace", "pattern": {"String": "zz"}, "content": "z"}
    table["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END_OF_DOCUMENT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END_OF_DOCUMENT: {"id": END_OF_DOCUMENT, "ids": [1], "tokens": [END_OF_DOCUMENT]}},
    }
    path.write_text(json.dumps(table))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "bos_token_id": 1}))


def read_json(folder: Path) -> None:
    path = folder / "tokenizer.json"
    try_tokenizer(path, TEXTS)  # the library aborts on some files
    tokenizer = load_tokenizer(path)
    use(tokenizer)
    special_tokens_of(folder, path, tokenizer)
    with tempfile.TemporaryDirectory() as out:
        write_tokenizer(path, Path(out), tokenizer=tokenizer, n_ctx=64)


def write_pair(folder: Path) -> None:
    letters = list(printable_bytes())
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d")]
    tokens = [*letters, *(a + b for a, b in merges), END_OF_DOCUMENT]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def read_pair(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "merges.txt")
    use(tokenizer)
    with tempfile.TemporaryDirectory() as out:
        write_tokenizer(folder / "merges.txt", Path(out), tokenizer=tokenizer, n_ctx=64)


TARGETS = (
    Target("sentencepiece_model", write_model, read_model, cases=50, needs=("tokenizers",)),
    Target("tokenizer_json", write_json, read_json, cases=12, needs=("tokenizers",)),
    Target("byte_pair_files", write_pair, read_pair, cases=40, needs=("tiktoken", "tokenizers")),
)
