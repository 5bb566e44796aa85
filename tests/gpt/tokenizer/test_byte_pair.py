"""GPT-2's byte pairs give the ids of Hugging Face's tokenizers; other files are refused."""

import base64
import json
import random
import shutil
import zipfile
from pathlib import Path

import pytest

from gpt.convert.hugging_face.tokenizer import compare_tokenizers, from_byte_pairs, write_tokenizer
from gpt.errors import ConfigError
from gpt.tokenizer.byte_pair import BytePairTokenizer
from gpt.tokenizer.long_texts import LONG
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, tokenizer_files

SHARED = Path(__file__).parents[4] / "shared/data"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, corpus) -> Path:
    """A folder with a small encoder.json and vocab.bpe, and the tokenizer.json of the same vocabulary."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    pytest.importorskip("tiktoken", reason="the extra 'data' is not installed")
    folder = tmp_path_factory.mktemp("pair")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(corpus, trainer)
    model.add_special_tokens(["<|endoftext|>"])
    model.save(str(folder / "hf-tokenizer.json"))
    saved = json.loads((folder / "hf-tokenizer.json").read_text())["model"]
    (folder / "encoder.json").write_text(json.dumps(saved["vocab"] | {"<|endoftext|>": len(saved["vocab"])}))
    merges = "".join(f"{first} {second}\n" for first, second in saved["merges"])
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    return folder


def random_texts(n: int) -> list[str]:
    """Random characters of all of Unicode and of its first planes, white space, and suffixes that GPT-2 splits off."""
    rng = random.Random(3)
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    odd = [
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\x85",
        "'s",
        "'ll",
        "'S",
        "\u0301",
        "1",
        "a",
        "Ж",
        "字",
    ]
    kinds = (everything, everything[:0x3000], odd, odd)
    return ["".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(30))) for _ in range(n)]


def test_long_texts_have_the_ids_of_tiktoken(pair):
    """A long text is encoded in parts; tiktoken encodes it whole."""
    tokenizer = load_tokenizer(pair / "vocab.bpe")
    rng = random.Random(4)
    words = [*random_texts(300), "don't", "we'll", "''ll", "x" * 50, "!" * 50, " " * 50, "\n\t" * 9, "ab12", "12" * 20]
    texts = ["".join(rng.choices(words, k=12_000)) for _ in range(3)]
    texts += [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz'", k=300_000)),  # a word that is cut between its letters
        *("a" + blank * 140_000 + rest for blank in " \n\u3000" for rest in ("", "b", " \nb", ".'ll")),
    ]
    for text in texts:
        assert len(text) > LONG
        assert tokenizer.encode(text) == tokenizer._model.encode_ordinary(text)
        assert tokenizer.encode_arrays([text])[0].tolist() == tokenizer.encode(text)


def test_a_million_blanks_before_a_word_are_encoded(pair):
    """tiktoken fails here: its regular expression would go back by a million characters."""
    tokenizer = load_tokenizer(pair / "vocab.bpe")
    text = "a" + " " * 1_000_002 + "b"
    with pytest.raises(ValueError, match="stack"):
        tokenizer._model.encode_to_numpy(text, disallowed_special=())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_arrays([text])[0].tolist() == ids


def same_as_hugging_face(ours, theirs, texts):
    assert (ours.vocab_size, ours.end_of_document_id) == (theirs.vocab_size, theirs.end_of_document_id)
    for text, ids, their_ids in zip(texts, ours.encode_arrays(texts), theirs.encode_batch(texts), strict=True):
        assert ids.tolist() == ours.encode(text) == their_ids, text
        assert ours.decode(their_ids) == text
        assert ours.end_of_document_id not in their_ids, "a page must not end its own document"


def test_byte_pairs_give_the_ids_of_hugging_face(pair, corpus, awkward):
    ours, theirs = load_tokenizer(pair / "vocab.bpe"), load_tokenizer(pair / "hf-tokenizer.json")
    assert isinstance(ours, Tokenizer)
    assert isinstance(ours, BytePairTokenizer)
    same_as_hugging_face(ours, theirs, [*awkward, *corpus[:4], *random_texts(1000)])
    assert ours.decode([ours.end_of_document_id, *ours.encode("a"), ours.end_of_document_id]) == "a"
    broken = ["a\ud800b", "\ud83c\udf89"]
    assert [ours.decode(ids) for ids in ours.encode_batch(broken)] == ["a\ufffdb", "🎉"]
    assert [ids.tolist() for ids in ours.encode_arrays(broken)] == ours.encode_batch(broken)
    with pytest.raises(ConfigError, match=r"token id 361 is outside the 361 pieces of vocab\.bpe"):
        ours.decode([361])


def test_byte_pairs_are_converted_to_an_equal_tokenizer_json(pair):
    ours, theirs = load_tokenizer(pair / "vocab.bpe"), json.loads((pair / "hf-tokenizer.json").read_text())
    converted = json.loads(from_byte_pairs(ours).to_str())
    assert converted["model"]["merges"] == theirs["model"]["merges"]
    assert {"<|endoftext|>": 360, **theirs["model"]["vocab"]} == converted["model"]["vocab"]
    write_tokenizer(pair / "encoder.json", pair, tokenizer=ours, n_ctx=64)
    try:
        assert compare_tokenizers(pair, ours) > 10
    finally:
        (pair / "tokenizer.json").unlink()


def test_a_pair_is_found_by_either_file_and_by_its_folder(pair, tmp_path, model):
    first = load_tokenizer(pair / "vocab.bpe")
    for i, names in enumerate((("x-encoder.json", "x-vocab.bpe"), ("vocab.json", "merges.txt"))):
        folder = tmp_path / str(i)
        folder.mkdir()
        for source, name in zip(("encoder.json", "vocab.bpe"), names, strict=True):
            shutil.copy(pair / source, folder / name)
        (folder / "corpus.json").write_text("{}")
        for path in (folder, *(folder / name for name in names)):
            assert tokenizer_files(path) == tuple(folder / name for name in names)
            assert load_tokenizer(path).fingerprint == first.fingerprint, (
                "the fingerprint depends on contents, not on names"
            )
    shutil.copy(model, folder / "t.model")
    with pytest.raises(
        ConfigError, match=r"must contain exactly one tokenizer, but this one has merges\.txt, t\.model. Name one"
    ):
        load_tokenizer(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(ConfigError, match=r"vocab\.json: no such tokenizer file next to merges\.txt"):
        load_tokenizer(folder / "merges.txt")
    with pytest.raises(ConfigError, match="this one has none"):
        load_tokenizer(tmp_path)
    text = (tmp_path / "0/x-encoder.json").read_text()
    (tmp_path / "0/x-encoder.json").write_text(text + " ")
    assert load_tokenizer(tmp_path / "0").fingerprint != first.fingerprint, "the fingerprint depends on both files"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder.json", lambda t: t.replace('"a": ', '"a": 1'), r"'a' has id \d+, but number 64 in vocab\.bpe"),
        (
            "encoder.json",
            lambda t: t.replace("<|endoftext|>", "<|end|>"),
            r"must contain only <\|endoftext\|> with id 360",
        ),
        ("encoder.json", lambda t: t[:-1] + ', "extra": 361}', r"but it has .*'extra': 361"),
        ("encoder.json", lambda t: "[]", "not an encoder.json"),
        ("encoder.json", lambda t: t[:-1], "not a byte-pair vocabulary"),
        ("vocab.bpe", lambda t: t + "a b c\n", r"line \d+ is not a merge"),
        ("vocab.bpe", lambda t: t + "z z\n", r"'zz' has id None, but number 360"),
        (
            "vocab.bpe",
            lambda t: "\n".join(t.split("\n")[:1] + t.split("\n")[2:]),
            "the two files do not belong together",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(pair, tmp_path, name, change, message):
    for file in ("encoder.json", "vocab.bpe"):
        text = (pair / file).read_text(encoding="utf-8")
        (tmp_path / file).write_text(change(text) if file == name else text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_tokenizer(tmp_path / "vocab.bpe")


def test_a_rank_file_of_another_vocabulary_is_refused(tmp_path):
    (tmp_path / "x.tiktoken").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(ConfigError, match="does not have the ranks of r50k_base or p50k_base"):
        load_tokenizer(tmp_path / "x.tiktoken")
    (tmp_path / "x.tiktoken").write_bytes(b"IQ== 0\nIg= 1\n")
    with pytest.raises(ConfigError, match="line 2 is not a base64 token and its rank"):
        load_tokenizer(tmp_path / "x.tiktoken")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    pytest.importorskip("tiktoken", reason="the extra 'data' is not installed")
    if not (SHARED / "tokenizer").exists():
        pytest.skip("../shared/data is absent")
    return load_tokenizer(SHARED / "tokenizer/gpt2-vocab.bpe")


def test_gpt2s_own_files_give_the_ids_of_hugging_face(gpt2):
    """On real texts in 300 languages and on random Unicode."""
    pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    texts = random_texts(2000)
    with zipfile.ZipFile(SHARED / "text/nltk-udhr2.zip") as files:
        texts += [files.read(name).decode("utf-8", "replace")[:1500] for name in files.namelist()]
    texts += (SHARED / "text/wikitext2-test.txt").read_text()[:100_000].split("\n \n")
    same_as_hugging_face(gpt2, load_tokenizer(SHARED / "tokenizer/gpt2-tokenizer.json"), texts)
    assert gpt2.encode("Hello world") == [15496, 995]


def test_openais_rank_files_are_read(gpt2, tmp_path):
    """Rank files written from GPT-2's files equal OpenAI's byte for byte: their digests are known."""
    ranks = sorted(gpt2.ranks.items(), key=lambda item: item[1])
    spaces = [(b" " * (n + 2), 50_257 + n) for n in range(24)]
    for name, tokens, vocab_size in (("r50k", ranks, 50_257), ("p50k", ranks + spaces, 50_281)):
        path = tmp_path / f"{name}_base.tiktoken"
        path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in tokens))
        tokenizer = load_tokenizer(path)
        assert (tokenizer.vocab_size, tokenizer.end_of_document_id) == (vocab_size, 50_256)
        assert tokenizer.encode("def f():\n    <|endoftext|>")[:2] == gpt2.encode("def f")
        assert len(tokenizer.encode(" " * 8 + "x")) == (8 if name == "r50k" else 2)
    assert tokenizer.encode("Hello world") == [15496, 995]
    same = json.loads(from_byte_pairs(gpt2).to_str())["model"]["merges"]
    assert [" ".join(merge) for merge in same] == (SHARED / "tokenizer/gpt2-vocab.bpe").read_text().split("\n")[1:-1]
