"""Print the tables at the end of a run, and its page."""

import io
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from data_prep.documents.counts import Counts
from data_prep.documents.losses import FileLoss
from data_prep.documents.traces import Drop
from data_prep.pipeline import PreparedCorpus
from data_prep.reports.dropped import DropExample
from data_prep.reports.page import report_page
from data_prep.reports.table import counts_table, in_bytes, show, show_decontamination, show_losses, show_overlap

COUNTS = [
    Counts("read", 12, 12, 2400, 2400),
    Counts("extract", 12, 9, 2400, 1500, {"empty": 2, "<failed>": 1}, {"8": 9}),
    Counts("tokenize", 9, 9, 1500, 1500, {}, {"8": 9}),
]
SET = {
    **{"name": "benchmark", "examples": 4, "too_short": 1, "examples_hit": 2, "grams": 30, "grams_hit": 3},
    **{"grams_ignored": 0, "documents_hit": 5},
}
REPORT = {
    **{"sets": [SET], "documents_hit": 5, "documents_cut": 4, "characters_cut": 800},
    **{"grams_cut": [{"documents": 3, "gram": "[bold]of the old bridges"}], "grams_ignored": []},
}


@pytest.fixture
def prepared(tmp_path) -> PreparedCorpus:
    splits = {
        name: {"tokens": 10, "documents": 2, "shards": [{"name": f"{name}-0"}, {"name": f"{name}-1"}]}
        for name in ("train", "validation")
    }
    description = {
        **{"tokens": 20, "documents": 4, "vocab_size": 400, "splits": splits, "unigram_entropy_nats": 3.25},
        "tokenizer": {"vocab_size": 400, "file": "tokenizer.model"},
    }
    facts = {
        "language": [{"languages": {"en": 5, "de": 1}}, {"languages": {"en": 2}}],
        "classify": [{"scores": {"0.0": 3, "0.5": 1}, "scores_kept": {"0.5": 1}}],
        "evaluation_choice": [],
    }
    return PreparedCorpus(COUNTS, facts, {"extract": (2, 1.5)}, tmp_path / "corpus", description)


def printed(function, *arguments) -> str:
    text = io.StringIO()
    function(*arguments, Console(file=text, width=200))
    return text.getvalue()


def test_every_step_has_a_row_and_every_reason_one_below_it():
    text = io.StringIO()
    Console(file=text, width=120).print(counts_table(COUNTS))
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert ["extract", "12", "3", "9", "2.4", "kB", "1.5", "kB"] in rows
    assert rows.index(["empty", "2"]) == rows.index(["<failed>", "1"]) - 1, "the most frequent reason comes first"
    assert [in_bytes(n) for n in (999, 1000, 2_500_000)] == ["999 B", "1.0 kB", "2.5 MB"]


def test_the_end_of_a_run_shows_the_corpus_and_writes_the_page(prepared, tmp_path):
    text = printed(show, prepared, tmp_path)
    assert (
        f"train: 10 tokens, 2 documents -> {prepared.folder}/train-0.bin, {prepared.folder}/train-0.idx and 1" in text
    )
    assert "entropy of the validation tokens' frequencies: 3.2500 nats" in text
    assert (tmp_path / "report.html").read_text() == report_page(prepared)


def test_what_could_not_be_read_is_printed_with_the_files_that_lost_most():
    losses = [FileLoss(f"{n}.jsonl.gz", 10**9, n * 10**6, n * 100, "damaged", "gzip: x") for n in range(1, 8)]
    lines = printed(show_losses, [*losses, FileLoss("cut.jsonl", 10, 0, None, "truncated", "ends")]).splitlines()
    assert lines[0] == (
        "not read: 28.0 MB in 8 damaged input files, about 2,800 records or more. Get these files again, and run the "
        "same command"
    )
    assert lines[1] == "  7.jsonl.gz: damaged (gzip: x): 7.0 MB of 1.0 GB not read, about 700 records"
    assert len(lines) == 6
    assert printed(show_losses, []) == ""


def test_the_page_lists_what_could_not_be_read(prepared):
    assert "<h2>Not read</h2>" not in report_page(prepared)
    loss = FileLoss("<a>.jsonl.gz", 10**6, 2 * 10**5, None, "damaged", "gzip: x")
    page = report_page(replace(prepared, facts={**prepared.facts, "extract": [{"unread": asdict(loss)}]}))
    assert "<h2>Not read</h2>" in page
    assert "&lt;a&gt;.jsonl.gz: damaged" in page
    assert ">unknown</td>" in page


def test_the_page_sums_facts_over_tasks_and_escapes_names(prepared):
    page = report_page(prepared)
    assert "<h2>Languages</h2>" in page
    assert page.index(">en</td><td>7</td>") < page.index(">de</td><td>1</td>")
    assert "from 0.0: 3 all, 0 kept" in page
    assert "extract: &lt;failed&gt;" in page
    assert "<failed>" not in page


def test_evaluation_sets_are_shown_with_their_most_frequent_grams():
    text = printed(show_decontamination, REPORT)
    assert ["benchmark", "4", "1", "2", "30", "3", "0", "5"] in [line.split() for line in text.splitlines()]
    assert "[bold]of the old bridges" in text, "text of documents is not markup"
    overlap = {"n_words": 8, "examples": 4, "too_short": 0, "dirty": 1, "clean": 3}
    sets = [{"name": "clean", **overlap, "clean_percent": 99.0}, {"name": "dirty", **overlap, "clean_percent": 75.0}]
    text = printed(show_overlap, {"training_documents": 1000, "sets": sets})
    assert text.index("dirty ") < text.rindex("clean "), "the dirtiest first"


def test_the_page_has_examples_of_dropped_documents(prepared):
    drops = [
        Drop("a", "gopher", "short", 10, "9 <words>"),
        Drop("b", "exact", "copy", 5),
        Drop("c", "gopher", "short", 9),
    ]
    examples = [DropExample(drop, text) for drop, text in zip(drops, ("<i>one</i>", "", "three"), strict=True)]
    page = report_page(prepared, examples)
    assert "<td class=word>gopher: short</td><td class=text>&lt;i&gt;one&lt;/i&gt; (9 &lt;words&gt;)</td>" in page
    assert "<td class=word></td><td class=text>three</td>" in page, "under the same reason"
    assert "its text is not kept" in page
    assert "Examples of" not in report_page(prepared)


def test_two_stages_with_clusters_have_two_titles(prepared):
    facts = {name: [{"clusters_of_size_from": {"2": 1}}] for name in ("exact", "near")}
    page = report_page(replace(prepared, facts=facts))
    assert "<h2>Clusters of copies: exact</h2>" in page
    assert "<h2>Clusters of copies: near</h2>" in page
