"""The text cut out of a corpus is that of appendix C of the GPT-3 paper, to the character."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from paper_grams import grams, words

from data_prep.decontamination import ngrams
from data_prep.decontamination.decontaminate import DecontaminateConfig, GramChoiceTask, choose_grams, cut_documents
from data_prep.decontamination.evaluation_sets import EvaluationSet
from data_prep.decontamination.known_grams import IndexTask, LengthRule, SearchTask, index_examples, search_shard
from data_prep.documents.shards import Document, parent_id, read_shard, write_shard
from data_prep.documents.traces import read_trace
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def reference(documents, examples, config):
    """By brute force, return (the remaining documents, the drop reasons of the others)."""
    n, window = config.ngram_words, config.window_characters
    wanted = {gram for text in examples for gram, _, _ in grams(text, n)}
    holders = Counter(gram for d in documents for gram in {g for g, _, _ in grams(d.text, n)} & wanted)
    kept, why = [], {}
    for document in documents:
        removed = [False] * len(document.text)
        for gram, start, end in grams(document.text, n):
            if 0 < holders[gram] <= config.max_documents:
                for i in range(max(0, start - window), min(len(removed), end + window)):
                    removed[i] = True
        if not any(removed):
            kept.append((document.id, document.text))
            continue
        pieces, i = [], 0
        while i < len(removed):
            if removed[i]:
                i += 1
                continue
            start = i
            while i < len(removed) and not removed[i]:
                i += 1
            pieces.append(document.text[start:i])
        long = [(f"{document.id}#piece-{k}", p) for k, p in enumerate(pieces) if len(p) >= config.min_piece_characters]
        if len(pieces) > config.max_pieces:
            why[document.id] = "too_many_pieces"
        elif not long:
            why[document.id] = "no_long_piece"
        else:
            kept += long
    return kept, why


def clean(folder, documents, examples, config, *, n_shards=1):
    """Run our stages on `n_shards` shards; return (remaining documents, drop reasons, facts, counts, metadata)."""
    folder.mkdir(exist_ok=True)
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps({"id": f"e{i}", "text": text}) + "\n" for i, text in enumerate(examples)))
    index = (folder / "numbers.npy", folder / "grams.npy", folder / "examples.zst")
    rule = LengthRule(config.ngram_words, config.ngram_words)
    about = index_examples(IndexTask((EvaluationSet("set", (str(file),)),), (1,), rule), (file,), index).facts
    shards, hits, rows = ([folder / f"{n}.{kind}" for n in range(n_shards)] for kind in ("zst", "hits", "rows"))
    for n, shard in enumerate(shards):
        with write_shard(shard) as write:
            for document in documents[n::n_shards]:
                write(document)
        search_shard(SearchTask((config.ngram_words,)), (shard, index[0]), (hits[n],))
    facts = choose_grams(GramChoiceTask(("set",), config.max_documents), (*index, *hits), tuple(rows)).facts
    facts["index"] = about["sets"][0]
    left, why, counts, metadata = [], {}, [], {}
    for shard, row in zip(shards, rows, strict=True):
        result = cut_documents(config, (shard, row), (folder / "out.zst", folder / "trace.zst"))
        out = list(read_shard(folder / "out.zst"))
        left += [(d.id, d.text) for d in out]
        metadata |= {d.id: d.metadata for d in out}
        why |= {drop.id: drop.reason for drop in read_trace(folder / "trace.zst")}
        counts.append(result.counts)
        assert result.counts[0].bytes_out == result.counts[1].bytes_in
        assert result.counts[1].documents_out == len(out)
        assert result.counts[1].bytes_out == sum(d.n_bytes for d in out)
    return left, why, facts, counts, metadata


ALPHABET = ["alpha", "Beta", "ça", "Ωσ", "don't", "x-1", "İz", "na\u00adïve", "कि", "7", "b\u200dc", "日本", "ΟΔΟΣ"]


BETWEEN = [" ", "  ", "\n", " - ", ", ", "… ", " “", "” ", "\u00a0", "—", " \u2060 ", "\t", " ❤️ "]


def random_text(rng: random.Random, n: int) -> str:
    return "".join(rng.choice(ALPHABET) + rng.choice(BETWEEN) for _ in range(n))


def test_results_match_the_paper_in_plain_python(tmp_path, monkeypatch):
    """200 small corpora close to every limit; most grams cross a block of 24 characters."""
    monkeypatch.setattr(ngrams, "BLOCK", 24)
    seen = Counter()
    for seed in range(200):
        rng = random.Random(seed)
        config = DecontaminateConfig(
            ngram_words=rng.choice([1, 2, 3, 5]),
            window_characters=rng.choice([0, 1, 7, 20]),
            min_piece_characters=rng.choice([1, 10, 30]),
            max_pieces=rng.choice([1, 2, 5]),
            max_documents=rng.choice([1, 2, 4]),
        )
        examples = [random_text(rng, rng.randrange(0, 9)) for _ in range(rng.randrange(1, 4))]
        texts = [random_text(rng, rng.randrange(rng.choice([8, 60]))) for _ in range(6)]
        for i in range(0, 6, 2):
            planted = rng.choice(examples).upper().replace("-", "  -  ")
            texts[i] = texts[i][: len(texts[i]) // 2] + " " + planted + " " + texts[i]
        documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
        left, why, _, counts, _ = clean(
            tmp_path / str(seed), documents, examples, config, n_shards=rng.choice([1, 1, 3])
        )
        expected, expected_why = reference(documents, examples, config)
        assert sorted(left) == sorted(expected), f"seed {seed}"
        assert {name: reason for name, reason in why.items() if reason != "short"} == expected_why, f"seed {seed}"
        assert sum(row[0].documents_in for row in counts) == 6
        seen.update(why.values())
        seen.update(["cut"] * sum("#" in name for name, _ in left))
    assert min(seen[x] for x in ("cut", "short", "too_many_pieces", "no_long_piece")) > 20, seen


PAPER = DecontaminateConfig()


def passage(rng: random.Random, n: int) -> str:
    return " ".join(f"{rng.choice('bdfgklmnprst')}{rng.choice('aeiou')}{rng.randrange(10**6)}" for _ in range(n))


def test_cases_that_other_programs_get_wrong(tmp_path):
    """EleutherAI's janitor fails on these cases, and GPT-3's own filter failed on long documents."""
    rng = random.Random(1)
    example = passage(rng, 40)
    shared = " ".join(example.split()[5:28])  # 23 words: 11 grams of 13
    before, after = passage(rng, 2000) + " ", " " + passage(rng, 1977)
    long = Document("long", before + shared + after, {"url": "u"})
    dashed = Document("dashed", before + shared.replace(" ", " - ", 7).upper().replace(" ", "\n") + after)
    book = Document("book", passage(rng, 400_000) + " " + shared)
    twelve = Document("twelve", before + " ".join(example.split()[:12]) + after)

    left, why, facts, _, metadata = clean(tmp_path, [long, twelve], ["too few words", "?!"], PAPER)
    assert left == [(d.id, d.text) for d in (long, twelve)], "without grams nothing is cut"
    assert (facts["index"]["too_short"], facts["documents_hit"], why) == (2, 0, {})

    left, why, facts, counts, metadata = clean(tmp_path, [long, dashed, book, twelve], [example], PAPER)
    found = dict(left)
    assert not why
    assert found["long#piece-0"] == before[:-200]
    assert found["long#piece-1"] == after[200:]
    assert metadata["long#piece-1"] == {"url": "u", "piece_start": len(before) + len(shared) + 200}
    assert found["dashed#piece-0"] == before[:-200]
    assert found["dashed#piece-1"] == after[200:], "a dash between words does not hide a gram"
    assert found["book#piece-0"] == book.text[: -len(shared) - 200]
    assert found["twelve"] == twelve.text, "twelve words are not a 13-gram"
    assert len(found) == 6
    assert facts["sets"] == [
        {"name": "set", "examples_hit": 1, "grams_hit": 11, "grams_ignored": 0, "documents_hit": 3}
    ]
    names = shared.split()
    cut_grams = {(row["documents"], row["gram"]) for row in facts["grams_cut"]}
    assert cut_grams == {(3, " ".join(names[i : i + 13])) for i in range(11)}
    assert (counts[0][0].documents_in, counts[0][0].documents_out, counts[0][1].documents_out) == (4, 4, 6)


def test_the_limits_of_the_paper(tmp_path):
    rng = random.Random(2)
    examples = [passage(rng, 13) for _ in range(12)]

    def filler(n: int) -> str:
        """Return exactly n characters, with a space at both ends."""
        return f" {('ab ' * n)[: n - 2]} "

    def holding(n: int) -> str:
        """Return a document with n examples far apart, which has n + 1 pieces."""
        return filler(900) + "".join(examples[i] + filler(900) for i in range(n))

    documents = [
        Document("ten pieces", holding(9)),
        Document("eleven pieces", holding(10)),
        Document("199 and 200", filler(399) + examples[11] + filler(400)),
        Document("nothing", filler(399) + examples[11] + filler(399)),
        Document("touching", filler(500) + examples[11] + filler(400) + examples[11] + filler(500)),
        Document("a character between", filler(500) + examples[11] + filler(401) + examples[11] + filler(500)),
        Document("short but clean", "Nothing here."),
    ]
    left, why, _, counts, _ = clean(tmp_path, documents, examples, PAPER)
    sizes = Counter(parent_id(name) for name, _ in left)
    assert sizes == {"ten pieces": 10, "199 and 200": 1, "touching": 2, "a character between": 2, "short but clean": 1}
    assert why == {
        "eleven pieces": "too_many_pieces",
        "nothing": "no_long_piece",
        "199 and 200#piece-0": "short",
        "a character between#piece-1": "short",
    }
    assert [len(text) for name, text in left if name.startswith("199")] == [200]
    assert counts[0][0].dropped == {"no_long_piece": 1, "too_many_pieces": 1}
    assert counts[0][1].dropped == {"short": 2}

    # A gram in more than 10 documents is ignored, however many shards there are.
    for n_documents, n_left in ((10, 20), (11, 11)):
        documents = [
            Document(f"{i}", filler(500) + f"{examples[0]} {examples[0]}" + filler(500)) for i in range(n_documents)
        ]
        for n_shards in (1, 4):
            left, _, facts, _, _ = clean(tmp_path, documents, examples, PAPER, n_shards=n_shards)
            assert len(left) == n_left
            assert (facts["sets"][0]["grams_hit"] > 0) == (n_documents == 10)
            listed = facts["grams_cut" if n_documents == 10 else "grams_ignored"]
            assert examples[0] in [row["gram"] for row in listed]


def test_shards_and_order_do_not_matter(tmp_path):
    rng = random.Random(3)
    examples = [passage(rng, 30) for _ in range(20)]
    documents = []
    for i in range(60):
        parts = [passage(rng, rng.randrange(20, 120)) for _ in range(rng.randrange(1, 6))]
        planted = rng.choice(examples if i % 2 else examples[:2])
        documents.append(Document(f"d{i}", f" {planted} ".join(parts)))
    results = []
    for n_shards in (1, 2, 5):
        rng.shuffle(documents)
        left, why, facts, counts, _ = clean(tmp_path, documents, examples, PAPER, n_shards=n_shards)
        dropped = sum((Counter(row[0].dropped) for row in counts), Counter())
        results.append((sorted(left), why, facts, dropped))
    assert results[0] == results[1] == results[2]
    assert results[0][2]["grams_ignored"]
    assert results[0][2]["grams_cut"]


def test_real_passages_are_cut_where_they_were_planted(tmp_path):
    """WikiText-2 test paragraphs and a task of GPT-3 in Shakespeare's works, as one document of 1.1 MB."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    wiki = (SHARED / "text/wikitext2-test.txt").read_text(encoding="utf-8")
    lines = [(line, words(line)) for line in wiki.split("\n") if line.count(" ") > 60][:160]
    examples = [line[found[0][1] : found[-1][2]] for line, found in lines]  # from the first word to the last
    for task in ("sum_of_digits", "two_digit_addition"):  # 13 words, with the answer, and 8
        rows = map(json.loads, (SHARED / f"gpt3/{task}.jsonl").read_text().splitlines()[:500])
        examples += [(row["context"] + row["completion"]).strip() for row in rows]
    play = (SHARED / "text/tinyshakespeare.txt").read_text(encoding="utf-8")
    planted = {1: 0, 200_000: 40, 500_000: 160 + 77, 700_000: 120, len(play) - 150: 159}  # position: example
    text, expected = "", [[0, 0]]
    for before, (position, number) in zip([0, *planted], planted.items(), strict=False):
        text += play[before:position] + "\n"
        expected[-1][1] = len(text) - 200
        text += examples[number]
        expected.append([len(text) + 200, 0])
        text += "\n" + examples[160 + 500 + number] + "\n"  # 8 words are not a 13-gram
    text += play[position:]
    expected[-1][1] = len(text)
    left, why, facts, _, _ = clean(tmp_path, [Document("play", text), Document("untouched", play)], examples, PAPER)
    assert not why
    assert left[-1] == ("untouched", play)
    assert [piece for _, piece in left[:-1]] == [text[start:end] for start, end in expected[1:5]], (
        "the first example leaves nothing before it, the last nothing after it"
    )
    assert facts["index"]["too_short"] == 500
    cut = {gram for number in planted.values() for gram, _, _ in grams(examples[number], 13)}
    n_hit = sum(not cut.isdisjoint(gram for gram, _, _ in grams(example, 13)) for example in examples)
    assert facts["sets"][0]["examples_hit"] == n_hit >= 5, "two questions may be equal"


def test_invalid_settings_are_errors():
    with pytest.raises(ConfigError, match=r"decontaminate\.max_pieces = 0 is invalid: must be at least 1"):
        DecontaminateConfig(max_pieces=0)
    with pytest.raises(ConfigError, match=r"decontaminate\.window_characters = -1 is invalid: must be at least 0"):
        DecontaminateConfig(window_characters=-1)
