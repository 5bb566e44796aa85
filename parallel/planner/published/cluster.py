"""The machine of a published row: its GPU, its nodes and the network between them."""

import re
from dataclasses import replace

from gpt.errors import ConfigError
from parallel.planner.hardware.tables import Cluster, Gpu, Hardware, Network, find, find_gpu

UNKNOWN = ("", "?", "-")
NODE = 8
_ADAPTERS = re.compile(
    r"(?:IB|InfiniBand|OmniPath|OPA|RoCE|EFA|Ethernet|HDR|NDR|EDR|XDR)\W*(?:(\d{1,2}) ?x ?)?(\d{2,4})\b", re.IGNORECASE
)
_SPEED = re.compile(r"(\d+(?:\.\d+)?) ?(GB/s|Gb/s|Gbps)", re.IGNORECASE)


def cluster_of(row: dict[str, str], hardware: Hardware) -> Cluster:
    """The cluster of a row. ConfigError: an unknown GPU or network."""
    gpu = find_gpu(row["gpu"], hardware.gpus)
    network = network_of(row, gpu, hardware)
    return Cluster(gpu, network, node_of(row) or max(network.node, NODE))


def node_of(row: dict[str, str]) -> int:
    """GPUs of a node by the column `node` or a note such as "nodes of 4"; 0 if the row states none."""
    given = row.get("node") or ""
    if given not in UNKNOWN:
        return int(given)
    stated = re.search(r"nodes of (\d+)", row.get("note") or "")
    return int(stated[1]) if stated else 0


def network_of(row: dict[str, str], gpu: Gpu, hardware: Hardware) -> Network:
    """The network that a row names: a speed of one GPU or a name in the column `network`, or adapters in its note.

    A note such as "RoCE 8x400" counts the adapters of a node in Gb/s. Without any, the usual network of the GPU.
    """
    given, note = row.get("network") or "", row.get("note") or ""
    usual = find("network", gpu.network, hardware.networks)
    if given not in UNKNOWN:
        speed = _SPEED.fullmatch(given.replace(" a GPU", "").replace("/GPU", ""))
        if speed is None:
            return find("network", given, hardware.networks)
        return _at(usual, float(speed[1]) / (1 if speed[2].lower() == "gb/s" and "B" in speed[2] else 8))
    named = [net for net in hardware.networks.values() if any(word in note for word in net.words)]
    if named:
        return named[0]
    adapters = _ADAPTERS.search(note)
    if adapters is None:
        return usual
    return _at(usual, int(adapters[1] or 1) * int(adapters[2]) / 8 / (node_of(row) or NODE))


def _at(usual: Network, gb_per_s: float) -> Network:
    if gb_per_s <= 0:
        raise ConfigError("network 0 GB/s is invalid: must be above 0")
    return replace(usual, name=f"{gb_per_s:g} GB/s a GPU", gb_per_s=gb_per_s)
