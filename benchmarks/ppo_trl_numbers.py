"""The formulas of PPO against the numbers inside TRL's PPOTrainer, on one batch.

    python -m venv VENV && VENV/bin/pip install torch 'trl==0.21.0' 'transformers<4.56' numpy
    python benchmarks/ppo_trl_numbers.py --peer VENV/bin/python

TRL runs one iteration of tiny models: 8 responses of 12 tokens, of which some end early, and two passes of two updates
at a rate that makes both losses clip. Ours gets the log-probabilities, values and scores that TRL had, in fp32. Prints
the largest difference of each result, relative to the largest number of TRL's; ends with status 1 if one is above 1e-6.

Rewards, advantages and returns are compared where a response has its full length: TRL puts the score of a shorter one
behind its last token (issue 3750 of TRL), ours on it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt.post_training.advantages import gae, last_index, token_rewards, whiten
from gpt.post_training.kl import kl_estimate
from gpt.post_training.ppo_loss import clipped_policy_loss, clipped_value_loss

TOLERANCE = 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the Python of the virtual environment with TRL")
    peer = str(Path(__file__).parent / "ppo_trl_numbers_peer.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "numbers.npz"
        subprocess.run([parser.parse_args().peer, peer, str(file)], check=True, stdout=subprocess.DEVNULL)
        with np.load(file) as numbers:
            theirs = {name: torch.from_numpy(np.array(numbers[name])) for name in numbers}
    differences = scored(theirs) | updated(theirs)
    print(json.dumps(differences, indent=1))
    return int(max(differences.values()) > TOLERANCE)


def scored(theirs: dict[str, Tensor]) -> dict[str, float]:
    """KL, rewards, advantages, returns and whitening."""
    beta, discount, gae_lambda, *_ = theirs["settings"].tolist()
    mask = ~theirs["padding_mask"]  # (n, t)
    whole = mask.all(1)
    assert 0 < whole.sum() < len(mask), "some responses end early, some do not"
    log_probs, reference, scores = theirs["logprobs"], theirs["ref_logprobs"], theirs["scores"]
    rewards = token_rewards(log_probs, reference, scores, mask=mask, last=last_index(mask), beta=beta)
    advantages, returns = gae(rewards, theirs["values"], mask, discount=discount, gae_lambda=gae_lambda)
    ours = {"rewards": rewards, "advantages": advantages, "returns": returns}
    found = {name: difference(values[whole], theirs[name][whole]) for name, values in ours.items()}
    kl = kl_estimate(log_probs, reference, mask, estimator="k1")
    found["kl"] = difference(kl[mask], theirs["kl"][mask])
    found["whitened"] = difference(whiten(theirs["advantages"], mask)[mask], theirs["whitened"][mask])
    return found


def updated(theirs: dict[str, Tensor]) -> dict[str, float]:
    """The largest differences of both losses and of the clipped shares over all updates."""
    *_, clip, value_clip = theirs["settings"].tolist()
    found: dict[str, list[float]] = {}
    update = 0
    while f"update{update}_rows" in theirs:
        own = {name.split("_", 1)[1]: x for name, x in theirs.items() if name.startswith(f"update{update}_")}
        rows = own["rows"]
        masks = {"policy": ~theirs["padding_mask"][rows], "value": ~theirs["padding_mask_p1"][rows]}
        ratio = own["logprobs_diff"].exp()
        policy = clipped_policy_loss(ratio, own["mb_advantage"], low=clip, high=clip)
        value = clipped_value_loss(own["vpred"], own["mb_values"], own["mb_return"], clip=value_clip)
        own["value"] = own["value"] / 2  # TRL halves the mean, ours each square
        for name, (losses, clipped) in {"policy": policy, "value": value}.items():
            found.setdefault(name, []).append(difference(losses[masks[name]].mean(), own[name]))
            share = clipped[masks[name]].float().mean()
            found.setdefault(f"{name}_clipped", []).append(difference(share, own[f"{name}_clipped"]))
            assert update == 0 or share > 0, f"no {name} loss of update {update} is clipped"
        update += 1
    assert update == 4, f"{update} updates"
    return {name: max(differences) for name, differences in found.items()}


def difference(ours: Tensor, theirs: Tensor) -> float:
    largest = max(float(theirs.abs().max()), 1e-30)
    return float((ours.double() - theirs.double()).abs().max()) / largest


if __name__ == "__main__":
    sys.exit(main())
