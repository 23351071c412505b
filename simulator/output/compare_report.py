"""What ``memwall compare`` prints and writes: which drafter wins where, what each costs, and how far its acceptance is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from simulator import units
from simulator.output import rows
from simulator.output.documents import document_head
from simulator.output.report import NONE, Block, calibration_line
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.planning.which_drafter import GIVEN, Choice, Compared, Comparison, LeftOut

_NOTES = {
    "*": "* fastest at its batch",
    "°": "° more drafts in a row than acceptance was measured for: rates beyond are extrapolated",
    "+": "+ the most that were tried: more may be faster still",
    "t": "trees: for an engine that drafts them; candidates after the first as usual (an estimate)",
    "(": "( ) more sequences than the KV cache holds at this context",
}


def compare_report(found: Comparison) -> list[Block]:
    """Conditions, which one wins, what to beware of, and the tables that show it."""
    target = found.deployment.target
    formats = target.formats
    blocks: list[Block] = [
        f"{target.decoder.name} on {rows.gpus_text(found.deployment)}; weights {formats.weights}, KV cache {formats.kv}; context "
        f"{found.context_tokens:,} tokens; engine: {found.deployment.engine.title}.",
        verdict(found),
        *tables(found),
        calibration_line(target.efficiency),
    ]
    return blocks


def tables(found: Comparison) -> list[Section]:
    """The tables of the report."""
    sections = [
        _speedup_section(found),
        _choice_section(found),
        _memory_section(found),
        Section(
            "where acceptance comes from",
            Table(
                ("drafter", "text", "known for γ", "source"),
                [(one.name, one.dataset, _known_for(one), one.source) for one in found.compared],
            ),
        ),
    ]
    if found.left_out:
        body = [(left.name, left.reason, how_to_give(left)) for left in found.left_out]
        note = ""
        if any(left.why != "fit" for left in found.left_out):
            note = (
                "RATES: by position as your engine logs them, marginal:0.7,0.5,0.3, or one number such as length:2.9@4; SHARE: of "
                "rounds that find a draft"
            )
        sections.append(Section("not compared", Table(("drafter", "why", "to compare it"), body), note))
    return sections


# --- sentences -----------------------------------------------------------------------------------------------------------
def verdict(found: Comparison) -> str:
    """Which drafter wins where and by how much, like with like, and what is to be taken with care."""
    sentences = [_race(found, found.compared, "Fastest is ")]
    if len(found.texts) > 1:
        for text in found.texts:
            same = found.on(text)
            if len(same) > 1 and any(plain.fits for plain in found.plain.values()):
                which = "with rates given" if text == GIVEN else f"measured on {text}"
                sentences.append(_race(found, same, f"Of the {len(same)} {which}, fastest is "))
    return " ".join([*sentences, *_cheaper(found), *_open(found), caution(found)]).strip()


def caution(found: Comparison) -> str:
    """What the acceptance figures have in common, or have not; empty where all are the user's."""
    published = [one for one in found.compared if not one.given]
    if not published:
        return ""
    if len(found.compared) == 1:
        only = published[0]
        return f"Acceptance was measured on {only.dataset} ({only.source}), not on your traffic."
    ending = (
        "this compares published figures, not drafters on your traffic; give your own with --acceptance NAME=RATES."
    )
    if len(found.texts) > 1:
        return f"Beware: acceptance is of different texts ({'; '.join(found.texts)}), so that {ending}"
    hands = "by different people" if len({one.source for one in published}) > 1 else "by the same people"
    return f"Beware: acceptance was measured on {found.texts[0]} {hands}; {ending}"


def _race(found: Comparison, among: Sequence[Compared], start: str) -> str:
    """Runs of batches with the same winner, each with its lead at both ends."""
    everybody = among is found.compared
    batches_said = [batch for batch in found.batches if everybody or found.plain[batch].fits]
    winners = [(found.winner(batch, among), found.plain[batch].fits, batch) for batch in batches_said]
    runs = [(one, [batch for *_, batch in run]) for (one, _), run in groupby(winners, key=lambda found: found[:2])]
    parts: list[str] = []
    named: list[Compared] = []
    for winner, batches in runs:
        at = f"at batch {_batches(batches)}" if len(runs) > 1 or len(batches) == 1 else "at every one of these batches"
        if winner is None:
            fits = found.plain[batches[0]].fits
            parts.append(f"plain decoding {at}" if fits else f"{at} the KV cache does not hold so many")
            continue
        title = winner.title if everybody and winner not in named else winner.name
        if len(found.texts) > 1 and everybody and winner not in named:
            title += f" (acceptance: {winner.dataset})"
        named.append(winner)
        parts.append(f"{title} {at}, {_leads(found, among, winner, batches)}")
    return start + "; ".join(parts) + "."


