"""``memwall list`` and ``memwall show``: what is bundled, and every figure of one of them with its source."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from simulator.errors import UnknownName

if TYPE_CHECKING:
    from simulator.hardware import Provenance
    from simulator.output.report import Block
    from simulator.output.tables import Section
    from simulator.serving.requests import Requests
    from simulator.speculation.drafters import Drafter

KINDS = ("gpu", "link", "engine", "model", "drafter", "tree", "traffic", "scenario")
_PLURAL = {kind: kind if kind == "traffic" else f"{kind}s" for kind in KINDS}
NONE = "–"


def add_list(commands: Any) -> None:
    """Adds the parser of ``list``."""
    parser = commands.add_parser("list", help="what is bundled", description="Lists what is bundled.")
    parser.add_argument("kind", metavar="KIND", type=_kind, help=", ".join(_PLURAL.values()))
    parser.set_defaults(run=run_list, needs=())


def add_show(commands: Any) -> None:
    """Adds the parser of ``show``."""
    parser = commands.add_parser("show", help="one of them in full", description="Shows one in full, with its sources.")
    parser.add_argument("kind", metavar="KIND", type=_kind, help=", ".join(KINDS))
    parser.add_argument("name", metavar="NAME", help="bundled name or path")
    parser.set_defaults(run=run_show, needs=())


def _kind(text: str) -> str:
    for kind, plural in _PLURAL.items():
        if text.lower() in (kind, plural):
            return kind
    raise UnknownName("kind", text, _PLURAL.values(), kind="kind")


def run_list(args: argparse.Namespace) -> None:
    """Runs ``list``."""
    from simulator import catalog
    from simulator.output.rows import Table
    from simulator.output.tables import Section, print_blocks

    headers, row = _LISTS[args.kind]
    body = [row(name) for name in catalog.names(args.kind)]
    print_blocks([Section("", Table(headers, body))] if body else [f"No {_PLURAL[args.kind]} are bundled."])


def run_show(args: argparse.Namespace) -> None:
    """Runs ``show``."""
    from simulator.output.tables import print_blocks

    print_blocks(_SHOWS[args.kind](args.name))


# --- rows of `list` -----------------------------------------------------------------------------------------------------
def _gpu_row(name: str) -> tuple[str, ...]:
    from simulator.cost.efficiency import load_efficiency
    from simulator.hardware import load_gpu
    from simulator.units import show

    gpu = load_gpu(name)
    price = NONE if gpu.price_usd_per_s is None else f"{gpu.price_usd_per_s * 3600:.2f}"
    return (
        gpu.name, gpu.title, show(gpu.hbm_bytes_per_s, "bytes_per_s"), show(gpu.hbm_bytes, "bytes"),
        show(gpu.desk_bytes, "bytes"), show(gpu.peak_flop_per_s("bf16"), "flop_per_s"), price, load_efficiency(gpu).tag,
    )  # fmt: skip


def _link_row(name: str) -> tuple[str, ...]:
    from simulator.hardware import load_link
    from simulator.units import show

    link = load_link(name)
    return link.name, link.title, show(link.bytes_per_s, "bytes_per_s"), show(link.latency_s, "s")


def _engine_row(name: str) -> tuple[str, ...]:
    from simulator.engine import load_engine
    from simulator.units import show

    engine = load_engine(name)
    return (
        engine.name, engine.title, show(engine.host_step_s, "s"), show(engine.host_draft_pass_s, "s"),
        f"{engine.settings.max_sequences:,}", f"{engine.settings.max_batched_tokens:,}",
    )  # fmt: skip


def _model_row(name: str) -> tuple[str, ...]:
    from simulator.architecture import load_decoder
    from simulator.hardware import BYTES_PER_VALUE
    from simulator.units import show

    decoder = load_decoder(name)
    active = f"{decoder.active_parameters / 1e9:.2f}" if decoder.active_parameters != decoder.parameters else ""
    context = f"{decoder.max_context_tokens:,}" if decoder.max_context_tokens else NONE
    weights = decoder.quantization.dtype if decoder.quantization else decoder.dtype
    return (
        name, f"{decoder.parameters / 1e9:.2f}", active, str(decoder.layers), str(decoder.hidden_size),
        show(decoder.kv_values_per_token * BYTES_PER_VALUE[decoder.dtype], "bytes"), f"{decoder.vocab_size:,}", context, weights,
    )  # fmt: skip


def _drafter_row(name: str) -> tuple[str, ...]:
    from simulator.speculation.drafters import load_drafter

    drafter, rates = load_drafter(name), NONE
    if drafter.acceptance:
        law = drafter.acceptance.law(kind=drafter.kind)
        rates = ", ".join(f"{rate:.2f}" for rate in law.rates[:5]) + (", …" if len(law.rates) > 5 else "")
    return drafter.name, drafter.kind, ", ".join(drafter.targets) or NONE, rates


def _tree_row(name: str) -> tuple[str, ...]:
    from simulator.speculation.tree_config import load_tree

    tree, title = load_tree(name)
    return name, title, str(tree.nodes), ", ".join(map(str, tree.level_sizes)), str(1 + max(tree.ranks))


def _traffic_row(name: str) -> tuple[str, ...]:
    from simulator.serving.traffic import load_traffic

    traffic = load_traffic(name)
    requests = NONE if traffic.requests is None else f"{traffic.requests:,}"
    return name, traffic.kind, traffic.load, requests, traffic.lengths_source


def _scenario_row(name: str) -> tuple[str, ...]:
    from simulator.scenario import load_scenario
    from simulator.serving.fleets import gpus_of

    s = load_scenario(name)
    speculation = f"{s.speculation.draft}, γ = {s.speculation.gamma}" if s.speculation else NONE
    return name, s.model, " + ".join(f"{n} × {gpu}" for gpu, n in gpus_of(s).items()), speculation, s.title


_LISTS: Mapping[str, tuple[tuple[str, ...], Callable[[str], tuple[str, ...]]]] = {
    "gpu": (("name", "title", "bandwidth", "HBM", "SRAM", "dense bf16", "USD/h", "times are"), _gpu_row),
    "link": (("name", "title", "per GPU and direction", "latency"), _link_row),
    "engine": (("name", "title", "host per step", "per draft pass", "sequences", "tokens per step"), _engine_row),
    "model": (
        ("name", "parameters, 10⁹", "active", "layers", "hidden", "KV per token", "vocabulary", "context", "weights"), _model_row,
    ),
    "drafter": (("name", "kind", "for", "conditional acceptance by depth"), _drafter_row),
    "tree": (("name", "title", "nodes", "by depth", "candidates at most"), _tree_row),
    "traffic": (("name", "kind", "load", "requests", "lengths"), _traffic_row),
    "scenario": (("name", "model", "GPUs", "speculation", "title"), _scenario_row),
}  # fmt: skip


# --- blocks of `show` ---------------------------------------------------------------------------------------------------
def _provenance(provenance: Mapping[str, Provenance]) -> list[Block]:
    """Every figure with what it rests on, then the sources in full."""
    from simulator.output.rows import Table
    from simulator.output.tables import Section

    sources = list(dict.fromkeys(p.source for p in provenance.values()))
    body = [
        (
            name.replace("_", " "),
            p.text.removesuffix(".0"),
            p.source.kind,
            p.source.date,
            f"[{sources.index(p.source) + 1}]",
            p.note,
        )
        for name, p in provenance.items()
    ]
    blocks: list[Block] = [
        Section("", Table(("figure", "value", "kind", "date", "source", "note"), body), numeric=False)
    ]
    blocks.append(
        "\n".join(f"[{i}] {s.title}" + (f", {s.url}" if s.url else "") for i, s in enumerate(sources, start=1))
    )
    return blocks


def _show_gpu(name: str) -> list[Block]:
    from simulator.cost.efficiency import load_efficiency
    from simulator.hardware import load_gpu
    from simulator.output.report import calibration_line
    from simulator.output.tables import properties
    from simulator.units import show

    gpu = load_gpu(name)
    balance = gpu.peak_flop_per_s("bf16") / gpu.hbm_bytes_per_s
    rows = [
        ("name", gpu.name),
        ("vendor, family", f"{gpu.vendor}, {gpu.family}"),
        ("links", f"{gpu.node_link} between up to {gpu.gpus_per_node} GPUs, {gpu.host_link} to the host"),
        ("desk (shared memory of all SMs)", f"{show(gpu.desk_bytes, 'bytes')} on {gpu.sm_count} SMs"),
        ("dense bf16 FLOP per HBM byte", f"{balance:.0f}"),
    ]
    return [properties(gpu.title, rows), *_provenance(gpu.provenance), calibration_line(load_efficiency(gpu))]


def _show_link(name: str) -> list[Block]:
    from simulator.hardware import load_link
    from simulator.output.tables import properties
    from simulator.units import show

    link = load_link(name)
    rows = [("name", link.name), ("per GPU and direction", show(link.bytes_per_s, "bytes_per_s"))]
    return [
        properties(link.title, [*rows, ("latency of one message", show(link.latency_s, "s"))]),
        *_provenance(link.provenance),
    ]


_NONE_MEANS = {
    "queue_timeout_s": "never", "max_waiting": "no limit", "prompts_per_pass": "as the budget holds",
    "prefill_chunk_tokens": "as the budget holds", "graph_capture_sizes": "every size", "swap_space_bytes": "none",
}  # fmt: skip


def _setting(key: str, value: Any) -> tuple[str, str]:
    """Name and value of an engine's setting for people: units, yes and no, capture sizes as a range."""
    from simulator.units import show

    for ending, dimension in (("_s", "s"), ("_bytes", "bytes")):
        if key.endswith(ending) and value:
            return key.removesuffix(ending).replace("_", " "), show(value, dimension)
    name = key.removesuffix("_s").removesuffix("_bytes").replace("_", " ")
    if not value and key in _NONE_MEANS:
        return name, _NONE_MEANS[key]
    if isinstance(value, bool):
        return name, "yes" if value else "no"
    if isinstance(value, tuple):
        return name, f"{len(value)}, from {value[0]:,} to {value[-1]:,}"
    return name, f"{value:,}" if isinstance(value, int | float) else str(value)


