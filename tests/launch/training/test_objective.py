"""An objective that exists only in a test (objective_program.py) uses every seam of training."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.heads import ScalarHead
from gpt.model.initialisation import initialise
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.training.objective import NextToken
from gpt.training.schedule import ScheduleConfig, learning_rate
from launch.config.run_config import read_run_config
from launch.training.build import check_data, check_objective, open_data

HERE = Path(__file__).resolve().parents[1]
SEPARATOR, VOCAB, SEQ_LEN, SEQUENCES, STEPS = 1, 64, 24, 8, 6
FROZEN = ("embed.*", "blocks.0.*", "blocks.1.*")
MODEL = {"vocab_size": 512, "n_ctx": SEQ_LEN, "n_layers": 4, "d_model": 32, "n_heads": 4, "positions": "rope"}
RECIPE = """
[run]
directory = "{run}"
seed = 5
device = "cpu"
peak_flops_per_s = 1e12
[model]
{model}
[data]
tokenizer = "{tokenizer}"
seq_len = {seq_len}
sampling = "document"
train = [{{ path = "{folder}/train", streams = {{ label = "{folder}/train_label", mask = "{folder}/train_mask" }} }}]
validation = [{{ path = "{folder}/test", streams = {{ label = "{folder}/test_label", mask = "{folder}/test_mask" }} }}]
[batch]
micro_batch_size = 2
global_batch_tokens = {batch_tokens}
[optimizer]
learning_rate = 3e-3
max_gradient_norm = 0.5
frozen = {frozen}
groups = [{{ parameters = ["head.*"], lr_scale = 3.0, weight_decay = 0.0 }}]
[schedule]
warmup_tokens = {batch_tokens}
shape = "constant"
[parallel]
precision = "fp32"
[checkpoint]
every_tokens = {half}
[train]
total_tokens = {total}
evaluate_every_tokens = {total}
[metrics]
wandb = "disabled"
"""


def write_corpus(folder, name, n_documents, seed):
    """Ragged documents with separators; the label says whether id 5 comes more often than id 6 in them."""
    draw = np.random.default_rng(seed)
    with (
        TokenFileWriter(folder / name, vocab_size=VOCAB) as tokens,
        TokenFileWriter(folder / f"{name}_label", vocab_size=2) as labels,
        TokenFileWriter(folder / f"{name}_mask", vocab_size=2) as masks,
    ):
        for _ in range(n_documents):
            ids = draw.integers(2, 9, size=draw.integers(3, 40))
            ids[draw.random(ids.size) < 0.15] = SEPARATOR
            mask = draw.random(ids.size) < 0.5
            mask[0] = True
            tokens.add_document(ids)
            labels.add_document([int((ids == 5).sum() > (ids == 6).sum())])
            masks.add_document(mask.astype(np.int64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_corpus):
    folder = tmp_path_factory.mktemp("classify")
    write_corpus(folder, "train", 60, seed=1)
    write_corpus(folder, "test", 21, seed=2)
    return folder


def run(folder, name, tiny_corpus, *words, ranks=1, total=STEPS, optimizer=""):
    tokens = SEQUENCES * SEQ_LEN
    model = "\n".join(f"{key} = {json.dumps(value)}" for key, value in MODEL.items())
    recipe = folder / f"{name}.toml"
    recipe.write_text(
        RECIPE.format(
            run=folder / name,
            model=model,
            tokenizer=tiny_corpus.folder / "topics.model",
            folder=folder,
            seq_len=SEQ_LEN,
            batch_tokens=tokens,
            half=STEPS // 2 * tokens,
            total=total * tokens,
            frozen=list(FROZEN),
        )
    )
    command = [sys.executable, "-m", "objective_program"]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "objective_program"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    done = subprocess.run(
        [*command, str(recipe), *words], env=environment, capture_output=True, text=True, timeout=240, cwd=HERE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    return steps, {key: value for line in lines for key, value in line.items() if key.startswith("validation/")}


@pytest.fixture(scope="module")
def one_process(folder, tiny_corpus):
    return run(folder, "one", tiny_corpus)


def documents(folder, name):
    """Of each document: its tokens, its label and its mask, cut as samples are."""
    files = [TokenFile(folder / f"{name}{stream}") for stream in ("", "_label", "_mask")]
    return [
        [
            file.read(file.document_start(i), file.document_start(i + 1))[: SEQ_LEN + 1].astype(np.int64)
            for file in files
        ]
        for i in range(files[0].n_documents)
    ]


class Front(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ids = torch.nn.Embedding(config.padded_vocab_size, config.d_model)
        self.scale_norm = torch.nn.Parameter(torch.empty(config.d_model))

    def forward(self, tokens, positions):
        return self.ids(tokens) * self.scale_norm


def textbook_loss(model, tokens, label, mask):
    """Each part of a document alone, with full attention and no padding, in plain torch."""
    tokens, mask = tokens[:SEQ_LEN], mask[:SEQ_LEN].astype(bool)
    parts = np.cumsum(tokens == SEPARATOR)
    total, right = torch.zeros((), dtype=torch.float64), 0
    for part in np.unique(parts):
        x = torch.from_numpy(tokens[parts == part])[None]
        everything = torch.ones(1, 1, x.size(1), x.size(1), dtype=torch.bool)
        scores = model(x, mask=everything)[0, :, 0][torch.from_numpy(mask[parts == part])]
        target = torch.full_like(scores, float(label) * 0.9 + 0.05)
        total = total + functional.binary_cross_entropy_with_logits(scores, target, reduction="sum")
        right += int(((scores > 0) == (label > 0)).sum())
    return total, int(mask.sum()), right


class Labelled(NextToken):
    streams = ("label",)


class LabelledConfig:
    def build(self, *, z_loss):
        return Labelled(z_loss)


def test_a_corpus_without_a_stream_of_the_objective_is_refused(tiny_corpus):
    config = read_run_config(str(tiny_corpus.recipe), [])
    check_objective(config)
    with pytest.raises(ConfigError) as error:
        check_objective(replace(config, objective=LabelledConfig()))
    assert str(error.value) == (
        "data.train: corpus 'train' has no stream 'label', but the objective of [objective] reads it from every "
        "corpus. Add streams = { label = 'PATH' } to it"
    )


def test_documents_too_short_to_predict_a_token_are_refused(tiny_corpus, tmp_path):
    """A corpus of single tokens trains nothing as documents; as windows it does."""
    with TokenFileWriter(tmp_path / "single", vocab_size=512) as file:
        for i in range(100):
            file.add_document([i])
    corpus = f'[{{ path = "{tmp_path}/single" }}]'
    for key in ("train", "validation"):
        words = [f"--data.{key}", corpus]
        config = read_run_config(str(tiny_corpus.recipe), words)
        assert check_data(config, *open_data(config)) == []
        config = read_run_config(str(tiny_corpus.recipe), [*words, "--data.sampling", "document"])
        with pytest.raises(ConfigError, match=r"corpus 'single': 100 tokens in 100 documents are invalid for data\."):
            check_data(config, *open_data(config))


def test_one_process_learns_what_a_textbook_loop_in_float64_learns(folder, one_process):
    steps, validation = one_process
    config = ModelConfig(**MODEL)
    model = GPT(config, embed=Front(config), head=ScalarHead(config))
    initialise(model, config, seed=5)
    model.double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("embed.", "blocks.0.", "blocks.1.")))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for n, p in named.items() if n.startswith("head.")], "weight_decay": 0.0, "scale": 3.0},
        {"params": [p for n, p in named.items() if not n.startswith("head.") and p.dim() > 1], "scale": 1.0},
        {"params": [p for n, p in named.items() if p.dim() < 2 and "head" not in n], "weight_decay": 0.0, "scale": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    order = documents_of_steps(folder)
    data = documents(folder, "train")
    held = False
    schedule = ScheduleConfig(warmup_tokens=SEQUENCES * SEQ_LEN, shape="constant")
    for step in range(1, STEPS + 1):
        sums = [textbook_loss(model, *(data[i][0], data[i][1][0], data[i][2])) for i in order[step]]
        count = sum(n for _, n, _ in sums)
        loss = sum(total for total, _, _ in sums) / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        assert steps[step]["loss"] == pytest.approx(loss.item(), rel=2e-5)
        assert steps[step]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert steps[step]["accuracy"] == pytest.approx(sum(n for *_, n in sums) / count, abs=1e-9)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, 3e-3, step * SEQUENCES * SEQ_LEN) * group["scale"]
        optimizer.step()
        optimizer.zero_grad()
        held |= model.head.value.bias.abs().item() > 0.004
        model.head.value.bias.data.clamp_(-0.004, 0.004)
    with torch.no_grad():
        sums = [textbook_loss(model, tokens, label[0], mask) for tokens, label, mask in documents(folder, "test")]
    count = sum(n for _, n, _ in sums)
    assert validation["validation/test/loss"] == pytest.approx(sum(t.item() for t, *_ in sums) / count, rel=1e-4)
    assert validation["validation/test/accuracy"] == pytest.approx(sum(n for *_, n in sums) / count, abs=1e-6)
    assert held, "the constraint never held anything back"


def documents_of_steps(folder):
    """The documents of each step, by the data's order."""
    config = DataConfig(
        tokenizer="none", train=(CorpusConfig(str(folder / "train")),), seq_len=SEQ_LEN, sampling="document"
    )
    data = TrainingData(config, seed=5, vocab_size=MODEL["vocab_size"])
    position = {step: range((step - 1) * SEQUENCES, step * SEQUENCES) for step in range(1, STEPS + 1)}
    return {step: [data.locate(n).documents[0].document for n in numbers] for step, numbers in position.items()}


