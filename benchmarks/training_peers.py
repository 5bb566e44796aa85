"""The two peers of training_step.py and gpu.py: `transformers` GPT-2, and the plain step that most people write."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.convert.hugging_face.names import to_hugging_face
from gpt.errors import import_extra
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.optimizer import OptimizerConfig

LossOf = Callable[[Tensor, Tensor], Tensor]
CPU = torch.device("cpu")


class PlainBlock(nn.Module):
    """GPT-2's block with one product for query, key and value."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.c_fc, self.mlp_proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (
            part.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(d, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, d))
        inner = functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.mlp_proj(inner)


class PlainGPT(nn.Module):
    """GPT-2 with its mean loss over whole logits. The vocabulary is padded as ours is, which its users do by hand."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.n_ctx, config.d_model)
        self.h = nn.ModuleList([PlainBlock(config) for _ in range(config.n_layers)])
        self.ln_f = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.size(1), device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def nano_gpt(
    config: ModelConfig, optimizer: OptimizerConfig, *, micro_batch_size: int, seed: int, device: torch.device = CPU
):
    """A function from a batch to its mean loss, one step of training done: the plain model."""
    model = PlainGPT(config)
    weights = {name: parameter.data for name, parameter in starting_weights(config, seed).named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(_plain_weight(name, weights))
    model.to(device)
    return training_step(model, torch.compile(model), optimizer, micro_batch_size=micro_batch_size)


def transformers_gpt2(
    config: ModelConfig, optimizer: OptimizerConfig, *, micro_batch_size: int, seed: int, device: torch.device = CPU
):
    """The same for GPT2LMHeadModel with its own loss, which is given the targets already shifted."""
    transformers = import_extra("transformers", extra="hf")
    transformers.logging.set_verbosity_error()  # it warns of token ids that a small vocabulary lacks; none is used
    model = transformers.GPT2LMHeadModel._from_config(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_ctx,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        ),
        attn_implementation="sdpa",
    )
    start = starting_weights(config, seed)
    theirs = dict(to_hugging_face(config, ((name, parameter.data) for name, parameter in start.named_parameters())))
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert missing == ["lm_head.weight"], missing  # tied
    assert not unexpected, unexpected
    model.to(device).train()
    compiled = torch.compile(model)
    return training_step(
        model,
        lambda x, y: compiled(input_ids=x, labels=y, shift_labels=y).loss,
        optimizer,
        micro_batch_size=micro_batch_size,
    )


def starting_weights(config: ModelConfig, seed: int) -> GPT:
    """What our engine starts from, on one device."""
    model = GPT(config)
    initialise(model, config, seed=seed)
    return model


def training_step(
    model: nn.Module, loss_of: LossOf, config: OptimizerConfig, *, micro_batch_size: int
) -> Callable[[Batch], float]:
    """A usual step: bf16 autocast, micro-batches, clipping by norm, fused AdamW with decay on matrices alone."""
    parameters = list(model.parameters())
    device = parameters[0].device
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )

    def step(batch: Batch) -> float:
        total = torch.zeros((), device=device)
        pairs = [(part.inputs, part.targets) for part in batch.to(device).split(micro_batch_size)]
        for x, y in pairs:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = loss_of(x, y) / len(pairs)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def _plain_weight(name: str, ours: dict[str, Tensor]) -> Tensor:
    """Our tensor for one of PlainGPT's."""
    ends = {"wte.weight": "embed.tokens.weight", "wpe.weight": "embed.positions.weight"}
    if name in ends:
        return ours[ends[name]]
    if name.startswith("ln_f"):
        return ours[name.replace("ln_f", "norm")]
    _, layer, part, kind = name.split(".")
    if part == "c_attn":
        return torch.cat([ours[f"blocks.{layer}.attention.{letter}.{kind}"] for letter in "qkv"])
    parts = {
        "ln_1": "attention_norm",
        "c_proj": "attention.out",
        "ln_2": "mlp_norm",
        "c_fc": "mlp.up",
        "mlp_proj": "mlp.down",
    }
    return ours[f"blocks.{layer}.{parts[part]}.{kind}"]