def _show_engine(name: str) -> list[Block]:
    from simulator.engine import load_engine
    from simulator.output.tables import properties

    engine = load_engine(name)
    settings = [_setting(key, value) for key, value in engine.settings.model_dump().items()]
    return [properties(engine.title, [("name", engine.name), *settings]), *_provenance(engine.provenance)]


def _show_model(name: str) -> list[Block]:
    from simulator.architecture import Moe, load_decoder
    from simulator.hardware import BYTES_PER_VALUE
    from simulator.operators import stored_weight_bytes
    from simulator.output.tables import properties
    from simulator.quantization import Quantization, resolve
    from simulator.units import show

    decoder = load_decoder(name)
    attention, formats = decoder.attention, resolve(Quantization(), decoder)
    rows = [
        ("parameters", f"{decoder.parameters:,}"),
        ("visited by one token", f"{decoder.active_parameters:,}"),
        ("weights as stored", f"{show(stored_weight_bytes(decoder, formats, 1), 'bytes')} ({formats.weights})"),
        ("layers × hidden", f"{decoder.layers} × {decoder.hidden_size:,}"),
        (
            "vocabulary",
            f"{decoder.vocab_size:,} tokens" + (", head tied to the embedding" if decoder.tied_head else ""),
        ),
        ("longest context", f"{decoder.max_context_tokens:,} tokens" if decoder.max_context_tokens else NONE),
        ("attention", f"{attention.heads} heads, {attention.kv_heads} KV heads" + (", MLA" if attention.mla else "")),
    ]
    for kind in decoder.layer_kinds:
        mlp = kind.mlp
        shape = f"MLP of {mlp.width:,}"
        if isinstance(mlp, Moe):
            shape = f"{mlp.experts} experts of {mlp.width:,}, {mlp.experts_per_token} per token"
            shape += f", shared {mlp.shared_width:,}" if mlp.shared_width else ""
        window = f", window of {kind.window_tokens:,} tokens" if kind.window_tokens else ""
        rows.append((f"{kind.count} layers", shape + window))
    for dtype in dict.fromkeys((decoder.dtype, "fp8")):
        per_token = decoder.kv_values_per_token * BYTES_PER_VALUE[dtype]
        rows.append((f"KV cache per token, {dtype}", f"{show(per_token, 'bytes')} ({per_token:,.0f} bytes)"))
    return [properties(decoder.name, rows)]


