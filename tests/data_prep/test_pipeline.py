"""Run the stages of a recipe in their order, and write the corpus."""

import gzip
import io
import json
import os
import re
from dataclasses import replace

import pytest
from in_process import InThisProcess, flip_a_bit
from rich.console import Console

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.execution.fingerprint import versions
from data_prep.execution.progress import ProgressBars
from data_prep.execution.tasks import execute
from data_prep.filters.language import LanguageConfig
from data_prep.filters.pii import PiiConfig
from data_prep.filters.quality import QualityConfig
from data_prep.inputs.config import InputConfig
from data_prep.pipeline import PreparedCorpus, check, prepare
from data_prep.plan import plan
from data_prep.recipe import OutputConfig, PrepareConfig
from data_prep.reports.table import show_lost
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("pycld2", reason="the extra 'data' is not installed")


@pytest.fixture
def config(tmp_path, prose) -> PrepareConfig:
    for number in range(2):
        lines = [{"id": f"{number}-{n}", "text": prose(100 * number + n, 6)} for n in range(10)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return PrepareConfig(
        InputConfig(paths=(f"{tmp_path}/*.jsonl",)),
        OutputConfig(tmp_path / "corpus", validation_fraction=0.2),
        TokenizerConfig(vocab_size=400),
        quality=QualityConfig(rules=()),
    )


def run(config: PrepareConfig) -> PreparedCorpus:
    progress = ProgressBars(Console(quiet=True))
    return prepare(config, n_workers=1, progress=progress, executor=InThisProcess)


def test_the_description_of_the_corpus_agrees_with_what_the_run_reports(tmp_path, config):
    prepared = run(config)
    description = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert description == json.loads(json.dumps(prepared.description))
    assert [step["step"] for step in description["steps"]] == [counts.step for counts in prepared.counts]
    assert prepared.counts[0].documents_in == 20
    assert description["documents"] == prepared.counts[-1].documents_out
    assert description["recipe"]["output"].keys() == {"validation_fraction", "seed", "shard_tokens"}, "no paths"
    assert description["versions"]["numpy"] == versions(["numpy"])["numpy"]
    tokenizer = load_tokenizer(tmp_path / "corpus" / description["tokenizer"]["file"])
    assert tokenizer.vocab_size == description["tokenizer"]["vocab_size"] == 400
    assert run(config).description == prepared.description, "the second run finds all tasks finished"


def test_mistakes_are_found_before_the_first_stage(tmp_path, config):
    with pytest.raises(ConfigError, match="no such tokenizer file"):
        check(replace(config, tokenizer=TokenizerConfig(path=tmp_path / "gone.model")))
    run(config)
    trained = TokenizerConfig(path=tmp_path / "corpus/tokenizer.model", vocab_size=500)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size = 500 is invalid: .* has 400 tokens. Remove vocab"):
        check(replace(config, tokenizer=trained))
    assert len(check(config)) == 2


def test_the_corpus_says_how_much_of_its_input_was_damaged(tmp_path, config, prose):
    lines = [json.dumps({"id": f"z{n}", "text": prose(900 + n, 6)}).encode() + b"\n" for n in range(30)]
    members = [bytearray(gzip.compress(b"".join(lines[n : n + 10]))) for n in (0, 10, 20)]
    members[1][-5] ^= 1  # in its checksum
    (tmp_path / "2.jsonl.gz").write_bytes(b"".join(members))
    prepared = run(replace(config, input=InputConfig(paths=(f"{tmp_path}/*.jsonl*",))))
    assert prepared.counts[0].documents_out == 40
    unread = prepared.description["unread"]
    assert (unread["files"], unread["bytes"]) == (1, len(members[1]))
    assert 8 <= unread["records"] <= 12


def test_a_run_that_ends_with_an_error_says_how_much_was_lost(tmp_path, config, prose):
    """All of one file is lost, so the others give the size of its records."""
    lines = [json.dumps({"id": f"z{n}", "text": prose(900 + n, 6)}).encode() + b"\n" for n in range(30)]
    packed = bytearray(gzip.compress(b"".join(lines)))
    packed[:12] = bytes(12)
    (tmp_path / "2.jsonl.gz").write_bytes(packed)
    other = LanguageConfig(keep=("de",))
    damaged = replace(config, input=InputConfig(paths=(f"{tmp_path}/*.jsonl*",)), language=other)
    for name in ("2.jsonl.gz", "moved.jsonl.gz"):
        (tmp_path / "2.jsonl.gz").rename(tmp_path / name)
        console = Console(record=True, file=io.StringIO(), width=300)
        with pytest.raises(ConfigError, match="left none of its 20 documents"):
            prepare(
                damaged,
                n_workers=1,
                progress=ProgressBars(Console(quiet=True)),
                executor=InThisProcess,
                on_error=lambda run: show_lost(run, console),  # noqa: B023
            )
        said = console.export_text()
        assert f"{tmp_path}/{name}: damaged" in said
        found = re.search(r"about (\d+) records$", said, re.MULTILINE)
        assert found is not None
        assert 3 <= int(found[1]) <= 30, "packed records are smaller"


def test_mistakes_in_the_input_are_found_before_the_first_stage(tmp_path, config):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet: no column 'text' \(it has: body\)"):
        check(replace(config, input=InputConfig(paths=(f"{tmp_path}/*.parquet",))))
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(ConfigError, match=r"b\.jsonl' is not a regular file"):
        check(replace(config, input=InputConfig(paths=(f"{tmp_path}/b.jsonl",))))


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stages_with_documents(work) -> set[str]:
    paths = [path for path in work.rglob("*.jsonl.zst") if not path.name.endswith(".dropped.jsonl.zst")]
    return {path.parent.name for path in paths}


def test_without_intermediate_files_the_corpus_is_the_same_and_the_text_is_kept_once(tmp_path, config):
    """A later run makes again what it needs, with the same result as a run that starts from nothing."""
    run(config)
    expected = files_of(tmp_path / "corpus")
    lean = replace(config, output=replace(config.output, folder=tmp_path / "lean", keep_intermediate=False))
    work = tmp_path / "lean/work"
    run(lean)
    assert files_of(tmp_path / "lean") == expected
    assert stages_with_documents(work) == {"dedup_minhash"}, "the documents of the last step only"
    assert {path.parent.name for path in work.rglob("*.dropped.jsonl.zst")} > {"extract", "language"}
    before = (work / "manifest.jsonl").read_bytes()
    assert run(lean).description == run(config).description
    assert (work / "manifest.jsonl").read_bytes() == before, "no task runs again"
    assert not any(stage.n_to_do for stage in plan(lean).stages)
    masked = PiiConfig(enabled=True, kinds=("phone",))
    changed = replace(lean, pii=masked, dedup_minhash=FuzzyConfig(enabled=False))
    run(changed)
    assert stages_with_documents(work) == {"dedup_minhash", "pii"}, "the former is no step of this run"
    from_nothing = replace(changed, output=OutputConfig(tmp_path / "new", validation_fraction=0.2))
    run(from_nothing)
    assert files_of(tmp_path / "lean") == files_of(tmp_path / "new")


class FlipsBits(InThisProcess):
    """Before each group of jobs, flip a bit in one new file of each kind, unnoticed: size and time stay the same."""

    def __init__(self, work):
        self.work, self.kinds, self.flipped = work, set(), []

    def run(self, function, jobs, *, name):
        for path in sorted(self.work.rglob("*")):
            kind = (path.parent, path.name.partition(".")[2])
            relative = path.relative_to(self.work)
            stay = relative.name in ("manifest.jsonl", "steps.json") or str(relative).startswith(".") or path.is_dir()
            if stay or kind in self.kinds or ".dropped" in path.name or not path.stat().st_size:
                continue
            self.kinds.add(kind)
            self.flipped.append(path)
            flip_a_bit(path)
        yield from super().run(function, jobs, name=name)


def test_a_file_that_is_damaged_between_stages_is_made_again(tmp_path, config):
    lines = [json.loads(line) for line in (tmp_path / "0.jsonl").read_text().splitlines()]
    copies = [{"id": f"copy {n}", "text": line["text"] + " More." * (n % 2)} for n, line in enumerate(lines)]
    (tmp_path / "2.jsonl").write_text("\n".join(map(json.dumps, copies)))
    config = replace(config, pii=PiiConfig(enabled=True), dedup_minhash=FuzzyConfig(method="gpt3"))
    run(config)
    expected = files_of(tmp_path / "corpus")
    again = replace(config, output=replace(config.output, folder=tmp_path / "again"))
    work, console = (tmp_path / "again/work").resolve(), Console(file=io.StringIO(), width=500)
    flips = FlipsBits(work)
    prepare(again, n_workers=1, progress=ProgressBars(console), executor=lambda _: flips)
    assert files_of(tmp_path / "again") == expected
    lines = [line for line in console.file.getvalue().splitlines() if "made again" in line]
    made = {line.partition(":")[0].partition(".")[0] for line in lines}
    assert made == {str(path).partition(".")[0] for path in flips.flipped}, "a task writes all its files again"
    folders = {path.parent.name for path in flips.flipped}
    assert folders > {"extract", "language", "exact_digests", "exact_lists", "minhash_ranks", "pii", "tokenize"}


def test_an_input_that_changes_during_the_run_ends_it_with_one_line(tmp_path, config):
    class Changes(InThisProcess):
        def run(self, function, jobs, *, name):
            if function is execute:
                path = tmp_path / "0.jsonl"
                path.write_bytes(path.read_bytes().replace(b"the", b"teh"))
            yield from super().run(function, jobs, name=name)

    with pytest.raises(ConfigError, match=r"0\.jsonl has changed since this run first read it"):
        prepare(config, n_workers=1, progress=ProgressBars(Console(quiet=True)), executor=Changes)


def test_the_ending_of_an_input_decides_how_it_is_read_so_it_counts(tmp_path, config):
    """The same bytes are JSON lines under one name and a text under another, also together in one run."""
    os.rename(tmp_path / "0.jsonl", tmp_path / "0.txt")
    separated = replace(config, input=InputConfig(paths=(f"{tmp_path}/0.*",), text_separator="\n"))
    assert run(separated).counts[0].bytes_out == (tmp_path / "0.txt").stat().st_size - 9, "whole lines, without ends"
    os.rename(tmp_path / "0.txt", tmp_path / "0.jsonl")
    texts = run(separated).counts[0].bytes_out
    assert texts < (tmp_path / "0.jsonl").stat().st_size - 200, "the texts alone"
    (tmp_path / "0.txt").write_bytes((tmp_path / "0.jsonl").read_bytes())
    assert run(separated).counts[0].documents_in == 20


def test_equal_files_count_once_with_a_line(tmp_path, config):
    for name in ("copy.jsonl", "other.jsonl"):
        (tmp_path / name).write_bytes((tmp_path / "0.jsonl").read_bytes())
    console = Console(file=io.StringIO(), width=500)
    prepared = prepare(config, n_workers=1, progress=ProgressBars(console), executor=InThisProcess)
    assert prepared.counts[0].documents_in == 20
    line = next(line for line in console.file.getvalue().splitlines() if "equal files" in line)
    assert line == f"input.paths: equal files count once: {tmp_path}/copy.jsonl equals {tmp_path}/0.jsonl, and 1 more"
