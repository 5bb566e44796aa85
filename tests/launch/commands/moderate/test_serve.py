"""`triaxial moderate serve` as a process: clients get the scores of the run, and texts stay out of its output."""

import http.client
import json
import random

import pytest
from served import in_threads, served

from launch.commands.moderate.serve import run as command
from launch.main import main
from launch.moderation.open_run import load_classifier

pytest.importorskip("aiohttp", reason="aiohttp is not installed; it comes with the extra 'serve'")


def test_twenty_clients_get_the_scores_of_the_run(classifier_run):
    """Tolerance 1e-5: batches differ."""
    words = ["-m", "launch.main", "moderate", "serve", classifier_run.run, "--port", 0, "--name", "TOXICITY=F2"]
    texts = [json.loads(line)["text"] for line in (classifier_run.folder / "validation.jsonl").read_text().splitlines()]
    texts.append(" ".join(texts))  # of many windows
    classifier = load_classifier(classifier_run.run)
    wanted = dict(zip(texts, classifier.scores(texts).tolist(), strict=True))
    with served([*words, "--log-requests"]) as server:

        def client(number):
            draw, largest = random.Random(number), 0.0
            for _ in range(10):
                some = draw.sample(texts, draw.randint(1, 5))
                status, found, _ = server.ask("/v1/moderations", {"input": some})
                assert (status, found["model"]) == (200, classifier.version)
                for text, one in zip(some, found["results"], strict=True):
                    pairs = zip(one["category_scores"].values(), wanted[text], strict=False)  # then TOXICITY
                    largest = max(largest, *(abs(a - b) for a, b in pairs))
                    assert one["flagged"] == any(one["categories"].values())
                body = {"comment": {"text": some[0]}, "requestedAttributes": {"TOXICITY": {}}}
                found = server.ask("/v1alpha1/comments:analyze", body)[1]["attributeScores"]["TOXICITY"]
                largest = max(largest, abs(found["summaryScore"]["value"] - wanted[some[0]][1]))
            return largest

        assert max(in_threads(20, client)) < 1e-5
        status, out, err = server.stop()
    assert status == 0
    assert "400 requests answered, 0 refused" in out
    assert "apple" not in out + err


def test_memory_stays_flat_over_texts_of_every_length(classifier_run):
    """At most 40 MB more in 2,000 requests, once the largest batches have been: 26 MB of compiled code, and slack.

    Code for each number of tokens in a batch took 79 MB, and would have gone on to 260 MB.
    """
    words = (
        "the",
        "house",
        "was",
        "near",
        "an",
        "old",
        "table",
        "and",
        "we",
        "saw",
        "it",
        "in",
        "town",
        "apple",
        "pear",
    )
    with served(["-m", "launch.main", "moderate", "serve", classifier_run.run, "--port", 0]) as server:

        def client(number, count, least_texts=1, least_words=1):
            draw = random.Random(number)
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
            for _ in range(count):
                lengths = [draw.randint(least_words, 60) for _ in range(draw.randint(least_texts, 16))]
                some = [" ".join(draw.choices(words, k=length)) for length in lengths]
                status, found, _ = server.ask("/v1/moderations", {"input": some}, connection=connection)
                assert (status, len(found.get("results", ()))) == (200, len(some))
            connection.close()

        in_threads(4, lambda number: client(number, 25, least_texts=16, least_words=60))
        before = server.memory_bytes()
        in_threads(4, lambda number: client(number + 4, 500))
        assert server.memory_bytes() - before < 40 << 20
        assert server.ask("/health")[1]["answered"] == 2_100


@pytest.mark.rehearse
def test_memory_stays_flat_over_twenty_thousand_requests(classifier_run):
    """At most 16 MB more after 16,000 further requests of 50 clients, each of which gets its answer."""
    texts = [json.loads(line)["text"] for line in (classifier_run.folder / "validation.jsonl").read_text().splitlines()]
    with served(["-m", "launch.main", "moderate", "serve", classifier_run.run, "--port", 0]) as server:

        def client(number):
            draw = random.Random(number)
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
            for _ in range(80):
                some = draw.sample(texts, draw.randint(1, 5))
                status, found, _ = server.ask("/v1/moderations", {"input": some}, connection=connection)
                assert status == 200
                assert len(found["results"]) == len(some)
            connection.close()

        in_threads(50, client)
        before = server.memory_bytes()
        for _ in range(4):
            in_threads(50, client)
        assert server.memory_bytes() - before < 16 << 20
        assert server.ask("/health")[1]["answered"] == 20_000


def test_wrong_arguments_are_refused_in_one_line(classifier_run, tmp_path, capsys):
    (tmp_path / "key").write_text("two words\n")
    for words, error in (
        (["--name", "TOXICITY=X"], "the taxonomy has no category 'X'"),
        (["--max-texts", "0"], "--max-texts 0 is invalid"),
        (["--port", "70000"], "--port 70000 is invalid"),
        (["--key-file", str(tmp_path / "key")], "must have one line with a key"),
    ):
        assert main(["moderate", "serve", str(classifier_run.run), *words]) == 2
        assert error in capsys.readouterr().err
    assert callable(command)
