"""The ends of a model: shapes, names, and the form in which losses take them."""

import pytest
import torch

from gpt.losses.base import VocabularyOutputs
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.heads import ClassHead, NoHead, ScalarHead, VocabularyHead, head_outputs
from gpt.model.initialisation import initialise

CONFIG = ModelConfig(vocab_size=50, n_ctx=8, n_layers=1, d_model=16, n_heads=2)
TOKENS = torch.arange(12).view(2, 6)


def model_with(head):
    model = GPT(CONFIG, head=head)
    initialise(model, CONFIG, seed=1)
    return model


@pytest.mark.parametrize(
    ("head", "width", "names"),
    [
        (ScalarHead(CONFIG), 1, {"head.value.weight", "head.value.bias"}),
        (ClassHead(CONFIG, n_classes=3), 3, {"head.weight", "head.bias"}),
        (NoHead(), 16, set()),
    ],
)
def test_other_heads_give_their_output_at_each_position(head, width, names):
    model = model_with(head)
    hidden = model.hidden_states(TOKENS)
    assert model(TOKENS).shape == (2, 6, width)
    assert torch.equal(head_outputs(head, hidden), model(TOKENS))
    assert {name for name, _ in model.named_parameters() if name.startswith("head")} == names
    assert not model.tied, "only a vocabulary head can share the embedding's weight"


def test_a_number_keeps_the_digits_that_bf16_hidden_states_lack():
    model = model_with(ScalarHead(CONFIG)).to(torch.bfloat16)
    values = model(TOKENS)
    assert values.dtype == torch.float32
    assert not torch.equal(values.bfloat16().float(), values)
    weight, bias = model.head.value.weight.double(), model.head.value.bias.double()
    exact = model.hidden_states(TOKENS).double() @ weight.T + bias
    assert torch.allclose(values.double(), exact, rtol=0, atol=1e-6)


def test_no_head_gives_the_normalised_hidden_states():
    model = model_with(NoHead())
    assert torch.equal(model(TOKENS), model.hidden_states(TOKENS))


def test_a_vocabulary_head_gives_the_factors_of_its_logits():
    """The logits are too large to keep, so losses compute them a chunk at a time."""
    head = VocabularyHead(CONFIG)
    model = model_with(head)
    hidden = model.hidden_states(TOKENS)
    outputs = head_outputs(head, hidden)
    assert isinstance(outputs, VocabularyOutputs)
    assert outputs.weight is model.embed.tokens.weight, "tied"
    assert outputs.weight.shape == (128, 16), "vocabulary padded to vocab_multiple"
    assert (outputs.shard.start, outputs.shard.vocab_size) == (0, 50)
    logits = (outputs.hidden @ outputs.weight.T)[..., :50]
    assert torch.equal(logits, model(TOKENS))
