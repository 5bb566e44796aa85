"""Diagnose a policy's training from its metrics: which fault, since which iteration, by which numbers, and remedies."""

from dataclasses import dataclass

from gpt.post_training.analysis import symptoms
from gpt.post_training.analysis.series import PolicyMetrics
from gpt.post_training.analysis.symptoms import Evidence, Symptom

DETAILS = "arXiv 2403.17031"
INSTRUCT_GPT = "arXiv 2203.02155"
OVER_OPTIMISATION = "arXiv 2210.10760"

SYMPTOMS = (
    Symptom(
        "NaN rewards",
        "any reward that is not a finite number",
        "our rule: such an episode is skipped and counted",
        "Score these prompts by hand. Look for empty responses and overflow in half precision.",
        symptoms.nan_rewards,
    ),
    Symptom(
        "ratio of the first minibatch is not 1",
        "max |ratio - 1| above 1e-6 before the first update of an iteration",
        f"{DETAILS}; TRL, PPO Trainer: val/ratio",
        "Old log-probabilities and the update must use one forward: the same temperature, padding, dropout 0 and "
        "micro-batch size.",
        symptoms.first_ratio,
    ),
    Symptom(
        "sampler gap",
        "sampler and training forward differ by more than 0.1 nats a token, or by more than 0.02 and twice as much as "
        "in the first iteration",
        "our rule; rounding in bf16 gives 0.04 on SmolLM2-135M",
        "Use one temperature in both. Check that the sampler has the newest weights, and compare the two in float32.",
        symptoms.sampler_gap,
    ),
    Symptom(
        "negative KL",
        "KL below -0.1 nats a response",
        "TRL, Training FAQ: negative KL",
        "Sample from the whole distribution: temperature 1, no top-k, top-p or minimum length. Mask what follows the "
        "end token in log-probabilities of policy and reference.",
        symptoms.negative_kl,
    ),
    Symptom(
        "exploding KL",
        "KL above 20 nats a response, or above 10 and four times that of 10 iterations before",
        f"TRL, Training FAQ: 0 to 10; {INSTRUCT_GPT}: beta 0.01 to 0.02",
        "Raise beta, or let it adapt. Lower the learning rate, and take one update per batch.",
        symptoms.exploding_kl,
    ),
    Symptom(
        "dead critic",
        "explained variance at most 0.02 after 10 iterations",
        f"a constant has 0; {DETAILS} starts the critic from the reward model",
        "Start the critic from the reward model. Train it alone for some iterations, or raise its learning rate.",
        symptoms.dead_critic,
    ),
    Symptom(
        "over-optimisation",
        "the gold reward falls from its peak by 4 standard errors while the trained reward rises",
        OVER_OPTIMISATION,
        "Use the checkpoint at the peak of the gold reward. Raise beta, or train the reward model on newer samples.",
        symptoms.over_optimisation,
    ),
    Symptom(
        "length gaming",
        "length more than 20% above its start and reward above its own; correlation at least 0.4 where KL explains "
        "neither",
        "arXiv 2310.03716; thresholds are ours",
        "Compare the reward model with one that sees length only. Balance lengths in its pairs, or subtract a length "
        "penalty.",
        symptoms.length_gaming,
    ),
    Symptom(
        "missing end tokens",
        "more than 20% of the responses reach the limit without an end token",
        f"{DETAILS}: reward -1 without an end token",
        "Check that SFT learns the end token and that padding is another token. Allow longer responses, or penalise "
        "a missing end.",
        symptoms.missing_end,
    ),
    Symptom(
        "saturated reward",
        "standard deviation of the reward below a tenth of its start",
        "our rule: without differences there are no advantages",
        "If the task is solved, stop. Else use a finer reward, harder prompts or a higher temperature.",
        symptoms.saturated_reward,
    ),
    Symptom(
        "collapsed entropy",
        "entropy below a quarter of its start",
        "arXiv 2503.14476 describes the collapse; the threshold is ours",
        "Raise beta, lower the learning rate, and look at samples for one repeated response.",
        symptoms.collapsed_entropy,
    ),
    Symptom(
        "clip fraction too high",
        "more than 30% of the tokens are clipped",
        "our rule for a clip range of 0.2",
        "Lower the learning rate, or make fewer updates per batch.",
        symptoms.clip_fraction_high,
    ),
    Symptom(
        "forgetting",
        "pre-training loss 0.05 nats a token above its start",
        f"{INSTRUCT_GPT}: PPO-ptx; the threshold is ours",
        "Mix in pre-training gradients, or raise their coefficient.",
        symptoms.forgetting,
    ),
)


@dataclass(frozen=True)
class PolicyFault:
    """One fault that the metrics show."""

    symptom: Symptom
    evidence: Evidence

    @property
    def when(self) -> str:
        """The iterations, in words."""
        span = self.evidence.span
        if span.lasting:
            return f"since iteration {span.first:,}"
        return f"iteration {span.first:,}" if span.first == span.last else f"iterations {span.first:,} to {span.last:,}"

    @property
    def text(self) -> str:
        """The finding and its remedies in one line."""
        return f"{self.symptom.name}, {self.when}: {self.evidence.numbers}. {self.symptom.advice}"


def diagnose(metrics: PolicyMetrics) -> list[PolicyFault]:
    """The faults that the metrics show, the ones that still last first, else in order of urgency.

    `metrics` are by name without a prefix: `kl` in nats a response, `entropy`, `ptx_loss` and `sampler_gap` in nats a
    token, `length` in tokens, fractions from 0 to 1. A rule whose metric is missing finds nothing.
    """
    present = {name: series for name, series in metrics.items() if len(series.values)}
    found = [PolicyFault(symptom, evidence) for symptom in SYMPTOMS if (evidence := symptom.find(present)) is not None]
    return sorted(found, key=lambda finding: not finding.evidence.span.lasting)