def _how_it_drafts(drafter: Drafter) -> list[tuple[str, str]]:
    """Rows on what it runs, holds and verifies."""
    shape = drafter.shape(min(4, drafter.most_drafts))
    own = {
        "heads": f"{drafter.heads}, each of {drafter.head_layers} residual block(s) and an LM head"
        if drafter.heads
        else "",
        "modules": f"{drafter.modules}, used in turn" if drafter.modules else "",
        "layers": f"the target's first {drafter.exit_layer}" if drafter.exit_layer else "",
        "reads of the KV cache": f"{drafter.kv_budget_tokens:,} tokens per sequence"
        if drafter.kv_budget_tokens
        else "",
        "lookahead": f"W = {drafter.window}, G = {drafter.guesses}" if drafter.kind == "lookahead" else "",
    }
    gpus = "as the target's, where its heads allow" if drafter.tp is None else str(drafter.tp)
    if drafter.parallel:
        gpus = (
            f"{drafter.draft_gpus} of its own; {drafter.parallel.hit:.0%} of the rounds can use what it drafted ahead"
        )
    off = {"later": "what it missed is read later", "each-step": "it reads on"}[drafter.catches_up]
    cache = f"its own: reads prompts and accepted tokens; while speculation is off, {off}"
    return [
        *((key, text) for key, text in own.items() if text),
        ("GPUs", "none" if drafter.looks_up else gpus),
        ("KV cache", cache if drafter.reads_prompts else "none of its own"),
        (f"passes, γ = {shape.depth}", f"{shape.passes}"),
        (f"tokens verified, γ = {shape.depth}", f"{shape.nodes + 1} per sequence"),
    ]


