"""A recipe with labels gives token files with the stream `labels`, and counts everything that it leaves out.

It runs the stages of data_prep.labels.read and data_prep.labels.tokens.
"""

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from in_process import InThisProcess
from rich.console import Console

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.corpus.verify import verify
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.execution.progress import ProgressBars
from data_prep.inputs.config import InputConfig
from data_prep.labels.config import LabelsConfig
from data_prep.pipeline import prepare
from data_prep.plan import plan
from data_prep.recipe import OutputConfig, PrepareConfig
from data_prep.reports.dropped import dropped_documents
from data_prep.reports.explain import explain_file
from data_prep.reports.table import show
from gpt.errors import ConfigError
from gpt.token_files.corpus import check_corpus
from gpt.token_files.files import TokenFile
from gpt.token_files.label_states import decode_states
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

CATEGORIES = {"A": "", "B": "A", "C": ""}
MARKS = {0: "?", 1: "-", 2: "+"}


def config(folder: Path, paths, tokenizer: Path, categories=CATEGORIES, **labels) -> PrepareConfig:
    return PrepareConfig(
        InputConfig(tuple(map(str, paths))),
        OutputConfig(folder / "corpus", folder / "work", validation_fraction=0.3, seed=1),
        TokenizerConfig(tokenizer),
        dedup_minhash=FuzzyConfig(enabled=False),
        labels=LabelsConfig("t", categories=categories, version="t 1", severities={"B": 2}, digest="d", **labels),
    )


def run(recipe: PrepareConfig):
    screen = io.StringIO()
    console = Console(file=screen, width=300)
    prepared = prepare(recipe, n_workers=1, progress=ProgressBars(console), executor=InThisProcess)
    show(prepared, recipe.output.work_folder, console)
    return prepared, screen.getvalue()


