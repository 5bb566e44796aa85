"""Rewards by Python functions: what they get, and how their mistakes end."""

import math
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.post_training.ppo.config import RewardSource
from gpt.post_training.ppo.episodes import make_episodes
from gpt.post_training.ppo.rewards import FunctionReward, as_scores, call_reward, load_function
from gpt.post_training.ppo.rollouts import SampledResponse


class Letters:
    """A tokenizer whose tokens are letters, and 0 ends a text."""

    vocab_size, end_of_document_id = 27, 0

    def decode(self, ids: list[int]) -> str:
        return "".join("$" if i == 0 else chr(96 + i) for i in ids)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]


def two_episodes():
    responses = [SampledResponse([3, 0], [0.0, 0.0], True), SampledResponse([4, 5], [0.0, 0.0], False)]
    return make_episodes(0, [[1], [1, 2]], responses, seq_len=6, version=0)


def test_a_function_gets_texts_without_the_end_token() -> None:
    seen = []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        seen.append((prompts, responses))
        return [1, 2.5]

    scores = FunctionReward("reward", reward, Letters()).scores(two_episodes())
    assert scores.tolist() == [1.0, 2.5]
    assert seen == [(["a", "ab"], ["c", "de"])]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0], "returned 1 numbers for 2 responses"),
        ("12", "returned str: must be a list of 2 numbers"),
        (["a", 1.0], "not all numbers"),
        ([10**400, 1.0], "not all numbers"),
    ],
)
def test_a_wrong_answer_is_one_line(found: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionReward("mine", lambda prompts, responses: found, Letters()).scores(two_episodes())


def test_a_function_that_raises_is_one_line() -> None:
    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        raise KeyError("score\nof 3")

    with pytest.raises(ConfigError, match=r"^the reward 'mine' raised KeyError: 'score\\nof 3' \(.*:\d+\)$"):
        FunctionReward("mine", reward, Letters()).scores(two_episodes())


def test_the_line_of_the_users_own_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_json_reward.py").write_text(
        "import json\n\n\ndef marks(prompts, responses):\n    return [json.loads(text) for text in responses]\n"
    )
    function = load_function(RewardSource(function="my_json_reward:marks"))
    with pytest.raises(ConfigError, match=r"raised JSONDecodeError: Expecting value.* \(.*my_json_reward\.py:5\)$"):
        call_reward(function, ["a"], ["b"], name="marks")
    Path("my_broken_reward.py").write_text("import json\n\nLIMIT = json.loads('x')\n")
    with pytest.raises(ConfigError, match=r"cannot be imported: JSONDecodeError: .* \(.*my_broken_reward\.py:3\)$"):
        load_function(RewardSource(function="my_broken_reward:marks"))
    Path("my_unread_reward.py").write_text("def marks(:\n")
    with pytest.raises(ConfigError, match=r"SyntaxError: .*\(my_unread_reward\.py, line 1\)$"):
        load_function(RewardSource(function="my_unread_reward:marks"))


def test_no_score_is_nan() -> None:
    assert [math.isnan(value) for value in as_scores([None, 1.0, float("nan")], n=3, name="mine").tolist()] == [
        True,
        False,
        True,
    ]


def test_functions_come_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_ppo_rewards.py").write_text("def short(prompts, responses):\n    return [0.0 for _ in responses]\n")
    assert load_function(RewardSource(function="my_ppo_rewards:short"))([""], ["a"]) == [0.0]
    for wrong, message in (
        ("my_ppo_rewards:long", "cannot be imported: AttributeError"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("my_ppo_rewards:__name__", "must be a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_function(RewardSource(function=wrong))
