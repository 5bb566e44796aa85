"""A page with its own script: data stay data, only this script runs, and a server is asked only where it may be."""

import json
import re

import pytest

from launch.comparison.scripted_page import scripted_page


@pytest.mark.parametrize("package", ["launch.comparison", "launch.labelling"])
def test_data_come_back_and_cannot_end_their_element(package):
    data = {"text": "</script><script>alert(1)</script>"}
    page = scripted_page(package, data, title="<Title>")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(found) == data
    assert "<title>&lt;Title&gt;</title>" in page
    nonces = re.findall(r'<script nonce="([^"]+)">', page)
    assert len(nonces) == 1
    assert f"script-src &#x27;nonce-{nonces[0]}&#x27;" in page
    assert page.count("<script") == 2


def test_only_a_page_that_asks_its_server_may_connect():
    assert "connect-src" not in scripted_page("launch.comparison", {}, title="A")
    assert "connect-src &#x27;self&#x27;" in scripted_page("launch.labelling", {}, title="A", asks_server=True)
