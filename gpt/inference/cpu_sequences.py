"""Run a model over whole sequences on a CPU, without padding. The results equal the model's own to rounding.

The sequences lie one after the other. Matrix products work on slices of their tokens, whatever sequence these belong
to; attention works on each sequence alone. If only the last token of each sequence is wanted, the last block computes
only keys and values of the others.

Shapes: n sequences, t tokens of all together, r rows of a slice, d = d_model, h heads, k key-value heads, e = d_head.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from gpt.inference.cpu_model import BlockedLinear, packed_norm, slice_sizes
from gpt.model.gpt import GPT, Attention, Block, SwiGLUMLP
from gpt.model.rope import angles_of

STEP_ROWS = 16  # `slice_sizes` gives 11 sizes for multiples of it, and oneDNN keeps compiled code for each size
MIN_BLOCKED, QUERY_BLOCK = 64, 128  # tokens of a sequence for `_attention_in_blocks`, and queries of a block
_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class SequenceModel(nn.Module):
    """The embedding, blocks and norm of a GPT with packed weights, and its head. It cannot train."""

    def __init__(self, model: GPT) -> None:
        """Take the parts of `model`, which cannot be used afterwards. Needs memory for one more block meanwhile.

        The model has both ends, and its weights are on a CPU in a precision of `can_pack`.
        """
        super().__init__()
        assert model.embed is not None, "a pipeline stage"
        assert model.norm is not None, "a pipeline stage"
        assert model.head is not None, "a pipeline stage"
        self.config, self.embed, self.head = model.config, model.embed, model.head
        self.norm = packed_norm(model.norm)
        rotary = model.config.positions == "rope"
        self.blocks = nn.ModuleList()
        for name in list(model.blocks):
            block = model.blocks.pop(name)
            assert isinstance(block, Block)
            self.blocks.append(SequenceBlock(block, rotary=rotary))
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, lengths: Sequence[int], *, causal: bool, ends_only: bool) -> Tensor:
        """The head's output at each token (t, o), or with `ends_only` at the last token of each sequence (n, o).

        `tokens` (t,): one or more sequences, one after the other, of `lengths` tokens, none of them empty. Positions
        and attention restart at each sequence; attention is causal or goes to all tokens of the sequence.
        """
        t = len(tokens)
        assert sum(lengths) == t, f"{t} tokens, but the lengths of {sum(lengths)}"
        assert min(lengths) > 0, "an empty sequence"
        fill = -t % STEP_ROWS
        tokens = torch.cat((tokens, tokens.new_zeros(fill)))
        parts = [torch.arange(length) for length in lengths]
        positions = torch.cat((*parts, torch.zeros(fill, dtype=torch.long))).unsqueeze(0)  # (1, t)
        x = self.embed(tokens.unsqueeze(0), positions)[0]  # (t, d)
        angles = angles_of(self.config, positions, length=len(tokens), device=tokens.device)
        turns = None if angles is None else torch.complex(angles.cos, angles.sin)[0].transpose(0, 1)  # (t, 1, e / 2)
        last = self.blocks[-1]
        assert isinstance(last, SequenceBlock)
        for block in self.blocks[:-1]:
            block(x, lengths, turns, causal)
        if ends_only:
            x = last.at_ends(x, lengths, turns)
        else:
            last(x, lengths, turns, causal)
            x = x[:t]
        y: Tensor = self.head(self.norm(x).unsqueeze(0))[0]
        return y


class SequenceBlock(nn.Module):
    """A `Block` with packed weights, over the tokens of whole sequences. `rotary`: queries and keys are rotated."""

    def __init__(self, block: Block, *, rotary: bool) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, Attention)
        self.d_head = attention.d_head
        q, k = attention.q, attention.k
        if rotary:
            q, k = _with_adjacent_pairs(q, self.d_head), _with_adjacent_pairs(k, self.d_head)
        self.attention_norm, self.mlp_norm = packed_norm(block.attention_norm), packed_norm(block.mlp_norm)
        self.q, self.kv = BlockedLinear([q]), BlockedLinear([k, attention.v])
        self.heads, self.kv_heads = q.out_features // self.d_head, k.out_features // self.d_head
        self.out, self.down = BlockedLinear([attention.out]), BlockedLinear([mlp.down])
        self.gate = BlockedLinear([mlp.gate]) if isinstance(mlp, SwiGLUMLP) else None
        self.up = BlockedLinear([mlp.up])

    def forward(self, x: Tensor, lengths: Sequence[int], turns: Tensor | None, causal: bool) -> None:
        """Change the residual stream `x` (t, d) in place. `turns` (t, 1, e / 2): the rotary angles as numbers of length
        1 in the complex plane."""
        q, kv = x.new_empty(len(x), self.heads, self.d_head), x.new_empty(len(x), 2 * self.kv_heads, self.d_head)
        for rows in _slices(len(x)):
            normal = self.attention_norm(x[rows])
            q[rows] = self._turned(self.q(normal), turns, rows)
            self._keys_and_values(normal, turns, rows, out=kv)
        y = self._attended(q, kv, lengths, causal)
        for rows in _slices(len(x)):
            x[rows] = self._after_attention(y[rows], x[rows])

    def at_ends(self, x: Tensor, lengths: Sequence[int], turns: Tensor | None) -> Tensor:
        """As `forward`, of the last token of each sequence alone: (n, d). Leaves `x` as it is.

        The last token attends to the whole sequence, whether attention is causal or not.
        """
        kv = x.new_empty(len(x), 2 * self.kv_heads, self.d_head)
        for rows in _slices(len(x)):
            self._keys_and_values(self.attention_norm(x[rows]), turns, rows, out=kv)
        n = len(lengths)
        ends = torch.tensor([*accumulate(lengths)]) - 1
        ends = torch.cat((ends, ends[-1:].expand(-n % STEP_ROWS)))
        found = x[ends]
        turned = None if turns is None else turns[ends]
        for rows in _slices(len(ends)):
            q = self._turned(self.q(self.attention_norm(found[rows])), turned, rows)
            y = self._attended_at_ends(q, kv, lengths, first=rows.start)
            found[rows] = self._after_attention(y, found[rows])
        return found[:n]

    def _turned(self, y: Tensor, turns: Tensor | None, rows: slice) -> Tensor:
        """(r, heads, e) from (r, heads * e), rotated."""
        y = y.view(len(y), -1, self.d_head)
        if turns is None:
            return y
        pairs = torch.view_as_complex(y.float().view(*y.shape[:-1], -1, 2)) * turns[rows]
        return torch.view_as_real(pairs).flatten(-2).to(y.dtype)

    def _keys_and_values(self, normal: Tensor, turns: Tensor | None, rows: slice, *, out: Tensor) -> None:
        found = self.kv(normal)  # (r, 2 * k * e)
        width = self.kv_heads * self.d_head
        out[rows, : self.kv_heads] = self._turned(found[:, :width], turns, rows)
        out[rows, self.kv_heads :] = found[:, width:].view(len(found), self.kv_heads, self.d_head)

    def _attended(self, q: Tensor, kv: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
        """(t, h * e); 0 where no sequence is."""
        y = torch.zeros_like(q)
        of_q, of_y = (one.view(len(one), self.kv_heads, -1, self.d_head) for one in (q, y))  # (t, k, h / k, e)
        for start, stop in pairwise(accumulate(lengths, initial=0)):
            queries, result = (one[start:stop].permute(1, 2, 0, 3) for one in (of_q, of_y))
            keys, values = self._shared(kv[start:stop], of_q.size(2))
            if q.dtype == torch.bfloat16 and stop - start > MIN_BLOCKED:
                _attention_in_blocks(queries, keys[:, 0], values[:, 0], causal, out=result)
            else:
                result.copy_(_attention(queries, keys, values, 0.0, causal)[0])
        return y.view(len(y), -1)

    def _attended_at_ends(self, q: Tensor, kv: Tensor, lengths: Sequence[int], *, first: int) -> Tensor:
        """(r, h * e) of the queries q (r, h, e) at the ends of the sequences from `first` on. 0 beyond the last one."""
        y = torch.zeros_like(q)
        borders = [*pairwise(accumulate(lengths, initial=0))][first : first + len(q)]
        for row, (start, stop) in enumerate(borders):
            keys, values = self._shared(kv[start:stop], 1)
            queries = q[row].view(self.kv_heads, 1, -1, self.d_head)  # the heads of a group are its positions
            y[row] = _attention(queries, keys, values, 0.0, False)[0].reshape(-1, self.d_head)
        return y.view(len(y), -1)

    def _shared(self, kv: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each (k, groups, s, e), of kv (s, 2 * k, e). Not copied: the groups share them."""
        both = kv.transpose(0, 1).unsqueeze(1).expand(-1, groups, -1, -1)
        return both[: self.kv_heads], both[self.kv_heads :]

    def _after_attention(self, y: Tensor, x: Tensor) -> Tensor:
        """The block's output (r, d) from the attention's `y` and the block's input `x`, of any rows."""
        x = self.out(y, x)
        normal = self.mlp_norm(x)
        if self.gate is None:
            wide = _activated(self.up, normal, "gelu", "tanh")
        else:
            wide = _multiplied(self.up, normal, _activated(self.gate, normal, "swish", ""))
        z: Tensor = self.down(wide, x)
        return z


