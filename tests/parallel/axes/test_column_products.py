"""Products whose messages overlap with gradients of weights, on one tensor rank: bits, and the order of backward.

tests/parallel/engines/test_layouts.py compares several ranks with one process.
"""

import copy

import pytest
import torch
from layout_runs import MODEL, MODERN
from live_tensors import Live
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from parallel.axes.column_products import _Overlapped, gather_inputs, overlap_messages
from parallel.axes.sequence_shards import tensor_ranks

WAYS = pytest.mark.parametrize("splits_sequence", [True, False])
SENT = ("triaxial::reduce_scatter", "_c10d_functional::all_reduce", "c10d::allreduce_")


class Operators(TorchDispatchMode):
    """The names of the operators that ran, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def models(splits_sequence, keys, change=lambda model: None):
    """The same model without and with overlap, after `change`."""
    config = ModelConfig(**{**MODEL, **keys, "n_layers": 1})
    model = GPT(config)
    initialise(model, config, seed=1)
    ranks = tensor_ranks(
        init_device_mesh("cpu", (1,), mesh_dim_names=("tp",)), splits_sequence=splits_sequence, splits_backward=False
    )
    found = []
    for each in (model, copy.deepcopy(model)):
        gather_inputs(each, ranks)
        change(each)
        found.append(each)
    overlap_messages(found[1], ranks)
    return found


def backward(model):
    tokens = torch.arange(32).view(2, 16)
    model(tokens).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@WAYS
@pytest.mark.parametrize("keys", [{}, MODERN], ids=["gpt3", "modern"])
@pytest.mark.parametrize("frozen", ["", "attention.q.weight", "mlp.up"])
def test_gradients_have_the_bits_of_autograds_own(process_group, splits_sequence, keys, frozen):
    def freeze(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or frozen not in name)

    plain, overlapped = models(splits_sequence, keys, freeze)
    expected, found = backward(plain), backward(overlapped)
    assert all(grad is None for name, grad in found.items() if frozen and frozen in name)
    for name, grad in found.items():
        assert (grad is None) == (expected[name] is None)
        assert grad is None or torch.equal(grad, expected[name]), name


@WAYS
def test_the_message_starts_before_the_gradients_of_weights(process_group, splits_sequence):
    orders = []
    for model in models(splits_sequence, {}):
        with Operators() as operators:
            backward(model)
        names = operators.names[operators.names.index("aten::gelu_backward") :]
        names = names[: names.index("aten::native_layer_norm_backward")]
        orders.append(["sent" if name in SENT else name for name in names if name in ("aten::mm", *SENT)])
    assert orders == [["aten::mm", "aten::mm", "sent"], ["aten::mm", "sent", "aten::mm"]]


@WAYS
@pytest.mark.parametrize("keys", [{}, MODERN], ids=["gpt3", "modern"])
@pytest.mark.parametrize("trained", ["", "attention.out", "attention.k", "mlp.", "q.bias", "embed"])
def test_frozen_weights_keep_no_more_than_with_linear_layers(process_group, splits_sequence, keys, trained):
    def freeze(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)

    plain, overlapped = (kept_bytes(model) for model in models(splits_sequence, keys, freeze))
    assert overlapped == plain


def kept_bytes(model):
    """Bytes that autograd keeps for backward, without those of parameters."""
    held, kept = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.arange(32).view(2, 16)).square().sum()
    del loss
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in held)


class LiveBytes(Live):
    """The operators that ran, in order, and the bytes alive after each."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.found.append((func._schema.name, sum(self.storages.values())))
        return result


@WAYS
def test_a_counter_of_memory_sees_what_a_message_holds_while_gradients_are_computed(process_group, splits_sequence):
    """Whole sequences are summed in place. Of shares, the parts to be sent live, and their sum."""
    ranks = tensor_ranks(
        init_device_mesh("cpu", (1,), mesh_dim_names=("tp",)), splits_sequence=splits_sequence, splits_backward=False
    )
    layers = torch.nn.Linear(8, 32, bias=False), torch.nn.Linear(8, 32, bias=False)
    layers[0].weight.requires_grad_(False)
    with LiveBytes() as live:
        x, grad = torch.randn(2, 16, 8, requires_grad=True), torch.randn(2, 16, 32)
        products = _Overlapped(ranks, layers)(x)
        before = live.found[-1][1]
        live.found.clear()
        torch.autograd.grad(products, (x, layers[1].weight), (grad, grad))
    message, weight = 2 * 16 * 8 * 4, 32 * 8 * 4
    during = [held for name, held in live.found if name == "aten::mm"][-1]
    assert during - before == weight + (2 * message if splits_sequence else message)


def test_layers_that_are_not_plain_are_left_as_they_are(process_group):
    def add_hook(model):
        model.blocks["0"].attention.k.register_forward_hook(lambda layer, inputs, output: output)

    plain, overlapped = (model.blocks["0"] for model in models(False, {}, add_hook))
    assert type(overlapped.attention.projected) is type(plain.attention.projected)
    assert type(overlapped.mlp.projected) is not type(plain.mlp.projected)
