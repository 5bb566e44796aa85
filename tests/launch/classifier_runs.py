"""For tests: a classifier of harmless texts, trained for a few steps on labels that follow a rule."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.moderation.taxonomy import read_taxonomy
from gpt.token_files.files import TokenFileWriter
from gpt.token_files.label_states import encode_states, label_values
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main

TAXONOMY = """
name = "fruit"
version = 1
[[category]]
id = "F"
title = "fruit"
definition = "The text names a fruit."
[[category]]
id = "F2"
title = "rotten fruit"
definition = "The text names a rotten fruit."
parent = "F"
severity = 2
[[category]]
id = "T"
title = "tools"
definition = "The text names a tool."
"""
RECIPE = """
[run]
directory = "{folder}/run"
seed = 3
device = "cpu"
peak_flops_per_s = 1e12
[objective]
kind = "classifier"
taxonomy = "{folder}/fruit.toml"
hidden = 16
[model]
vocab_size = 512
n_ctx = 64
n_layers = 2
d_model = 32
n_heads = 2
[data]
tokenizer = "{tokenizer}"
sampling = "packed"
seq_len = 128
train = [{{ path = "{folder}/train", streams = {{ labels = "{folder}/train_labels" }} }}]
validation = [{{ path = "{folder}/validation", streams = {{ labels = "{folder}/validation_labels" }} }}]
[batch]
micro_batch_size = 4
global_batch_tokens = 1_024
[optimizer]
learning_rate = 3e-3
[schedule]
warmup_steps = 2
shape = "constant"
[parallel]
precision = "fp32"
[train]
total_steps = 40
evaluate_every_steps = 20
[metrics]
wandb = "disabled"
"""
FRUIT, TOOLS = ("apple", "pear", "plum"), ("hammer", "saw")
OTHER = ("the", "a", "house", "was", "near", "old", "table", "and", "we", "saw it", "in", "town")


@dataclass(frozen=True)
class ClassifierRun:
    """A folder with fruit.toml, recipe.toml, run/, token files train and validation with their labels, and the same
    texts as labelled texts, train.jsonl and validation.jsonl."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"


def make_texts(n, seed):
    """Texts and their labels {F, F2, T}: a word of the category decides; a tenth of the labels is unknown (None)."""
    draw = np.random.default_rng(seed)
    for _ in range(n):
        words = [*draw.choice(OTHER, size=draw.integers(2, 6))]
        fruit, rotten, tool = draw.random(3) < (0.4, 0.5, 0.3)
        if fruit:
            words.insert(int(draw.integers(0, len(words))), ("rotten " if rotten else "") + str(draw.choice(FRUIT)))
        if tool:
            words.insert(int(draw.integers(0, len(words))), str(draw.choice(TOOLS[:1])))
        labels = {"F": int(fruit), "F2": int(fruit and rotten), "T": int(tool)}
        yield (
            " ".join(map(str, words)),
            {key: None if draw.random() < 0.1 else value for key, value in labels.items()},
        )


def write_texts(folder, name, n, seed, tokenizer):
    """The token files of `make_texts`, as `prepare` writes them, and the labelled texts."""
    with (
        TokenFileWriter(folder / name, vocab_size=tokenizer.vocab_size) as tokens,
        TokenFileWriter(folder / f"{name}_labels", vocab_size=label_values(3)) as stream,
        open(folder / f"{name}.jsonl", "w") as lines,
    ):
        for i, (text, labels) in enumerate(make_texts(n, seed)):
            ids = [*tokenizer.encode(text), tokenizer.end_of_document_id]
            states = [0 if state is None else state + 1 for state in labels.values()]
            tokens.add_document(ids)
            stream.add_document([0] * (len(ids) - 1) + encode_states(np.array(states, dtype=np.int8)).tolist())
            record = {"id": f"{name}{i}", "text": text, "labels": labels, "labeller": "rule", "taxonomy": "fruit 1"}
            lines.write(json.dumps(record | {"groups": {"language": "en"}}) + "\n")


def make_classifier_run(tiny_corpus, folder, *words):
    """Train a classifier for 40 steps, some seconds. `words`: of the command line."""
    (folder / "fruit.toml").write_text(TAXONOMY)
    assert read_taxonomy(folder / "fruit.toml").ids == ("F", "F2", "T")
    path = tiny_corpus.folder / "topics.model"
    tokenizer = load_tokenizer(path)
    write_texts(folder, "train", 400, 1, tokenizer)
    write_texts(folder, "validation", 120, 2, tokenizer)
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder, tokenizer=path))
    assert main(["train", str(folder / "recipe.toml"), *words]) == 0
    return ClassifierRun(folder)