def _show_drafter(name: str) -> list[Block]:
    from simulator import catalog
    from simulator.output.rows import acceptance_text
    from simulator.output.tables import properties
    from simulator.records import read_record
    from simulator.speculation.drafters import DrafterFile, load_drafter

    drafter = load_drafter(name)
    rows = [("name", drafter.name), ("kind", drafter.kind)]
    if drafter.decoder is not None:
        rows.append(("model", f"{drafter.decoder.name}, {drafter.decoder.parameters:,} parameters"))
    rows += _how_it_drafts(drafter)
    rows.append(("for", ", ".join(drafter.targets) or "any model"))
    blocks: list[Block] = []
    if drafter.acceptance is not None:
        law = drafter.acceptance.law(kind=drafter.kind)
        rows.append(("acceptance", acceptance_text(law)))
        rows += [("  from", drafter.acceptance.source)] if drafter.acceptance.source else []
        rows += [(f"  tokens per round, γ = {gamma}", f"{law.expected_tokens(gamma):.2f}") for gamma in (1, 2, 4, 8)]
    else:
        rows.append(("acceptance", "none published: give --acceptance"))
    if name.lower() in catalog.names("drafter") or drafter.name != (drafter.decoder.name if drafter.decoder else ""):
        file = read_record(DrafterFile, catalog.locate("drafter", name))
        blocks = [
            "\n".join(
                f"[{k}] {s.title}, {s.date}, {s.kind}" + (f", {s.url}" if s.url else "")
                for k, s in file.sources.items()
            )
        ]
    return [properties(drafter.title, rows), *[b for b in blocks if b]]


def _show_tree(name: str) -> list[Block]:
    from simulator import catalog
    from simulator.records import read_record
    from simulator.speculation.tree import Tree
    from simulator.speculation.tree_config import TreeFile

    file = read_record(TreeFile, catalog.locate("tree", name))
    tree = Tree.from_paths(file.paths)
    sizes = ", ".join(map(str, tree.level_sizes))
    return [
        f"{file.title or file.name}: {tree.nodes} nodes, by depth {sizes}.",
        " ".join(str(list(path)) for path in tree.paths),
        "\n".join(f"{s.title}, {s.url} ({s.date})" for s in file.sources.values()) or "No source is given.",
    ]


