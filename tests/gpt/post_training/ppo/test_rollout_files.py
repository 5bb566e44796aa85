"""Rollouts as files: published whole, read back by other shares, refused if damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt.errors import ConfigError
from gpt.post_training.ppo.episodes import Episodes, join, make_episodes
from gpt.post_training.ppo.rollout_files import (
    DamagedRollouts,
    discard_other_parts,
    discard_rollouts,
    has_part,
    read_rollouts,
    step_folder,
    write_part,
)
from gpt.post_training.ppo.rollouts import SampledResponse

T = 10


def episodes(first: int, n: int, *, version: int = 4) -> Episodes:
    prompts = [[7] * (1 + (first + i) % 3) for i in range(n)]
    responses = [SampledResponse([first + i, 2], [-0.5, -1.0 - i], True) for i in range(n)]
    return make_episodes(first, prompts, responses, seq_len=T, version=version)


def same(one: Episodes, other: Episodes) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("numbers", "tokens", "log_probs", "ended")
    )


def test_masks_and_targets_cover_the_response_and_its_end_token() -> None:
    one = make_episodes(0, [[5, 6, 7]], [SampledResponse([8, 9, 2], [-0.1, -0.2, -0.3], True)], seq_len=T, version=0)
    assert one.mask.tolist() == [[False, False, True, True, True] + [False] * 5]
    batch = one.batch()
    assert batch.targets[one.mask].tolist() == [8, 9, 2]
    assert (batch.targets[~one.mask] == -100).all()
    assert one.last.tolist() == [4], "the end token is predicted there"
    assert one.log_probs[one.mask].tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert one.prompts() == [[5, 6, 7]]
    assert one.responses() == [[8, 9, 2]]


def test_parts_are_read_back_by_any_share(tmp_path: Path) -> None:
    for first in (0, 4, 8):
        write_part(tmp_path, episodes(first, 4), temperature=1.0, sampled_by="a")
    whole = join([episodes(first, 4) for first in (0, 4, 8)])
    for first, n in ((0, 12), (2, 5), (6, 6), (11, 1)):
        assert same(read_rollouts(tmp_path, first, n, temperature=1.0), whole.rows(first, first + n))
    assert read_rollouts(tmp_path, 0, 12, temperature=1.0).version == 4
    assert has_part(tmp_path, 4, n=4, version=4, sampled_by="a")
    for first, n, version, sampled_by in ((4, 4, 5, "a"), (4, 8, 4, "a"), (12, 4, 4, "a"), (4, 4, 4, "b")):
        assert not has_part(tmp_path, first, n=n, version=version, sampled_by=sampled_by)


def test_missing_damaged_and_other_rollouts_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path, episodes(0, 4), temperature=1.0, sampled_by="a")
    with pytest.raises(ConfigError, match=r"holds 4 of the 6 episodes from 0 on"):
        read_rollouts(tmp_path, 0, 6, temperature=1.0)
    with pytest.raises(ConfigError, match=r"objective.temperature = 0.5 is invalid: .*sampled at 1.0"):
        read_rollouts(tmp_path, 0, 4, temperature=0.5)
    file = tmp_path / "episodes-000000000000.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DamagedRollouts, match="is damaged: its bytes differ from its checksum"):
        read_rollouts(tmp_path, 0, 4, temperature=1.0)
    assert not has_part(tmp_path, 0, n=4, version=4, sampled_by="a"), "so a restart samples it again"


@pytest.mark.parametrize("name", ["tokens", "total_tokens", "numbers"])
def test_tensors_that_are_no_episodes_are_refused_although_their_digest_is_right(tmp_path: Path, name: str) -> None:
    made = episodes(0, 4)
    wrong = {"tokens": made.tokens[:, 0], "total_tokens": made.total_tokens + T, "numbers": made.numbers[:3]}[name]
    write_part(tmp_path, replace(made, **{name: wrong}), temperature=1.0, sampled_by="a")
    with pytest.raises(ConfigError):
        read_rollouts(tmp_path, 0, 4, temperature=1.0)


def test_a_stray_file_and_a_wrong_name_count_as_rollouts_of_others(tmp_path: Path) -> None:
    for name in ("episodes-x.json", "episodes-000000000008.json"):
        folder = step_folder(tmp_path, 1)
        write_part(folder, episodes(0, 4), temperature=1.0, sampled_by="a")
        (folder / name).write_bytes((folder / "episodes-000000000000.json").read_bytes())
        discard_other_parts(folder, n=4, version=4, sampled_by="a")
        assert not folder.exists()


def test_a_part_counts_once_its_record_is_there(tmp_path: Path) -> None:
    write_part(tmp_path, episodes(0, 4), temperature=1.0, sampled_by="a")
    (tmp_path / "episodes-000000000000.json").rename(tmp_path / "hidden")
    assert not has_part(tmp_path, 0, n=4, version=4, sampled_by="a"), "the process died between the two files"
    with pytest.raises(ConfigError, match="holds 0 of the 4"):
        read_rollouts(tmp_path, 0, 4, temperature=1.0)
    record = json.loads((tmp_path / "hidden").read_bytes())
    assert record["version"] == 4


def test_old_rollouts_are_discarded(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_part(step_folder(tmp_path, step), episodes(0, 2), temperature=1.0, sampled_by="a")
    discard_rollouts(tmp_path, before=2)
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["step-000000002", "step-000000003"]
    discard_rollouts(tmp_path, after=2)
    discard_other_parts(step_folder(tmp_path, 2), n=2, version=4, sampled_by="a")
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["step-000000002"]
    discard_other_parts(step_folder(tmp_path, 2), n=2, version=5, sampled_by="a")
    assert not any(tmp_path.iterdir()), "weights of another version wrote them"
    write_part(step_folder(tmp_path, 2), episodes(0, 2), temperature=1.0, sampled_by="a")
    discard_other_parts(step_folder(tmp_path, 2), n=2, version=4, sampled_by="b")
    assert not any(tmp_path.iterdir()), "a run with other settings wrote them"
