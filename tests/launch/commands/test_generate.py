"""`triaxial generate` on a prompt, on a file of prompts, with stop strings, and on layouts."""

import dataclasses
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import tty
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from gpt.inference.generation import generate
from gpt.inference.sampling_settings import Sampling
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from gpt.training.config import Retention
from launch.config.run_config import as_dict, read_run_config
from launch.main import main
from launch.runs.saved_run import open_run
from parallel.checkpoint.save import save_checkpoint

HERE = Path(__file__).resolve().parents[1]
TEXT = "The parser reads the source, then 42 of the others follow; for each it prints a line of names and of numbers.\n"
SIZES = {"vocab_size": 360, "n_ctx": 64, "n_layers": 4, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "init_std": 0.2}
SAMPLING = ["--temperature", "1.1", "--top-k", "200", "--top-p", "0.98", "--repetition-penalty", "1.2", "--seed", "7"]
LINES: list[dict[str, Any]] = [
    {"id": "a", "prompt": "The parser"},
    {"prompt": "", "max_new_tokens": 5, "note": ["kept", {"as": "it is"}]},
    {"id": 3, "prompt": TEXT[:60], "seed": 90},
    {"prompt": "then 42 \u20ac", "id": None},
    {"id": 5, "prompt": "names", "max_new_tokens": 30, "seed": 1},
]
LAYOUTS = {
    "tensor": (2, ["--parallel.tensor", "2"]),
    "pipeline": (2, ["--parallel.pipeline", "2"]),
    "data": (2, []),
    "both": (4, ["--parallel.tensor", "2", "--parallel.pipeline", "2"]),
}


