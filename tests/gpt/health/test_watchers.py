"""The default watchers, which do nothing."""

from gpt.health.watchers import NEVER_STOP, UNWATCHED


def test_without_watchers_a_run_goes_to_its_end():
    UNWATCHED.beat("training", 1)
    NEVER_STOP.step_done()
    assert not NEVER_STOP()