def write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def found_in(folder: Path, tokenizer: Path, n_categories: int = 3) -> dict[str, tuple[str, str]]:
    """Text: (split, marks of its labels), read from the token files."""
    texts, decode = {}, load_tokenizer(tokenizer).decode
    for split in ("train", "validation"):
        check_corpus(folder / split)
        check_corpus(folder / f"{split}_labels")
        tokens, labels = TokenFile(folder / split), TokenFile(folder / f"{split}_labels")
        starts = [*map(tokens.document_start, range(tokens.n_documents)), tokens.n_tokens]
        assert starts == [*map(labels.document_start, range(labels.n_documents)), labels.n_tokens]
        for start, stop in pairwise(starts):
            k = -(-n_categories // 10)
            values = labels.read(start, stop)
            assert not values[: len(values) - k].any()
            ids = tokens.read(start, stop)
            assert ids[-1] == load_tokenizer(tokenizer).end_of_document_id
            states = decode_states(values[::-1][:k], n_categories)
            texts[decode(ids[:-1].tolist())] = split, "".join(MARKS[state] for state in states.tolist())
    return texts


def dropped(prepared) -> dict[tuple[str, str], int]:
    return {(row.step, reason): n for row in prepared.counts for reason, n in row.dropped.items()}


def test_labels_go_with_their_texts(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    records = [{"text": f"text {n}", "labels": {"A": n % 2, "C": int(n % 3 == 0)}} for n in range(40)]
    records += [
        {"text": "child", "labels": {"B": 1}},  # its parent is positive too
        {"text": "top level", "A": "0", "B": None, "C": 0.7, "row": 3},
        {"text": "Two labellers", "labels": {"A": 0, "C": 0}, "labeller": "ana"},  # a later line replaces it
        {"text": "Two labellers", "labels": {"A": 1, "C": 1}, "labeller": "ana"},
        {"text": "Two labellers", "labels": {"A": 1, "C": 0}, "labeller": "bo"},
        {"text": "two  LABELLERS", "labels": {"A": 0}},  # another text, in the same split
        {"text": "wrong", "labels": {"A": 0, "B": 1}},
        {"text": "nothing known", "labels": {"A": None}},
        {"text": None, "labels": {"A": 1}},
        {"text": "outside", "labels": {"D": 1}},
        {"text": "value", "labels": {"A": "maybe"}},
        {"text": "version", "labels": {"A": 1}, "taxonomy": "t 2"},
        {"label": 1},
    ]
    source = write(tmp_path / "a.jsonl", records)
    with source.open("ab") as file:
        file.write(b'{"text": "\xff", "A": 1}\n')
    copies = write(tmp_path / "b.jsonl", records[:2])
    recipe = config(tmp_path, [source, copies], tokenizer)
    prepared, screen = run(recipe)
    assert dropped(prepared) == {
        ("read", "not_utf8"): 1,
        ("labels", "contradictory_labels"): 1,
        ("labels", "merged_line"): 2,
        ("labels", "no_label"): 1,
        ("labels", "no_text"): 1,
        ("labels", "quarantined"): 4,
        ("dedup_exact", "duplicate"): 2,
    }
    folder = recipe.output.corpus_folder
    texts = found_in(folder, tokenizer)
    assert len(texts) == 44
    for n in range(40):
        assert texts[f"text {n}"][1] == ("+" if n % 2 else "-") + "?" + ("+" if n % 3 == 0 else "-")
    assert texts["child"][1] == "++?"
    assert texts["top level"][1] == "-?+"
    assert texts["Two labellers"][1] == "+??"
    assert texts["two  LABELLERS"] == (texts["Two labellers"][0], "-??")
    about = json.loads((folder / "corpus.json").read_text())
    assert about["labels"] == {
        "taxonomy": "t 1",
        "digest": "d",
        "categories": ["A", "B", "C"],
        "parents": {"B": "A"},
        "severities": {"B": 2},
    }
    for split, name in (("training", "train"), ("validation", "validation")):
        for i, category in enumerate(CATEGORIES):
            marks = [marks[i] for own, marks in texts.values() if own == name]
            assert about["splits"][split]["labels"][category] == {
                "positive": marks.count("+"),
                "negative": marks.count("-"),
            }
    assert not verify(folder, n_threads=1).faults
    assert "labels: B: not both positive and negative labels in the training split" in screen
    examples = dropped_documents(recipe.output.work_folder).examples
    assert len(examples) > 5
    assert not any(example.text for example in examples), "offensive texts appear for a named step only"
    assert all(example.text for example in dropped_documents(recipe.output.work_folder, "dedup_exact").examples)
    page = (recipe.output.work_folder / "report.html").read_text()
    for text in texts:
        assert f">{text}<" not in page, "reports show no labelled text"
    assert "labels by category" in screen
    fates = explain_file(recipe.output.work_folder, source, recipe.input, labels=recipe.labels)
    assert sum(fate.dropped is not None for fate in fates) == 12
    assert plan(recipe).is_complete


def test_unlabelled_texts_are_kept_on_request(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    records = [{"text": f"text {n}", "labels": {"A": n % 2} if n < 20 else {}} for n in range(30)]
    source = write(tmp_path / "a.jsonl", records)
    recipe = config(tmp_path, [source], tokenizer, {"A": ""}, keep_unlabelled=True)
    prepared, _ = run(recipe)
    assert dropped(prepared) == {}
    texts = found_in(recipe.output.corpus_folder, tokenizer, 1)
    assert {texts[f"text {n}"][1] for n in range(20, 30)} == {"?"}


def test_long_texts_are_cut_and_keep_their_labels(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    records = [{"text": f"{n} " + "word " * (3 * n), "labels": {"A": n % 2}} for n in range(20)]
    recipe = config(tmp_path, [write(tmp_path / "a.jsonl", records)], tokenizer, {"A": ""}, max_tokens=16)
    _, screen = run(recipe)
    lengths = [np.diff(TokenFile(recipe.output.corpus_folder / s).document_starts()) for s in ("train", "validation")]
    assert np.concatenate(lengths).max() == 16
    cut = sum(len(load_tokenizer(tokenizer).encode(one["text"])) + 1 > 16 for one in records)
    assert f"labels: {cut} texts are longer than labels.max_tokens = 16, and are cut" in screen
    texts = found_in(recipe.output.corpus_folder, tokenizer, 1)
    assert {text.split()[0]: marks for text, (_, marks) in texts.items()} == {
        str(n): "+" if n % 2 else "-" for n in range(20)
    }


def test_thirty_seven_categories(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    categories = {f"c{i}": "" for i in range(37)}
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 3, (30, 37))
    wanted[:, 0] = np.arange(30) % 2 + 1
    values = {0: None, 1: 0, 2: 1}
    records = [
        {"text": f"text number {n}", "labels": {f"c{i}": values[state] for i, state in enumerate(row)}}
        for n, row in enumerate(wanted.tolist())
    ]
    records.append({"text": "a", "labels": {"c36": 1}})  # two tokens, and the labels need four
    recipe = config(tmp_path, [write(tmp_path / "a.jsonl", records)], tokenizer, categories)
    prepared, _ = run(recipe)
    assert dropped(prepared) == {("tokenize_labels", "fewer_tokens_than_labels"): 1}
    texts = found_in(recipe.output.corpus_folder, tokenizer, 37)
    for n, row in enumerate(wanted.tolist()):
        assert texts[f"text number {n}"][1] == "".join(MARKS[state] for state in row)


def test_one_class_only_is_refused(tmp_path, make_tokenizer):
    records = [{"text": f"text {n}", "labels": {"A": 1, "C": 0}} for n in range(20)]
    with pytest.raises(ConfigError, match="no category has both positive and negative labels"):
        run(config(tmp_path, [write(tmp_path / "a.jsonl", records)], make_tokenizer()))


@pytest.mark.parametrize(("records", "why"), [([], "no documents"), ([{"text": "a"}], "no_label 1")])
def test_texts_without_labels_lead_to_the_reader(tmp_path, make_tokenizer, records, why):
    with pytest.raises(ConfigError, match=f"{why}.* `triaxial moderate labels FILE --taxonomy FILE --output"):
        run(config(tmp_path, [write(tmp_path / "a.jsonl", records)], make_tokenizer()))


def test_a_file_of_another_taxonomy_stops_the_run(tmp_path, make_tokenizer):
    records = [{"text": f"secret {n}", "labels": {"X": 1}} for n in range(30)]
    with pytest.raises(ConfigError, match=r"stage 'labels' failed on 30 .*'X' is no category of t 1") as error:
        run(config(tmp_path, [write(tmp_path / "a.jsonl", records)], make_tokenizer()))
    assert "secret" not in str(error.value)


def test_csv_is_refused_before_any_stage(tmp_path, make_tokenizer):
    (tmp_path / "a.csv").write_text("text,A\nx,1\n")
    with pytest.raises(
        ConfigError, match=r"a\.csv' is invalid with \[labels\]\. Make JSON lines of it with `triaxial mod"
    ):
        run(config(tmp_path, [tmp_path / "a.csv"], make_tokenizer()))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"is invalid with \[labels\]: must be JSON lines or Parquet"):
        run(config(tmp_path, [tmp_path / "a.txt"], make_tokenizer()))
