"""A training run uses the tokenizer that made its corpora and no other, and keeps all of its files."""

import json
import shutil
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.config.run_config import read_run_config
from launch.runs.saved_run import tokenizer_file
from launch.training.build import check_tokenizer
from launch.training.summary import prepare_run_directory


def test_the_tokenizer_that_made_the_corpus_is_the_only_one_that_trains_on_it(tiny_corpus, tmp_path):
    folder = shutil.copytree(tiny_corpus.folder, tmp_path / "corpus", ignore=shutil.ignore_patterns("run*"))
    own = load_tokenizer(folder / "topics.model").fingerprint
    description = {
        "format": "triaxial-corpus",
        "version": 1,
        "tokenizer": {"file": "topics.model", "fingerprint": own},
        "splits": {"training": {"prefix": "train"}, "validation": {"prefix": "validation"}},
    }
    (folder / "corpus.json").write_text(json.dumps(description))
    words = ["--data.train", f"[{{ path = '{folder}/validation' }}]", "--data.tokenizer"]
    assert check_tokenizer(read_run_config(str(tiny_corpus.recipe), [*words, str(folder)])).fingerprint == own
    trained = (folder / "topics.model").read_bytes()
    other = tmp_path / "other.model"
    other.write_bytes(trained + b"\x7a\x00")  # an unknown field of the format: the same pieces, another file
    with pytest.raises(
        ConfigError, match=r"other\.model.* is invalid: the corpus .*corpus/validation was made with"
    ) as error:
        check_tokenizer(read_run_config(str(tiny_corpus.recipe), [*words, str(other)]))
    assert own[:16] in str(error.value)
    assert f"data.tokenizer = '{folder}/topics.model'" in str(error.value)


def test_a_run_keeps_both_files_of_a_pair(tiny_corpus, tmp_path):
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("encoder.json", "vocab.bpe"):
        (pair / name).write_text(name)
    for given in (pair, pair / "vocab.bpe", pair / "encoder.json"):
        run = tmp_path / f"run-{given.name}"
        run.mkdir()
        words = ["--run.directory", str(run), "--data.tokenizer", str(given)]
        config = read_run_config(str(tiny_corpus.recipe), words)
        prepare_run_directory(config)
        assert sorted(path.name for path in (run / "tokenizer").iterdir()) == ["encoder.json", "vocab.bpe"]
        found = tokenizer_file(run, config.data)
        assert found in (run / "tokenizer", run / "tokenizer" / given.name)
    (run / "tokenizer/encoder.json").unlink()
    (run / "tokenizer/vocab.bpe").unlink()
    assert tokenizer_file(run, config.data) == Path(config.data.tokenizer), "a run that kept none uses the original"