def test_tensor_2_x_pipeline_2_learns_the_same(folder, one_process, tiny_corpus):
    words = ["--parallel.tensor", "2", "--parallel.pipeline", "2"]
    steps, validation = run(folder, "four", tiny_corpus, *words, ranks=4)
    for step, line in one_process[0].items():
        for key in ("loss", "gradient_norm", "accuracy"):
            assert steps[step][key] == pytest.approx(line[key], rel=2e-5), (step, key)
    assert validation == pytest.approx(one_process[1], rel=2e-5)


def test_frozen_parameters_have_no_state_and_do_not_change(folder, one_process):
    paths = sorted((folder / "one" / "checkpoints").glob("step-*"))
    first, last = (tensors_of(path) for path in (paths[0], paths[-1]))
    weights = {name for name in last if name.startswith("model.")}
    moved = {name for name in weights if not np.array_equal(first[name], last[name])}
    frozen = {name for name in weights if name.startswith(("model.embed.", "model.blocks.0.", "model.blocks.1."))}
    assert frozen
    assert moved == weights - frozen
    state = {name.split(".", 2)[2] for name in last if name.startswith("optimizer.")}
    assert state == {name.removeprefix("model.") for name in moved}


def tensors_of(path):
    from safetensors.numpy import load_file

    found = {}
    for file in path.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_a_resumed_run_is_the_run_that_was_never_interrupted(folder, one_process, tiny_corpus):
    run(folder, "parts", tiny_corpus, total=STEPS // 2)
    steps, _ = run(folder, "parts", tiny_corpus)
    assert {n: line["loss"] for n, line in steps.items()} == {n: line["loss"] for n, line in one_process[0].items()}


def test_another_optimizer_on_both_layouts(folder, tiny_corpus):
    """SGD with momentum keeps other state; it is saved, loaded and sharded like Adam's."""
    sgd = ["--optimizer.kind", "sgd", "--optimizer.learning_rate", "0.05"]
    run(folder, "sgd", tiny_corpus, *sgd, total=STEPS // 2)
    one, _ = run(folder, "sgd", tiny_corpus, *sgd)
    four, _ = run(folder, "sgd4", tiny_corpus, *sgd, "--parallel.tensor", "2", "--parallel.pipeline", "2", ranks=4)
    assert [four[n]["loss"] for n in four] == pytest.approx([one[n]["loss"] for n in one], rel=2e-5)
    names = tensors_of(max((folder / "sgd" / "checkpoints").glob("step-*")))
    assert {name.split(".")[1] for name in names if name.startswith("optimizer.")} == {"momentum_buffer"}
