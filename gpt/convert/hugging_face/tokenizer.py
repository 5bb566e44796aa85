"""Convert our tokenizers to the files that `transformers.AutoTokenizer` loads, with the same ids for every text.

A sentencepiece BPE and GPT-2's byte pairs become a `tokenizer.json`. A tokenizer that is a `tokenizer.json` already is
copied unchanged.
"""

import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt.convert.hugging_face.peer import load_peer_tokenizer, peer_faults
from gpt.errors import ConfigError, import_extra
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes
from gpt.tokenizer.byte_pair import END_OF_DOCUMENT, BytePairTokenizer, printable_bytes
from gpt.tokenizer.faults import library_faults
from gpt.tokenizer.tokenizers import Tokenizer, tokenizer_files

_SPACE_MARK = "\u2581"  # how sentencepiece writes a space inside a piece

# Texts on which tokenizers often disagree: white space, control characters, scripts, emoji with joiners, digits, text
# that equals a special piece, characters that no vocabulary has.
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return {\n\t'a': x ** 2,\n    }\n\n\n# end  \n",
    "  leading, trailing and      inner spaces   ",
    " ",
    "\r\n\t \u00a0\u2003\u200b\x00\x01\x7f",
    "1234567890 3.14159 1,000,000 0x7f -42",
    "Crème brûlée, naïve façade; e\u0301 is é in two parts; ﬁ Å ½ ①",
    "Größe straße İstanbul Ελλάδα Привет мир שלום مرحبا नमस्ते 日本語 中文 한국어 ไทย",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e6\U0001f1f9\u2764\ufe0f \U00010348 \ufffd",
    "<|endoftext|><unk></s> <s> <0x41><0x0A> [MASK]",
    f"{_SPACE_MARK}the mark of a space{_SPACE_MARK}{_SPACE_MARK}",
    "aaaaaaaaaaaaaaaaaaaaaaaaa bababababababababababab abcabcabcabcabcab -------------------- ==========",
    "don't can't I'll WE'VE it's ... -- --- 'quoted' \"double\" (nested [brackets {here}])",
    "",
)


def write_tokenizer(source: Path, folder: Path, *, tokenizer: Tokenizer, n_ctx: int) -> None:
    """Write tokenizer.json and tokenizer_config.json for the tokenizer that was loaded from `source`.

    ConfigError: a tokenizer.json cannot express this sentencepiece model with equal ids.
    """
    source = tokenizer_files(source)[0]
    with library_faults(f"the tokenizer {source} cannot be written as a tokenizer.json"):
        if isinstance(tokenizer, BytePairTokenizer):
            from_byte_pairs(tokenizer).save(str(folder / "tokenizer.json"))
            end = END_OF_DOCUMENT
        elif source.suffix == ".json":
            data = read_bytes(source)
            (folder / "tokenizer.json").write_bytes(data)
            names = _token_names(decode_json(data))
            end = names[tokenizer.end_of_document_id]
        else:
            converted, end = from_sentencepiece(source, end_id=tokenizer.end_of_document_id)
            converted.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        # Text that equals a special token is encoded as text, as in training. Otherwise a page could end its document.
        "split_special_tokens": True,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def from_byte_pairs(tokenizer: BytePairTokenizer) -> Any:
    """Return a `tokenizers.Tokenizer` that splits text as GPT-2's byte pairs do."""
    tokenizers = import_extra("tokenizers", extra="hf")
    character_of = {byte: character for character, byte in printable_bytes().items()}
    names = {token: "".join(map(character_of.__getitem__, token)) for token in tokenizer.ranks}
    merges = [
        tuple(names[part] for part in split_by_ranks(token, tokenizer.ranks))
        for token in sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
        if len(token) > 1
    ]
    vocabulary = {names[token]: rank for token, rank in tokenizer.ranks.items()}
    vocabulary[END_OF_DOCUMENT] = tokenizer.end_of_document_id
    result = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    result.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([tokenizers.AddedToken(END_OF_DOCUMENT, special=True, normalized=False)])
    assert result.token_to_id(END_OF_DOCUMENT) == tokenizer.end_of_document_id
    return result


