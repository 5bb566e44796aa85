"""`triaxial prepare` from a user's files to a corpus: always the same bytes, and one line for each mistake."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.documents.counts import Counts
from gpt.errors import install_command
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main

pytest.importorskip("isal", reason="the extra 'data' is not installed")

ROOT = Path(__file__).parents[4]
CORPUS_FILES = ("corpus.json", "tokenizer.model", "train.bin", "train.idx", "validation.bin", "validation.idx")
NOUNS = [
    "miller",
    "sailor",
    "neighbour",
    "committee",
    "student",
    "brother",
    "teacher",
    "captain",
    "gardener",
    "painter",
]
VERBS = ["carried", "described", "followed", "remembered", "repaired", "questioned", "discovered", "painted", "sold"]
THINGS = ["wheel", "letter", "harvest", "map", "harbour", "bread", "lantern", "garden", "bridge", "window", "cellar"]


def story(seed: int, sentences: int = 14) -> str:
    rng = random.Random(seed)
    lines = []
    for n in range(sentences):
        odd = "".join(rng.choices("bcdfglmnprst", k=3)) + "".join(rng.choices("aeiou", k=3))
        lines.append(
            f"The {rng.choice(NOUNS)} of {odd} {rng.choice(VERBS)} the {rng.choice(THINGS)} that the "
            f"{rng.choice(NOUNS)} had {rng.choice(VERBS)} with the {rng.choice(THINGS)} in the year {seed * 37 + n}."
        )
    return "\n".join(lines)


def warc(pages: dict[str, str]) -> bytes:
    data = b""
    for url, text in pages.items():
        body = (
            "<html><body><article>"
            + "".join(f"<p>{line}</p>" for line in text.split("\n"))
            + "</article></body></html>"
        )
        block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body.encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:x:{url}>\r\nWARC-Target-URI: http://{url}/\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
        )
        data += gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0)
    return data


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> Path:
    """Pages and lines with known copies, a foreign text, a short one, and a truncated WARC."""
    folder = tmp_path_factory.mktemp("crawl")
    (folder / "a.warc.gz").write_bytes(warc({f"a{n}": story(n) for n in range(12)}))
    cut = warc({f"b{n}": story(20 + n) for n in range(8)} | {"copy": story(3)})
    last = warc({"lost": story(99)})
    (folder / "b.warc.gz").write_bytes(cut + last[: len(last) // 2])
    lines = [{"id": f"c{n}", "text": story(40 + n)} for n in range(12)]
    lines += [{"id": "near", "text": story(41) + "\nOne more line for the near copy of it."}]
    lines += [{"id": "short", "text": "Too short to be kept."}]
    lines += [{"id": "de", "text": "Der alte Müller trug das Rad durch das Dorf und sprach mit allen Leuten. " * 8}]
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode() + b"\n{bad"))
    return folder


def recipe(folder: Path, crawl: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text(
        f"""
        [input]
        paths = ["{crawl}/*.warc.gz", "{crawl}/*.jsonl.gz"]
        [output]
        folder = "{folder}/corpus"
        validation_fraction = 0.2
        [quality]
        rules = ["gopher_quality", "c4"]
        [tokenizer]
        vocab_size = 500
        """
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, crawl) -> Path:
    """The corpus of a run with one worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["prepare", str(recipe(folder, crawl)), "--workers", "1"]) == 0
    return folder / "corpus"