@dataclasses.dataclass(frozen=True)
class SmallRun:
    """A run with one checkpoint, its model and its tokenizer."""

    directory: Path
    model: GPT
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    directory = tmp_path_factory.mktemp("run")
    (directory / "tokenizer").mkdir()
    train_sentencepiece(iter([TEXT] * 2), directory / "tokenizer" / "small.model", vocab_size=350)
    sizes = [word for key, value in SIZES.items() for word in (f"--model.{key}", str(value))]
    config = read_run_config("demo", [*sizes, "--model.positions", "rope"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="gone/small.model"))
    model = GPT(config.model).requires_grad_(False)
    initialise(model, config.model, seed=3)
    assert model.embed is not None
    model.embed.tokens.weight[1] *= 2.5  # so that some texts end by themselves
    tensors = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    state: dict[str, object] = {"config": as_dict(config), "step": 10, "tokens_seen": 40960}
    save_checkpoint(directory / "checkpoints", step=10, tensors=tensors, state=state, keep=Retention(1))
    return SmallRun(directory, model, load_tokenizer(directory / "tokenizer" / "small.model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in LINES) + "\n\n", encoding="utf-8")
    return path


def continued(small: SmallRun, path: Path, *words: str) -> list[dict[str, Any]]:
    out = path.with_name("out.jsonl")
    assert main(["generate", str(small.directory), "--input", str(path), "--output", str(out), *words]) == 0
    assert sorted(out.parent.iterdir()) == sorted({path, out}), "no temporary file is left"
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def alone(small: SmallRun, prompt: str, *, limit: int, seed: int, sampling: Sampling) -> Any:
    end = small.tokenizer.end_of_document_id
    ids = small.tokenizer.encode(prompt) or [end]
    settings = {"n_ctx": 64, "max_new_tokens": limit, "sampling": sampling, "seed": seed, "stop_ids": [end]}
    return generate(small.model, [ids], n_ids=350, **settings)[0]


@pytest.mark.parametrize("batch", [["--batch-size", "2"], ["--batch-tokens", "1"], []])
def test_every_line_gets_the_text_that_it_gets_alone(small: SmallRun, prompts: Path, batch: list[str]) -> None:
    found = continued(small, prompts, *SAMPLING, "--max-new-tokens", "8", *batch)
    assert len(found) == len(LINES)
    for i, (line, result) in enumerate(zip(LINES, found, strict=True)):
        limit, seed = line.get("max_new_tokens", 8), line.get("seed", 7 + i)
        expected = alone(small, line["prompt"], limit=limit, seed=seed, sampling=Sampling(1.1, 200, 0.98, 1.2))
        assert {key: result[key] for key in line if key != "seed"} == {k: v for k, v in line.items() if k != "seed"}
        assert result["seed"] == seed
        assert result["tokens"] == expected.tokens
        assert result["log_probs"] == pytest.approx(expected.log_probs, abs=1e-4)
        assert result["finish_reason"] == ("stop" if expected.stopped else "length")
        ids = small.tokenizer.encode(line["prompt"])
        assert small.tokenizer.decode(ids) + result["text"] == small.tokenizer.decode([*ids, *expected.tokens])
    assert {result["finish_reason"] for result in found} == {"stop", "length"}


def test_several_samples_per_line(small: SmallRun, prompts: Path) -> None:
    found = continued(small, prompts, *SAMPLING, "--max-new-tokens", "4", "--num-samples", "3")
    assert [(line["seed"], line["sample"]) for line in found] == [
        (seed + j, j) for seed in (7, 10, 90, 16, 1) for j in range(3)
    ]
    assert all(len({tuple(line["tokens"]) for line in found[i : i + 3]}) > 1 for i in range(0, 15, 3))
    again = continued(small, prompts, *SAMPLING, "--max-new-tokens", "4", "--num-samples", "3", "--batch-size", "4")
    assert [line["tokens"] for line in again] == [line["tokens"] for line in found]


def across_tokens(small: SmallRun, prompt: str, tokens: list[int]) -> str:
    """Return two characters of a generated text that belong to two tokens and do not occur earlier."""
    ids = small.tokenizer.encode(prompt)
    text = small.tokenizer.decode([*ids, *tokens])[len(prompt) :]
    ends = [len(small.tokenizer.decode([*ids, *tokens[:n]])) - len(prompt) for n in range(2, len(tokens))]
    return next(text[i - 1 : i + 1] for i in ends if i > 0 and text.find(text[i - 1 : i + 1]) == i - 1)


def test_a_line_ends_before_its_stop_text(small: SmallRun, prompts: Path) -> None:
    """The stop text comes from a text that was generated without it. Other lines do not stop."""
    words = [*SAMPLING, "--max-new-tokens", "20"]
    free = continued(small, prompts, *words)
    longest = max(free, key=lambda line: len(line["tokens"]))
    stop = across_tokens(small, longest["prompt"], longest["tokens"])
    found = continued(small, prompts, *words, "--stop", "nowhere", stop)
    for line, whole in zip(found, free, strict=True):
        assert line["text"] == whole["text"].partition(stop)[0]
        assert (line["finish_reason"] == "stop") == (stop in whole["text"] or whole["finish_reason"] == "stop")
        assert line["tokens"] == whole["tokens"][: len(line["tokens"])]
    assert sum(len(line["tokens"]) for line in found) < sum(len(line["tokens"]) for line in free)


def test_a_streamed_text_ends_before_its_stop_text(small: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(small.directory), "--prompt", "The parser", "--temperature", "0", "--max-new-tokens", "20"]
    main(words)
    free = capsys.readouterr()
    assert "stop text" not in free.err
    text = free.out.removeprefix("The parser").removesuffix("\n")
    tokens = alone(small, "The parser", limit=20, seed=0, sampling=Sampling()).tokens
    stop = across_tokens(small, "The parser", tokens)
    main([*words, "--stop", stop])
    cut = capsys.readouterr()
    assert cut.out == "The parser" + text.partition(stop)[0] + "\n"
    assert "stop text" in cut.err


def test_lines_go_from_standard_input_to_standard_output(
    small: SmallRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = '\ufeff{"prompt": "The source"}\r\n{"prompt": "\\ud800\u20ac"}'.encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["generate", str(small.directory), "--input", "-", "--max-new-tokens", "3"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["prompt"] == "The source"
    assert second["prompt"] == "\ud800\u20ac"
    assert len(first["tokens"]) == 3


def test_the_streamed_text_is_that_of_the_generated_tokens(
    made: Any, capsys: pytest.CaptureFixture[str], triaxial: Any
) -> None:
    words = ["--prompt", "The parser", "--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--seed", 3]
    assert triaxial("generate", made.directory, *words, "--max-new-tokens", 20, "--num-samples", 2) == 0
    printed = capsys.readouterr()
    saved = open_run(made.directory)
    prompt = saved.tokenizer.encode("The parser")
    texts = []
    for seed in (3, 4):
        (result,) = generate(
            made.models[20],
            [prompt],
            n_ctx=64,
            max_new_tokens=20,
            sampling=Sampling(1.5, 50, 0.9),
            seed=seed,
            stop_ids=[saved.tokenizer.end_of_document_id],
            n_ids=350,
        )
        texts.append(saved.tokenizer.decode([*prompt, *result.tokens]))
    head = "--- sample {} of 2, seed {}\n"
    assert printed.out == head.format(1, 3) + texts[0] + "\n" + head.format(2, 4) + texts[1] + "\n"
    assert texts[0] != texts[1]
    assert printed.err.count("tokens/s") == 2


def test_an_empty_prompt_and_one_from_standard_input(
    made: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, triaxial: Any
) -> None:
    triaxial("generate", made.directory, "--temperature", 0, "--step", 10)
    summary = capsys.readouterr().err
    assert "63 tokens" in summary or "end of document" in summary
    monkeypatch.setattr("sys.stdin", io.StringIO("The source"))
    triaxial("generate", made.directory, "--prompt", "-", "--max-new-tokens", 3)
    assert capsys.readouterr().out.startswith("The source")


def test_mistakes_are_refused_before_anything_is_printed(
    made: Any, capsys: pytest.CaptureFixture[str], triaxial: Any
) -> None:
    for words, message in (
        (["--max-new-tokens", 64], "n_ctx = 64"),
        (["--prompt", "The parser reads. " * 40], "Shorten the prompt"),
        (["--top-p", 2], "top_p = 2.0"),
        (["--num-samples", 0], "--num-samples 0"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "warp"], "--device warp is not a device"),
    ):
        with pytest.raises(ConfigError, match=message):
            triaxial("generate", made.directory, "--prompt", "The", *words)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', [], "line 2 is not JSON"),
        (b'{"prompt": "a"}\n\n\xff\n', [], "line 3 is not JSON"),
        (b'{"prompt": "a"}\n"b"\n', [], "line 2 must be an object with a text 'prompt'"),
        (b'{"prompt": ["a"]}\n', [], "line 1 must be an object with a text 'prompt'"),
        (b'{"prompt": "a", "seed": 1.5}', [], "line 1: 'seed' = 1.5 is invalid: it must be a whole number"),
        (
            b'{"prompt": "a", "max_new_tokens": 0}',
            [],
            "'max_new_tokens' = 0 is invalid: it must be a whole number from 1 to",
        ),
        (b'{"prompt": "a", "seed": -1}', [], "'seed' = -1 is invalid: it must be a whole number from 0 to"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 300 + b"}", [], "'seed' = 1000"),
        (b'{"prompt": "a", "score": NaN}', [], "line 1 has NaN or infinity, which JSON does not have"),
        (b'{"prompt": "a", "scores": [{"x": -Infinity}]}', [], "line 1 has NaN or infinity"),
        (b'{"prompt": "a", "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", [], "nested too deeply"),
        (b'{"prompt": "a"}', ["--seed", "-1"], "--seed -1 is invalid: it must be at least 0"),
        (b'{"prompt": "a", "max_new_tokens": 64}', [], "line 1: the prompt has 1 tokens. With max_new_tokens"),
        (b'{"prompt": "a", "text": "b"}', [], "the output adds a field 'text'"),
        (b'{"prompt": "a"}\n{"prompt": "' + b"@" * 70 + b'"}', [], "line 2: the prompt has 70 tokens"),
        (b"\n", [], "has no lines"),
        (b'{"prompt": "a"}', ["--prompt", "b"], "--prompt and --input"),
        (b'{"prompt": "a"}', ["--batch-size", "0"], "--batch-size 0"),
        (b'{"prompt": "a"}', ["--stop", "x", ""], "--stop ''"),
        (b'{"prompt": "a"}', ["--repetition-penalty", "0"], "repetition_penalty = 0.0"),
        (b'{"prompt": "a"}', ["--parallel.tensor", "2"], "parallel.tensor"),
        (b'{"prompt": "a"}', ["--nproc", "2", "--parallel.tensor", "3"], "parallel.tensor"),
        (b'{"prompt": "a"}', ["--nproc", "2", "--model.n_ctx", "3"], "--model.n_ctx"),
    ],
)
def test_a_bad_line_is_refused_before_any_work(
    small: SmallRun, tmp_path: Path, data: bytes, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(data)
    run = shutil.copytree(small.directory, tmp_path / "run")
    next(run.rglob("*.safetensors")).write_bytes(b"")  # reading any weight would be an error too
    assert main(["generate", str(run), "--input", str(path), "--output", str(out), *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not out.exists()


def test_a_terminal_gets_escapes_and_a_pipe_the_text_itself(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is the prompt and 1 token; the prompt holds what a model may write too."""
    prompt = "\x1b]0;title\x07\x1b[2J\r\x9b1m\u202e\tnames\n"
    words = ["generate", str(small.directory), "--max-new-tokens", "1", "--device", "cpu"]
    (tmp_path / "p").write_text(json.dumps({"prompt": "names", "note": prompt}, ensure_ascii=False))
    lines = [*words, "--input", str(tmp_path / "p")]
    code = f"import sys; from launch.main import main; sys.exit(main(sys.argv[1:]) or main({lines!r}))"
    leader, follower = pty.openpty()
    tty.setraw(follower)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-c", code, *words, "--prompt", prompt]
    subprocess.run(command, stdout=follower, check=True, timeout=280, env=environment)
    on_terminal = os.read(leader, 1 << 16).decode()
    assert on_terminal.startswith(r"\x1b]0;title\x07\x1b[2J\r\x9b1m\u202e" + "\tnames\n")
    assert not set("\x1b\x07\r\x9b\u202e") & set(on_terminal)
    assert json.loads(on_terminal.splitlines()[-1])["note"] == prompt, "the same JSON"
    for descriptor in (leader, follower):
        os.close(descriptor)
    assert main([*words, "--prompt", prompt]) == 0
    assert capsys.readouterr().out.startswith(prompt)
    assert main(lines) == 0
    assert "\u202e" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "nowhere.jsonl"], "nowhere.jsonl cannot be read: no such file"),
        (["--input", "prompts.jsonl", "--output", "nowhere/out.jsonl"], "the folder nowhere does not exist"),
        (["--input", "prompts.jsonl", "--output", "."], "is a folder"),
        (["--output", "out.jsonl"], "--output is only valid with --input"),
        (["--batch-size", "3"], "--batch-size is only valid with --input"),
    ],
)
def test_impossible_files_are_refused(
    small: SmallRun,
    prompts: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(prompts.parent)
    assert main(["generate", str(small.directory), *words]) == 2
    assert message in capsys.readouterr().err


def test_layouts_give_the_texts_of_one_process(small: SmallRun, prompts: Path, tmp_path_factory: Any) -> None:
    """All layouts run in one program. Log-probabilities are equal to rounding."""
    out = tmp_path_factory.mktemp("ranks")
    how = [*SAMPLING, "--max-new-tokens", "7", "--stop", "e"]
    common = ["generate", str(small.directory), "--device", "cpu", "--input", str(prompts), *how]
    jobs = [
        {"name": name, "ranks": ranks, "words": [*common, *words, "--output", str(out / f"{name}.jsonl")]}
        for name, (ranks, words) in LAYOUTS.items()
    ]
    (out / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, str(HERE / "evaluation_ranks.py"), str(out / "jobs.json"), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one = continued(small, prompts, *how)
    assert {line["finish_reason"] for line in one} == {"stop", "length"}
    for name in LAYOUTS:
        lines = (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for found, expected in zip(map(json.loads, lines), one, strict=True):
            assert found.pop("log_probs") == pytest.approx(expected["log_probs"], abs=1e-4), name
            assert found == {key: value for key, value in expected.items() if key != "log_probs"}, name