def split_by_ranks(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two tokens whose merge gives `token`: its parts after merging with lower ranks only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks) + 1) for a, b in itertools.pairwise(parts)]
        i = min(range(len(joined)), key=joined.__getitem__)
        assert joined[i] < ranks[token], token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def from_sentencepiece(source: Path, *, end_id: int) -> tuple[Any, str]:
    """Return a `tokenizers.Tokenizer` that splits text as the sentencepiece BPE does, and its end-of-document token.

    Pieces are written with real spaces and without a normalizer, so that a literal U+2581 falls back to its bytes, as
    in gpt/tokenizer/tokenizers.py.
    """
    tokenizers = import_extra("tokenizers", extra="hf")
    formats: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = formats.ModelProto.FromString(read_bytes(source))
    _check_expressible(source, proto)
    kinds = formats.ModelProto.SentencePiece
    vocabulary = {piece.piece.replace(_SPACE_MARK, " "): i for i, piece in enumerate(proto.pieces)}
    plain = {piece.piece.replace(_SPACE_MARK, " "): piece.score for piece in proto.pieces if piece.type == kinds.NORMAL}
    model = tokenizers.models.BPE(
        vocab=vocabulary, merges=list(_merges(plain, vocabulary)), byte_fallback=True, fuse_unk=False
    )
    result = tokenizers.Tokenizer(model)
    result.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    control = [piece.piece for piece in proto.pieces if piece.type == kinds.CONTROL]
    result.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in control])
    return result, proto.pieces[end_id].piece


def compare_tokenizers(folder: Path, tokenizer: Tokenizer, *, imported: bool = False) -> int:
    """Load the folder's tokenizer with `transformers`, compare ids and decoded texts of SAMPLES, return their number.

    `imported`: the folder was written by others, with other settings. Then only ids are compared, with special tokens
    encoded as text. RuntimeError: a difference was found; in a folder that we wrote, this is a bug in the export.
    """
    hf_tokenizer = load_peer_tokenizer(folder)
    settings = {"split_special_tokens": True} if imported else {}
    # Imported sentencepiece tokenizers use the mark for spaces.
    texts = [text for text in SAMPLES if not imported or _SPACE_MARK not in text]
    for text in texts:
        ids = tokenizer.encode(text)
        # verbose: no warning about a long text
        with peer_faults(folder):
            found = hf_tokenizer.encode(text, add_special_tokens=False, verbose=False, **settings)
        if found != ids:
            raise RuntimeError(f"{folder}: transformers reads {text!r} as tokens {found}, ours are {ids}")
        if imported:
            continue
        decoded, expected = hf_tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids)
        if decoded != expected:
            raise RuntimeError(f"{folder}: transformers decodes {ids} to {decoded!r}, ours gives {expected!r}")
    if not imported and hf_tokenizer.eos_token_id != tokenizer.end_of_document_id:
        raise RuntimeError(f"{folder}: eos is {hf_tokenizer.eos_token_id}, ours is {tokenizer.end_of_document_id}")
    return len(texts)


def _merges(plain: dict[str, float], vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Return every pair of pieces whose union is a piece, best score of the union first.

    sentencepiece joins the neighbours whose union has the best score, no matter how the union was learned. Therefore
    every way to split a piece in two is a merge of its rank. Among these, the order of ids replaces "leftmost first".
    """
    for piece in sorted(plain, key=lambda name: (-plain[name], vocabulary[name])):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [cut for cut in cuts if cut[0] in plain and cut[1] in plain]
        yield from sorted(known, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))


def _check_expressible(source: Path, proto: Any) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = type(proto.pieces[0])
    found = {
        "it is not a BPE model": trainer.model_type != trainer.BPE,
        "it has no byte fallback": not trainer.byte_fallback,
        f"it normalises text by '{normalizer.name}'": normalizer.name not in ("identity", ""),
        "it adds a space before a text": normalizer.add_dummy_prefix,
        "it removes spaces": normalizer.remove_extra_whitespaces,
        "it has user-defined pieces": any(piece.type == kinds.USER_DEFINED for piece in proto.pieces),
    }
    reasons = [reason for reason, applies in found.items() if applies]
    if reasons:
        raise ConfigError(
            f"the tokenizer {source} cannot be written as a tokenizer.json with equal ids: {', and '.join(reasons)}. "
            "Train one with `triaxial prepare`, or use the model's own tokenizer.json as data.tokenizer."
        )


def _token_names(file: dict[str, Any]) -> dict[int, str]:
    names = {i: name for name, i in file["model"]["vocab"].items()} if isinstance(file["model"]["vocab"], dict) else {}
    return names | {token["id"]: token["content"] for token in file.get("added_tokens", [])}
