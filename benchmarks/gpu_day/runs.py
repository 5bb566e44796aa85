"""The parts that start `triaxial` as a user does: kill and resume, a hung device, text, the doctor, the tests."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from job import ROOT, Check, Job, LeftOut, holds, last, triaxial

from gpt.files.json_files import read_json_object
from gpt.inference.generation import generate
from gpt.model.gpt import GPT
from gpt.model.gpt3_sizes import shape_of_parameters
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.processes.rank_process import die_with_parent

RECIPE = """# Python's help topics, as a corpus that every machine has
[run]
directory = "{folder}/run"
seed = 3
[model]
vocab_size = 512
n_ctx = {n_ctx}
n_layers = 4
d_model = {d_model}
n_heads = 4
[data]
tokenizer = "{folder}/topics.model"
seq_len = {n_ctx}
train = [{{ path = "{folder}/train" }}]
validation = [{{ path = "{folder}/validation", name = "topics" }}]
[batch]
micro_batch_size = 4
global_batch_tokens = {batch}
[optimizer]
learning_rate = 2e-3
[parallel]
compile = {compile}
[train]
total_steps = {steps}
validation_tokens = {batch}
[metrics]
wandb = "disabled"
"""


def recipe(job: Job) -> Path:
    """A recipe and its corpus in the shared folder, made once."""
    folder = job.shared / "topics"
    path = folder / "recipe.toml"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    texts = [topics[name] for name in sorted(topics)]
    train_sentencepiece(iter(texts), folder / "topics.model", vocab_size=512)
    tokenizer = load_tokenizer(folder / "topics.model")
    for split, part in (("train", texts[5:]), ("validation", texts[:5])):
        with TokenFileWriter(folder / split, vocab_size=512) as writer:
            for text in part:
                writer.add_document(np.array([*tokenizer.encode(text), tokenizer.end_of_document_id]))
    sizes = {"n_ctx": 64, "d_model": 64, "batch": 1024, "steps": 8} if job.tiny else {
        "n_ctx": 256, "d_model": 256, "batch": 8192, "steps": 60}  # fmt: skip
    path.write_text(RECIPE.format(folder=folder, compile="false" if job.tiny else "true", **sizes))
    return path


def trained(job: Job) -> Path:
    """A run of that recipe in fp32, trained once on this device."""
    directory = job.shared / "topics" / f"run_{job.device.type}"
    if not (directory / "train_summary.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        words = ("--run.directory", directory, "--run.device", job.device.type, "--parallel.precision", "fp32")
        triaxial(job, "train", recipe(job), *words, log="train.log")
    return directory


def cleared(job: Job, name: str) -> Path:
    """A folder of the part's own that does not exist, as before an earlier call."""
    folder = job.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def resume(job: Job) -> Iterator[Check]:
    """A run that is killed while it saves, and resumed, ends with the bits of one that was not."""
    words = ["train", recipe(job), "--run.device", job.device.type, "--run.deterministic", "true"]
    step_tokens = 1024 if job.tiny else 8192
    words += ["--checkpoint.every_tokens", step_tokens * 2, "--checkpoint.keep_last", 3]
    whole, killed = cleared(job, "whole"), cleared(job, "killed")
    triaxial(job, *words, "--run.directory", whole, log="whole.log")
    command = [sys.executable, "-m", "launch.main", *map(str, words), "--run.directory", str(killed)]
    with (job.folder / "killed.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        while process.poll() is None and not list(killed.glob("checkpoints/step-*")):
            time.sleep(0.01)
        killed_in_time = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    yield holds("killed before its end", killed_in_time, "" if killed_in_time else "it had ended")
    triaxial(job, *words, "--run.directory", killed, "--resume", log="resumed.log")
    digests = [read_json_object(run / "train_summary.json")["weights_sha256"] for run in (whole, killed)]
    yield holds("the same weights, bit for bit", digests[0] == digests[1], " and ".join(d[:12] for d in digests))
    losses = [metric(run, "loss") for run in (whole, killed)]
    both = losses[0].keys() & losses[1].keys()
    wrong = [step for step in sorted(both) if losses[0][step] != losses[1][step]]
    yield holds(f"the same loss at {len(both)} steps", not wrong and bool(both), f"steps {wrong[:5]}" if wrong else "")


def metric(run: Path, name: str) -> dict[int, float]:
    """A metric of a run by step; the last value of a step counts."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def hang(job: Job) -> Iterator[Check]:
    """A kernel that does not end: the watchdog names the rank and ends the run."""
    limit_s = 20 if job.on_gpu else 5
    words = ["train", recipe(job), "--run.device", job.device.type, "--run.directory", cleared(job, "hung")]
    words += ["--health.hang_timeout_s", limit_s, "--parallel.compile", "false", "--health.first_step_timeout_s", 120]
    started_at = time.monotonic()
    with (job.folder / "hung.log").open("ab") as log:
        command = [sys.executable, str(Path(__file__).with_name("hung_step.py")), *map(str, words)]
        status = subprocess.run(
            command, cwd=ROOT, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ).returncode
    elapsed_s = time.monotonic() - started_at
    text = (job.folder / "hung.log").read_text(errors="replace").rpartition("HUNG AT")[2]
    yield holds("the run ends with an error", status not in (0, 2), f"status {status}: {last(job, 'hung.log')}")
    began = re.match(r" ([\d.]+)", text)
    yield holds("the step hung", began is not None)
    yield holds("the watchdog names the rank", "no progress for" in text and "rank 0" in text)
    if began:
        ended_s = elapsed_s - (float(began[1]) - started_at)
        yield Check(
            "from the hang to the end of the process", ended_s, 3 * limit_s + 60, "s", f"hang_timeout_s {limit_s}"
        )


def writing(job: Job) -> Iterator[Check]:
    """Text, perplexity and few-shot answers of a trained run, on the device and on the CPU; speed of generation."""
    run, results = trained(job), {}
    for device in dict.fromkeys((job.device.type, "cpu")):
        where = ("--device", device)
        triaxial(job, "generate", run, "--prompt", "The", "--temperature", 0, "--max-new-tokens", 40, *where,
                 log=f"text_{device}.log")  # fmt: skip
        file = job.folder / f"evaluation_{device}.json"
        triaxial(job, "evaluate", run, "--tasks", "gpt3_arithmetic", "--num-fewshot", 1, "--limit", 8, "--json", file,
                 "--answers", "likelihood", *where, log=f"evaluation_{device}.log")  # fmt: skip
        results[device] = (job.folder / f"text_{device}.log").read_text(), numbers(read_json_object(file))
    (text, found), (truth_text, truth) = results[job.device.type], results["cpu"]
    yield holds("greedy text equals the CPU's", text == truth_text, text[-80:])
    yield holds("the same numbers are there", found.keys() == truth.keys(), f"{len(found)} numbers")
    apart = {key: abs(found[key] - truth[key]) for key in found.keys() & truth.keys()}
    worst = max(apart, key=apart.__getitem__)
    yield Check("perplexity and few-shot results", apart[worst], 1e-3, "from the CPU's", worst)
    yield from generation_speed(job)


def numbers(tree: object, name: str = "") -> dict[str, float]:
    """The losses and accuracies in a result, by path; times and versions are left out."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in numbers(value, f"{name}/{key}").items()}
    if isinstance(tree, list):
        return {k: v for i, value in enumerate(tree) for k, v in numbers(value, f"{name}/{i}").items()}
    wanted = isinstance(tree, float) and not re.search(r"_s$|time|second", name)
    return {name: float(tree)} if wanted else {}  # type: ignore[arg-type]


def generation_speed(job: Job) -> Iterator[Check]:
    """Tokens a second of greedy decoding in bf16, for 1 and 32 prompts."""
    if not job.on_gpu and not job.tiny:
        raise LeftOut("the speed of generation is measured on a GPU")
    size, new = (1e6, 8) if job.tiny else (125e6, 128)
    model = GPT(config := shape_of_parameters(size, vocab_size=50_257, n_ctx=1024)).to(job.device)
    initialise(model, config, seed=1)
    model.bfloat16().eval().requires_grad_(False)
    for n in (1, 32):
        prompts = [[1 + i, 2, 3, 4] for i in range(n)]
        spans = []
        for _ in range(3):
            started_at = time.perf_counter()
            generate(model, prompts, n_ctx=config.n_ctx, max_new_tokens=new)
            spans.append(time.perf_counter() - started_at)
        yield Check(f"{config.parameters / 1e6:,.0f}M, {n} prompts", n * new / min(spans[1:]), unit="tokens/s")


def doctor(job: Job) -> Iterator[Check]:
    """What this machine is, and what would break a run."""
    file = job.folder / "doctor.json"
    status = triaxial(job, "doctor", "--json", file, check=False, log="doctor.log")
    yield holds("no problem that would break a run", status == 0, last(job, "doctor.log"))
    for name, speed in read_json_object(file).get("facts", {}).get("matmul_gflops", {}).items():
        yield Check(f"matrix product, {name}", speed / 1000, unit="TFLOP/s")


def tests(job: Job) -> Iterator[Check]:
    """The unit tests that use a GPU, and those that pretend to have one."""
    if not job.on_gpu:
        raise LeftOut("the tests marked `gpu` need a GPU")
    # These files alone: others need packages that the day does not install.
    files = [str(path) for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--timeout", "200", *files]
    with (job.folder / "tests.log").open("ab") as log:
        status = subprocess.run(
            command, cwd=ROOT, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ).returncode
    counts = dict.fromkeys(("passed", "failed", "error", "skipped"), 0)
    counts |= {
        word.rstrip("s"): int(n)
        for n, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last(job, "tests.log"))
    }
    yield Check("passed", counts["passed"], unit="tests")
    yield Check("failed", counts["failed"] + counts["error"], 0.0, "tests", last(job, "tests.log"))
    yield holds("some tests ran, and pytest ended well", status == 0 and counts["passed"] > 0, f"status {status}")
