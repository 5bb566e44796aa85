"""`data.document_mask` and `data.sampling` through the commands: train, resume, evaluate, audit."""

import json

import pytest

from launch.main import main

SHORT = ["--train.total_tokens", "2048", "--checkpoint.every_tokens", "1024", "--metrics.wandb", "disabled"]
SHORT += ["--run.peak_flops_per_s", "1e12", "--data.document_mask", "true"]


def triaxial(*words):
    """Run a command in this process; returns its exit status."""
    return main([*map(str, words)])


def values(run, key):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module", params=["window", "document", "packed"])
def trained(request, tiny_corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp(request.param) / "run"
    words = [tiny_corpus.recipe, "--run.directory", run, "--data.sampling", request.param, *SHORT]
    assert triaxial("train", *words) == 0
    return run, words


def test_evaluate_finds_the_loss_that_training_logged(trained):
    """Training evaluates padded batches under a mask; the command reads each document alone."""
    run, _ = trained
    report = run / "evaluation.json"
    words = ("--tasks", "none", "--json", report, "--max-validation-tokens", "4096")
    assert triaxial("evaluate", run, *words) == 0
    found = json.loads(report.read_text())["validation"]["topics"]
    assert found["loss_nats"] == pytest.approx(values(run, "validation/topics/loss")[-1], rel=1e-5)


def test_another_rule_for_documents_is_refused_on_resume(trained, capfd):
    """Samples of whole documents are the same with and without `document_mask`, so it may change."""
    _, words = trained
    status, said = triaxial("train", *words, "--data.document_mask", "false"), capfd.readouterr().err
    if "window" not in words:
        assert status == 0, said
        return
    assert status == 2
    assert "data.document_mask was True and is now False" in said
    assert said.count("\n") == 1


def test_tensor_2_follows_the_same_losses(trained, tmp_path):
    run, words = trained
    two = ("--run.directory", tmp_path / "two", "--nproc", 2, "--parallel.tensor", 2)
    assert triaxial("train", *words, *two) == 0
    assert values(tmp_path / "two", "loss") == pytest.approx(values(run, "loss"), rel=1e-5)


def test_packing_is_described(trained, capfd):
    """`triaxial train` with nothing left to train prints the description again."""
    _, words = trained
    assert triaxial("train", *words) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert ("documents are longer than" in said) == ("packed" in words)
    assert ("documents of corpus 'train' in" in said) == ("packed" in words)


def test_audit_shows_where_samples_begin(trained, capfd):
    run, words = trained
    assert triaxial("data", "audit", run, "--step", "1", "--json") == 0
    parts = [json.loads(line)["documents"] for line in capfd.readouterr().out.splitlines()]
    assert "document" not in words or all(len(documents) == 1 for documents in parts)
    assert all(documents[0]["offset_tokens"] == 0 for documents in parts) == ("window" not in words)


def test_a_stream_with_other_documents_is_refused_in_one_line(tiny_corpus, tmp_path, capfd):
    corpus = f'[{{ path = "{tiny_corpus.folder}/train", streams = {{ label = "{tiny_corpus.folder}/validation" }} }}]'
    held_out = f"{tiny_corpus.folder}/validation"
    validation = f'[{{ path = "{held_out}", streams = {{ label = "{held_out}" }} }}]'
    words = [tiny_corpus.recipe, "--run.directory", tmp_path / "run", "--data.train", corpus, *SHORT]
    words += ["--data.validation", validation]
    assert triaxial("train", *words) == 2
    said = capfd.readouterr().err
    assert "stream 'label'" in said
    assert "documents" in said
    assert "Traceback" not in said
    assert said.count("\n") == 1
