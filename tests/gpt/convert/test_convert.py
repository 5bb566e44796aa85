"""Export to Hugging Face: loaded by transformers itself, offline; the table read both ways; refusals."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.convert.hugging_face.export import export
from gpt.convert.hugging_face.names import family_of, shapes, table, their_shape, to_ours, to_theirs
from gpt.convert.hugging_face.tokenizer import SAMPLES, compare_tokenizers, write_tokenizer
from gpt.errors import ConfigError
from gpt.files.safetensors import read_model, write_model
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

VOCABULARY = 512
TEXT = """def walk(tree):
    for node in tree.children:
        if node is not None and len(node.name) > 3:
            yield from walk(node)    # and the rest of them, in order
    return [walk(child) for child in tree]

The parser reads the source of the module, then the interpreter runs it; otherwise an error is raised. Größe, Straße,
façade, naïve: words with letters that are rare here. In 1989 and 2024 there were 3.14 and 42 of these and those.
"""


def gpt3(**settings: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "vocab_size": VOCABULARY,
            "n_ctx": 32,
            "n_layers": 2,
            "d_model": 32,
            "n_heads": 4,
            "init_std": 0.2,
            **settings,
        }
    )


def llama(**settings: Any) -> ModelConfig:
    modern = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False, "d_ff": 48}
    return gpt3(**{**modern, "n_kv_heads": 2, "rope_theta": 50_000.0, **settings})


def random_model(config: ModelConfig) -> GPT:
    model = GPT(config).requires_grad_(False)
    initialise(model, config, seed=3)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(iter([TEXT] * 3), path, vocab_size=VOCABULARY)
    return path


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (gpt3(), "GPT2LMHeadModel"),
        (gpt3(tied=False, vocab_size=515, d_ff=80), "GPT2LMHeadModel"),
        (llama(vocab_size=515), "LlamaForCausalLM"),
        (llama(tied=True, bias=True, n_kv_heads=1), "LlamaForCausalLM"),
    ],
    ids=["gpt3", "gpt3-untied", "llama", "llama-tied-bias"],
)
def test_transformers_loads_the_folder_and_gives_equal_logits(
    tmp_path: Path, sentencepiece_file: Path, config: ModelConfig, architecture: str
) -> None:
    model, tokenizer = random_model(config), load_tokenizer(sentencepiece_file)
    output = tmp_path / "deep" / "hf"
    written: list[str] = []
    found = export(
        model.named_parameters(),
        config,
        output,
        tokenizer=tokenizer,
        tokenizer_file=sentencepiece_file,
        about={"step": 7},
        progress=written.append,
    )
    assert found.max_relative_logit_error < 1e-5
    assert sorted(written) == sorted(shapes(config))
    assert sorted(path.name for path in output.parent.iterdir()) == ["hf"], "no partial folder left"

    theirs = transformers.AutoModelForCausalLM.from_pretrained(output, local_files_only=True)
    assert type(theirs).__name__ == architecture
    assert theirs.dtype == torch.float32
    tokens = torch.randint(config.vocab_size, (3, 32), generator=torch.Generator().manual_seed(9))
    logits = theirs(tokens).logits.detach()
    assert logits.shape[-1] == config.vocab_size, "no vocabulary padding"
    assert float((model(tokens) - logits).abs().max() / logits.abs().max()) < 1e-5
    assert theirs.num_parameters() == config.parameters
    text = transformers.AutoTokenizer.from_pretrained(output, local_files_only=True)
    assert isinstance(text, transformers.PreTrainedTokenizerFast)
    assert (text.eos_token, text.bos_token, text.eos_token_id) == ("<|endoftext|>", "<|endoftext|>", 1)
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == 1
    report = json.loads((output / "triaxial_export.json").read_text())
    assert report["max_relative_logit_error"] == found.max_relative_logit_error
    assert report["step"] == 7


def test_generates_the_same_text_as_transformers(tmp_path: Path, sentencepiece_file: Path) -> None:
    from gpt.inference.generation import generate

    config, tokenizer = gpt3(), load_tokenizer(sentencepiece_file)
    model = random_model(config)
    output = tmp_path / "hf"
    export(model.named_parameters(), config, output, tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(output, local_files_only=True)
    prompt = tokenizer.encode("The parser reads")
    theirs_tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    (ours,) = generate(model, [prompt], n_ctx=32, max_new_tokens=12, stop_ids=[tokenizer.end_of_document_id])
    assert [*prompt, *ours.tokens] == theirs_tokens.tolist()


def test_bfloat16_export_is_the_rounded_model(tmp_path: Path, sentencepiece_file: Path) -> None:
    config = llama()
    model = random_model(config)
    export(
        model.named_parameters(),
        config,
        tmp_path / "hf",
        tokenizer=load_tokenizer(sentencepiece_file),
        tokenizer_file=sentencepiece_file,
        dtype=torch.bfloat16,
    )
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(stored[name], model.state_dict()["blocks.1.mlp.down.weight"].to(torch.bfloat16))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [gpt3(), gpt3(tied=False), llama(), llama(bias=True, tied=True)])
def test_table_read_back_gives_our_tensors_bit_for_bit(config: ModelConfig) -> None:
    model = random_model(config)
    theirs = dict(to_theirs(config, _shuffled(model.named_parameters())))
    ours = shapes(config)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == {
        entry.theirs: their_shape(entry, ours) for entry in table(config)
    }
    back = dict(to_ours(config, _shuffled(iter(theirs.items()))))
    assert back.keys() == ours.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(back[name], parameter[: ours[name][0]]), name


def _shuffled(tensors: Iterator[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    pairs = list(tensors)
    random.Random(0).shuffle(pairs)
    return pairs


def test_wrong_tensors_are_refused() -> None:
    config = gpt3()
    pairs = list(random_model(config).named_parameters())
    wrong_shape = [(n, t[:-1] if n == "blocks.1.mlp.up.bias" else t) for n, t in pairs]
    for tensors, words in (
        (pairs[:-1], "1 tensors of the model are missing, among them 'norm.bias'"),
        ([*pairs, ("extra", torch.zeros(1))], "'extra' is unknown"),
        ([*pairs, pairs[3]], "given twice"),
        (wrong_shape, r"'blocks.1.mlp.up.bias' has shape \(127,\), but this model's has \(128,\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            list(to_theirs(config, tensors))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (gpt3(positions="rope"), ["GPT-2, the nearest", "model.positions = 'rope'"]),
        (gpt3(bias=False), ["model.bias = false"]),
        (gpt3(n_kv_heads=2), ["model.n_kv_heads = 2 below n_heads = 4"]),
        (gpt3(norm="rmsnorm", positions="rope"), ["Llama, the nearest", "model.activation = 'gelu'"]),
    ],
)
def test_inexpressible_models_are_refused(
    tmp_path: Path, sentencepiece_file: Path, config: ModelConfig, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        export(
            random_model(config).named_parameters(),
            config,
            tmp_path / "hf",
            tokenizer=load_tokenizer(sentencepiece_file),
            tokenizer_file=sentencepiece_file,
        )
    assert all(word in str(error.value) for word in words), error.value
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError):
        family_of(config)


def test_nothing_is_left_of_a_failed_export_and_nothing_overwritten(tmp_path: Path, sentencepiece_file: Path) -> None:
    config = gpt3()
    tokenizer = load_tokenizer(sentencepiece_file)
    pairs = list(random_model(config).named_parameters())

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from pairs[:5]
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left"):
        export(broken(), config, tmp_path / "hf", tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "hf").mkdir()
    with pytest.raises(ConfigError, match="hf exists already"):
        export(pairs, config, tmp_path / "hf", tokenizer=tokenizer, tokenizer_file=sentencepiece_file)
    assert list((tmp_path / "hf").iterdir()) == []


def test_a_damaged_folder_fails_verification(tmp_path: Path, sentencepiece_file: Path) -> None:
    """Verification reads what lies on the disk: a tensor swapped there for another is found."""
    from gpt.convert.hugging_face.export import verify

    config, tokenizer = gpt3(), load_tokenizer(sentencepiece_file)
    output = tmp_path / "hf"
    export(
        random_model(config).named_parameters(), config, output, tokenizer=tokenizer, tokenizer_file=sentencepiece_file
    )
    stored = load_file(output / "model.safetensors")
    stored["transformer.h.1.attn.c_attn.weight"] = stored["transformer.h.0.attn.c_attn.weight"].clone()
    save_file(stored, output / "model.safetensors", metadata={"format": "pt"})
    digests = dict.fromkeys(shapes(config), "")
    with pytest.raises(RuntimeError, match="did not come back"):
        verify(output, config, texts=0, digests=digests)


def test_several_files_and_their_index(tmp_path: Path) -> None:
    """What a large model becomes, with a small limit; written in any order, read by the library's own code too."""
    tensors = {f"t{i}": torch.randn(3 + i, 5) for i in range(6)}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    pairs = _shuffled(iter(tensors.items()))
    write_model(tmp_path, pairs, shapes=given, dtype=torch.float32, max_file_bytes=250)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(t.numel() for t in tensors.values())
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)
    assert {name: tensor.tolist() for name, tensor in read_model(tmp_path)} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


