"""Small results of each kind, made once."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import NamedTuple

import pytest

from simulator import AcceptanceConfig, decode, deploy, load_scenario, simulate, speculate
from tests.output.conftest import growing, with_classes

__all__ = ["growing", "with_classes"]

HOSTILE = '<script>alert("x")</script> & <img src=http://example.org/x.png>'


@pytest.fixture(scope="session")
def step():
    return decode(deploy("llama-3.1-8b", "h100"), batch=4, context_tokens=2048)


@pytest.fixture(scope="session")
def grid():
    deployment = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    law = AcceptanceConfig(alpha=0.7).law()
    # 4096 sequences of 4000 tokens fit no GPU: the last column is the one without room.
    return speculate(deployment, law, gammas=[1, 4, 8], batches=[1, 8, 64, 4096], context_tokens=4000)


@pytest.fixture(scope="session")
def paying_grid():
    """Every γ pays at every batch."""
    deployment = deploy("llama-3.1-8b", "h100", draft="ngram")
    return speculate(
        deployment, AcceptanceConfig(alpha=0.9).law(), gammas=[2, 4], batches=[1, 4, 16], context_tokens=8000
    )


def scenario(**changes):
    lengths = {"prompt": 200, "output": {"kind": "uniform", "low": 1, "high": 60}}
    return load_scenario({
        "title": HOSTILE, "model": "llama-3.1-8b", "gpu": "h100", "replicas": 2, "seed": 7,
        "speculation": {"draft": "llama-3.2-1b", "gamma": 3, "acceptance": {"alpha": 0.7, "request_icc": 0.1}},
        "traffic": {"kind": "poisson", "rate_per_s": 40, "requests": 200, "lengths": lengths},
        "slo": {"ttft_s": "500 ms", "tpot_s": "30 ms"},
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="session")
def service():
    return simulate(scenario())


@pytest.fixture(scope="session")
def plain_service():
    return simulate(scenario(speculation=None))


@pytest.fixture(scope="session")
def cluster_service():
    """Prefill and decode replicas on other GPUs, one of which fails, the others started by load."""
    scaler = {"min": 1, "max": 3, "target": 4, "startup_s": 1, "interval_s": 1}
    pools = [
        {"role": "prefill", "replicas": 1},
        {"role": "decode", "gpu": "l40s", "engine": {"name": "vllm"}, "autoscaler": scaler},
    ]
    return simulate(scenario(cluster={"pools": pools, "failures": [{"replica": 0, "at_s": 1, "down_s": 1}]}))


class Loads(NamedTuple):
    tag: str
    address: str


class Outline(HTMLParser):
    """What a page would load, the text outside of scripts, and whether its elements are closed in order."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, page: str):
        super().__init__()
        self.loads: list[Loads] = []
        self.scripts = 0
        self.ids: list[str] = []
        self.plots: list[str] = []
        self.visible: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.loads.append(Loads(tag, value or ""))
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            if '"layout"' in data[:10_000_000] and data.lstrip().startswith("{"):
                self.plots.append(data)
        elif self.open and self.open[-1] != "style":
            self.visible.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.visible)


@pytest.fixture(scope="session")
def outline():
    return Outline
