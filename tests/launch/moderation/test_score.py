"""`triaxial moderate score`: every kind of input, bad records, resume, formats and layouts."""

import errno
import fcntl
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from free_ports import free_ports
from launched import TRIAXIAL

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import parse_taxonomy
from launch.main import main
from launch.moderation.open_run import load_classifier
from launch.moderation.score import ScoreRequest, score_inputs
from launch.moderation.score_files import ScoreFile, stem_of
from launch.moderation.score_inputs import find_score_inputs


def score(run, *words):
    return main(["moderate", "score", str(run), *map(str, words)])


def lines(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def scores_of(records):
    return np.array([list(record["scores"].values()) for record in records])


@pytest.fixture(scope="module")
def scored(classifier_run, tmp_path_factory):
    """The score file of the texts in validation.jsonl."""
    output = tmp_path_factory.mktemp("scored") / "validation.jsonl"
    assert score(classifier_run.run, classifier_run.folder / "validation.jsonl", "--output", output) == 0
    return output


def test_json_lines_keep_ids_and_groups(classifier_run, scored):
    given, found = lines(classifier_run.folder / "validation.jsonl"), lines(scored)
    assert [one["id"] for one in found] == [one["id"] for one in given]
    assert [one["text"] for one in found] == [one["text"] for one in given]
    assert found[0]["groups"] == {"language": "en"}
    assert list(found[0]["scores"]) == ["F", "F2", "T"]
    wanted = load_classifier(classifier_run.run).scores([one["text"] for one in given])
    np.testing.assert_allclose(scores_of(found), wanted, atol=1e-6)
    facts = json.loads(scored.with_name("validation.summary.json").read_text())
    assert (facts["texts"], facts["set_aside"], facts["taxonomy"], facts["calibrated"]) == (120, {}, "fruit 1", False)
    assert parse_taxonomy(facts["taxonomy_content"], where="facts").digest == facts["taxonomy_digest"]
    assert facts["model"] == load_classifier(classifier_run.run).version
    assert sorted(path.name for path in scored.parent.iterdir()) == ["validation.jsonl", "validation.summary.json"]


def test_token_files_parquet_and_gzip_give_the_same_scores(classifier_run, scored, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert score(classifier_run.run, classifier_run.folder / "validation", "--output", tmp_path / "t.parquet") == 0
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    np.testing.assert_allclose(scores_of(table), scores_of(lines(scored)), atol=1e-6)
    assert table[0]["id"] == "validation:0"
    assert json.loads(table[0]["groups"]) == {}
    words = (
        tmp_path / "t.parquet",
        "--output",
        tmp_path / "again.jsonl.gz",
        "--no-text",
        "--json",
        tmp_path / "f.json",
    )
    assert score(classifier_run.run, *words) == 0
    assert "definition" not in (tmp_path / "f.json").read_text()  # nor examples, which may offend
    again = lines(tmp_path / "again.jsonl.gz")
    assert "text" not in again[0]
    np.testing.assert_allclose(scores_of(again), scores_of(table), atol=1e-6)


def test_texts_of_web_archives_and_bad_records(classifier_run, tmp_path):
    wet = b"".join(
        b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a.example/%d\r\nWARC-Record-ID: <urn:%d>\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (i, i, len(text), text)
        for i, text in enumerate([b"an apple in town", b"an old house"])
    )
    (tmp_path / "pages.wet").write_bytes(wet)
    bad = b'{"text": "a \\u0000 saw", "lang": "de"}\n'
    bad += b'{"text": " "}\n{"other": 1}\n\xff\xfe\xfa{"text"\n{"text": 3}\n[1]\n{"a'
    (tmp_path / "bad.jsonl").write_bytes(bad)
    output = tmp_path / "out.jsonl"
    assert score(classifier_run.run, tmp_path / "*.*", "--group", "lang", "--output", output) == 0
    found = lines(output)
    assert [one["text"] for one in found] == ["a \0 saw", "an apple in town", "an old house"]
    assert [one["source"] for one in found[1:]] == ["http://a.example/0", "http://a.example/1"]
    assert found[0]["groups"] == {"lang": "de"}
    facts = json.loads((tmp_path / "out.summary.json").read_text())
    assert facts["set_aside"] == {"empty": 3, "malformed": 2, "not_utf8": 1}
    aside = lines(tmp_path / "out.set_aside.jsonl")
    assert len(aside) == 6
    assert {*aside[0]} == {"id", "reason", "source"}


def test_an_interrupted_run_goes_on_and_another_request_starts_again(classifier_run, scored, tmp_path):
    classifier = load_classifier(classifier_run.run)
    inputs = find_score_inputs([str(classifier_run.folder / "validation.jsonl")], text_field="text", id_field="id")
    request = ScoreRequest(inputs, tmp_path / "out.jsonl")
    done = []

    def stop(n):
        done.append(n)
        if sum(done) == 80:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_inputs(classifier, request, advance=stop, chunk_texts=40)
    assert not request.output.exists()
    part = tmp_path / ".out.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"half a line')  # as a crash leaves it
    other = ScoreRequest(inputs, request.output, with_text=False)
    assert other.identity(classifier) != request.identity(classifier)
    seen = []
    score_inputs(classifier, request, advance=seen.append, chunk_texts=40)
    assert seen == [80, 40]  # two chunks were there
    assert scores_of(lines(request.output)).shape == (120, 3)
    np.testing.assert_allclose(scores_of(lines(request.output)), scores_of(lines(scored)), atol=1e-6)
    assert [one["id"] for one in lines(request.output)] == [one["id"] for one in lines(scored)]


def test_one_output_has_one_writer_and_a_crash_leaves_no_lock(classifier_run, tmp_path, capsys):
    output, texts = tmp_path / "out.jsonl", classifier_run.folder / "validation.jsonl"
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", program, tmp_path / ".out.lock"], stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        assert score(classifier_run.run, texts, "--output", output) == 2
        assert "is writing it. Wait for that one, or name another file" in capsys.readouterr().err
    finally:
        first.kill()
        first.wait()
    assert (tmp_path / ".out.lock").exists()  # as a crash leaves it
    assert score(classifier_run.run, texts, "--output", output) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.summary.json"]


def test_a_writer_that_ended_meanwhile_is_noticed(tmp_path):
    def facts():
        return {"request": 1}

    late, early = ScoreFile(tmp_path / "out.jsonl", facts()), ScoreFile(tmp_path / "out.jsonl", facts())
    with early.opened():
        early.add([b"{}\n"], [], in_windows=0)
    with pytest.raises(ConfigError, match=r"another .* has just written it. Run the command again"), late.opened():
        pass


def test_a_pipeline_of_two_ranks_gives_the_same_scores(classifier_run, scored, tmp_path):
    """Tolerance 1e-5."""
    words = ["moderate", "score", classifier_run.run, classifier_run.folder / "validation.jsonl"]
    layout = ["--output", tmp_path / "two.jsonl", "--nproc", "2", "--parallel.pipeline", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*TRIAXIAL, *map(str, (*words, *layout))], check=True, env=environment, timeout=240)
    np.testing.assert_allclose(scores_of(lines(tmp_path / "two.jsonl")), scores_of(lines(scored)), atol=1e-5)


def test_a_refusal_of_the_main_rank_ends_every_rank(classifier_run, tmp_path):
    """Under Slurm nobody ends the other ranks, which would wait for the main rank in their first batch."""
    lock = open(tmp_path / ".two.lock", "w")  # noqa: SIM115 - held until the end
    fcntl.flock(lock, fcntl.LOCK_EX)
    words = ["moderate", "score", classifier_run.run, classifier_run.folder / "validation.jsonl"]
    words += ["--output", tmp_path / "two.jsonl"]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared["MASTER_PORT"] = str(free_ports(1)[0])
    ranks = [
        subprocess.Popen(
            [*TRIAXIAL, *map(str, words)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        found = [(rank.communicate(timeout=240)[1].splitlines(), rank.returncode) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
        lock.close()
    for errors, status in found:
        assert [line for line in errors if "is writing it. Wait for that one" in line] == errors[-1:], errors
        assert status == 2


def test_a_full_disk_is_one_line(classifier_run, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / ".out.jsonl.part"))

    monkeypatch.setattr(ScoreFile, "add", full)
    assert (
        score(classifier_run.run, classifier_run.folder / "validation.jsonl", "--output", tmp_path / "out.jsonl") == 1
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ".out.jsonl.part cannot be written: no space left on device" in line


def test_inputs_of_the_wrong_kind_are_one_line(classifier_run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.dat").write_bytes(b"\x88\x00" * 900)
    (tmp_path / "bytes.jsonl").write_bytes(b"\x88\x00\n" * 900)
    for name, why in (
        ("empty", "INPUT is invalid: no file in the folder"),
        ("none.jsonl", "INPUT is invalid: no file matches"),
        ("bytes.dat", "INPUT is invalid: 'bytes.dat' is invalid: the ending is unknown. Use"),
    ):
        assert score(classifier_run.run, tmp_path / name, "--output", tmp_path / "out.jsonl") == 2
        err = capsys.readouterr().err
        assert why in err
        assert "input.endings" not in err
        assert len(err.strip().splitlines()) == 1
    assert score(classifier_run.run, tmp_path / "bytes.jsonl", "--output", tmp_path / "out.jsonl") == 0
    assert "0 texts scored" in capsys.readouterr().out


def test_names_of_score_files(tmp_path):
    assert stem_of(tmp_path / "a.b.jsonl.gz") == "a.b"
    with pytest.raises(ConfigError, match=r"the ending must be one of \.jsonl, \.jsonl\.gz, \.parquet"):
        stem_of(tmp_path / ".jsonl")


def test_halves_of_surrogate_pairs_in_any_field_become_replacement_characters(classifier_run, tmp_path):
    line = '{"id": "a", "text": "an apple", "source": "x\\ud800", "groups": {"k\\ud800": "v\\udc00"}}'
    (tmp_path / "odd.jsonl").write_text(line + "\n")
    assert score(classifier_run.run, tmp_path / "odd.jsonl", "--output", tmp_path / "out.jsonl") == 0
    (found,) = lines(tmp_path / "out.jsonl")
    assert (found["source"], found["groups"]) == ("x\ufffd", {"k\ufffd": "v\ufffd"})
