"""A model opened from Python gives what the commands give."""

import json

import pytest
import torch

from gpt.errors import ConfigError
from launch.library.language_model import load


@pytest.fixture(scope="module")
def model(made):
    return load(made.directory, device="cpu")


def test_it_writes_what_the_command_writes(model, made, triaxial, tmp_path):
    prompts = ["The", "", "Functions are"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    words = ["--input", tmp_path / "prompts.jsonl", "--output", tmp_path / "texts.jsonl", "--max-new-tokens", 8]
    triaxial("generate", made.directory, *words, "--seed", 5, "--device", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert model.generate_batch(prompts, max_new_tokens=8, seed=5) == [line["text"] for line in lines]
    assert model.generate_batch([]) == []
    assert model.generate("Functions are", max_new_tokens=8, seed=7) == lines[2]["text"]


def test_it_scores_as_the_command_does(model, made, triaxial, tmp_path):
    text = "The import statement runs the module. " * 10
    (tmp_path / "text.txt").write_text(text)
    triaxial(
        "evaluate", made.directory, "--text", tmp_path / "text.txt", "--json", tmp_path / "x.json", "--device", "cpu"
    )
    (theirs,) = json.loads((tmp_path / "x.json").read_text())["text"]["texts"].values()
    ours = model.score(text)
    assert (ours.tokens, ours.words, ours.n_bytes) == (theirs["tokens"], theirs["words"], theirs["bytes"])
    assert ours.nats_per_token == pytest.approx(theirs["nats_per_token"], rel=1e-6)


def test_a_text_has_the_mean_of_its_hidden_states(model):
    found = model.embed(["The module", "runs"])
    assert found.shape == (2, model.config.d_model)
    tokens = torch.tensor([model.tokenizer.encode("The module")])
    assert torch.allclose(found[0], model.module.hidden_states(tokens)[0].mean(0), atol=1e-6)
    assert model.embed([]).shape == (0, model.config.d_model)


def test_mistakes_are_named(model, made, tmp_path):
    for call, words in (
        (lambda: load(tmp_path), "is neither a run directory"),
        (lambda: load(made.directory, dtype="int8"), "dtype = 'int8' is invalid: must be one of float32, bfloat16"),
        (lambda: model.embed([""]), "text 0 of embed has 0 tokens"),
        (lambda: model.score("a", stride=0), "stride = 0 is invalid"),
        (lambda: model.generate("a", stop=[""]), "are invalid: use a seed from 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()
