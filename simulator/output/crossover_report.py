"""What ``memwall crossover`` prints and writes about a map."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator import units
from simulator.errors import InputError
from simulator.output import rows
from simulator.output.documents import document_head
from simulator.output.report import NONE, Block, calibration_line
from simulator.output.rows import Table
from simulator.output.tables import Section, properties
from simulator.planning.answers import kv_instead, oracle_gap, replica_instead, waste
from simulator.planning.load_map import LEAST_GAIN, Crossing, LoadMap
from simulator.planning.reasons import reason
from simulator.planning.schedule import Schedule
from simulator.planning.simulated_map import SimulatedMap, last_paying, steps_apart
from simulator.planning.steady_state import QUEUED


def crossover_report(
    found: LoadMap, simulated: SimulatedMap | None = None, doubt: Sequence[LoadMap] = ()
) -> list[Block]:
    """The map, where it stops paying and why, what else the hardware could do; `doubt`: maps at the ends of what is known of
    acceptance."""
    blocks: list[Block] = [conditions_line(found), verdict(found)]
    blocks += [
        Section(
            f"speed-up of the best way to draft, by {_axis(found)} and context", _best_table(found),
            f"( ) not carried: requests queue for more than {QUEUED:.0%} of their stay, and requests/s are compared    "
            f"{NONE} nothing is more than {LEAST_GAIN - 1:.0%} faster than plain decoding",
        ),
        Section(
            "where each way to draft stops paying", crossing_table(found, doubt),
            "pays up to: the last load at which it is at least "
            f"{LEAST_GAIN - 1:.0%} faster    90 %: as far as times are uncertain    goodput: up to which no fewer good requests are "
            "served" + ("    acceptance: where only one number is known of it" if doubt else ""),
        ),
    ]  # fmt: skip
    if simulated is not None:
        blocks += simulated_blocks(found, simulated)
    blocks += [
        properties("what else", answers(found)),
        waste_section(found),
        calibration_line(found.deployment.target.efficiency),
    ]
    return blocks


def conditions_line(found: LoadMap) -> str:
    """What the map is of."""
    deployment, law = found.deployment, found.draftings[0].law
    drafter = rows.drafter_text(deployment)
    known = rows.acceptance_text(law) if law else ""
    slo = ", ".join(
        f"{n[:-2].upper()} {units.show(v, 's')}" for n, v in found.slo.model_dump().items() if v is not None
    )
    return (
        f"{deployment.target.decoder.name} with drafter {drafter} on {rows.gpus_text(deployment)}; {known}; engine: "
        f"{deployment.engine.title}" + (f"; objectives: {slo}" if slo else "") + "."
    )


def verdict(found: LoadMap) -> str:
    """Up to which load speculation pays in each context, and why not beyond."""
    parts = []
    for place, work in enumerate(found.works):
        end = found.last_paying(place)
        words = "at every load" if end is None else "at no load" if end == 0 else f"up to {found.axis.text(end)}"
        parts.append(f"{words} with {work.context_tokens:,.0f} tokens of context")
    speed = np.nan_to_num(found.speedup)
    i, j, k = (int(at) for at in np.unravel_index(int(speed.argmax()), speed.shape))
    best = f"at best {speed[i, j, k]:.2f} × plain decoding ({found.draftings[i].name}, {found.axis.text(float(found.loads[k]))}"
    return f"Speculation pays {', '.join(parts)}; {best}, context {found.works[j].context_tokens:,.0f})."


def _axis(found: LoadMap) -> str:
    return "users" if found.axis.kind == "users" else "requests/s"


def _best_table(found: LoadMap) -> Table:
    headers = [_axis(found), *(f"context {w.context_tokens:,.0f}" for w in found.works)]
    body = []
    for k, load in enumerate(found.axis.values):
        row = [f"{load:,.4g}"]
        for j in range(len(found.works)):
            i = int(found.best[j, k])
            if i < 0:
                row.append(NONE)
                continue
            text = f"{found.speedup[i, j, k]:.2f} {found.draftings[i].name}"
            row.append(text if found.carried[i, j, k] and found.plain_states[j].carried[k] else f"({text})")
        body.append(tuple(row))
    return Table(tuple(headers), body)


def crossing_table(found: LoadMap, doubt: Sequence[LoadMap] = ()) -> Table:
    """One row per context and way to draft, with the reason."""
    headers = ["context", "drafts", "pays up to", "90 %", "goodput"]
    headers += ["acceptance"] if doubt else []
    body = []
    for j, work in enumerate(found.works):
        for i, drafting in enumerate(found.draftings):
            if found.curves[i][j] is None:
                body.append(
                    (f"{work.context_tokens:,.0f}", drafting.name, "does not fit", *[NONE] * (len(headers) - 2))
                )
                continue
            crossing, goodput = found.crossing(i, j), found.crossing(i, j, "goodput")
            why = reason(found, i, j)
            cells = [
                f"{work.context_tokens:,.0f}",
                drafting.name,
                _end(found, crossing.load),
                _between(found, crossing),
            ]
            cells.append(_end(found, goodput.load))
            if doubt:
                ends = [d.crossing(i, j).load for d in doubt] if drafting.shape.is_chain else []
                cells.append(" to ".join(_end(found, end) for end in ends) or NONE)
            body.append((*cells, f"{why.sentence}." if why else "pays at every load of the map"))
    return Table((*headers, "why not beyond"), body)


def _end(found: LoadMap, load: float | None) -> str:
    digits = ",.0f" if found.axis.kind == "users" else ",.3g"
    return f"> {found.loads[-1]:{digits}}" if load is None else f"{load:{digits}}" if load else "never"


def _between(found: LoadMap, crossing: Crossing) -> str:
    return f"{_end(found, crossing.low)} to {_end(found, crossing.high)}"


def simulated_blocks(found: LoadMap, simulated: SimulatedMap) -> list[Block]:
    """How far the simulated map lies from the closed form."""
    apart = steps_apart(found, simulated)
    body = []
    for j, work in enumerate(found.works):
        for i, drafting in enumerate(found.draftings):
            ends = [last_paying(m.speedup[i, j]) for m in (found, simulated)]
            with np.errstate(invalid="ignore"):
                ratio = simulated.speedup[i, j] / found.speedup[i, j]
            known = ratio[np.isfinite(ratio)]
            off = f"{float(np.max(np.abs(known - 1.0))):.1%}" if len(known) else NONE
            texts = [f"{found.axis.values[e]:,.4g}" if e >= 0 else "never" for e in ends]
            body.append(
                (f"{work.context_tokens:,.0f}", drafting.name, *texts, f"{apart[i, j]:+d}" if apart[i, j] else "0", off)
            )
    with np.errstate(invalid="ignore"):
        noise = simulated.noise[np.isfinite(simulated.noise)]
    table = Table(("context", "drafts", "closed form", "simulated", "loads apart", "speed-up off by at most"), body)
    whole = np.array([
        [all(row is not None for row in (*block[j], *simulated.plain[j])) for j in range(len(found.works))]
        for block in simulated.rows
    ])  # fmt: skip
    within = int((np.abs(apart[whole]) <= 1).sum())
    bursty = (
        f", burstiness {simulated.burstiness:g} (the closed form knows Poisson arrivals only)"
        if simulated.burstiness != 1.0
        else ""
    )
    note = (
        f"last load of the map that pays; {simulated.requests:,} requests per cell{bursty}; half-width of a simulated speed-up: median "
        f"{float(np.median(noise)) if len(noise) else math.nan:.1%}, before what common luck takes off"
    )
    missing = sum(row is None for line in simulated.plain for row in line) + sum(
        row is None for block in simulated.rows for line in block for row in line
    )
    said = f"Simulated and closed-form crossings are at most one load of the map apart for {within} of {whole.sum()} ways to draft and contexts."
    if missing:
        said += f" {missing:,} cells are missing (they do not fit, or were not reached)."
    return [said, Section("closed form against simulation", table, note)]


def answers(found: LoadMap) -> list[tuple[str, str]]:
    """The drafter's memory as KV cache, replicas instead of draft GPUs, the oracle."""
    first = 0
    lines = []
    for j, work in enumerate(found.works):
        kv = kv_instead(found, j)
        if kv is not None:
            name = "drafter's memory as KV cache" + (
                f", context {work.context_tokens:,.0f}" if len(found.works) > 1 else ""
            )
            lines.append((name, kv.sentence))
    replica = replica_instead(found, found.works[first])
    if replica is not None:
        supposed = (
            f" (supposed: the drafter alone on its GPU, a hit in {replica.hit:.0%} of rounds)"
            if replica.supposed
            else ""
        )
        lines.append(("one more replica instead", replica.sentence + supposed))
    gap = oracle_gap(found, first, _batches(found))
    if gap is not None:
        lines.append(("how far from the oracle", gap.sentence))
    return lines


