"""A length in steps or epochs is the same as one in tokens, and cannot be given twice."""

import pytest

from gpt.errors import ConfigError
from launch.config.lengths import IN_TOKENS, settings
from launch.config.run_config import RunConfig, read_run_config
from launch.config.settings import settings_of


def read(tiny_corpus, *words):
    return read_run_config(str(tiny_corpus.recipe), list(words))


def test_each_key_stands_for_a_key_in_tokens_and_is_listed():
    ours = {setting.key for setting in settings_of(RunConfig)}
    assert set(IN_TOKENS.values()) <= ours
    assert not IN_TOKENS.keys() & ours
    assert [setting.key for setting in settings()] == [*IN_TOKENS, "train.epochs_of"]


@pytest.mark.parametrize("key", [key for key in IN_TOKENS if key.endswith("_steps")])
def test_steps_become_tokens_of_so_many_steps(tiny_corpus, key):
    extra = {
        "schedule.cooldown_steps": ["--schedule.shape", "wsd"],
        "checkpoint.fast_every_steps": ["--checkpoint.fast_directory", "/tmp/fast"],
    }
    config = read(tiny_corpus, f"--{key}", "32", *extra.get(key, []))
    section, _, name = IN_TOKENS[key].partition(".")
    assert getattr(getattr(config, section), name) == 32 * 512


def test_steps_of_a_ramp_are_those_that_the_run_makes(tiny_corpus):
    ramp = ["--batch.ramp_tokens", "4096", "--batch.ramp_initial_tokens", "128"]
    config = read(tiny_corpus, *ramp, "--train.total_steps", "20")
    assert config.train.total_tokens == config.batch.ramp.tokens_seen(20) < 20 * 512
    assert config.train.steps(config.batch.ramp) == 20
    with pytest.raises(ConfigError, match=r"train.evaluate_every_steps = 5 is invalid with batch.ramp_tokens: .* Use"):
        read(tiny_corpus, *ramp, "--train.evaluate_every_steps", "5")


@pytest.mark.parametrize("sampling", ["window", "document"])
def test_an_epoch_is_each_sample_once(tiny_corpus, sampling):
    from gpt.data.dataset import TrainingData

    config = read(tiny_corpus, "--train.epochs", "1.5", "--data.sampling", sampling)
    data = TrainingData(config.data, seed=0, vocab_size=512)
    (epochs,) = data.epochs(config.train.total_tokens // 64).values()
    assert epochs == pytest.approx(1.5, abs=1 / data.files[0].n_samples)


def test_an_epoch_of_several_corpora_has_all_their_samples(tiny_corpus):
    train, validation = tiny_corpus.folder / "train", tiny_corpus.folder / "validation"
    one = read(tiny_corpus, "--train.epochs", "1").train.total_tokens
    other = read(tiny_corpus, "--train.epochs", "1", "--data.train", f'[{{path="{validation}"}}]').train.total_tokens
    both = f'[{{path="{train}", weight=9}}, {{path="{validation}"}}]'
    assert read(tiny_corpus, "--train.epochs", "1", "--data.train", both).train.total_tokens == one + other


def test_epochs_of_one_corpus_of_a_mixture(tiny_corpus):
    """A tenth of other text in two epochs of one corpus: the other is not read to its end."""
    from gpt.data.dataset import TrainingData

    train, validation = tiny_corpus.folder / "train", tiny_corpus.folder / "validation"
    both = f'[{{path="{validation}", weight=0.9}}, {{path="{train}", weight=0.1}}]'
    config = read(tiny_corpus, "--train.epochs", "2", "--train.epochs_of", "validation", "--data.train", both)
    epochs = TrainingData(config.data, seed=0, vocab_size=512).epochs(config.train.total_tokens // 64)
    assert epochs["validation"] == pytest.approx(2, rel=0.01)
    assert epochs["train"] < 1


def test_the_command_line_replaces_a_length_of_the_recipe_in_another_unit(tiny_corpus):
    assert read(tiny_corpus, "--train.total_steps", "4").train.total_tokens == 2048
    assert read(tiny_corpus, "--checkpoint.every_steps", "3").checkpoint.every_tokens == 1536


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--train.total_steps 3 --train.epochs 1",
            "train.total_steps and train.epochs are invalid together: both say one length. Keep one of them",
        ),
        (
            "--schedule.warmup_steps 3 --schedule.warmup_tokens 512",
            "schedule.warmup_tokens and schedule.warmup_steps are invalid together: both say one length. Keep one",
        ),
        ("--train.total_steps many", "train.total_steps = 'many' is invalid: must be a whole number"),
        ("--train.total_steps 0", "train.total_steps = 0 is invalid: must be at least 1"),
        ("--schedule.warmup_steps -1", "schedule.warmup_steps = -1 is invalid: must be at least 0"),
        ("--train.epochs 0", "train.epochs = 0 is invalid: must be a number above 0"),
        ("--train.epochs nan", "train.epochs = nan is invalid: must be a number above 0"),
        ("--train.epochs inf", "train.epochs = inf is invalid: must be a number above 0"),
        ("--train.epochs_of train", "train.epochs_of needs train.epochs: it names the corpus that train.epochs counts"),
        (
            "--train.epochs 1 --train.epochs_of x",
            "train.epochs_of = 'x' is invalid: data.train has no such corpus. Use",
        ),
        ('--train.epochs 1 --data.train [{path="/no/train"}]', "/no/train.idx: no such token file"),
        (
            "--train.total_steps 40 --schedule.warmup_steps 30 --schedule.decay_steps 20",
            "schedule.decay_tokens = 10240 (schedule.decay_steps = 20) is invalid: must be more than "
            "schedule.warmup_tokens = 15360 (schedule.warmup_steps = 30), where the decay starts",
        ),
        ("--train.total_steps 3 --batch.global_batch_tokens x", "batch.global_batch_tokens = 'x' is invalid"),
    ],
)
def test_a_mistake_names_the_key_that_was_given(tiny_corpus, words, said):
    with pytest.raises(ConfigError) as raised:
        read(tiny_corpus, *words.split())
    assert str(raised.value).startswith(said)
