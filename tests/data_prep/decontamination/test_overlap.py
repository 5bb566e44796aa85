"""Evaluation sets are read whole or not at all, and an example is dirty exactly when the paper says so."""

import gzip
import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.decontamination.evaluation_sets import EvaluationSet, find_set_files, read_examples
from data_prep.decontamination.known_grams import LengthRule, gram_length
from data_prep.decontamination.ngrams import count_words
from data_prep.decontamination.overlap import AnalysisConfig, OverlapConfig, OverlapOutput, TrainingConfig, analyse
from data_prep.execution.progress import ProgressBars
from data_prep.reports.table import show_overlap
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def texts(name: str, path: Path, **settings) -> list[tuple[str, str]]:
    one = EvaluationSet(name, (str(path),), **settings)
    (files,) = find_set_files((one,), where="sets")
    return [(example.id, example.text) for example in read_examples(one, files)]


RECORDS = [
    {"id": "q1", "question": "Who?", "choices": {"text": ["a b", "c"], "label": [1, 2]}, "answer": 7},
    {"id": 2, "question": "Why?", "choices": {"text": ["d"], "label": [1]}, "answer": None},
]


def test_kinds_of_files_give_the_same_examples(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    typed = [{**record, "id": str(record["id"])} for record in RECORDS]
    table = arrow.Table.from_pylist(typed)
    parquet.write_table(table, tmp_path / "a.parquet")
    with arrow.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:  # as Hugging Face's cache does
        stream.write_table(table)
    asked = [("q1", "Who?\na b\nc\n7"), ("2", "Why?\nd")]
    for ending in ("jsonl", "jsonl.gz", "json", "parquet", "arrow"):
        path = tmp_path / f"a.{ending}"
        assert texts("s", path, fields=("question", "choices.text", "answer")) == asked, ending
        assert texts("s", path) == [("q1", "Who?\na b\nc"), ("2", "Why?\nd")], "every text but the id"
    (tmp_path / "b.txt").write_text("one\ntwo\n\nthree")
    assert texts("s", tmp_path / "b.txt") == [("", "one\ntwo\n\nthree")]
    assert texts("s", tmp_path / "b.txt", text_separator="\n\n") == [("", "one\ntwo"), ("", "three")]
    assert [e.index for e in read_examples(EvaluationSet("s", ("x",)), [tmp_path / "a.jsonl"] * 2)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl, record 2 is not a JSON object"),
        ("a.jsonl", b'{"other": "x"}\n', r"record 1 has none of the fields text \(it has: other\)"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 500, mtime=0)[:-20], r"a\.jsonl\.gz is damaged or cut off"),
        ("a.parquet", b"no parquet", r"a\.parquet is not readable"),
        ("a.arrow", b"no arrow", r"a\.arrow is not readable"),
        ("a.pickle", b"", r"sets 's': cannot read '.*a\.pickle'; give files that end in \.jsonl"),
    ],
)
def test_a_record_that_cannot_be_read_stops_the_run(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        texts("s", tmp_path / name, fields=("text",))


def test_n_is_that_of_table_c1():
    """Table C.1 of the paper: N of the five word-scrambling sets; only with punctuation between words it is 7."""
    rule = LengthRule(8, 13)
    assert gram_length([5] * 100, rule, synthetic=False) == 8
    assert gram_length([5] * 100, rule, synthetic=True) == 5
    assert gram_length([40] * 100, rule, synthetic=True) == 13
    assert gram_length([9, *[30] * 9, *[10] * 90], rule, synthetic=False) == 10
    assert gram_length([], rule, synthetic=False) == 13
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    published = {
        "random_insertion_in_word": 7,
        "cycle_letters_in_word": 2,
        "mid_word_1_anagrams": 2,
        "mid_word_2_anagrams": 2,
        "reversed_words": 2,
    }
    for name, n in published.items():
        found = texts(name, SHARED / f"gpt3/{name}.jsonl.gz", fields=("context", "completion"))
        assert len(found) == 10_000
        assert gram_length([count_words(text) for _, text in found[::5]], rule, synthetic=True) == n


def run(folder: Path, sets, training: TrainingConfig):
    config = OverlapConfig(training, OverlapOutput(folder / "out"), AnalysisConfig(sets=tuple(sets)))
    summary = analyse(config, n_workers=1, progress=ProgressBars(Console(quiet=True)))
    assert summary == json.loads((folder / "out/overlap.json").read_text())
    lines = [json.loads(line) for line in (folder / "out/examples.jsonl").read_text().splitlines()]
    show_overlap(summary, console := Console(record=True, file=io.StringIO(), width=120))
    return summary, lines, console


def test_dirty_is_what_shares_a_gram(tmp_path):
    """Against sets of tuples of words: three sets with N of 13, 8 and, as synthetic, 3; text files of two kinds."""
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "bdfglm" for b in "aei"]
    text = lambda n: " ".join(rng.choice(vocabulary) for _ in range(n))  # noqa: E731
    training = [text(300) for _ in range(8)]
    sets, expected = [], {}
    for name, sizes, n in (("long", (13, 60), 13), ("short", (6, 12), 8), ("made up", (3, 9), 3)):
        examples = []
        for _ in range(80):
            words = text(rng.randrange(*sizes)).split()
            if rng.random() < 0.5:  # a part of a training text, sometimes a word too short
                start = rng.randrange(200)
                words = rng.choice(training).split()[start : start + rng.choice([n - 1, n, n + 1])] + words[n:]
            examples.append(", ".join(words).title())
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"t": t, "id": 5}) + "\n" for t in examples))
        sets.append(EvaluationSet(name, (f"{tmp_path}/{name}.jsonl",), synthetic=name == "made up"))
        grams = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in map(split, examples)]
        known = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in map(split, training)]
        for index, own in enumerate(grams):
            hits = [sum(gram in one for one in known) for gram in own]
            expected[name, index] = (len(own), sum(h > 0 for h in hits), max(hits, default=0))
        lengths = sorted(len(split(e)) for e in examples)
        assert min(max(lengths[3], 1 if name == "made up" else 8), 13) == n
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in training[:5]))
    (tmp_path / "b.txt").write_text("\n\n".join(training[5:]))
    config = TrainingConfig(paths=(f"{tmp_path}/a.jsonl", f"{tmp_path}/b.txt"), text_separator="\n\n")
    summary, lines, console = run(tmp_path, sets, config)
    found = {(line["set"], line["index"]): (line["grams"], line["hits"], line["documents"]) for line in lines}
    assert found == expected
    assert all(line["dirty"] == (line["hits"] > 0) and line["id"] == "5" for line in lines)
    assert [about["n_words"] for about in summary["sets"]] == [13, 8, 3]
    for about in summary["sets"]:
        mine = [line for line in lines if line["set"] == about["name"]]
        assert about["dirty"] == sum(line["dirty"] for line in mine) > 20
        assert about["clean"] == 80 - about["dirty"] > 5
        assert about["too_short"] == sum(line["grams"] == 0 for line in mine)
    assert summary["training_documents"] == 8
    assert "made up" in console.export_text()


def split(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()


def test_training_text_that_cannot_be_read_stops_the_run(tmp_path):
    (tmp_path / "set.txt").write_text("one two three four five six seven eight")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    sets = [EvaluationSet("s", (f"{tmp_path}/set.txt",))]
    with pytest.raises(ConfigError, match=r"training\.paths: .*a\.jsonl, record 2, cannot be read \(malformed\)"):
        run(tmp_path, sets, TrainingConfig(paths=(f"{tmp_path}/a.jsonl",)))


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="training: give corpora"):
        TrainingConfig()
    with pytest.raises(ConfigError, match=r"overlap\.min_words = 14"):
        AnalysisConfig(sets=(EvaluationSet("s", ("x",)),), min_words=14)
    (tmp_path / "x.txt").write_text("x")
    twice = (EvaluationSet("s", (f"{tmp_path}/x.txt",)), EvaluationSet("s", (f"{tmp_path}/x.txt",)))
    with pytest.raises(ConfigError, match="two sets are named 's'"):
        find_set_files(twice, where="overlap.sets")
    with pytest.raises(ConfigError, match=r"overlap\.sets 't': no file matches"):
        find_set_files((EvaluationSet("t", (f"{tmp_path}/none*.txt",)),), where="overlap.sets")