def _attention_in_blocks(q: Tensor, k: Tensor, v: Tensor, causal: bool, *, out: Tensor) -> None:
    """Attention of one sequence in bf16 into `out`, from q (k, h / k, s, e) and keys and values (k, s, e).

    torch's kernel has no fast products in bf16 on CPUs without AMX. These have, and heads that share keys share a
    product. Scores are rounded to bf16, as in CausalOnCPU's backward. Not measured with AMX.
    """
    n_kv, groups, s, e = q.shape
    later = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=q.dtype).triu(1)
    for start in range(0, s, QUERY_BLOCK):
        stop = min(s, start + QUERY_BLOCK)
        rows, end = stop - start, stop if causal else s
        queries = (q[:, :, start:stop] * e**-0.5).reshape(n_kv, -1, e)
        scores = (queries @ k[:, :end].mT).view(n_kv, groups, rows, end)
        if causal:
            scores[..., start:] += later[:rows, :rows]
        p = scores.softmax(-1).view(n_kv, -1, end)
        out[:, :, start:stop] = (p @ v[:, :end]).view(n_kv, groups, rows, e)


def _slices(rows: int) -> Iterator[slice]:
    """Slices of all rows, in few different sizes. `rows` is a multiple of STEP_ROWS."""
    assert rows % STEP_ROWS == 0, f"{rows} rows"
    for start, stop in pairwise(accumulate(slice_sizes(rows), initial=0)):
        yield slice(start, stop)


def _activated(layer: BlockedLinear, x: Tensor, activation: str, form: str) -> Tensor:
    """The layer's output (r, o) through oneDNN's activation of this name and form, in one kernel."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, activation, [], form)
    return y


def _multiplied(layer: BlockedLinear, x: Tensor, factor: Tensor) -> Tensor:
    """The layer's output (r, o) times `factor` (r, o), in one kernel."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, factor, layer.weight, layer.bias, "mul")
    return y


def _with_adjacent_pairs(linear: nn.Linear, d_head: int) -> nn.Linear:
    """The same layer with the outputs i and i + e / 2 of each head, which rotate together, side by side.

    Products of queries and keys do not depend on the order of their elements.
    """
    order = torch.arange(linear.out_features).view(-1, 2, d_head // 2).mT.reshape(-1)
    found = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    for name, parameter in linear.named_parameters():
        setattr(found, name, nn.Parameter(parameter.detach()[order], requires_grad=False))
    return found
