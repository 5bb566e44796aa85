"""The measures of ppo_smollm2.py: sampled answers with rewards, KL and length, and their comparison with the start.

A reward is that of the tokens so far, whether an answer has ended or was cut. KL is the sum over an answer's tokens of
log pi - log pi_ref, in nats, at temperature 1.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import reward_baselines
import torch
from numpy.typing import NDArray

from data_prep.conversations.conversation import Turn
from gpt.evaluation.intervals import Interval, bootstrap_interval
from gpt.inference.cpu_model import packed
from gpt.inference.model import LocalModel
from gpt.post_training.ppo.rollouts import SampledResponse, episode_seed, sample_responses
from launch.library.reward_model import load_reward
from launch.runs.chat_format import chat_encoder
from launch.runs.saved_run import DTYPES, load_run

Answers = dict[str, list[list[float]]]  # a number of each answer, by prompt


@torch.inference_mode()
def measured(folder: Path, run: str, prompts: list[str], *, n: int, tokens: int, batch: int, dtype: str) -> Answers:
    """n answers to each prompt by a policy: gold, proxy, kl, length (tokens) and ended (0 or 1), by prompt.

    Prompts that leave no room of half of the tokens are left out, as in training. All models compute in `dtype`.
    """
    loaded = load_run(folder / run, dtype=DTYPES[dtype])
    with chat_encoder(loaded.saved) as encoder:
        encoded = [encoder.prompt((Turn("user", prompt),)) for prompt in prompts]
        ends = encoder.end_ids
    ids = [one for one in encoded if len(one) <= tokens // 2]
    asked = [prompt for prompt in ids for _ in range(n)]
    responses: list[SampledResponse] = []
    model = packed(LocalModel(loaded.model), rows=batch)
    for start in range(0, len(asked), 4 * batch):
        part = asked[start : start + 4 * batch]
        responses += sample_responses(
            model,
            part,
            seeds=[episode_seed(0, start + i) for i in range(len(part))],
            temperature=1.0,
            end_ids=ends,
            max_new_tokens=[tokens // 2] * len(part),
            rows=batch,
            n_ids=loaded.saved.tokenizer.vocab_size,
        )
    sequences = [[*prompt, *response.tokens] for prompt, response in zip(asked, responses, strict=True)]
    own = [sum(response.log_probs) for response in responses]
    del model, loaded
    numbers = {
        "kl": np.array(own) - reference_log_probs(folder, asked, sequences, dtype),
        "length": np.array([len(response.tokens) for response in responses], dtype=float),
        "ended": np.array([response.ended for response in responses], dtype=float),
        **{name: rewards(folder / name, sequences, dtype) for name in ("gold", "proxy")},
    }
    return {name: values.reshape(-1, n).tolist() for name, values in numbers.items()}


def reference_log_probs(
    folder: Path, prompts: list[list[int]], sequences: list[list[int]], dtype: str
) -> NDArray[np.float64]:
    """The log-probability of each answer under the start, in nats."""
    model = load_run(folder / "base", dtype=DTYPES[dtype]).model
    found = []
    for prompt, sequence in zip(prompts, sequences, strict=True):
        logits = model(torch.tensor([sequence]))[0, len(prompt) - 1 : -1].float()  # (t, v)
        targets = torch.tensor(sequence[len(prompt) :])
        found.append(float(logits.log_softmax(-1).gather(1, targets[:, None]).sum()))
    return np.array(found)


def rewards(run: Path, sequences: list[list[int]], dtype: str) -> NDArray[np.float64]:
    return np.array(load_reward(run, dtype=dtype).score_tokens(sequences))


def compared(folder: Path, run: str, start: Answers) -> dict[str, Any]:
    """A policy's means, and its differences from the start in standard deviations of the start's rewards."""
    own: Answers = json.loads((folder / f"answers_{run}.json").read_text())
    found: dict[str, Any] = {name: interval(bootstrap_interval(own[name])) for name in own}
    for name in ("gold", "proxy"):
        deviation = float(np.std([value for prompt in start[name] for value in prompt]))
        pairs = zip(own[name], start[name], strict=True)
        differences = [[(np.mean(after) - np.mean(before)) / deviation] for after, before in pairs]
        found[f"{name}_gain_in_deviations"] = interval(bootstrap_interval(differences))
    found["length_ratio"] = float(np.mean(own["length"]) / np.mean(start["length"]))
    losses = [folder / f"loss_{name}.json" for name in (run, "base")]
    if all(path.exists() for path in losses):
        after, before = (json.loads(path.read_text())["text"] for path in losses)
        text = next(iter(after["texts"]))
        found["text_loss_rise_nats"] = _loss(after["texts"][text]) - _loss(before["texts"][text])
    return found


def _loss(figures: dict[str, Any]) -> float:
    return float(figures["nats_per_token"])


def accuracy(folder: Path, name: str) -> dict[str, Any]:
    """A reward model's accuracy on held-out pairs, beside TF-IDF and length refitted on its half of the prompts."""
    training, held_out = reward_baselines.load()
    trained = {json.loads(line)["prompt"] for line in (folder / f"{name}_rankings.jsonl").read_text().splitlines()}
    own = [prompt for prompt in training if prompt.text in trained]
    lines = [json.loads(line) for line in (folder / f"{name}_rewards.jsonl").read_text().splitlines()]
    held_out = held_out[: len(lines)]
    model = [np.array([np.nan if one is None else one for one in line["rewards"]]) for line in lines]
    right = {
        "reward_model": reward_baselines.right_of(held_out, model),
        "longer": reward_baselines.right_of(held_out, reward_baselines.lengths(held_out)),
        "tfidf_and_length": reward_baselines.right_of(held_out, reward_baselines.fitted(own, held_out)),
    }
    found: dict[str, Any] = {key: reward_baselines.interval(value) for key, value in right.items()}
    differences = [a - b for a, b in zip(right["reward_model"], right["tfidf_and_length"], strict=True)]
    return found | {"reward_model_minus_tfidf_and_length": reward_baselines.interval(differences)}


def interval(found: Interval) -> dict[str, float]:
    return {"mean": found.estimate, "low": found.low, "high": found.high}
