"""Look at inputs, choose a corpus and a model, and write the two recipes."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import ConfigError, one_line
from gpt.files.atomic import open_replacement
from launch.processes.terminal import work_progress
from launch.start.corpus_choice import CorpusChoice, Preset, choose_corpus, default_preset
from launch.start.corpus_recipe import corpus_recipe
from launch.start.hub import look_remote
from launch.start.look import Survey, look
from launch.start.model_choice import Dials, Machine, Training, choose_training
from launch.start.speed import machine_here, measured_speed
from launch.start.summary import describe_choice, describe_survey
from launch.start.train_recipe import train_recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """The request to `triaxial init`. All inputs are local, or all are URLs.

    `name`: of the corpus in metrics.
    """

    inputs: tuple[str, ...]
    out: Path
    name: str
    preset: Preset | None
    dials: Dials
    n_processes: int | None
    force: bool = False


def write_recipes(wishes: Wishes, say: Say) -> list[list[str]]:
    """Write `data.toml` and `train.toml` to `wishes.out`, say what was found and chosen, and return the next commands.

    ConfigError: there is nothing to train on, a recipe is there already, or this machine cannot train the model.
    """
    files = (wishes.out / "data.toml", wishes.out / "train.toml")
    for path in files:
        if (path.exists() or path.is_symlink()) and not wishes.force:
            raise ConfigError(f"{path} exists. Use --force to write over it, or --out for another folder")
    survey = _look(wishes)
    choice = choose_corpus(survey, wishes.preset or default_preset(survey))
    for line in describe_survey(survey, choice):
        say(line)
    machine = machine_here(wishes.n_processes)
    training = _training(wishes.dials, choice, machine, say)
    for line in describe_choice(training):
        say(line)
    commands = [["triaxial", "prepare", str(files[0])], ["triaxial", "train", str(files[1])]]
    if machine.n_processes > 1:
        commands[1] += ["--nproc", str(machine.n_processes)]
    corpus, run, name = wishes.out / "corpus", wishes.out / "run", wishes.name
    titles = _titles(wishes.inputs, survey, training, commands)
    texts = (
        corpus_recipe(survey, choice, folder=corpus, title=titles[0]),
        train_recipe(training, name=name, corpus=corpus, run=run, title=titles[1]),
    )
    wishes.out.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, texts, strict=True):
        with open_replacement(path) as file:
            file.write(text.encode("utf-8"))
    say(f"wrote {files[0]} and {files[1]}")
    return commands


def _look(wishes: Wishes) -> Survey:
    """Look at the inputs, with progress."""
    with work_progress() as progress:

        def following(paths: list[Path]) -> Iterator[Path]:
            progress.start("looking at the files", total=len(paths))
            for number, path in enumerate(paths):
                yield path
                if number % 100 == 99:
                    progress.update(number + 1)

        if "://" in wishes.inputs[0]:
            progress.start(f"reading the start of {wishes.inputs[0]}")
            return look_remote(wishes.inputs)
        return look(wishes.inputs, without=wishes.out, following=following)


def _training(dials: Dials, choice: CorpusChoice, machine: Machine, say: Say) -> Training:
    def measure(plan: Training) -> float:
        say(f"measuring the speed of {plan.model.parameters:,} parameters on this machine ...")
        with work_progress() as progress:
            speed = measured_speed(plan, choice.model, n_processes=machine.n_processes, progress=progress)
        say(f"  {speed:,.0f} tokens/s")
        return speed

    return choose_training(
        dials,
        corpus_tokens=choice.tokens,
        vocab_size=choice.vocab_size,
        validation_share=choice.validation_fraction,
        machine=machine,
        measure=measure,
    )


def _titles(inputs: tuple[str, ...], survey: Survey, training: Training, commands: list[list[str]]) -> tuple[str, str]:
    source = one_line(", ".join(inputs[:3]))
    more = f" and {len(inputs) - 3} more" if len(inputs) > 3 else ""
    corpus = f"A corpus of {source}{more}: about {survey.text_bytes / 1e6:,.1f} MB of text."
    model = f"A GPT of {training.model.parameters:,} parameters on the corpus of data.toml."
    made = "Made by `triaxial init`.\n\n    "
    first, second = (one_line(shlex.join(command)) for command in commands)
    return f"{corpus} {made}{first}", f"{model} {made}{second}"
