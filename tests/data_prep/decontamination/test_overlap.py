"""An example is dirty exactly if one of its grams occurs in the training data."""

import io
import json
import random
from functools import partial
from pathlib import Path

import pytest
from in_process import InThisProcess
from rich.console import Console

from data_prep.decontamination import known_grams, overlap
from data_prep.decontamination.evaluation_sets import EvaluationSet
from data_prep.decontamination.ngrams import find_in_each
from data_prep.decontamination.overlap import AnalysisConfig, OverlapConfig, OverlapOutput, TrainingConfig, analyse
from data_prep.execution.progress import ProgressBars
from data_prep.execution.workspace import Workspace
from data_prep.reports.table import show_overlap
from gpt.errors import ConfigError

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def run(folder: Path, sets, training: TrainingConfig):
    config = OverlapConfig(training, OverlapOutput(folder / "out"), AnalysisConfig(sets=tuple(sets)))
    summary = analyse(config, n_workers=1, progress=ProgressBars(Console(quiet=True)))
    assert summary == json.loads((folder / "out/overlap.json").read_text())
    lines = [json.loads(line) for line in (folder / "out/examples.jsonl").read_text().splitlines()]
    show_overlap(summary, console := Console(record=True, file=io.StringIO(), width=120))
    return summary, lines, console


def test_examples_that_share_a_gram_are_dirty(tmp_path):
    """Compare with sets of word tuples: three sets with N of 13, 8 and 3 (synthetic), and two kinds of text files."""
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "bdfglm" for b in "aei"]
    text = lambda n: " ".join(rng.choice(vocabulary) for _ in range(n))  # noqa: E731
    training = [text(300) for _ in range(8)]
    sets, expected = [], {}
    for name, sizes, n in (("long", (13, 60), 13), ("short", (6, 12), 8), ("made up", (3, 9), 3)):
        examples = []
        for _ in range(80):
            words = text(rng.randrange(*sizes)).split()
            if rng.random() < 0.5:  # part of a training text, sometimes one word too short
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
        of_set = [line for line in lines if line["set"] == about["name"]]
        assert about["dirty"] == sum(line["dirty"] for line in of_set) > 20
        assert about["clean"] == 80 - about["dirty"] > 5
        assert about["too_short"] == sum(line["grams"] == 0 for line in of_set)
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


def test_a_document_that_cannot_be_searched_stops_the_run(tmp_path, monkeypatch):
    """An example that only this document has would count as clean. The next run searches the document again."""

    def failing(texts, *others):
        if any("nine" in text for text in texts):
            raise ZeroDivisionError("a fault of the search")
        return find_in_each(texts, *others)

    monkeypatch.setattr(overlap, "Workspace", partial(Workspace, executor=InThisProcess))
    (tmp_path / "set.txt").write_text("one two three four five six seven eight nine")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "one two three four five six seven eight nine"}\n')
    sets, training = [EvaluationSet("s", (f"{tmp_path}/set.txt",))], TrainingConfig(paths=(f"{tmp_path}/a.jsonl",))
    with monkeypatch.context() as fault:
        fault.setattr(known_grams, "find_in_each", failing)
        with pytest.raises(ConfigError, match=r"failed on 1 of about 2 documents, and none may fail.*ZeroDivision"):
            run(tmp_path, sets, training)
    summary, _, _ = run(tmp_path, sets, training)
    assert (summary["training_documents"], summary["sets"][0]["dirty"]) == (2, 1)


def test_invalid_settings_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.corpora and training\.paths are missing"):
        TrainingConfig()
    with pytest.raises(ConfigError, match=r"overlap\.min_words = 14"):
        AnalysisConfig(sets=(EvaluationSet("s", ("x",)),), min_words=14)
