"""Names of our settings in other programs, so that the error about an unknown key can name ours.

They come from Hugging Face's Trainer and model configurations, Megatron-LM, DeepSpeed, nanoGPT and litgpt.
"""

_SAME = {
    "model.n_layers": "n_layer num_layers num_hidden_layers layers depth",
    "model.d_model": "n_embd hidden_size dim width embedding_dim",
    "model.n_heads": "n_head num_attention_heads num_heads heads",
    "model.n_kv_heads": "num_key_value_heads num_query_groups n_query_groups",
    "model.d_ff": "n_inner intermediate_size ffn_hidden_size ffn_dim",
    "model.n_ctx": "block_size context_length n_positions max_position_embeddings max_seq_len",
    "model.vocab_multiple": "make_vocab_size_divisible_by pad_to_multiple_of",
    "model.tied": "tie_word_embeddings tie_embeddings",
    "model.norm": "normalization",
    "model.activation": "hidden_act activation_function",
    "model.positions": "position_embedding_type",
    "model.init_std": "initializer_range init_method_std",
    "model.rope_theta": "rotary_base rope_base",
    "data.seq_len": "block_size context_length max_seq_len seq_length sequence_length max_length",
    "batch.micro_batch_size": "per_device_train_batch_size train_micro_batch_size_per_gpu micro_batch",
    "optimizer.learning_rate": "lr max_lr peak_lr peak_learning_rate",
    "optimizer.beta1": "adam_beta1",
    "optimizer.beta2": "adam_beta2",
    "optimizer.eps": "epsilon adam_eps adam_epsilon",
    "optimizer.max_gradient_norm": "grad_clip clip_grad max_grad_norm max_norm gradient_clipping clip",
    "optimizer.weight_decay": "wd",
    "parallel.tensor": "tp tp_size tensor_parallel tensor_parallel_size tensor_model_parallel_size",
    "parallel.pipeline": "pp pp_size pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size",
    "parallel.data": "dp dp_size data_parallel data_parallel_size",
    "parallel.zero_stage": "zero zero_optimization",
    "parallel.recompute": "activation_checkpointing gradient_checkpointing recompute_granularity",
    "parallel.precision": "dtype bf16 fp32 mixed_precision amp",
    "run.directory": "out_dir output_dir save_dir",
    "run.start_from": "init_from resume_from pretrained model_name_or_path",
}
# The same with a note, for settings in another unit.
_CONVERTED = {
    "train.total_steps": ("max_steps steps train_iters max_iters num_steps train_steps iterations", ""),
    "train.epochs": ("num_epochs num_train_epochs max_epochs", ""),
    "train.evaluate_every_steps": ("eval_interval eval_steps eval_every evaluate_every", ""),
    "schedule.warmup_steps": ("warmup warmup_iters lr_warmup_iters", ""),
    "schedule.decay_steps": ("lr_decay_iters lr_decay_steps", ""),
    "schedule.final_fraction": ("min_lr min_learning_rate", "it is a share of optimizer.learning_rate"),
    "checkpoint.every_steps": ("save_steps save_interval save_every", ""),
    "batch.global_batch_tokens": (
        "batch_size global_batch_size train_batch_size",
        "it counts tokens of all ranks: sequences x data.seq_len",
    ),
}
_TABLE = {
    **{key: (names.split(), "") for key, names in _SAME.items()},
    **{key: (names.split(), rule) for key, (names, rule) in _CONVERTED.items()},
}
_SECTIONS = {key.partition(".")[0] for key in _TABLE}


def our_name(section: str, name: str) -> str:
    """Advise on `name`, an unknown key of a training recipe's section: "use optimizer.learning_rate".

    Returns "" if no other program is known to have this name. A key of the same section comes first.
    """
    if section not in _SECTIONS:
        return ""
    word = name.lower().replace("-", "_")
    found = [(key, rule) for key, (names, rule) in _TABLE.items() if word in names]
    found.sort(key=lambda each: not each[0].startswith(f"{section}."))
    return f"use {found[0][0]}{found[0][1] and f'; {found[0][1]}'}" if found else ""
