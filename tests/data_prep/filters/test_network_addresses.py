"""Find e-mail and IP addresses, the hard ones too."""

import pytest
from pii_cases import HARD, MISSED, masked_whole

from data_prep.filters.network_addresses import emails, ipv4s, ipv6s


@pytest.mark.parametrize("kind", ["email", "ipv4", "ipv6"])
def test_hard_cases_are_masked_whole_and_nothing_around_them(kind):
    missed = [case[1] for case, whole in zip(HARD[kind], masked_whole(kind), strict=True) if not whole]
    assert missed == MISSED[kind]


def test_spans_are_those_of_the_addresses():
    text = "a@b.org and d[dot]e[at]f[dot]org, 85.214.132.117, 2a00:1450:4001:82b::200e: down"
    assert [text[start:end] for start, end in emails(text, False)] == ["a@b.org", "d[dot]e[at]f[dot]org"]
    assert [text[start:end] for start, end in ipv4s(text, False)] == ["85.214.132.117"]
    assert [text[start:end] for start, end in ipv6s(text, False)] == ["2a00:1450:4001:82b::200e"]
    assert ipv4s("10.0.0.1", True) == [(0, 8)]
    assert ipv6s("fe80::1", True) == [(0, 7)]


def test_a_path_of_hosts_is_no_local_part():
    text = "ifado!wb@germany.eu.net"
    assert emails(text, False) == [(6, len(text))]
