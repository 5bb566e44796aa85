"""GPU, nodes and network of published rows."""

import pytest

from gpt.errors import ConfigError
from parallel.planner.hardware.tables import read_hardware
from parallel.planner.published.cluster import cluster_of

HARDWARE = read_hardware()


def of(**row):
    return cluster_of({"gpu": "H100", **row}, HARDWARE)


@pytest.mark.parametrize(
    ("column", "text", "gb_per_s"),
    [
        ("network", "6.25 GB/s", 6.25),
        ("network", "200 Gb/s", 25),
        ("network", "NDR", 50),
        ("note", "IB 8x200", 25),
        ("note", "RoCE 1600 Gbps", 25),
        ("note", "OmniPath 4x100", 6.25),
        ("note", "nodes of 4 GPUs, IB 4x400", 50),
        ("note", "nothing", 50),
    ],
)
def test_networks_by_name_speed_or_adapters(column, text, gb_per_s):
    assert of(**{column: text}).network.gb_per_s == gb_per_s


def test_nodes():
    assert of(note="nodes of 4 GPUs").node == 4
    assert of(node="16").node == 16
    assert of().node == 8
    assert of(gpu="GB200 NVL72").node == 72


def test_an_unknown_network():
    with pytest.raises(ConfigError, match="network 'IBX' is unknown"):
        of(network="IBX")
    with pytest.raises(ConfigError, match="must be above 0"):
        of(network="0 GB/s")
