"""The peer of ppo_trl_numbers.py: one iteration of TRL's PPOTrainer, with what its formulas read and give, in a file.

    VENV/bin/python benchmarks/ppo_trl_numbers_peer.py NUMBERS.npz

TRL computes KL, rewards, advantages and losses inside PPOTrainer.train, not in functions. This script therefore wraps
the two functions that it calls there, masked_whiten and masked_mean, and copies the variables of the calling frame.
"""

import sys
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
import trl
from trl.trainer import ppo_trainer

VOCAB, PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS = 64, 8, 5, 12
SCORED = ("logprobs", "ref_logprobs", "scores", "kl", "rewards", "values", "advantages", "returns")
MASKS = ("padding_mask", "padding_mask_p1")
UPDATED = ("logprobs_diff", "mb_advantage", "vpred", "mb_values", "mb_return")
MEANS = ("value", "value_clipped", "policy", "policy_clipped")


def main() -> None:
    torch.manual_seed(0)
    found: dict[str, np.ndarray] = {}
    record(found)
    prompts = Prompts(torch.randint(3, VOCAB, (PROMPTS, PROMPT_TOKENS)).tolist())
    trainer = trl.PPOTrainer(
        args=arguments(),
        processing_class=tokenizer(),
        model=model(transformers.LlamaForCausalLM, seed=1),
        ref_model=model(transformers.LlamaForCausalLM, seed=2),
        reward_model=model(transformers.LlamaForSequenceClassification, seed=3),
        value_model=model(transformers.LlamaForSequenceClassification, seed=4),
        train_dataset=prompts,
        eval_dataset=prompts,
    )
    trainer.train()
    settings = trainer.args
    numbers = [settings.kl_coef, settings.gamma, settings.lam, settings.cliprange, settings.cliprange_value]
    np.savez(sys.argv[1], settings=np.array(numbers), **found)


def record(found: dict[str, np.ndarray]) -> None:
    """Wrap the functions of the trainer's module so that they copy the caller's variables to `found`."""
    whiten, mean, updates = ppo_trainer.masked_whiten, ppo_trainer.masked_mean, [0]

    def keep(prefix: str, frame: Any, names: tuple[str, ...]) -> None:
        found.update({f"{prefix}{name}": frame.f_locals[name].detach().clone().numpy() for name in names})

    def masked_whiten(values: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        keep("", sys._getframe(1), (*SCORED, *MASKS))
        result = whiten(values, mask, **options)
        found["whitened"] = result.numpy().copy()
        return result

    def masked_mean(values: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Called four times an update, in the order of MEANS."""
        update, place = divmod(updates[0], len(MEANS))
        result = mean(values, mask, **options)
        found[f"update{update}_{MEANS[place]}"] = result.detach().numpy().copy()
        if place == len(MEANS) - 1:
            frame = sys._getframe(1)
            keep(f"update{update}_", frame, UPDATED)
            found[f"update{update}_rows"] = np.array(frame.f_locals["micro_batch_inds"])
        updates[0] += 1
        return result

    ppo_trainer.masked_whiten, ppo_trainer.masked_mean = masked_whiten, masked_mean


class Prompts:
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[index]}


def arguments() -> Any:
    """Two passes in two minibatches, at a rate that makes both losses clip. Responses end at their length only."""
    return trl.PPOConfig(
        output_dir=tempfile.mkdtemp(),
        total_episodes=PROMPTS,
        per_device_train_batch_size=PROMPTS // 2,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        num_ppo_epochs=2,
        local_rollout_forward_batch_size=PROMPTS,
        num_sample_generations=0,
        response_length=RESPONSE_TOKENS,
        temperature=1.0,
        learning_rate=3e-2,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def model(kind: Any, *, seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=None,
        num_labels=1,
        initializer_range=0.3,
    )
    return kind(config)


if __name__ == "__main__":
    main()
