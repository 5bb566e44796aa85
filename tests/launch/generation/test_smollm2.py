"""Greedy texts of a real model, packed and not, equal those of transformers."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from gpt.inference.cpu_model import packed
from gpt.inference.generation import generate
from gpt.inference.model import LocalModel
from launch.main import main
from launch.runs.saved_run import load_run

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

PROMPTS = [
    "The Eiffel Tower is",
    "def fibonacci(n):\n",
    topics["assert"][:400],
    "Once upon a time, in a village by the sea,",
]
NEW_TOKENS = 512


@pytest.mark.rehearse
def test_smollm2_generates_the_greedy_texts_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    """In transformers, each token of our text is the most likely one, to 1e-4 nats, and has our log-probability.

    Of two tokens that are equally likely to 1e-4, either may be chosen.
    """
    assert main(["convert", str(smollm2), "--to", "triaxial", "--output", str(tmp_path / "run")]) == 0
    loaded = load_run(tmp_path / "run")
    peer = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    prompts = [loaded.saved.tokenizer.encode(prompt) for prompt in PROMPTS]
    settings = {"n_ctx": loaded.saved.model_config.n_ctx, "max_new_tokens": NEW_TOKENS}
    plain = generate(loaded.model, prompts, **settings)
    batch = generate(packed(LocalModel(loaded.model), rows=len(prompts)), prompts, **settings)
    alone = generate(packed(LocalModel(load_run(tmp_path / "run").model), rows=1), prompts[:1], **settings)
    for prompt, result in zip([*prompts * 2, prompts[0]], [*plain, *batch, *alone], strict=True):
        with torch.inference_mode():
            scores = peer(torch.tensor([[*prompt, *result.tokens]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found = scores.gather(1, torch.tensor(result.tokens).unsqueeze(1)).squeeze(1)
        assert result.log_probs == pytest.approx(found.tolist(), abs=1e-4)
        assert float((scores.amax(-1) - found).max()) < 1e-4
        assert len(result.tokens) == NEW_TOKENS