def _show_traffic(name: str) -> list[Block]:
    from simulator import catalog
    from simulator.output.rows import Table
    from simulator.output.tables import Section, properties
    from simulator.serving.metrics import Distribution
    from simulator.serving.traffic import generate, load_traffic

    traffic = load_traffic(name)
    requests = generate(traffic, 0, base=catalog.locate("traffic", name).parent)
    body = []
    for what, values in (("prompt tokens", requests.prompt_tokens), ("output tokens", requests.output_tokens)):
        d = Distribution.of(values.astype(float))
        figures = (d.mean, d.standard_deviation, d.p50, d.p90, d.p99, d.largest)
        body.append((what, f"{d.n:,}", *(f"{figure:,.0f}" for figure in figures)))
    shown = traffic.model_dump(
        mode="json", exclude={"lengths", "classes", "clients"}, exclude_none=True, exclude_defaults=True
    )
    rows = [(key.replace("_", " "), _flow(value)) for key, value in shown.items()]
    if requests.session is not None:
        talks = len(set(requests.session.tolist()))
        rows.append(("conversations", f"{talks:,} of {len(requests) / talks:.3g} turns in the mean"))
    blocks: list[Block] = [
        properties(name, rows),
        requests.source,
        Section("", Table(("seed 0", "n", "mean", "s.d.", "p50", "p90", "p99", "most"), [tuple(row) for row in body])),
    ]
    return [*blocks, _class_table(requests)] if len(requests.classes) > 1 else blocks


def _flow(value: Any) -> str:
    """A field's value on one line, as YAML has it."""
    import yaml

    if isinstance(value, float):
        return f"{value:g}"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return str(text).removesuffix("...\n").strip()


def _class_table(requests: Requests) -> Section:
    """What distinguishes the classes of these requests."""
    import numpy as np

    from simulator.output.rows import Table
    from simulator.output.tables import Section
    from simulator.units import show

    class_of = np.zeros(len(requests), dtype=np.int64) if requests.class_of is None else requests.class_of
    body = []
    for number, kind in enumerate(requests.classes):
        members = class_of == number
        n = int(members.sum())
        prompts, outputs = requests.prompt_tokens[members], requests.output_tokens[members]
        slo = kind.slo.model_dump(exclude_none=True) if kind.slo else {}
        limits = ", ".join(f"{name.removesuffix('_s').upper()} ≤ {show(limit, 's')}" for name, limit in slo.items())
        body.append((
            kind.name, f"{n:,}", *(f"{v.mean():,.0f}" if n else NONE for v in (prompts, outputs)), str(kind.priority),
            NONE if kind.patience_s is None else show(kind.patience_s, "s"), limits or NONE,
        ))  # fmt: skip
    headers = ("class", "n", "mean prompt", "mean output", "priority", "patience", "objectives")
    return Section("classes, seed 0", Table(headers, body))


def _show_scenario(name: str) -> list[Block]:
    import yaml

    from simulator.scenario import Scenario, load_scenario

    scenario = load_scenario(name)
    data = scenario.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude={"title"})
    data["engine"] = scenario.engine.model_dump(mode="json", exclude_none=True)
    for part in (data["traffic"], *data["traffic"].get("classes", ()), *data["traffic"].get("clients", ())):
        lengths = part.get("lengths")
        if isinstance(lengths, dict):  # tables of quantiles say little to a reader
            part["lengths"] = lengths.get("source") or "as in the file"
    data = {field: data[field] for field in Scenario.model_fields if field in data}
    return [
        scenario.title or scenario.name,
        yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None).rstrip(),
    ]


_SHOWS: Mapping[str, Callable[[str], list[Block]]] = {
    "gpu": _show_gpu, "link": _show_link, "engine": _show_engine, "model": _show_model, "drafter": _show_drafter,
    "tree": _show_tree, "traffic": _show_traffic, "scenario": _show_scenario,
}  # fmt: skip
