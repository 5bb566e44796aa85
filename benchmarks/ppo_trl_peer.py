"""The peer of ppo_trl.py: TRL's PPOTrainer on the same models and prompts, in a virtual environment of its own.

TRL 1.x has no PPOTrainer any more; 0.2x has.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import side_by_side
import torch
from torch import Tensor

PAD, END = 0, 2  # <|endoftext|>, which no prompt has, and <|im_end|>


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    side_by_side.serve(lambda: trl_block(spec))


def scalar_head(width: int, *, seed: int) -> Tensor:
    """The weight (1, d) of a scalar head, the same on both sides: N(0, 1 / (d + 1))."""
    return torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width + 1)


def trl_block(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A function that does the next block, one iteration, after a block whose time does not count."""
    import transformers
    import trl

    torch.set_num_threads(spec["threads"])
    transformers.logging.set_verbosity_error()
    prompts, clock = Prompts(spec["prompts"]), _clock(transformers)
    frozen = torch.bfloat16 if spec["precision"] == "bf16" else torch.float32
    trainer = trl.PPOTrainer(
        args=_arguments(trl, spec),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_file=f"{spec['model']}/tokenizer.json",
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            padding_side="left",
        ),
        model=_model(spec, torch.float32),
        ref_model=_model(spec, frozen),
        reward_model=_model(spec, frozen, head_seed=spec["reward_seed"]),
        value_model=_model(spec, torch.float32, head_seed=spec["value_seed"]),
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[clock],
    )
    sampled, updates = _count_tokens(spec, transformers), _count_updates(trainer)

    def block() -> dict[str, Any]:
        sampled.clear()
        updates.clear()
        trainer.train()
        prompts.block += 1
        spans = dict(zip(("train_s", "train_cpu_s"), clock.span(), strict=True))
        return {**spans, "episodes": len(sampled), "tokens": sum(sampled), "updates": len(updates)}

    block()
    return block


class Prompts:
    """The prompts of the current block as a data set. A shuffled pass over it is one iteration."""

    def __init__(self, blocks: list[list[list[int]]]) -> None:
        self.blocks, self.block = blocks, 0

    def __len__(self) -> int:
        return len(self.blocks[0])

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.blocks[self.block % len(self.blocks)][index]}


def _arguments(trl: Any, spec: dict[str, Any]) -> Any:
    """One process, no gradient checkpointing. Minibatches are micro-batches: with accumulation, TRL 0.21 would make
    one update of several minibatches."""
    episodes = len(spec["prompts"][0])
    return trl.PPOConfig(
        output_dir=tempfile.mkdtemp(),
        total_episodes=episodes,
        per_device_train_batch_size=episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=episodes // spec["minibatch"],
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=episodes,
        num_sample_generations=0,
        response_length=spec["response_tokens"],
        stop_token="eos",
        temperature=1.0,
        kl_coef=spec["beta"],
        learning_rate=spec["learning_rate"],
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        bf16=spec["precision"] == "bf16",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=spec["seed"],
    )


def _model(spec: dict[str, Any], dtype: torch.dtype, *, head_seed: int | None = None) -> Any:
    """The first layers of the model of the folder, with its own head or a scalar one."""
    import transformers

    folder = Path(spec["model"])
    settings = json.loads((folder / "config.json").read_text())
    settings["rope_theta"] = settings["rope_parameters"]["rope_theta"]  # transformers 4 reads it here
    settings |= {"num_hidden_layers": spec["layers"], "pad_token_id": PAD, "eos_token_id": END, "num_labels": 1}
    kind = transformers.LlamaForCausalLM if head_seed is None else transformers.LlamaForSequenceClassification
    model = kind.from_pretrained(folder, config=transformers.LlamaConfig(**settings), torch_dtype=dtype)
    if head_seed is not None:
        model.score.weight.data = scalar_head(settings["hidden_size"], seed=head_seed).to(dtype)
    return model


def length_key(prompt: list[int]) -> str:
    return " ".join(map(str, prompt))


def _count_tokens(spec: dict[str, Any], transformers: Any) -> list[int]:
    """The lengths of the responses, end token included, filled in by the sampler; with `lengths` they are given.

    TRL runs it outside of the autocast of its `bf16`, in fp32. It runs in bf16 here.
    """
    from trl.trainer import ppo_trainer

    sampled, original = list[int](), ppo_trainer.batch_generation
    low = torch.autocast("cpu", torch.bfloat16) if spec["autocast_sampler"] else nullcontext()

    def batch_generation(model: Any, queries: Tensor, *args: Any) -> Any:
        if spec["lengths"]:
            prompts = [length_key([one for one in row if one != PAD]) for row in queries.tolist()]
            end = EndAt([spec["lengths"][prompt] for prompt in prompts], queries.size(1), end_id=END)
            model = _Sampler(model, transformers.LogitsProcessorList([end]))
        with low:
            found, logits = original(model, queries, *args)
        for row in found[:, queries.size(1) :].tolist():
            sampled.append(row.index(END) + 1 if END in row else len(row))
        return found, logits

    ppo_trainer.batch_generation = batch_generation
    return sampled


class _Sampler:
    """A model that generates with a logits processor."""

    def __init__(self, model: Any, processors: Any) -> None:
        self.model, self.processors = model, processors

    def generate(self, **settings: Any) -> Any:
        return self.model.generate(**settings, logits_processor=self.processors)


class EndAt:
    """Makes the end token the only choice for the last token of each row's response."""

    def __init__(self, lengths: list[int], prompt_tokens: int, *, end_id: int) -> None:
        self.end_id, self.last = end_id, torch.tensor(lengths) - 1 + prompt_tokens

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        ends = self.last == ids.size(1)
        scores[ends] = -torch.inf
        scores[ends, self.end_id] = 0.0
        return scores


def _count_updates(trainer: Any) -> list[None]:
    done = list[None]()
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: done.append(None))
    return done


def _clock(transformers: Any) -> Any:
    """A callback that measures from the start of a `train` call's loop to the end of its last step."""

    class Clock(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def now(self) -> tuple[float, float]:
            return time.perf_counter(), time.process_time()

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = self.now()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.end = self.now()

        def span(self) -> tuple[float, float]:
            return self.end[0] - self.start[0], self.end[1] - self.start[1]

    return Clock()


if __name__ == "__main__":
    main()