# The tokenizer


@pytest.fixture(scope="module")
def both_tokenizers(tmp_path_factory: pytest.TempPathFactory, sentencepiece_file: Path) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("hf_tokenizer")
    ours = load_tokenizer(sentencepiece_file)
    write_tokenizer(sentencepiece_file, folder, tokenizer=ours, n_ctx=4096)
    assert compare_tokenizers(folder, ours) == len(SAMPLES)
    return ours, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    "alphabet", ["ab", " a", "ret ", "in g\n", "=- ", "\t of", "self. _", "0139. ", "\u2581 th", "ßüe"]
)
def test_equal_ids_on_random_text(both_tokenizers: tuple[Any, Any], alphabet: str) -> None:
    """Few letters make many ways to merge, which is where an order of merges would show."""
    ours, theirs = both_tokenizers
    rng = random.Random(alphabet)
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 50)))
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == text


def test_any_ids_decode_alike(both_tokenizers: tuple[Any, Any]) -> None:
    """The end of a document is no text. Bytes that are no UTF-8, which no text gives, become U+FFFD in both, but
    `tokenizers` gives up the whole run of byte pieces for one wrong byte, so that only the rest is compared."""
    ours, theirs = both_tokenizers
    rng = random.Random(0)
    compared = 0
    for _ in range(600):
        ids = [rng.choice((1, *range(2, VOCABULARY))) for _ in range(rng.randint(1, 4))]
        text = ours.decode(ids)
        found = theirs.decode(ids, skip_special_tokens=True)
        if "\ufffd" in text:
            assert "\ufffd" in found, ids
        else:
            assert found == text, ids
            compared += 1
    assert compared > 100