def _batches(found: LoadMap) -> list[int]:
    most = found.plain[0].most
    return [b for b in (1, 4, 16, 64, 256) if b <= most]


def waste_section(found: LoadMap) -> Section:
    """Of the way to draft that is quickest at each of some batches."""
    body = []
    for batch in _batches(found):
        lines = waste(found, 0, batch)
        if lines:
            line = min(lines, key=lambda one: one.round_joules)  # at one power the quickest takes least energy
            body.append((
                f"{batch}", line.drafting, f"{line.wasted_tokens:.2f}", units.show(line.flop, "flop"), units.show(line.bytes_, "bytes"),
                f"{line.joules:.3g} J", f"{line.round_joules:.3g} J", f"{line.plain_joules:.3g} J",
            ))  # fmt: skip
    headers = ("batch", "drafts", "wasted drafts", "FLOP", "HBM bytes", "energy", "energy in all", "plain energy")
    return Section(
        f"wasted per token that reaches a user, context {found.works[0].context_tokens:,.0f}, without prompts", Table(headers, body),
        "of the quickest way to draft; energy: estimates, every GPU at its TDP",
    )  # fmt: skip


# --- schedules -------------------------------------------------------------------------------------------------------------------
def schedule_text(found: Schedule, engine: str) -> str:
    """What to paste, with what to know about it."""
    try:
        if engine == "yaml":
            return f"Best γ by batch and context, for a scenario:\n{found.yaml().rstrip()}"
        if engine == "vllm":
            return (
                "Best γ by batch for vLLM (num_speculative_tokens_per_batch_size needs a version with pull request 32374; it is ignored "
                f"with data parallelism), contexts averaged:\nvllm serve … {found.vllm_argument()}"
            )
        flags, slots = found.sglang()
        text = f"Best γ for SGLang, contexts averaged:\npython -m sglang.launch_server … {' '.join(flags)}"
        if slots is None:
            return text + "\n(one γ for all batches: adaptive steps are for EAGLE and EAGLE-3 with top-k 1)"
        note = (
            ""
            if all(s["candidate_steps"] != [0] for s in slots.values())
            else "\n(0 steps need a version later than 0.5.13)"
        )
        return text + f"\nwith this in adaptive_spec.json:\n{json.dumps(slots)}{note}"
    except InputError as error:
        return f"No schedule for {engine}: {error}."


