"""memwall: a discrete-event performance simulator for LLM decoding and multi-user speculative serving.

    from simulator import deploy, decode, speculate, simulate, load_scenario

Names are loaded on first use, so that importing a part (the reference decoder on a bare PyTorch machine, the CLI's
help) does not import the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.architecture import Decoder, load_decoder
    from simulator.cost.forward import Batch, ForwardCost
    from simulator.decoding import DecodeResult, decode
    from simulator.deployment import Deployment, EngineChoice, deploy
    from simulator.engine import Engine, load_engine
    from simulator.errors import DoesNotFit, InputError, MemwallError, UnknownName
    from simulator.hardware import Gpu, Link, load_gpu, load_link
    from simulator.planning.crossover import SpeculateResult, speculate
    from simulator.quantization import Quantization
    from simulator.scenario import Scenario, Slo, load_scenario
    from simulator.serving.simulation import Run, SimulationResult, simulate
    from simulator.serving.streaming import simulate_streamed
    from simulator.speculation.acceptance import Acceptance, AcceptanceConfig

__version__ = "0.1.0"

_HOME = {
    "architecture": ("Decoder", "load_decoder"),
    "cost.forward": ("Batch", "ForwardCost"),
    "decoding": ("DecodeResult", "decode"),
    "deployment": ("Deployment", "EngineChoice", "deploy"),
    "engine": ("Engine", "load_engine"),
    "errors": ("DoesNotFit", "InputError", "MemwallError", "UnknownName"),
    "hardware": ("Gpu", "Link", "load_gpu", "load_link"),
    "planning.crossover": ("SpeculateResult", "speculate"),
    "quantization": ("Quantization",),
    "scenario": ("Scenario", "Slo", "load_scenario"),
    "serving.simulation": ("Run", "SimulationResult", "simulate"),
    "serving.streaming": ("simulate_streamed",),
    "speculation.acceptance": ("Acceptance", "AcceptanceConfig"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Acceptance", "AcceptanceConfig", "Batch", "DecodeResult", "Decoder", "Deployment", "DoesNotFit", "Engine",
    "EngineChoice", "ForwardCost", "Gpu", "InputError", "Link", "MemwallError", "Quantization", "Run", "Scenario",
    "SimulationResult", "Slo", "SpeculateResult", "UnknownName", "decode", "deploy", "load_decoder", "load_engine",
    "load_gpu", "load_link", "load_scenario", "simulate", "simulate_streamed", "speculate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'simulator' has no attribute {name!r}")
    return getattr(import_module(f"simulator.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