def test_text_that_spells_a_special_token_is_text(both_tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = both_tokenizers
    assert 1 not in theirs("a <|endoftext|> b")["input_ids"]
    assert ours.decode(theirs("a <|endoftext|> b")["input_ids"]) == "a <|endoftext|> b"


def test_a_tokenizer_json_travels_along(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT], trainer)
    model.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer(tmp_path / "tokenizer.json", folder, tokenizer=ours, n_ctx=64)
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert compare_tokenizers(folder, ours) == len(SAMPLES)


def test_a_difference_between_tokenizers_is_found(tmp_path: Path, sentencepiece_file: Path) -> None:
    ours = load_tokenizer(sentencepiece_file)
    write_tokenizer(sentencepiece_file, tmp_path, tokenizer=ours, n_ctx=64)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    file["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(RuntimeError, match="transformers reads"):
        compare_tokenizers(tmp_path, ours)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"add_dummy_prefix": True}, "it adds a space before a text"),
        ({"model_type": "unigram"}, "it is no BPE model"),
        ({"byte_fallback": False}, "it has no bytes to fall back on"),
        ({"user_defined_symbols": ["xyz"]}, "it has user-defined pieces"),
        (
            {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
            "'nmt_nfkc', and it removes spaces",
        ),
    ],
)
def test_sentencepiece_models_of_other_kinds_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    import sentencepiece

    usual = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3),
        model_prefix=str(tmp_path / "other"),
        vocab_size=380,
        minloglevel=3,
        **{**usual, **settings},
    )
    source = tmp_path / "other.model"
    with pytest.raises(ConfigError, match=words):
        write_tokenizer(source, tmp_path, tokenizer=load_tokenizer(source), n_ctx=64)
    assert not (tmp_path / "tokenizer.json").exists()
