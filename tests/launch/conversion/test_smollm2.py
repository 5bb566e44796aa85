"""Convert a real pretrained model: ids, logits and loss equal those of transformers, and it goes back unchanged.

The shared tool writes it from a PyPI package (93 MB), which the project does not need otherwise: where that, or the
tool, is not here, the test skips and says how to have it.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.main import main
from launch.runs.saved_run import load_run

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

EIFFEL = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "
    "engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
)


@pytest.mark.rehearse
def test_smollm2_gives_the_logits_of_transformers_and_goes_back_bit_for_bit(smollm2: Path, tmp_path: Path) -> None:
    assert main(["convert", str(smollm2), "--to", "triaxial", "--output", str(tmp_path / "run")]) == 0
    loaded = load_run(tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    text = "\n".join(topics.values())[:200_000]
    ids = loaded.saved.tokenizer.encode(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    tokens = torch.tensor([ids[:1000]])
    with torch.inference_mode():
        ours, logits = loaded.model(tokens), theirs(tokens).logits
    assert float((ours - logits).abs().max() / logits.abs().max()) < 1e-5
    assert torch.equal(ours.argmax(-1), logits.argmax(-1))

    eiffel = torch.tensor([loaded.saved.tokenizer.encode(EIFFEL)])
    half = load_run(tmp_path / "run", dtype=torch.bfloat16)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(half.model(eiffel)[0, :-1].float(), eiffel[0, 1:])
    assert round(float(loss), 2) == 1.82

    assert main(["convert", str(tmp_path / "run"), "--to", "hf", "--output", str(tmp_path / "back")]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (smollm2, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)


@pytest.mark.rehearse
def test_smollm2_on_ranks_gives_the_log_likelihoods_of_one_process(
    smollm2: Path, tmp_path: Path, evaluation_ranks: Any
) -> None:
    """Its 9 heads lie on 3 tensor ranks."""
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    assert main(["convert", str(smollm2), "--to", "triaxial", "--output", str(tmp_path / "run")]) == 0
    layouts = {"tensor 3": (3, 3, 1), "pipeline 2": (2, 1, 2), "tensor 3 x pipeline 2": (6, 3, 2), "data 2": (2, 1, 1)}
    questions = {"limit": 10, "shots": [0, 10]}
    found = evaluation_ranks.on_layouts(tmp_path / "run", layouts, tmp_path, **questions)
    alone = json.loads(json.dumps(evaluation_ranks.ask_tasks(tmp_path / "run", **questions)))
    for name, (ranks, _, _) in layouts.items():
        for rank in range(ranks):
            assert found[name][rank]["written"] == alone["written"], name
            for (ours, greedy), (theirs, is_greedy) in zip(
                found[name][rank]["likelihood"], alone["likelihood"], strict=True
            ):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-4), name
                assert greedy == is_greedy, name
    assert len(alone["likelihood"]) == 40


@pytest.mark.rehearse
def test_smollm2_costs_a_text_what_it_costs_with_transformers(smollm2: Path, tmp_path: Path) -> None:
    """`triaxial evaluate --text` against the same windows through transformers' model and tokenizer."""
    text = "\n".join(topics.values())[:12_000]
    (tmp_path / "text").write_text(text)
    assert main(["convert", str(smollm2), "--to", "triaxial", "--output", str(tmp_path / "run")]) == 0
    words = ["--text", str(tmp_path / "text"), "--window", "512", "--stride", "256", "--json", str(tmp_path / "r.json")]
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    found = json.loads((tmp_path / "r.json").read_text())["text"]["texts"][str(tmp_path / "text")]

    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
    n_tokens = ids.size(1) - 1
    nats, done = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, n_tokens, 256):
            end = min(begin + 512, n_tokens)
            logits = model(ids[:, begin:end]).logits[0, done - begin :]
            nats += float(torch.nn.functional.cross_entropy(logits, ids[0, done + 1 : end + 1], reduction="sum"))
            done = end
            if end == n_tokens:
                break
    expected = {"token": n_tokens, "word": len(text.split()), "byte": len(text.encode())}
    for unit, n in expected.items():
        assert found[f"{unit}s"] == n
        assert found[f"nats_per_{unit}"] == pytest.approx(nats / n, rel=1e-4)


@pytest.mark.rehearse
def test_smollm2_through_megatrons_own_model(smollm2: Path, tmp_path: Path) -> None:
    """Exported; loaded by megatron-core's dist_checkpointing on pipeline 2; and back, bit for bit."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed (the extra 'megatron')")
    run, exported = tmp_path / "run", tmp_path / "exported"
    assert main(["convert", str(smollm2), "--to", "triaxial", "--output", str(run), "--logits", "none"]) == 0
    assert main(["convert", str(run), "--to", "megatron", "--output", str(exported)]) == 0
    loaded = load_run(run)
    config = loaded.saved.model_config
    ids = loaded.saved.tokenizer.encode("\n".join(topics.values())[:200_000])[:1000]
    torch.save(torch.tensor([ids]), tmp_path / "tokens.pt")
    job = {
        "model": {**dataclasses.asdict(config), "d_ff": config.ff_width},
        "padded_vocabulary": config.vocab_size,
        "layout": (1, 2),
        "load": str(exported / "release"),
        "tokens": str(tmp_path / "tokens.pt"),
        "logits": str(tmp_path / "logits.pt"),
    }
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    program = Path(__file__).parents[1] / "megatron_program.py"
    subprocess.run(
        [sys.executable, program, tmp_path / "jobs.json"], check=True, timeout=1200, cwd=Path(__file__).parents[3]
    )
    theirs = torch.load(tmp_path / "logits.pt")
    with torch.inference_mode():
        ours = loaded.model(torch.tensor([ids]))
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"logits on {len(ids)} tokens: max relative error {error:.2e}")
    assert error < 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))

    assert main(["convert", str(exported), "--to", "triaxial", "--output", str(tmp_path / "back")]) == 0
    back = dict(load_run(tmp_path / "back").model.named_parameters())
    assert all(torch.equal(back[name], parameter) for name, parameter in loaded.model.named_parameters())
    assert main(["convert", str(tmp_path / "back"), "--to", "hf", "--output", str(tmp_path / "hf")]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (smollm2, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
