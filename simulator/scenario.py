"""A scenario: everything one simulation needs, as a YAML file or a mapping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from simulator import catalog
from simulator.deployment import Deployment, EngineChoice, deploy
from simulator.errors import InputError
from simulator.quantization import Quantization
from simulator.records import Record, read_mapping, validate
from simulator.serving.cluster_config import Cluster
from simulator.serving.quantities import Rate
from simulator.serving.traffic import Traffic, load_traffic, parse_traffic, with_load
from simulator.slo import Slo
from simulator.speculation.acceptance import MAX_GAMMA, AcceptanceConfig
from simulator.speculation.policies import PolicyConfig
from simulator.speculation.tree_config import TreeConfig

__all__ = ["Load", "Scenario", "Slo", "Speculation", "load_scenario"]


class Speculation(Record):
    """Speculative decoding with one drafter."""

    draft: str
    """Drafter: a bundled drafter, any bundled model, or a path."""
    gamma: int = 4
    """Tokens drafted per round."""
    tree: TreeConfig | None = None
    """A token tree in the place of γ drafts in a row: a bundled tree's name, paths, or a mapping."""
    policy: PolicyConfig = PolicyConfig()
    """How much is drafted when: ``fixed``, ``goodput``, ``per-request``, ``oracle``, ``{off_above: N}`` or ``{table: …}``."""
    acceptance: AcceptanceConfig | None = None
    """Overrides the drafter's published acceptance: α, a list by depth, or a mapping."""
    draft_tp: int | None = Field(default=None, ge=1)
    """GPUs that share the drafter, 1 or the target's `tp`; left out, as the drafter's own file says."""
    draft_quantization: Quantization | None = None
    """Number formats of the drafter; left out, its own."""

    @model_validator(mode="after")
    def _check(self) -> Speculation:
        if not 1 <= self.gamma <= MAX_GAMMA:
            raise InputError("speculation.gamma", self.gamma, f"be between 1 and {MAX_GAMMA}")
        if self.tree is not None and self.policy.kind in ("table", "per-request"):
            raise InputError("policy", self.policy.kind, "draft chains: leave out the tree")
        return self


class Load(Record):
    """Overrides of the traffic's load."""

    rate_per_s: Rate | None = None
    """Arrivals per second (open loop; a trace is stretched); text such as "30 /min" too."""
    requests: int | None = None
    """How many requests."""
    users: int | None = None
    """Users of a closed loop."""


class Scenario(Record):
    """Model, drafter, GPUs, engine, traffic, SLOs and seed."""

    name: str = "scenario"
    """Short name."""
    title: str = ""
    """What it shows, for people."""
    model: str
    """Bundled name, or path of a config.json."""
    gpu: str
    """Bundled name or alias, or path of a profile."""
    tp: int = 1
    """GPUs of one node that share every layer."""
    pp: int = 1
    """Stages of a pipeline, each a group of `tp` GPUs with its own layers: tp·pp GPUs hold one copy of the model."""
    ep: int | None = None
    """GPUs over which whole experts are spread, a multiple of `tp`; left out, every expert is split like any matrix."""
    expert_skew: float = 1.0
    """With `ep`: tokens on the busiest GPU over their mean over GPUs, no unit; all others wait for it."""
    expert_exponent: float = 0.0
    """Zipf exponent of the experts' popularity, no unit; 0: all are chosen alike."""
    link: str | None = None
    """What joins the GPUs of a node: bundled name or path; left out, the GPU's own."""
    network: str | None = None
    """What joins nodes; left out, the GPU's own."""
    replicas: int = Field(default=1, ge=1, le=1024)
    """Copies of the model behind the router."""
    cluster: Cluster | None = None
    """Kinds of replicas, their router, prefill and decode pools, failures, an autoscaler; left out, `replicas` equal ones behind
    the router that looks for the fewest outstanding requests."""
    quantization: Quantization = Quantization()
    """Number formats."""
    engine: EngineChoice = EngineChoice()
    """Serving engine, by name or with settings."""
    speculation: Speculation | None = None
    """Left out: plain decoding only."""
    traffic: Traffic
    """Generator or trace; in a file also the name of a bundled traffic or a path."""
    slo: Slo = Slo()
    """What counts as good service."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Everything random follows from it."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the requests, the earliest, that metrics leave out."""
    max_context_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt plus output that is admitted; left out, the model's own limit."""
    _base: Path | None = PrivateAttr(default=None)

    @property
    def base(self) -> Path | None:
        """Folder of the file it came from; relative paths start there."""
        return self._base

    def with_base(self, base: Path | None) -> Scenario:
        """The same, with relative paths that start at `base`."""
        copy = self.model_copy()
        copy._base = base
        return copy

    def deployment(self) -> Deployment:
        """Costs of what serves. Raises MemwallError where names, sizes or memory do not work out."""
        return deploy(
            self.model, self.gpu, tp=self.tp, pp=self.pp, ep=self.ep, expert_skew=self.expert_skew,
            expert_exponent=self.expert_exponent, quantization=self.quantization, engine=self.engine,
            draft=self.speculation.draft if self.speculation else None,
            draft_tp=self.speculation.draft_tp if self.speculation else None,
            draft_quantization=self.speculation.draft_quantization if self.speculation else None, link=self.link, network=self.network,
            base=self.base,
        )  # fmt: skip