def test_a_crawl_becomes_a_corpus_and_a_second_run_does_nothing(tmp_path, crawl, capsys):
    path = recipe(tmp_path, crawl)
    assert main(["prepare", str(path), "--workers", "2"]) == 0
    shown = capsys.readouterr().out
    corpus = tmp_path / "corpus"
    description = json.loads((corpus / "corpus.json").read_text())
    steps = {step["step"]: Counts(**step) for step in description["steps"]}  # each of them adds up, or this asserts
    assert list(steps) == [
        "read",
        "extract",
        "language",
        "gopher_quality",
        "c4",
        "dedup_exact",
        "dedup_minhash",
        "tokenize",
    ]
    assert steps["read"].dropped == {"truncated": 1, "malformed": 1}
    assert steps["language"].dropped == {"other_language": 1}
    assert steps["gopher_quality"].dropped == {"gopher_short_doc": 1}
    assert steps["dedup_exact"].dropped == {"duplicate": 1}
    assert steps["dedup_minhash"].dropped == {"near_duplicate": 1}
    assert steps["tokenize"].documents_out == 32
    tokenizer = load_tokenizer(corpus / "tokenizer.model")
    assert description["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert description["vocab_size"] == tokenizer.vocab_size == 500
    files = {name: TokenFile(corpus / name) for name in ("train", "validation")}
    for split, name in (("training", "train"), ("validation", "validation")):
        facts = description["splits"][split]
        assert (files[name].n_tokens, files[name].n_documents) == (facts["tokens"], facts["documents"])
    assert description["documents"] == 32 == sum(file.n_documents for file in files.values())
    text = tokenizer.decode(files["train"].read(0, files["train"].n_tokens).tolist())
    assert "The " in text
    rows = [line.split() for line in shown.splitlines()]
    for row in (["truncated", "1"], ["malformed", "1"], ["near_duplicate", "1"], ["other_language", "1"]):
        assert row in rows
    assert ["read", "38", "2", "36"] in [row[:4] for row in rows]
    assert f"{corpus}/train.bin" in shown

    manifest = corpus / "work/manifest.jsonl"
    before = manifest.read_bytes(), {name: (corpus / name).stat().st_mtime_ns for name in CORPUS_FILES}
    assert main(["prepare", str(path), "--workers", "2"]) == 0
    assert (manifest.read_bytes(), {name: (corpus / name).stat().st_mtime_ns for name in CORPUS_FILES}) == before
    again = capsys.readouterr().out
    assert again.split("documents by step")[1] == shown.split("documents by step")[1]
    assert "extract: 3 tasks, 3 done before" in again

    page = (corpus / "work/report.html").read_text()
    for text in (
        "32 documents",
        "gopher_quality: gopher_short_doc",
        "Lengths of documents",
        "<h2>Languages</h2>",
        "Clusters of copies",
    ):
        assert text in page, text
    for document, fate in (
        ("de", "extract: passed\nlanguage: dropped, other_language (de 0.99)"),
        ("c1", "dedup_exact: passed\ndedup_minhash: dropped, near_duplicate (copy of near); "),
        ("c2", "dedup_minhash: passed\nkept as c2 in the training split; "),
        ("<urn:x:a1>", "kept as urn:x:a1 in the "),
    ):
        assert main(["prepare", str(path), "--explain", document]) == 0
        assert fate in capsys.readouterr().out, document
    assert main(["prepare", str(path), "--explain", "nobody"]) == 2
    assert "no document 'nobody' was read or dropped" in capsys.readouterr().err


def test_the_same_bytes_for_other_workers_names_and_orders(tmp_path, crawl, undisturbed):
    moved = tmp_path / "moved"
    moved.mkdir()
    for new, old in (("z.warc.gz", "a.warc.gz"), ("y.warc.gz", "b.warc.gz"), ("a.jsonl.gz", "c.jsonl.gz")):
        shutil.copy(crawl / old, moved / new)
    shutil.copy(crawl / "a.warc.gz", moved / "again.warc.gz")  # the same file under two names counts once
    words = ["--workers", "2", f'--input.paths=["{moved}/*.gz"]']
    assert main(["prepare", str(recipe(tmp_path, crawl)), *words]) == 0
    for name in CORPUS_FILES:
        one, two = ((folder / name).read_bytes() for folder in (undisturbed, tmp_path / "corpus"))
        if name == "corpus.json":
            one, two = (json.loads(text) for text in (one, two))
            assert one["recipe"].pop("input") != two["recipe"].pop("input")
            assert one.pop("sha256") != two.pop("sha256")
        assert one == two, name


def test_a_killed_run_is_resumed(tmp_path, crawl, undisturbed):
    """SIGKILL to a worker and to the command itself, at several points; then the corpus is the same as undisturbed."""
    path = recipe(tmp_path, crawl)
    manifest = tmp_path / "corpus/work/manifest.jsonl"
    command = [sys.executable, "-m", "launch.main", "prepare", str(path), "--workers", "2"]
    in_time = 0
    for points in ((6, 16), (30,), (50,)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for n_lines in points:
            while process.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") < n_lines):
                time.sleep(0.005)
            if n_lines != points[-1] and process.poll() is None:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(children[-1]), signal.SIGKILL)  # the last one: the first only cleans up after the others
        process.kill()
        process.wait(timeout=60)
        in_time += not (tmp_path / "corpus/corpus.json").exists()  # on a busy machine a later kill may come too late
    assert in_time
    assert main(["prepare", str(path), "--workers", "1"]) == 0
    for name in CORPUS_FILES:
        assert (tmp_path / "corpus" / name).read_bytes() == (undisturbed / name).read_bytes(), name
    keys = [entry["key"] for line in manifest.read_text().splitlines() if "key" in (entry := json.loads(line))]
    assert len(keys) == len(set(keys)), "nothing that was in the manifest is done again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quality.rulez", "x"], "quality.rulez: unknown key 'rulez'; did you mean 'rules'?"),
        (["--quality.rules", '["c5"]'], "quality.rules[0] = 'c5' is invalid: must be one of "),
        (["--langauge.keep", '["en"]'], "langauge: unknown key 'langauge'; did you mean 'language'?"),
        (
            ["--quality.c4.min_num_sentences", "many"],
            "quality.c4.min_num_sentences = 'many' is invalid: must be a whole number",
        ),
        (["--input.paths", '["missing/*.warc.gz"]'], "input.paths: no file matches 'missing/*.warc.gz'"),
        (["--tokenizer.path", "gone.model"], "gone.model: no such tokenizer file"),
        (["--dedup.against", '["gone"]'], "dedup.against: neither gone nor its subfolder 'work' has exact_index.json"),
        (["--workers", "0"], "--workers 0 is invalid: must be at least 1"),
        (["--share", "5/4"], "share 5/4 is invalid: the number must lie between 1 and 4"),
        (["--share", "1/2", "--share-timeout", "0.005"], "share 2/2 has not been started for 0.005 minutes, and its"),
        (["--executor", "slurm-array"], "SLURM_ARRAY_TASK_ID is not set. Start it with sbatch --array=1-N"),
        (["--ray-address", "h:1"], "--ray-address h:1 needs --executor ray, not --executor local"),
        (["--executor", "ray", "--share", "1/2"], "--share 1/2 needs the local executor: Ray divides the tasks"),
        (["--progress-every", "0"], "--progress-every 0 is invalid: must be above 0 s, for example 30"),
        (["--output.folder", "/dev/null/corpus"], "cannot write here"),
        (
            ["--language.keep", '["fi"]'],
            "step 'language' left none of its 36 documents (dropped: other_language 36); loosen that step",
        ),
        (["--tokenizer.vocab_size", "60000"], "vocab_size = 60000 is invalid: this text fills at most "),
    ],
)
def test_mistakes_are_one_line_and_leave_no_corpus(tmp_path, crawl, capsys, words, message):
    assert main(["prepare", str(recipe(tmp_path, crawl)), "--workers", "1", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.glob("corpus/*") if path.is_file()] == []
    if "gone" in words[1]:
        assert not (tmp_path / "corpus").exists(), "said before any work"
    assert [path for path in tmp_path.rglob("*") if "tmp" in path.name] == []


def test_an_existing_tokenizer_is_used_unchanged(tmp_path, crawl, undisturbed):
    model = undisturbed / "tokenizer.model"
    text = recipe(tmp_path, crawl).read_text().replace("vocab_size = 500", f'path = "{model}"')
    (tmp_path / "recipe.toml").write_text(text)
    assert main(["prepare", str(tmp_path / "recipe.toml"), "--workers", "1"]) == 0
    for name in ("tokenizer.model", "train.bin", "validation.bin"):
        assert (tmp_path / "corpus" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_documents_of_another_corpus_are_dropped(tmp_path, crawl, undisturbed, capsys):
    lines = [{"id": f"new{n}", "text": story(60 + n)} for n in range(10)]
    lines += [{"id": "near", "text": "A line more.\n" + story(40)}]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, lines)))
    paths = json.dumps([str(crawl / "c.jsonl.gz"), str(tmp_path / "new.jsonl")])
    words = ["--input.paths", paths, "--dedup.against", json.dumps([str(undisturbed)])]
    assert main(["prepare", str(recipe(tmp_path, crawl)), "--workers", "1", *words]) == 0
    steps = {s["step"]: s for s in json.loads((tmp_path / "corpus/corpus.json").read_text())["steps"]}
    assert steps["dedup_exact"]["dropped"] == {"duplicate_of_other_corpus": 13}
    assert steps["dedup_minhash"]["dropped"] == {"near_duplicate_of_other_corpus": 1}
    assert steps["tokenize"]["documents_out"] == 10
    assert main(["prepare", str(recipe(tmp_path, crawl)), "--explain", "near"]) == 0
    assert f"(copy of c0 in {undisturbed})" in capsys.readouterr().out


