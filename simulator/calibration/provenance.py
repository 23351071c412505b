"""Where every number of a deployment comes from: one row per figure, with its source, date and kind.

GPUs, links and engines state a source with each figure; a calibration's parameters rest on one set of measurements; a model's
sizes stand in its config.json; a drafter's acceptance names its publication.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simulator import catalog, units
from simulator.architecture import load_decoder
from simulator.cost.efficiency import CalibrationFile, Parameter, calibration_of
from simulator.engine import Engine, load_engine
from simulator.hardware import Gpu, Provenance, load_gpu, load_link
from simulator.records import read_mapping, read_record
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.drafters import DrafterFile, load_drafter

SECTIONS = ("matmul", "decode_attention", "prefill_attention", "elementwise", "all_reduce")
"""Of a calibration."""
DEPTHS = 6
"""So many depths of a drafter's acceptance are told."""


class Stated(NamedTuple):
    """One figure and what it rests on."""

    subject: str
    """What it is a figure of: "NVIDIA H100 SXM 80 GB", "calibration h100-sxm, matmul", "engine vllm"."""
    figure: str
    """Its name in words."""
    value: str
    """With its unit."""
    kind: str
    """datasheet, measured, fitted, estimate, price-list; "configuration" of a model's sizes and an engine's settings."""
    source: str
    """Title of the document."""
    url: str
    """Its address; may be empty."""
    date: str
    """Of the document, or of its reading."""
    note: str
    """How the figure was derived where it does not stand there as it is."""


def provenance(
    gpu: str, engine: str | None = None, model: str | None = None, drafter: str | None = None
) -> tuple[Stated, ...]:
    """Every figure of a GPU, its links and its calibration, and of what runs on it where that is named.

    All of them bundled names or paths. Raises UnknownName or InputError.
    """
    device = load_gpu(gpu)
    found = [*_profile(device.title, device.provenance)]
    for link in dict.fromkeys((device.node_link, device.host_link, device.network_link)):
        loaded = load_link(link)
        found += _profile(loaded.title, loaded.provenance)
    found += calibration_figures(calibration_of(device), device)
    if engine is not None:
        found += engine_figures(load_engine(engine))
    if model is not None:
        found += model_figures(model)
    if drafter is not None:
        found += drafter_figures(drafter)
    return tuple(found)


def calibration_figures(file: CalibrationFile, gpu: Gpu) -> list[Stated]:
    """The parameters that `gpu` is given by `file`, fitted or set."""
    whose = "" if gpu.name in file.gpus else f"; taken over by {gpu.name}"
    found = []
    for section in SECTIONS:
        parameters: Mapping[str, Parameter] = getattr(file, section)
        for name, p in parameters.items():
            fitted = file.kind == "fitted" and p.standard_error is not None
            kind, note = ("fitted", "") if fitted else ("estimate", "set, not fitted" if file.kind == "fitted" else "")
            value = _parameter(name, p.value) + (f" ± {_parameter(name, p.standard_error)}" if p.standard_error else "")
            subject = f"calibration {file.name}, {_words(section)}{whose}"
            found.append(Stated(subject, _words(name), value, kind, file.source, "", file.date, note))
    return found


def engine_figures(engine: Engine) -> list[Stated]:
    """Host times and reserved memory, then the settings."""
    found = _profile(f"engine {engine.name}", engine.provenance)
    documents = [p.source for p in engine.provenance.values() if p.source.kind == "datasheet"]
    for name, value in engine.settings.model_dump().items():
        text = _setting(name, value)
        title = documents[0].title if documents else f"defaults of the profile {engine.name}"
        date, url = (documents[0].date, documents[0].url) if documents else ("", "")
        found.append(Stated(f"engine {engine.name}", _words(name), text, "configuration", title, url, date, ""))
    return found


