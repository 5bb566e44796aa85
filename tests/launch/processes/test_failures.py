"""Which rank failed first, how its failure is described, and which secrets are removed from the description."""

import signal

from launch.processes.failures import describe_failure, first_failure, handled_signals, without_secrets
from launch.processes.rank_group import RankFailure


def test_a_frozen_rank_that_the_watchdog_killed_is_not_reported_as_out_of_memory(tmp_path):
    def failures(words):
        told = {"message": {"message": words, "extraInfo": {"watchdog": True, "timestamp": "1"}}}
        recorded = [{}, told]  # only rank 1's monitor wrote a message
        return {
            rank: RankFailure(-signal.SIGKILL, 1.0, str(tmp_path / "error.json"), data)
            for rank, data in enumerate(recorded)
        }

    frozen = "triaxial: error: no progress for 15.3 s of 2 ranks: rank 0 in step 5: no report came"
    assert describe_failure(*first_failure(failures(frozen))) == frozen.removeprefix("triaxial: ")
    killed = "triaxial: error: fault of 2 ranks: rank 0 in step 5: it died without an error"
    assert describe_failure(*first_failure(failures(killed))).startswith("rank 0 was killed by SIGKILL")


def test_ordinary_values_are_kept():
    environment = {"HF_TOKEN": "short", "SSL_KEY_FILE": "/etc/ssl/private", "TOKENIZERS_PARALLELISM": "false-or-true"}
    environment["HOME"] = "/home/somebody"
    for text in (
        "a short token in /etc/ssl/private, false-or-true, /home/somebody/run: step 3",
        "https://host/a?n=1&key=2 mail@host",
        "--data.train [{ path = 's3://bucket/x' }]; tokens_seen=5",
    ):
        assert without_secrets(text, environment) == text
    shown = without_secrets("ftp://a:b@c@host/x?Sig=1&x=2 and LONGSECRET", {"MY_PASSWORD": "LONGSECRET"})
    assert shown == "ftp://***@host/x?Sig=***&x=2 and <MY_PASSWORD>"


def test_a_long_text_takes_linear_time():
    """400 kB of letters, of parameters without a value, of colons: quadratic patterns would take hours."""
    for part in ("letters", "?sig", "&token", ":/", "a:/b", "?a=", "https://a@"):
        text = part * (400_000 // len(part))
        found = without_secrets(text, {})
        assert found == text or "***" in found


def test_ignored_signals_stay_ignored_but_for_the_one_that_the_batch_script_ignores():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        assert handled_signals(signal.SIGINT) == [signal.SIGTERM, signal.SIGUSR1]
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        assert handled_signals(signal.SIGINT) == list(numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