def _engines_own(data: dict[str, Any], where: str) -> dict[str, Any]:
    """`data` with an engine's own speculative configuration (``speculation: {vllm: …}``) in our terms; what else the mapping says
    goes before it. That engine serves unless another one is named."""
    from simulator.speculation import engine_config, engine_flags, engine_trtllm  # which few scenarios need

    readers: dict[str, Callable[[Any, Any], Any]] = {
        "vllm": engine_config.read_vllm, "sglang": engine_flags.read_sglang, "tensorrt-llm": engine_trtllm.read_tensorrt_llm,
    }  # fmt: skip
    own = dict(data["speculation"])
    named = [name for name in readers if name in own]
    if not named:
        return data
    if len(named) > 1:
        raise InputError("speculation", ", ".join(named), "name one engine's configuration", where=where)
    theirs, engine = own.pop(named[0]), data.get("engine") or {}
    if not isinstance(theirs, str | (list if named[0] == "sglang" else dict)):
        rule = "be its flags, as text or as a list" if named[0] == "sglang" else "be a mapping or JSON text"
        raise InputError(f"speculation.{named[0]}", theirs, rule, where=where)
    if not isinstance(engine, dict):
        return {**data, "speculation": own}  # which is refused for its engine
    read = readers[named[0]](theirs, data.get("model"))
    engine = {"name": named[0]} | engine
    for name, value in read.settings.items():
        engine.setdefault(name.removeprefix("engine."), value)
    return {**data, "speculation": {**read.speculation, **own}, **({"engine": engine} if engine else {})}


def load_scenario(
    source: str | Path | dict[str, Any], *, base: Path | None = None, where: str = "scenario", **changes: Any
) -> Scenario:
    """A bundled scenario's name, a file's path or a mapping as a `Scenario`; `changes` replace top-level fields, but
    ``load`` is merged with the file's (``load={"requests": 500}`` keeps its rate).

    `base` is the folder at which a mapping's relative paths start, `where` what its errors name; a file has its own.
    Raises UnknownName or InputError.
    """
    if isinstance(source, dict):
        data = dict(source)
    else:
        path = catalog.locate("scenario", str(source))
        data, where, base = read_mapping(path), str(path), path.parent
    if isinstance(data.get("load"), dict) and isinstance(changes.get("load"), dict):
        changes["load"] = {**data["load"], **changes["load"]}
    data = {**data, **{k: v for k, v in changes.items() if v is not None}}
    load = validate(Load, data.pop("load") or {}, f"{where}: load") if "load" in data else Load()
    traffic = data.get("traffic")
    if isinstance(traffic, str):
        data["traffic"] = load_traffic(traffic, base)
    elif isinstance(traffic, dict):
        data["traffic"] = parse_traffic(traffic, f"{where}: traffic")
    if isinstance(data.get("engine"), str):
        data["engine"] = {"name": data["engine"]}
    if isinstance(data.get("speculation"), dict):
        data = _engines_own(data, where)
    scenario = validate(Scenario, data, where)
    if load != Load():
        changed = with_load(scenario.traffic, load.rate_per_s, load.requests, load.users)
        scenario = scenario.model_copy(update={"traffic": changed})
    scenario._base = base
    return scenario