def model_figures(model: str) -> list[Stated]:
    """A model's sizes, all of which follow from its config.json."""
    decoder = load_decoder(model)
    path = catalog.locate("model", model)
    source = str(read_mapping(path).get("memwall_source", path.name))
    rows = (
        ("parameters", f"{decoder.parameters:,}"), ("visited by one token", f"{decoder.active_parameters:,}"),
        ("layers", f"{decoder.layers:,}"), ("hidden size", f"{decoder.hidden_size:,}"),
        ("attention heads", f"{decoder.attention.heads:,}"), ("KV heads", f"{decoder.attention.kv_heads:,}"),
        ("vocabulary", f"{decoder.vocab_size:,} tokens"),
        ("KV values per token", f"{decoder.kv_values_per_token:,.0f}"), ("format as published", decoder.dtype),
    )  # fmt: skip
    return [Stated(f"model {decoder.name}", name, value, "configuration", source, "", "", "") for name, value in rows]


def drafter_figures(drafter: str) -> list[Stated]:
    """A drafter's acceptance as published, and the sizes of the model that drafts."""
    loaded = load_drafter(drafter)
    found: list[Stated] = []
    if loaded.acceptance is not None:
        source = loaded.acceptance.source or "not stated"
        kind, url, date = "measured", "", ""
        if drafter in catalog.names("drafter"):
            file = read_record(DrafterFile, catalog.locate("drafter", drafter))
            measured = [s for s in file.sources.values() if s.kind in ("measured", "fitted", "estimate")]
            if measured:
                kind, url, date = measured[0].kind, measured[0].url, measured[0].date
        subject = f"drafter {loaded.title}"
        for name, text, stated, note in _acceptance(loaded.acceptance, loaded.kind):
            found.append(Stated(subject, name, text, kind if stated else "estimate", source, url, date, note))
    if loaded.decoder is not None:
        sizes = model_figures(loaded.decoder.name) if loaded.decoder.name in catalog.names("model") else []
        found += [row._replace(subject=f"drafter {loaded.title}") for row in sizes]
    return found


def _acceptance(config: AcceptanceConfig, kind: str) -> list[tuple[str, str, bool, str]]:
    """Name, value, whether the source states it, and a note, of what is known of acceptance."""
    name = "conditional acceptance by depth"
    if config.alpha is not None:
        return [("conditional acceptance at every depth", f"{config.alpha:.2f}", True, "")]
    rates = config.conditional or config.marginal
    if rates is not None:
        shown = config.law(kind=kind).conditional(min(DEPTHS, len(rates)))
        return [(name, ", ".join(f"{rate:.2f}" for rate in shown), True, "")]
    number = config.length if config.length is not None else config.rate
    if number is None:  # a recorded log that is played again
        shown = config.law(kind=kind).conditional(DEPTHS)
        return [(name, ", ".join(f"{rate:.2f}" for rate in shown), True, "")]
    what = "tokens per round" if config.length is not None else "share of drafts accepted"
    shown = config.law(kind=kind).conditional(DEPTHS)
    return [
        (f"{what} at γ = {config.at_gamma}", f"{number:.4g}", True, ""),
        (name, ", ".join(f"{rate:.2f}" for rate in shown), False, "one number is stated, spread over depths by the shape that is usual"),
    ]  # fmt: skip


def kinds(rows: Sequence[Stated]) -> dict[str, int]:
    """How many figures rest on what, most first."""
    return dict(Counter(row.kind for row in rows).most_common())


def _profile(subject: str, figures: Mapping[str, Provenance]) -> list[Stated]:
    return [
        Stated(
            subject,
            _words(name),
            p.text.removesuffix(".0"),
            p.source.kind,
            p.source.title,
            p.source.url,
            p.source.date,
            p.note,
        )
        for name, p in figures.items()
    ]


def _parameter(name: str, value: float) -> str:
    if name.endswith("_s") and value:
        return units.show(value, "s", 3)
    if name.endswith("_bytes") and value:
        return units.show(value, "bytes", 3)
    return f"{value:.3g}" if value < 1e6 else "never"


def _setting(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"{len(value)}, up to {max(value):,}" if value else "none"
    if name.endswith("_s") and isinstance(value, float | int) and value:
        return units.show(float(value), "s")
    if name.endswith("_bytes") and isinstance(value, float | int) and value:
        return units.show(float(value), "bytes")
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    for ending in ("_s", "_bytes"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")
