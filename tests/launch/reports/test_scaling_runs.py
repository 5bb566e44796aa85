"""Read a family of runs as curves of loss against compute; runs that cannot be compared are refused."""

import re
import shutil

import pytest

from gpt.errors import ConfigError
from launch.config.run_config import read_run_config
from launch.reports.scaling_runs import read_family

FAMILY = ("scaling_25k", "scaling_100k", "scaling_330k", "scaling_1m")
EVERY = 40 * 2048  # tokens between two evaluations of `write_evaluations`


@pytest.fixture
def write(written_runs, tmp_path):
    """A function that writes a run: its name, the number of its recipe, its losses."""

    def run(name, number, losses, **settings):
        return written_runs.write_evaluations(tmp_path / name, FAMILY[number], losses, **settings)

    return run


def test_a_family_is_its_curves_smallest_run_first(write):
    large, small = write("large", 1, [4.0, 3.0, 2.5]), write("small", 0, [5.0, 4.5])
    family = read_family([large, small, large])
    assert family.corpus == "web"
    assert [run.directory for run in family.runs] == [small, large], "one that is named twice counts once"
    sizes = [read_run_config(name, []).model.non_embedding_parameters for name in FAMILY[:2]]
    assert [curve.n_parameters for curve in family.curves] == sizes
    assert [curve.name for curve in family.curves] == ["small", "large"]
    assert [curve.tokens.tolist() for curve in family.curves] == [[EVERY, 2 * EVERY], [EVERY, 2 * EVERY, 3 * EVERY]]
    assert [curve.losses.tolist() for curve in family.curves] == [[5.0, 4.5], [4.0, 3.0, 2.5]]
    assert family.curves[0].pf_days[0] == pytest.approx(6 * sizes[0] * EVERY / 8.64e19)


def test_losses_that_a_logarithm_cannot_show_are_left_out(write):
    first = write("first", 0, [4.0])
    second = write("second", 1, [0.0, 3.0])
    (first / "metrics.jsonl").write_text(
        '{"step": 0, "validation/web/loss": 9.0}\n{"step": 40, "validation/web/loss": 4.0}\n'
    )
    assert [curve.losses.tolist() for curve in read_family([first, second]).curves] == [[4.0], [3.0]]


def test_a_family_with_several_corpora_needs_the_name_of_one(write):
    runs = [write("a", 0, [4.0, 3.0]), write("b", 1, [4.0, 3.0])]
    for run in runs:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 300, "validation/books/loss": 2.0}\n')
    with pytest.raises(ConfigError, match=r"have 2 validation corpora. Name one with --corpus: web, books"):
        read_family(runs)
    assert [curve.losses.tolist() for curve in read_family(runs, corpus="books").curves] == [[2.0], [2.0]]


def test_runs_that_cannot_be_compared_are_refused(write, tmp_path):
    one, two = write("one", 0, [4.0, 3.0]), write("two", 1, [4.0, 3.0])
    other = write("other", 2, [4.0, 3.0], corpus="books")
    none = write("none", 2, [])
    (none / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    early = write("early", 2, [])
    (early / "metrics.jsonl").write_text('{"step": 0, "validation/web/loss": 3.0}\n')
    damaged = write("damaged", 2, [4.0])
    (damaged / "config.json").write_text('{"model": {"n_layers": 3}}')
    nameless = write("nameless", 2, [4.0])
    (nameless / "config.json").unlink()
    for runs, corpus, message in (
        ([one], None, "--scaling compares runs of several sizes, but got 1. Name two or more"),
        ([one, one], None, "got 1. Name two or more"),
        ([one, tmp_path / "no"], None, "no: no such directory"),
        ([one, none], None, "none: no validation loss. It needs data.validation and train.evaluate_every_tokens"),
        ([one, early], None, "early: no validation loss after its first step. Train it longer"),
        ([one, other], None, f"no validation corpus in common: {one} has web; {other} has books"),
        ([one, two], "books", f"--corpus books: {one} has no such validation corpus. It has web"),
        ([one, damaged], None, "damaged/config.json: keys are missing: run.directory (a path)"),
        ([one, nameless], None, "nameless: no readable config.json, so the size of the model is unknown"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            read_family(runs, corpus=corpus)


def test_losses_under_different_tokenizers_are_not_compared(write, tiny_corpus):
    runs = [write(name, number, [4.0, 3.0]) for number, name in enumerate("abc")]
    assert sum("its tokenizer is missing" in note for note in read_family(runs).notes) == 3
    for run in runs[:2]:
        (run / "tokenizer").mkdir()
        shutil.copy(tiny_corpus.folder / "topics.model", run / "tokenizer")
    notes = [note for note in read_family(runs).notes if "tokenizer" in note]
    assert notes == [f"{runs[2]}: its tokenizer is missing; assumed to be the same as the others'"]
    with (runs[1] / "tokenizer" / "topics.model").open("ab") as file:
        file.write(b"\x7a\x00")
    with pytest.raises(ConfigError, match=r"have different tokenizers .*so their losses per token cannot be compared"):
        read_family(runs)


def test_differences_other_than_size_are_noted(write):
    first = write("a", 0, [4.0, 3.0])
    more = ["--data.validation", "[{ path = 'elsewhere' }]", "--data.seq_len", "64"]
    second = write("b", 1, [4.0, 3.0], more=more)
    with (second / "metrics.jsonl").open("a") as file:
        file.write("[1]\n")
    notes = read_family([first, second]).notes
    assert (
        f"data.validation differs: ['data/python-docs/validation'] in {first}, ['elsewhere'] in {second}. The losses"
        in ("\n".join(notes))
    )
    assert any(note.startswith(f"data.seq_len differs: 128 in {first}, 64 in {second}") for note in notes)
    assert not any(note.startswith(("data.train differs", "train.validation_tokens")) for note in notes)
    assert f"{second}: metrics.jsonl: 1 line that cannot be read, skipped" in notes
    assert any(note.startswith(f"{first} is at 164k of ") for note in notes), "it has not finished"
