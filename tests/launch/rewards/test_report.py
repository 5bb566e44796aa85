"""The lines of a report on rankings."""

import numpy as np

from gpt.post_training.ranking_accuracy import RankedPrompt, ranking_report
from launch.rewards.report import MAX_LABELLERS, describe, draw_calibration, report_lines


def prompt(number, labeller):
    completions = (np.arange(3), np.arange(4))
    return RankedPrompt(f"p{number}", labeller, completions, np.array([0, 1]), np.array([-1.0, 2.0]))


def test_labellers_with_the_most_pairs_are_shown():
    prompts = [prompt(i, f"person {min(i, 25):02d}") for i in range(40)]
    report = ranking_report(prompts, [np.array([0.0, 1.0])] * 40)
    lines = [line for line in report_lines(report) if "labeller" in line]
    assert len(lines) == MAX_LABELLERS + 1
    assert lines[0].startswith("labeller person 25: 1.0000 (95% by prompt 1.0000 to 1.0000; 15 pairs of 15 prompts)")
    assert lines[-1] == "6 more labellers with fewer pairs: see --json"


def test_a_report_without_pairs_says_so():
    report = ranking_report([prompt(0, "")], [np.array([np.nan, 1.0])])
    lines = report_lines(report)
    assert lines[0].startswith("accuracy: no pairs")
    assert any("1 of them without a reward" in line for line in lines)
    assert describe(report.model_on_these) == "no pairs"
    assert draw_calibration(report.calibration).startswith("<svg")
