"""The shipped recipes for data sets of the Hub name files as they lie there, and prepare what such files hold."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import pytest
from hub_server import Hub, serve

from launch.config.recipe import find_recipe
from launch.config.run_config import layout_of, read_run_config

# Names of files as the data sets have them, with one that the recipe must leave out.
PUBLISHED = {
    "tinystories": (
        "roneneldan/TinyStories",
        "data/train-00000-of-00004-2d5a1467fff1081b.parquet",
        "data/validation-0.parquet",
    ),
    "fineweb_edu_10b": ("HuggingFaceFW/fineweb-edu", "sample/10BT/000_00000.parquet", "sample/100BT/000_00000.parquet"),
    "openwebtext": ("Skylion007/openwebtext", "plain_text/train-00000-of-00080.parquet", "README.md"),
    "c4_en": ("allenai/c4", "en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"),
}
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "it",
    "he",
    "she",
    "they",
    "mill",
    "river",
    "road",
    "stone",
    "flood",
    "boat",
    "winter",
    "summer",
    "mother",
    "brother",
    "walked",
    "counted",
    "carried",
    "heard",
    "found",
    "lost",
    "opened",
    "closed",
    "old",
    "small",
    "grey",
    "quiet",
    "early",
    "late",
    "before",
    "after",
    "under",
    "over",
    "because",
    "while",
    "nobody",
    "somebody",
    "always",
    "never",
    "perhaps",
    "again",
    "almost",
    "together",
    "alone",
]


def text(number):
    """Sentences of words drawn with a seed: no rule against repetition minds them."""
    chance = random.Random(number)
    sentences = [" ".join(chance.choices(WORDS, k=chance.randrange(8, 16))).capitalize() + "." for _ in range(30)]
    return "\n".join(" ".join(sentences[i : i + 5]) for i in range(0, 30, 5))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_names_the_files_of_its_data_set(name):
    owner, wanted, other = PUBLISHED[name]
    (pattern,) = tomllib.loads(find_recipe(name).read_text())["input"]["paths"]
    assert fnmatch(f"hf://datasets/{owner}/{wanted}", pattern)
    assert not fnmatch(f"hf://datasets/{owner}/{other}", pattern)


@pytest.mark.parametrize("name", ["tinystories", "c4_en"])
@pytest.mark.timeout(300)
def test_a_recipe_prepares_such_files(tmp_path, name):
    pytest.importorskip("huggingface_hub")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    owner, wanted, other = PUBLISHED[name]
    if wanted.endswith(".parquet"):
        file = io.BytesIO()
        parquet.write_table(arrow.table({"text": [text(n) for n in range(40)]}), file)
        data = file.getvalue()
    else:
        records = [
            {"text": text(n), "timestamp": "2019-04-25T12:57:54Z", "url": f"https://e.org/{n}"} for n in range(40)
        ]
        data = gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())
    online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0")  # training sets them
    words = ["prepare", name, "--tokenizer.vocab_size", "400", "--output.validation_fraction", "0.2", "--workers", "1"]
    with serve(Hub(owner, {wanted: data, other: b"not read"})) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "launch.main", *words],
            cwd=tmp_path,
            env={**os.environ, **online, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / tomllib.loads(find_recipe(name).read_text())["output"]["folder"]
    assert json.loads((folder / "corpus.json").read_text())["documents"] == 40


@pytest.mark.parametrize(
    ("name", "corpus", "parameters", "operations"),
    [
        ("gpt2_124m", "fineweb_edu_10b", 124.4e6, 8.6e18),
        ("tinystories_10m", "tinystories", 10.4e6, 3.5e16),
        ("c4_1.3b", "c4_en", 1315.6e6, 2.4e20),
    ],
)
def test_a_training_recipe_reads_what_its_corpus_recipe_writes(name, corpus, parameters, operations):
    config = read_run_config(name, [])
    prepared = tomllib.loads(find_recipe(corpus).read_text())
    assert config.model.vocab_size == prepared["tokenizer"]["vocab_size"]
    assert str(config.data.train[0].path) == f"{prepared['output']['folder']}/train"
    assert config.model.parameters == pytest.approx(parameters, rel=0.01)
    needed = config.model.train_flops_per_token(config.data.seq_len) * config.train.total_tokens
    assert needed == pytest.approx(operations, rel=0.02)
    for ranks in (1, 2, 4, 8):
        assert layout_of(config, ranks).world_size == ranks
