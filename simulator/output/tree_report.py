"""What ``memwall tree`` prints and writes: expected lengths, the best tree of each batch, and a picture of one in text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.output import rows
from simulator.output.documents import document_head
from simulator.output.report import Block, calibration_line
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.speculation.dynamic_tree import CONFIDENCE_SPREAD
from simulator.speculation.tree import ROOT, Tree
from simulator.speculation.tree_size import Priced, TreeSizes

MOST_DRAWN = 64
"""Nodes of a tree that are drawn; of a larger one the most probable."""


def tree_report(sizes: TreeSizes) -> list[Block]:
    """Conditions, the answer, and the tables that show it."""
    deployment = sizes.deployment
    title, tree = sizes.drawn
    drafter = rows.drafter_text(deployment)
    blocks: list[Block] = [
        f"{deployment.target.decoder.name} with drafter {drafter} on {rows.gpus_text(deployment)}; first candidates: "
        f"{rows.acceptance_text(sizes.base)}; context {sizes.context_tokens:,} tokens; engine: {deployment.engine.title}.",
        tree_sentence(sizes),
        Section(
            "expected tokens per round of the best tree, by nodes and levels at most",
            _tokens_table(sizes),
            "τ at the mean rates    dynamic: a tree of as many nodes and levels that each round makes from the drafter's "
            f"confidence, as EAGLE-2 does, if confidence spreads by {CONFIDENCE_SPREAD:g} (an estimate)",
        ),
        batch_section(sizes),
        f"{_capital(title)}, {tree.nodes} nodes, depth {tree.depth}; each node: its rank among its parent's candidates, and the "
        "probability that it and all above it are accepted.",
        "\n".join(tree_lines(tree, sizes)),
        calibration_line(deployment.target.efficiency),
    ]
    return blocks


def batch_section(sizes: TreeSizes) -> Section:
    """What is best at each batch."""
    return Section(
        "best tree of each batch, beside the best chain and no drafts",
        _batch_table(sizes),
        "τ: tokens per round of a batch that is kept full    × plain: tokens/s over those without drafts    "
        "( ) more sequences than the KV cache holds at this context",
    )


def tree_sentence(sizes: TreeSizes) -> str:
    """Up to which batch trees beat chains, and anything beats nothing."""
    first, last = sizes.batches[0], sizes.batches[-1]
    ends = {batch: sizes.best(batch) for batch in sizes.batches}
    best = [
        f"{_shape(ends[b])} at batch {b:,} ({sizes.speedup(ends[b]):.2f} × plain)" for b in dict.fromkeys((first, last))
    ]
    sentence = f"Best is {', '.join(best)}."
    wins = [b for b in sizes.batches if branches(ends[b])]
    if not wins:
        return sentence + " No tree beats the best chain at any of these batches."
    gains = {b: ends[b].tokens_per_s / sizes.chains[b].tokens_per_s for b in wins}
    most = max(gains, key=lambda b: (gains[b], -b))
    until = "at every one of these batches" if wins == list(sizes.batches) else f"up to batch {wins[-1]:,}"
    if wins != [b for b in sizes.batches if b <= wins[-1]]:
        until = f"at batch {', '.join(f'{b:,}' for b in wins)}"
    return f"{sentence} A tree beats the best chain {until}, by {gains[most] - 1:.0%} at most (batch {most:,})."


def branches(priced: Priced) -> bool:
    """Whether what is drafted is no chain and not nothing."""
    return not priced.drafted.shape.is_chain


def _shape(priced: Priced) -> str:
    shape = priced.drafted.shape
    if not shape.nodes:
        return "no drafts"
    return f"a chain of {shape.depth}" if shape.is_chain else f"a tree of {shape.nodes} nodes, depth {shape.depth},"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tokens_table(sizes: TreeSizes) -> Table:
    body = []
    for row, nodes in enumerate(sizes.nodes):
        dynamic = sizes.dynamic_tokens[nodes]
        body.append((f"{nodes}", *(f"{tau:.2f}" for tau in sizes.tokens[row]), f"{dynamic[2]:.2f}"))
    return Table(("nodes \\ levels", *(str(d) for d in sizes.depths), "dynamic"), body)


def _batch_table(sizes: TreeSizes) -> Table:
    body = []
    for batch in sizes.batches:
        tree, chain, plain = sizes.best_tree(batch), sizes.chains[batch], sizes.plain[batch]
        best = sizes.best(batch)
        line = [
            f"{batch:,}",
            str(tree.drafted.shape.nodes),
            str(tree.drafted.shape.depth),
            f"{tree.round.tokens_per_sequence:.2f}",
            _rate(tree),
            f"{sizes.speedup(tree):.2f}",
            f"{chain.drafted.shape.depth}",
            f"{chain.round.tokens_per_sequence:.2f}",
            _rate(chain),
            f"{sizes.speedup(chain):.2f}",
            _rate(plain),
            "nothing" if not best.drafted.shape.nodes else "chain" if best.drafted.shape.is_chain else "tree",
        ]
        if sizes.named_at is not None:
            named = sizes.named_at[batch]
            line[-1:-1] = [_rate(named), f"{sizes.speedup(named):.2f}"]
        body.append(tuple(line))
    headers = [
        "batch", "nodes", "depth", "τ", "tree, tokens/s", "× plain", "γ", "τ", "chain, tokens/s", "× plain", "plain, tokens/s", "best",
    ]  # fmt: skip
    if sizes.named is not None:
        headers[-1:-1] = [f"{sizes.named[0]}, tokens/s", "× plain"]
    return Table(tuple(headers), body)


def _rate(priced: Priced) -> str:
    text = f"{priced.tokens_per_s:,.0f}"
    return text if priced.fits else f"({text})"


def tree_lines(tree: Tree, sizes: TreeSizes) -> list[str]:
    """`tree` as text, one node a line, children by rank; of a tree with more than 64 nodes the most probable."""
    shown, products = most_probable(tree, sizes)
    children: dict[int, list[int]] = {}
    for node in shown:
        children.setdefault(tree.parents[node], []).append(node)
    lines = ["last accepted token"]
    waiting = [(node, "") for node in _last_first(tree, children, ROOT)]
    while waiting:
        node, indent = waiting.pop()
        last = node == max(children[tree.parents[node]], key=lambda sibling: tree.ranks[sibling])
        lines.append(f"{indent}{'└─' if last else '├─'} {tree.ranks[node]}  {_probability(float(products[node]))}")
        below = indent + ("   " if last else "│  ")
        waiting += [(child, below) for child in _last_first(tree, children, node)]
    if len(shown) < tree.nodes:
        lines.append(f"({tree.nodes - len(shown)} less probable nodes are not drawn)")
    return lines


def _last_first(tree: Tree, children: dict[int, list[int]], node: int) -> list[int]:
    return sorted(children.get(node, []), key=lambda child: -tree.ranks[child])


def _probability(p: float) -> str:
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.001 else "<0.001"


def most_probable(tree: Tree, sizes: TreeSizes) -> tuple[list[int], NDArray[np.float64]]:
    """The nodes to draw, in order, and all nodes' path products at the mean rates."""
    top1 = sizes.base.conditional(tree.depth)
    products = tree.path_products(sizes.ranks.probability(top1))
    # A stable order by probability keeps parents before children: no path is more probable than its beginning.
    order = sorted(range(tree.nodes), key=lambda node: (-products[node], node))[:MOST_DRAWN]
    return sorted(order), products