def _leads(found: Comparison, among: Sequence[Compared], winner: Compared, batches: Sequence[int]) -> str:
    said: list[str] = []
    before = None
    for batch in dict.fromkeys((batches[0], batches[-1])):
        speedup = winner.choices[batch].speedup
        words = f"{speedup:.2f} ×" if said else f"{speedup:.2f} × plain decoding"
        if len(batches) > 1:
            words += f" at batch {batch:,}"
        second = next((one for one in found.ranking(batch, among) if one is not winner), None)
        if second is not None:
            lead = speedup / second.choices[batch].speedup - 1.0
            words += f" ({lead:.0%} ahead" + (")" if second is before else f" of {second.name})")
        before = second
        said.append(words)
    return " and ".join(said)


def _cheaper(found: Comparison) -> list[str]:
    """Where another way to serve has fewer USD per token than the fastest."""
    batches = [b for b in found.batches if found.winner(b) is not None and found.cheapest(b) is not found.winner(b)]
    if not batches:
        return []
    cheapest = found.cheapest(batches[0])
    name = cheapest.title if cheapest is not None else "plain decoding"
    return [f"Per token, {name} is cheaper at batch {_batches(batches)}: GPUs that only draft are paid for too."]


def _open(found: Comparison) -> list[str]:
    """Where one number of acceptance leaves open which of the two fastest wins."""
    batches: dict[tuple[str, str], list[int]] = {}
    for batch in found.batches:
        ranking = found.ranking(batch)
        if len(ranking) < 2:
            continue
        first, second = (one.choices[batch] for one in ranking[:2])
        least = first.known_to[0] if first.known_to else first.speedup
        most = second.known_to[1] if second.known_to else second.speedup
        if least < most:
            batches.setdefault((ranking[0].name, ranking[1].name), []).append(batch)
    return [
        f"At batch {_batches(of)} it is open whether {a} or {b} is faster: one number is all that is known of acceptance."
        for (a, b), of in batches.items()
    ]


def how_to_give(left: LeftOut) -> str:
    """What to add to the command; a dash where nothing helps."""
    if left.why == "fit":
        return NONE
    if left.why == "text":
        return f"--drafts …,{left.name}"
    return f"--acceptance {left.name}=RATES" + ("/match:SHARE" if left.looks_up else "")


def _batches(batches: Sequence[int]) -> str:
    return f"{batches[0]:,}" if len(batches) == 1 else f"{batches[0]:,} to {batches[-1]:,}"


def _known_for(one: Compared) -> str:
    depth = one.measured_depth
    if depth is None:
        return "one rate for all"
    return f"{depth} (one mean)" if one.config.at_gamma else f"1 to {depth}" if depth > 1 else "1"


# --- tables --------------------------------------------------------------------------------------------------------------
def drafts_text(choice: Choice) -> str:
    """ "γ = 4", "tree 32, depth 5"."""
    return f"tree {choice.nodes}, depth {choice.depth}" if choice.is_tree else f"γ = {choice.depth}"


def marks(found: Comparison, one: Compared, batch: int) -> str:
    """Signs of `_NOTES` that go with a choice."""
    choice = one.choices[batch]
    known = one.measured_depth
    signs = "°" if known is not None and choice.depth > known else ""
    most = min(found.gammas[-1], one.drafter.most_drafts)
    if not choice.is_tree and choice.depth == most < one.drafter.most_drafts and choice.speedup > 1.0 and most > 1:
        signs += "+"
    return signs


def _speedup_section(found: Comparison) -> Section:
    body = []
    for one in found.compared:
        line = [one.name]
        for batch in found.batches:
            choice = one.choices[batch]
            text = f"{choice.speedup:.2f}" + ("*" if found.winner(batch) is one else " ")
            line.append(text if choice.priced.fits else f"({text.rstrip()})")
        end = one.pays_up_to
        pays = "never" if end == 0 else f"{end:,}" if end < one.largest_batch else f"all, ≤ {end:,}"
        body.append((*line, pays))
    seen = {"*"} if any(found.winner(b) for b in found.batches) else set()
    seen |= {"("} if any(not c.priced.fits for one in found.compared for c in one.choices.values()) else set()
    note = "    ".join(text for sign, text in _NOTES.items() if sign in seen)
    pays_note = (
        "pays up to: largest batch at which drafts in a row pay; all: as many as the KV cache and the engine take"
    )
    headers = ("drafter \\ batch", *(f"{b:,} " for b in found.batches), "pays up to")
    return Section(
        "speed-up over plain decoding, each drafter at its best", Table(headers, body), "    ".join(filter(None, [note, pays_note]))
    )  # fmt: skip


