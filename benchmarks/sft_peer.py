"""The peer of sft.py: TRL's SFTTrainer on the same model, weights and conversations."""

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gpt.convert.hugging_face.names import to_hugging_face
from gpt.errors import import_extra
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

Conversation = tuple[list[int], list[int]]  # token ids, and which of them are learned


def llama(config: ModelConfig, seed: int) -> Any:
    """transformers' model with the weights that our engine starts from."""
    transformers = import_extra("transformers", extra="hf")
    model = transformers.LlamaForCausalLM._from_config(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.ff_width,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.n_ctx,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            rope_theta=config.rope_theta,
            bos_token_id=0,
            eos_token_id=0,
        ),
        attn_implementation="sdpa",
        dtype=torch.float32,
    )
    start = GPT(config)
    initialise(start, config, seed=seed)
    weights = dict(to_hugging_face(config, ((name, parameter.data) for name, parameter in start.named_parameters())))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"], missing  # tied
    assert not unexpected, unexpected
    return model


class Clock:
    """The time from the end of a run's first step to the end of its last one: without the start of a `train` call."""

    def __init__(self, base: type) -> None:
        ends: list[tuple[float, float]] = []  # by the clock, and of the processor

        def on_step_end(self: Any, *args: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

        self.ends = ends
        self.callback = type("StepClock", (base,), {"on_step_end": on_step_end})()


def trl_block(
    config: ModelConfig,
    conversations: Sequence[Conversation],
    *,
    packing: bool,
    max_length: int,
    rows: int,
    micro_batches: int,
    steps: int,
    learning_rate: float,
    precision: str,
    seed: int,
) -> Callable[[], dict[str, Any]]:
    """A function that trains `steps` steps more, after one whose time does not count.

    `rows`: conversations, or packed rows, of a forward pass. No gradient checkpointing, though TRL does it by default:
    our run does none either.
    """
    names = ("transformers", "trl", "datasets")
    transformers, trl, datasets = (import_extra(name, extra="benchmarks") for name in names)
    transformers.logging.set_verbosity_error()
    dataset = datasets.Dataset.from_dict(
        {
            "input_ids": [ids for ids, _ in conversations],
            "labels": [
                [token if of_token else -100 for token, of_token in zip(ids, learned, strict=True)]
                for ids, learned in conversations
            ],
        }
    )
    clock = Clock(transformers.TrainerCallback)
    trainer = trl.SFTTrainer(
        model=llama(config, seed),
        args=trl.SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps + 1,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=micro_batches,
            packing=packing,
            max_length=max_length,
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
        train_dataset=dataset,
        processing_class=_tokenizer(config),
        callbacks=[clock.callback],
    )

    def block() -> dict[str, Any]:
        clock.ends.clear()
        seen = _tokens_by_step(trainer, steps + 1)
        loss = trainer.train().training_loss  # the mean over the steps
        assert len(clock.ends) == steps + 1
        train_s, train_cpu_s = (end - start for start, end in zip(clock.ends[0], clock.ends[-1], strict=True))
        return {"train_s": train_s, "train_cpu_s": train_cpu_s, "tokens": sum(seen[1:]), "loss": loss}

    return block


def _tokens_by_step(trainer: Any, steps: int) -> list[int]:
    """Real tokens of each step, filled in while the trainer reads its batches."""
    seen: list[int] = []
    original = type(trainer).get_batch_samples

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        batches, items = original(trainer, *args, **kwargs)
        seen.append(
            sum(
                int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
                for batch in batches
            )
        )
        return batches, items

    trainer.get_batch_samples = get_batch_samples
    return seen


def _tokenizer(config: ModelConfig) -> Any:
    """A tokenizer that TRL asks for, though the conversations are token ids already."""
    transformers, tokenizers = (import_extra(name, extra="hf") for name in ("transformers", "tokenizers"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|end|>": 0, "<|unknown|>": 1}, "<|unknown|>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|end|>", unk_token="<|unknown|>"
    )