def tree_document(sizes: TreeSizes) -> dict[str, Any]:
    """All of it as mappings."""
    title, tree = sizes.drawn
    _, products = most_probable(tree, sizes)
    depth = max(sizes.depths)
    return {
        **document_head("tree", sizes.deployment),
        "acceptance": {
            "conditional": sizes.base.rates,
            "request_icc": sizes.base.request_icc,
            "ranks": sizes.ranks.table(depth).tolist(),
        },
        "context_tokens": sizes.context_tokens,
        "expected_tokens": [
            {"nodes": n, "levels": d, "tokens_per_round": float(sizes.tokens[row, column])}
            for row, n in enumerate(sizes.nodes)
            for column, d in enumerate(sizes.depths)
        ],
        "dynamic_expected_tokens": {n: found[2] for n, found in sizes.dynamic_tokens.items()},
        "cells": tree_cells(sizes),
        "tree": {
            "title": title,
            "paths": tree.paths,
            "path_probability": products.tolist(),
        },
    }


def tree_cells(sizes: TreeSizes) -> list[dict[str, Any]]:
    """One mapping per batch and kind: plain, chain, the user's tree, and trees of every size."""
    cells = []
    for batch in sizes.batches:
        kinds = [("plain", sizes.plain[batch]), ("chain", sizes.chains[batch])]
        if sizes.named_at is not None:
            kinds.append(("named", sizes.named_at[batch]))
        kinds += [("tree", sizes.trees[batch, nodes]) for nodes in sizes.nodes]
        best = sizes.best(batch)
        for kind, priced in kinds:
            shape, cost = priced.drafted.shape, priced.round
            cells.append({
                "batch": batch, "kind": kind, "nodes": shape.nodes, "depth": shape.depth, "best": priced is best,
                "kv_fits": priced.fits, "tokens_per_round": cost.tokens_per_sequence, "tokens_per_s": cost.tokens_per_s,
                "speedup": sizes.speedup(priced), "tpot_s": cost.tpot_s, "round_s": cost.seconds, "verify_s": cost.verify_s,
                "draft_s": cost.draft_s, "host_s": cost.host_s, "passes": shape.passes,
                "drafted_per_pass": max(shape.pass_tokens, default=0),
            })  # fmt: skip
    return cells