def _choice_section(found: Comparison) -> Section:
    body, seen = [], set()
    for batch in found.batches:
        order = sorted(
            found.compared, key=lambda one: (not one.choices[batch].priced.fits, -one.choices[batch].speedup)
        )
        for one in order:
            choice, signs = one.choices[batch], marks(found, one, batch)
            seen |= {*signs, *("t" if choice.is_tree else "")}
            usd = NONE if choice.usd_per_million_tokens is None else f"{choice.usd_per_million_tokens:.3g}"
            body.append((
                f"{batch:,}", one.name, drafts_text(choice) + signs, f"{choice.speedup:.2f}",
                f"{choice.interval.low:.2f}–{choice.interval.high:.2f}", _span(choice.known_to),
                f"{choice.priced.round.tokens_per_sequence:.2f}", f"{choice.priced.round.tpot_s * 1e3:.2f}", usd,
                f"{choice.cost_ratio:.2f}",
            ))  # fmt: skip
    note = [
        "90 %: as far as times are uncertain; one number: as far as it leaves acceptance open; cost: USD per token over plain decoding"
    ]
    note += [text for sign, text in _NOTES.items() if sign in seen]
    headers = (
        "batch",
        "drafter",
        "drafts",
        "speed-up",
        "90 %",
        "one number",
        "tok/round",
        "ms/token",
        "USD/M tok",
        "cost",
    )
    return Section("what each drafts, fastest first", Table(headers, body), "    ".join(note))


def _span(ends: tuple[float, float] | None) -> str:
    return NONE if ends is None else f"{ends[0]:.2f}–{ends[1]:.2f}"


def _memory_section(found: Comparison) -> Section:
    body = []
    for one in found.compared:
        room = one.concurrency
        body.append((
            one.name,
            units.show(one.weight_bytes, "bytes") if one.weight_bytes else NONE,
            units.show(one.draft_kv_bytes_per_token, "bytes") if one.draft_kv_bytes_per_token else NONE,
            f"{room.plain:,}", f"{room.speculative:,}", f"{room.lost_share:.0%}", str(one.extra_gpus) if one.extra_gpus else NONE,
        ))  # fmt: skip
    headers = ("drafter", "weights", "KV per token", "sequences without", "with", "lost", "extra GPUs")
    note = f"bytes on each GPU that drafts; sequences of {found.context_tokens:,} tokens that the KV cache holds, look-ahead slots included"
    return Section("memory", Table(headers, body), note)


# --- files ---------------------------------------------------------------------------------------------------------------
def compare_cells(found: Comparison) -> list[dict[str, Any]]:
    """One mapping per batch and drafter, in the order of the columns of the CSV file."""
    cells = []
    for batch in found.batches:
        for one in found.compared:
            choice, known = one.choices[batch], one.choices[batch].known_to or (None, None)
            cells.append({
                "batch": batch, "drafter": one.name, "kind": one.drafter.kind, "drafts": "tree" if choice.is_tree else "chain",
                "depth": choice.depth, "nodes": choice.nodes, "speedup": choice.speedup,
                "speedup_low": choice.interval.low, "speedup_high": choice.interval.high,
                "one_number_low": known[0], "one_number_high": known[1],
                "fastest": found.winner(batch) is one, "pays": choice.pays, "kv_fits": choice.priced.fits,
                "tokens_per_round": choice.priced.round.tokens_per_sequence, "tpot_s": choice.priced.round.tpot_s,
                "plain_tpot_s": found.plain[batch].round.tpot_s, "tokens_per_s": choice.priced.tokens_per_s,
                "cost_over_plain": choice.cost_ratio, "usd_per_million_tokens": choice.usd_per_million_tokens,
                "beyond_measured_depth": "°" in marks(found, one, batch), "text": one.dataset,
            })  # fmt: skip
    return cells


def compare_document(found: Comparison) -> dict[str, Any]:
    """All figures, with what was left out and why."""
    return {
        **document_head("compare", found.deployment),
        "context_tokens": found.context_tokens,
        "gammas": found.gammas,
        "trees": found.trees,
        "batches": found.batches,
        "verdict": verdict(found),
        "fastest_by_batch": {b: _name(found.winner(b)) for b in found.batches},
        "cheapest_by_batch": {b: _name(found.cheapest(b)) for b in found.batches},
        "fastest_by_text_and_batch": {
            text: {b: _name(found.winner(b, found.on(text))) for b in found.batches} for text in found.texts
        },
        "interval_level": next(iter(found.compared[0].choices.values())).interval.level,
        "cells": compare_cells(found),
        "drafters": [_drafter(one) for one in found.compared],
        "not_compared": [
            {"name": left.name, "title": left.title, "why": left.why, "reason": left.reason, "how": how_to_give(left)}
            for left in found.left_out
        ],
    }  # fmt: skip


def _drafter(one: Compared) -> dict[str, Any]:
    room = one.concurrency
    return {
        "name": one.name,
        "title": one.title,
        "kind": one.drafter.kind,
        "acceptance": one.config.model_dump(mode="json", exclude_unset=True),
        "acceptance_is_given": one.given,
        "source": one.source,
        "text": one.dataset,
        "measured_depth": one.measured_depth,
        "pays_up_to_batch": one.pays_up_to,
        "largest_batch": one.largest_batch,
        "weight_bytes": one.weight_bytes,
        "draft_kv_bytes_per_token": one.draft_kv_bytes_per_token,
        "sequences_without": room.plain,
        "sequences_with": room.speculative,
        "lost_share": room.lost_share,
        "extra_gpus": one.extra_gpus,
    }


def _name(one: Compared | None) -> str:
    return one.name if one is not None else "plain"
