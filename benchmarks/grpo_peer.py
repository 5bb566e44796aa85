"""The peer of grpo.py: TRL's GRPOTrainer on the same model, weights, prompts and reward."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import ppo_trl_peer
import torch
from sft_peer import Clock, llama

from gpt.errors import import_extra
from gpt.model.config import ModelConfig

VOCAB = 49152


class WordTokenizer:
    """A tokenizer whose token i is the word "wi"."""

    vocab_size, end_of_document_id = VOCAB, 0

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


def share_of_even(prompts: list[str], completions: list[str], **ignored: Any) -> list[float]:
    """The reward of both: the share of a response's words with an even number."""
    counts = [[int(word[1:]) % 2 == 0 for word in text.split() if word[1:].isdigit()] for text in completions]
    return [sum(even) / max(len(even), 1) for even in counts]


def trl_step(
    config: ModelConfig,
    prompts: list[list[int]],
    *,
    group: int,
    prompts_of_step: int,
    response_tokens: int,
    micro_batch: int,
    steps: int,
    beta: float,
    clip: float,
    learning_rate: float,
    precision: str,
    seed: int,
    given_lengths: list[int],
) -> Callable[[], dict[str, Any]]:
    """A function that trains `steps` steps more, after one whose time does not count. No gradient checkpointing.

    `given_lengths`: of the responses of a step, or empty for those that the model gives.
    """
    names = ("transformers", "trl", "datasets")
    transformers, trl, datasets = (import_extra(name, extra="benchmarks") for name in names)
    transformers.logging.set_verbosity_error()
    episodes = prompts_of_step * group
    clock, lengths = Clock(transformers.TrainerCallback), list[int]()

    start = tempfile.mkdtemp()  # TRL reads the reference from where the model came from
    llama(config, seed).save_pretrained(start)

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **more: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return share_of_even(prompts, completions)

    trainer = trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(start, dtype="float32"),
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps + 1,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=episodes // micro_batch,
            num_generations=group,
            max_completion_length=response_tokens,
            beta=beta,
            epsilon=clip,
            loss_type="grpo",
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            bf16=precision == "bf16",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": [WordTokenizer().decode(ids) for ids in prompts]}),
        processing_class=_tokenizer(),
        callbacks=[clock.callback],
    )
    if given_lengths:
        _end_at(transformers, trainer.model, given_lengths)

    def block() -> dict[str, Any]:
        clock.ends.clear()
        lengths.clear()
        trainer.train()
        assert len(clock.ends) == steps + 1
        train_s, train_cpu_s = (end - start for start, end in zip(clock.ends[0], clock.ends[-1], strict=True))
        tokens = sum(lengths[1:])
        return {"train_s": train_s, "train_cpu_s": train_cpu_s, "episodes": steps * episodes, "tokens": tokens}

    return block


def _end_at(transformers: Any, model: Any, lengths: list[int]) -> None:
    """End the responses of each `generate` at these lengths."""
    original = model.generate

    def generate(input_ids: torch.Tensor, **settings: Any) -> Any:
        assert len(input_ids) == len(lengths), "a step samples all of its responses at once"
        end = ppo_trl_peer.EndAt(lengths, input_ids.size(1), end_id=0)
        return original(input_ids=input_ids, **settings, logits_processor=transformers.LogitsProcessorList([end]))

    model.generate = generate


def _tokenizer() -> Any:
    transformers, tokenizers = (import_extra(name, extra="hf") for name in ("transformers", "tokenizers"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCAB)}, "w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="w0", pad_token="w0", unk_token="w1", padding_side="left"
    )
