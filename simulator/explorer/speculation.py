"""What does speculation buy? Speed-up over batch and γ, or of token trees; where it stops paying, and what it wastes."""

from __future__ import annotations

from functools import cache

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.explorer.answer import Answer, Tell, Uploads
from simulator.explorer.controls import Controls
from simulator.explorer.drafting import (
    BY_DEPTH,
    FROM_LOG,
    KINDS_OF_ACCEPTANCE,
    LARGEST,
    NODES,
    ONE_RATE,
    PUBLISHED,
    WEIGHTS,
    Drafting,
    chains,
    trees,
)
from simulator.explorer.page import Question
from simulator.explorer.why_slow import BATCHES, CONTEXTS
from simulator.planning.matching_drafters import drafters_for
from simulator.speculation.drafters import load_drafter
from simulator.speculation.ladder.upload import MOST_BYTES, uploaded_log

LOGS = ("jsonl", "json", "csv", "txt", "prom", "log")
_RATES_HELP = (
    "As on the command line: 0.8,0.7,0.6 are conditional rates by depth; marginal:0.7,0.5 what engines log by position; "
    "length:2.9@4 tokens per verification at γ = 4; rate:0.63@3 accepted over drafted at γ = 3."
)


class WhatSpeculationBuys(Question[Drafting]):
    """The page."""

    path = "speculation"
    title = "What does speculation buy?"
    settings = Drafting

    def controls(self, draw: Controls) -> Drafting:
        """What serves, what drafts, and how much of it is accepted."""
        found: dict[str, object] = {
            "model": draw.choice("model", "Model", catalog.names("model")),
            "gpu": draw.choice("gpu", "GPU", catalog.names("gpu")),
            "tp": draw.steps("tp", "GPUs that share it (tensor parallel)", (1, 2, 4, 8)),
            "batch": draw.steps("batch", "Sequences in the batch", BATCHES),
            "context": draw.steps("context", "Tokens of context each", CONTEXTS),
        }
        draft = draw.choice("draft", "Drafter", offered(str(found["model"])), help="Those that go with the model.")
        drafter = load_drafter(draft)
        found["draft"] = draft
        if not drafter.looks_up:
            found["tree"] = draw.toggle(
                "tree", "Draft trees", help="Several candidates for each position, verified at once."
            )
        if found.get("tree"):
            found["nodes"] = draw.steps("nodes", "Nodes of a tree at most", NODES)
            found["depth"] = draw.slider("depth", "Levels of a tree at most", 1, 12, 1)
        else:
            found["gamma"] = draw.slider(
                "gamma", "γ, tokens drafted per round, at most", 1, 16, 1, help="All γ up to this one are compared."
            )
        found |= _acceptance(draw, published=drafter.acceptance is not None, looks_up=drafter.looks_up)
        found["weights"] = draw.choice(
            "weights", "Weights", WEIGHTS, names=lambda w: "as in the checkpoint" if w == "model" else w
        )
        found["engine"] = draw.choice("engine", "Engine", catalog.names("engine"))
        found["most"] = draw.steps("most", "Largest batch drawn", LARGEST)
        return Drafting.model_validate(found)

    def answer(self, settings: Drafting, uploads: Uploads, tell: Tell) -> Answer:
        """Priced in closed form."""
        log = uploaded_log(*uploads["log"][:2]) if "log" in uploads else None
        if log is not None and (settings.accept, settings.rates) != (BY_DEPTH, log.rates):
            log = None  # a pinned setting sees the file too, which it need not be about
        return (trees if settings.tree else chains)(settings, log)


@cache
def offered(model: str) -> list[str]:
    """Drafters that go with a bundled model."""
    return drafters_for(load_decoder(model))


def _acceptance(draw: Controls, *, published: bool, looks_up: bool) -> dict[str, object]:
    kind = draw.switch("accept", "Acceptance", KINDS_OF_ACCEPTANCE)
    found: dict[str, object] = {"accept": kind}
    waits = False
    if kind == BY_DEPTH:
        found["rates"] = draw.text("rates", "Rates", placeholder="0.8,0.7,0.6", help=_RATES_HELP)
    if kind == FROM_LOG:
        sent = draw.upload(
            "log", "Log of acceptance", LOGS, most_mb=MOST_BYTES >> 20,
            help="Spec-Bench answers, files of memwall measure, vLLM's responses or metrics, SGLang's histograms, or a CSV of "
            "request and accepted.",
        )  # fmt: skip
        waits = sent is None
        if sent is not None:
            log = uploaded_log(sent.name, sent.content)
            # As a table, so that a pinned setting and a link hold what the log said, though not the log.
            return {"accept": BY_DEPTH, "rates": log.rates, "match": log.config.match_probability}
    if kind == ONE_RATE or ((kind == PUBLISHED or waits) and not published):
        label = "Conditional acceptance rate" + ("" if kind == ONE_RATE else " (none is published)")
        found["alpha"] = draw.slider("alpha", label, 0.0, 1.0, 0.01)
    if looks_up:
        found["match"] = draw.maybe(
            "match", "Share of rounds with anything to draft", 0.0, 1.0, 0.05,
            otherwise="as published" if kind == PUBLISHED and published else "1",
        )  # fmt: skip
    return found