def test_a_missing_extra_is_named_with_its_pip_line(tmp_path, crawl):
    """A real interpreter in which one package cannot be imported."""
    code = (
        "import sys\nsys.modules['pycld2'] = None\nfrom pathlib import Path\n"
        "from data_prep.filters.language import detect\n"
        "from gpt.errors import ConfigError\n"
        "try:\n    detect('words')\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert "'pycld2' is not installed" in done.stdout
    assert install_command("data") in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_missing_extra_ends_the_command_before_it_writes_anything(tmp_path):
    recipe = ROOT / "launch" / "recipes" / "demo_corpus.toml"
    code = (
        f"import sys\nsys.modules['zstandard'] = None\nfrom launch.main import main\n"
        f"sys.exit(main(['prepare', {str(recipe)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2
    assert "'zstandard' is not installed" in done.stderr
    assert install_command("data") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_and_packages_load_without_torch():
    code = (
        "import sys, data_prep.pipeline\nfrom launch.main import main\n"
        "try:\n    main(['prepare', '--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "--workers" in done.stdout


def test_a_full_disk_keeps_the_finished_work_and_the_old_corpus(tmp_path, crawl, small_disk, capsys):
    small = small_disk(64 << 10)
    words = ["prepare", str(recipe(tmp_path, crawl)), "--workers", "1", "--output.folder", f"{small}/corpus"]
    assert main(words) == 1, "the same command may succeed later"
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{small}/corpus/work" in error
    assert "the disk is full" in error
    assert [path.name for path in small.rglob("*") if "tmp-" in path.name or path.name in CORPUS_FILES] == []
    done = (small / "corpus/work/manifest.jsonl").read_text()
    small_disk(8 << 20)
    assert main(words) == 0
    assert (small / "corpus/work/manifest.jsonl").read_text().startswith(done), "what was done is not done again"


def test_the_demos_recipe(tmp_path):
    """The whole shipped recipe: some 400,000 tokens of sentences from this machine's own Python."""
    words = [
        "prepare",
        str(ROOT / "launch/recipes/demo_corpus.toml"),
        "--output.folder",
        str(tmp_path),
        "--workers",
        "2",
    ]
    assert main(words) == 0
    description = json.loads((tmp_path / "corpus.json").read_text())
    training, validation = description["splits"]["training"], description["splits"]["validation"]
    assert training["tokens"] >= 250_000
    assert 0.01 < validation["tokens"] / training["tokens"] < 0.15
    assert 5 < description["unigram_entropy_nats"] < 7
    assert description["vocab_size"] == 4096
    steps = [step["step"] for step in description["steps"]]
    assert steps == [
        "crawl",
        "read",
        "extract",
        "language",
        "c4",
        "gopher_quality",
        "gopher_repetition",
        "fineweb",
        "dedup_exact",
        "dedup_minhash",
        "tokenize",
    ]