def schedule_file(found: Schedule, engine: str) -> str:
    """The same as the content of a file. Raises InputError."""
    if engine == "yaml":
        return found.yaml()
    if engine == "vllm":
        return json.dumps(found.vllm(), indent=2) + "\n"
    flags, slots = found.sglang()
    return json.dumps(slots, indent=2) + "\n" if slots is not None else " ".join(flags) + "\n"


# --- files -----------------------------------------------------------------------------------------------------------------------
def crossover_cells(found: LoadMap, simulated: SimulatedMap | None = None) -> list[dict[str, Any]]:
    """One mapping per way to draft, context and load."""
    cells = []
    for i, drafting in enumerate(found.draftings):
        for j, work in enumerate(found.works):
            state, plain = found.states[i][j], found.plain_states[j]
            for k, load in enumerate(found.axis.values):
                cell: dict[str, Any] = {
                    "drafts": drafting.name, "nodes": drafting.shape.nodes, "context_tokens": work.context_tokens,
                    "prompt_tokens": work.prompt_tokens, "output_tokens": work.output_tokens,
                    _axis(found).replace("requests/s", "rate_per_s"): load, "fits": state is not None,
                    "carried": bool(found.carried[i, j, k]), "speedup": _number(found.speedup[i, j, k]),
                    "log_sd": _number(found.log_sd[i, j, k]), "throughput_ratio": _number(found.throughput[i, j, k]),
                    "goodput_ratio": _number(found.goodput[i, j, k]), "best": int(found.best[j, k]) == i,
                }  # fmt: skip
                for name in ("batch", "tpot_s", "ttft_s", "requests_per_s", "goodput_per_s"):
                    cell[name] = _number(getattr(state, name)[k]) if state is not None else None
                    cell[f"plain_{name}"] = _number(getattr(plain, name)[k])
                if simulated is not None:
                    row = simulated.rows[i][j][k]
                    cell["simulated_speedup"] = _number(simulated.speedup[i, j, k])
                    cell["simulated_goodput_ratio"] = _number(simulated.goodput[i, j, k])
                    for name in ("tpot_s", "ttft_s", "requests_per_s", "goodput_per_s"):
                        cell[f"simulated_{name}"] = row[name] if row is not None else None
                cells.append(cell)
    return cells


def crossover_document(found: LoadMap, simulated: SimulatedMap | None = None) -> dict[str, Any]:
    """Everything as JSON."""
    crossings = []
    for i, drafting in enumerate(found.draftings):
        for j, work in enumerate(found.works):
            why = reason(found, i, j)
            entry: dict[str, Any] = {"drafts": drafting.name, "context_tokens": work.context_tokens}
            for measure in ("speed", "goodput"):
                crossing = found.crossing(i, j, "speed" if measure == "speed" else "goodput")
                entry[measure] = {"load": crossing.load, "low": crossing.low, "high": crossing.high}
            entry["why"] = {"cause": why.cause, "beyond": why.beyond, "sentence": why.sentence} if why else None
            crossings.append(entry)
    document: dict[str, Any] = {
        **document_head("crossover", found.deployment),
        "axis": {"kind": found.axis.kind, "values": list(found.axis.values)},
        "slo": found.slo.model_dump(mode="json"),
        "crossings": crossings,
        "answers": [{"question": question, "answer": answer} for question, answer in answers(found)],
        "cells": crossover_cells(found, simulated),
    }
    if simulated is not None:
        document["simulated"] = {
            "requests": simulated.requests,
            "burstiness": simulated.burstiness,
            "loads_apart": steps_apart(found, simulated).tolist(),
        }
    return document


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
