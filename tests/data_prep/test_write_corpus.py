"""Write a corpus from clean shards."""

import io
import json
from dataclasses import replace

import pytest
from in_process import flip_a_bit
from rich.console import Console

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.documents.shards import Document, write_shard
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace
from data_prep.inputs.config import InputConfig
from data_prep.recipe import OutputConfig, PrepareConfig
from data_prep.write_corpus import write_corpus
from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


@pytest.fixture
def shards(tmp_path, prose):
    paths = {name: tmp_path / f"{name}.jsonl.zst" for name in ("a", "b")}
    for number, path in enumerate(paths.values()):
        with write_shard(path) as write:
            for n in range(10):
                write(Document(f"{number}-{n}", prose(100 * number + n, 6)))
    return paths


@pytest.fixture
def config(tmp_path) -> PrepareConfig:
    output = OutputConfig(tmp_path / "corpus", validation_fraction=0.2)
    return PrepareConfig(InputConfig(paths=("x",)), output, TokenizerConfig(vocab_size=400))


def write_files(config, shards):
    progress = ProgressBars(Console(quiet=True))
    with Workspace(config.output.work_folder, n_workers=1, progress=progress) as workspace:
        return write_corpus(ShardRun(workspace), config, shards, more={"report": {"n": 1}})


def test_the_description_agrees_with_the_files(tmp_path, config, shards):
    description = write_files(config, shards)
    assert json.loads((tmp_path / "corpus/corpus.json").read_text()) == json.loads(json.dumps(description))
    assert description["report"] == {"n": 1}
    assert description["documents"] == 20
    for split in description["splits"].values():
        (name,) = (shard["name"] for shard in split["shards"])
        assert TokenFile(tmp_path / "corpus" / name).n_tokens == split["tokens"]
    tokenizer = load_tokenizer(tmp_path / "corpus" / description["tokenizer"]["file"])
    assert tokenizer.vocab_size == description["tokenizer"]["vocab_size"] == 400


def test_a_file_that_is_damaged_before_it_is_published_is_made_again(tmp_path, config, shards):
    """Flip a bit of the token file after its stage, unnoticed: its size and its time of change stay the same."""
    console = Console(file=io.StringIO(), width=500)
    with Workspace(config.output.work_folder, n_workers=1, progress=ProgressBars(console)) as workspace:

        def steps():
            run = ShardRun(workspace)
            run.workspace.no_more_tasks = flip  # called between the last stage and the publishing
            return write_corpus(run, config, shards, more={})

        def flip():
            (path,) = config.output.work_folder.rglob("*validation*.bin")
            if "made again" not in console.file.getvalue():
                intact.append(path.read_bytes())
                flip_a_bit(path)

        intact = []
        workspace.run_whole(steps)
    (path,) = (tmp_path / "corpus").glob("*validation*.bin")
    assert [path.read_bytes()] == intact
    assert console.file.getvalue().count(f"{path.name}: its content is not what its task wrote. It is made again") == 1


def test_a_split_without_documents_is_an_error(config, shards):
    few = replace(config, output=replace(config.output, validation_fraction=1e-9))
    with pytest.raises(
        ConfigError, match=r"output\.validation_fraction = 1e-09 is invalid: of 20 documents it leaves none"
    ):
        write_files(few, shards)


def test_a_file_without_documents_is_an_error(config, shards):
    many = replace(config, output=replace(config.output, shard_tokens=300))
    with pytest.raises(
        ConfigError, match=r"output\.shard_tokens = 300 is invalid: it makes \d+ files, and by chance .* no document"
    ):
        write_files(many, shards)
