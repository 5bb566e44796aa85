"""`triaxial moderate label`: a real process serves the page; agreement of labellers; mistakes in one line."""

import http.client
import json
import re
import signal
import subprocess
import sys

import pytest

from launch.main import main

IDS = ("S", "H", "V", "SH", "HR", "S3", "H2", "V2")


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def labelled(labeller, i, value):
    labels = dict.fromkeys(IDS, 0) | {"S": value}
    return {"id": f"t{i}", "text": f"Text {i}.", "labeller": labeller, "labels": labels}


def test_a_process_serves_two_labellers_and_says_what_they_did(tmp_path):
    texts = write(tmp_path / "texts.jsonl", {"text": "One."}, {"text": "Two."}, {"prompt": "no text"})
    out = tmp_path / "labels.jsonl"
    words = ["moderate", "label", texts, "--taxonomy", "moderation_openai", "--output", out, "--labeller", "ana", "ben"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        shown = [process.stdout.readline() for _ in range(4)]
        port, token = re.search(r"ana: http://127\.0\.0\.1:(\d+)/([\w-]+)/", shown[2]).groups()
        assert shown[0] == 'note: 1 line left out: no "text"\n'
        assert "ben: http://" in shown[3]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)

        def post(action, **values):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/{token}/{action}", json.dumps({"window": "w", **values}), headers)
            return json.loads(connection.getresponse().read())

        item = post("state")["item"]
        assert post("answer", id=item["id"], labels=dict.fromkeys(IDS, 0), seconds=1)["done"] == 1
        connection.close()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "ana: 1 labelled, 0 skipped" in rest
    assert "ben: 0 labelled" in rest
    assert (process.returncode, errors) == (0, "")
    assert json.loads(out.read_text())["text"] == "One."


def test_agreement_is_cohens_kappa_by_category(tmp_path, capsys):
    ana = write(tmp_path / "ana.jsonl", *(labelled("ana", i, int(i < 25)) for i in range(50)))
    ben = write(tmp_path / "ben.jsonl", *(labelled("ben", i, int(i < 20 or 25 <= i < 35)) for i in range(50)))
    words = ["moderate", "label", str(ana), str(ben), "--taxonomy", "moderation_openai", "--agreement"]
    assert main([*words, "--json", str(tmp_path / "kappa.json")]) == 0
    out = capsys.readouterr().out
    assert "0.40 (" in out
    assert "one label only" in out
    found = {one["category"]: one for one in json.loads((tmp_path / "kappa.json").read_text())}
    assert (found["S"]["both"], found["S"]["n"], found["S"]["observed"]) == (20, 50, 0.7)
    assert found["S"]["kappa"]["estimate"] == pytest.approx(0.4, abs=1e-12)
    assert found["H"]["kappa"]["estimate"] is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--labeller", "ana"], "--output is missing"),
        (["--output", "OUT"], "--labeller is missing"),
        (["--labeller", "ana", "ana", "--output", "OUT"], "a name is given twice"),
        (["--labeller", "ana", "--output", "OUT", "--overlap", "1.5"], "--overlap 1.5 is invalid"),
        (["--labeller", "ana", "--output", "OUT", "--port", "70000"], "is no port"),
        (["--labeller", "ana", "--output", "TEXTS"], "is one of the files of texts"),
        (["--labeller", "ana", "--output", "OTHER"], "none is an answer"),
        (["--labeller", "ana", "--output", "/"], "is a folder"),
        (["--agreement"], "no text has labels of two labellers"),
        (["--agreement", "--output", "OUT"], "--agreement opens no page"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, why):
    texts = write(tmp_path / "texts.jsonl", {"text": "One."})
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    paths = {"OUT": tmp_path / "out.jsonl", "TEXTS": texts, "OTHER": tmp_path / "other.csv"}
    given = [str(paths.get(word, word)) for word in words]
    assert main(["moderate", "label", str(texts), "--taxonomy", "moderation_openai", *given]) == 2
    err = capsys.readouterr().err
    assert why in err
    assert len(err.strip().splitlines()) == 1
