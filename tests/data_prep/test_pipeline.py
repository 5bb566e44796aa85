"""Run the stages of a recipe in their order, and write the corpus."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.execution.fingerprint import versions
from data_prep.execution.progress import ProgressBars
from data_prep.filters.quality import QualityConfig
from data_prep.pipeline import PreparedCorpus, check, prepare
from data_prep.readers.readers import InputConfig
from data_prep.recipe import OutputConfig, PrepareConfig
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("pycld2", reason="the extra 'data' is not installed")


class InThisProcess:
    """An executor without processes."""

    def __init__(self, n_workers):
        pass

    def run(self, function, jobs, *, name):
        yield from ((index, function(job)) for index, job in enumerate(jobs))

    def longest(self):
        return None

    def close(self):
        pass


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
