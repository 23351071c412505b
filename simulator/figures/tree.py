"""Token trees drawn, and what their size buys: tokens per round by nodes, speed by nodes at each batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.figures import style
from simulator.figures.batch_axis import batch_axis, break_even
from simulator.figures.html_page import HtmlPart, html_page
from simulator.figures.page import deploy_call
from simulator.output import rows
from simulator.output.tables import Section
from simulator.output.tree_report import branches, most_probable, tree_report, tree_sentence
from simulator.speculation.tree import ROOT, Tree
from simulator.speculation.tree_size import TreeSizes

_LEVEL_PX = 74
_WIDEST_SLOT_PX, _NARROWEST_SLOT_PX = 25.0, 20.0
_PAGE_PX = 1030
"""Where a page has that much room for a figure, a tree is narrowed to it as long as its labels can be read."""
_MARGIN_SLOTS = 6
"""What stands left of the nodes."""
_COLOURS = [[0.0, "#E8F1F8"], [0.25, "#B7D4EA"], [0.5, "#6AAED6"], [0.75, "#2E7EBC"], [1.0, "#084A91"]]
"""Pale to dark blue (after ColorBrewer Blues); nodes keep an outline, so that pale ones show on a light page."""
_DARK_FROM = 0.6
"""Place on the colour scale from which labels are white."""


def places(tree: Tree, shown: list[int]) -> dict[int, float]:
    """Horizontal place of each shown node and of the root, from 0 on: siblings by rank, parents in the middle of their
    children, subtrees as close together as their outlines allow (after Reingold and Tilford, IEEE TSE 7, 1981)."""
    children: dict[int, list[int]] = {}
    for node in sorted(shown, key=lambda node: tree.ranks[node]):
        children.setdefault(tree.parents[node], []).append(node)
    offset: dict[int, float] = {ROOT: 0.0}  # from the parent
    outlines: dict[int, list[tuple[float, float]]] = {}  # leftmost and rightmost by level below, from the node itself
    for node in [*sorted(shown, reverse=True), ROOT]:  # children before parents
        placed: list[tuple[float, float]] = []
        for child in children.get(node, []):
            outline = outlines.pop(child)
            shift = max(
                (right + 1.0 - left for (_, right), (left, _) in zip(placed, outline, strict=False)), default=0.0
            )
            offset[child] = shift
            moved = [(left + shift, right + shift) for left, right in outline]
            joined = [(old[0], new[1]) for old, new in zip(placed, moved, strict=False)]
            placed = joined + placed[len(joined) :] + moved[len(joined) :]
        middle = (offset[children[node][0]] + offset[children[node][-1]]) / 2 if node in children else 0.0
        for child in children.get(node, []):
            offset[child] -= middle
        outlines[node] = [(0.0, 0.0), *((left - middle, right - middle) for left, right in placed)]
    x = {ROOT: -min(left for left, _ in outlines[ROOT])}
    for node in sorted(shown):
        x[node] = x[tree.parents[node]] + offset[node]
    return x


def tree_figure(sizes: TreeSizes) -> go.Figure:
    """The tree, root above, each node coloured by and labelled with the probability of its path, in percent."""
    title, tree = sizes.drawn
    shown, products = most_probable(tree, sizes)
    x = places(tree, shown)
    y = {ROOT: 0.0, **{node: -float(tree.depths[node]) for node in shown}}
    conditional = sizes.ranks.probability(sizes.base.conditional(tree.depth))
    left = min(x.values())
    width = max(x.values()) - left
    slot_px = min(_WIDEST_SLOT_PX, max(_NARROWEST_SLOT_PX, _PAGE_PX / (width + _MARGIN_SLOTS)))
    above = [tree.parents[node] for node in shown]
    edges = {
        "type": "scatter", "mode": "lines", "line": {"color": style.REFERENCE, "width": 1}, "hoverinfo": "skip",
        "x": [place for node, parent in zip(shown, above, strict=True) for place in (x[parent], x[node], None)],
        "y": [place for node, parent in zip(shown, above, strict=True) for place in (y[parent], y[node], None)],
    }  # fmt: skip
    # The root of the probability spreads the small ones, of which there are many.
    value = [float(products[node]) ** 0.5 for node in shown]
    outline = {"color": style.REFERENCE, "width": 1}
    nodes = {
        "type": "scatter", "x": [x[node] for node in shown], "y": [y[node] for node in shown], "mode": "markers+text",
        "marker": {"size": slot_px - 2, "color": value, "colorscale": _COLOURS, "cmin": 0.0, "cmax": 1.0, "line": outline},
        "text": [_percent(float(products[node])) for node in shown],
        "textfont": {"size": 10 if slot_px > 22 else 9,
                     "color": ["#ffffff" if v >= _DARK_FROM else style.INK for v in value]},
        "customdata": [
            [", ".join(map(str, tree.paths[n])), f"{products[n]:.3g}", _rate(conditional, tree, n)] for n in shown
        ],
        "hovertemplate": "path %{customdata[0]}<br>accepted in %{customdata[1]} of rounds,<br>"
        "%{customdata[2]} of those that accept its parent<extra></extra>",
    }  # fmt: skip
    root = {
        "type": "scatter", "x": [x[ROOT]], "y": [0.0], "mode": "markers",
        "hovertemplate": "last accepted token<extra></extra>",
        "marker": {"size": slot_px - 2, "symbol": "square", "color": style.ORANGE, "line": outline},
    }  # fmt: skip
    kept = np.bincount(tree.depths, weights=products, minlength=tree.depth + 1)
    levels = [
        {"x": left - 1.2, "y": -depth, "xanchor": "right", "showarrow": False, "font": {"size": 12}, "align": "right",
         "text": f"depth {depth}<br>{kept[depth]:.0%} of rounds"}
        for depth in range(1, tree.depth + 1)
    ]  # fmt: skip
    layout = {
        "xaxis": {"visible": False, "range": [left - 1.2 - max(4.5, 0.12 * width), left + width + 0.8]},
        "yaxis": {"visible": False, "range": [-tree.depth - 0.5, 0.5]},
        "annotations": levels, "showlegend": False,
    }  # fmt: skip
    tau = 1.0 + float(products.sum())
    left_out = f"; {tree.nodes - len(shown)} less probable nodes are not drawn" if len(shown) < tree.nodes else ""
    return style.drawn(
        [edges, nodes, root], layout,
        finding=f"{title[:1].upper() + title[1:]} has {tree.nodes} nodes and keeps {tau:.2f} tokens per round",
        tag="nodes: percent of rounds in which the path is accepted; square: the last accepted token; further left: more probable "
        f"candidates; at the mean rates{left_out}",
        height=60 + _LEVEL_PX * (tree.depth + 1), least_width=int(slot_px * (width + _MARGIN_SLOTS)),
    )  # fmt: skip


def _percent(p: float) -> str:
    return f"{p:.0%}".removesuffix("%") if p >= 0.005 else "<1"


def _rate(conditional: NDArray[np.float64], tree: Tree, node: int) -> str:
    # Of a node given its parent; conditional: [depth, rank].
    rank = tree.ranks[node]
    return f"{conditional[tree.depths[node] - 1, rank]:.3g}" if rank < conditional.shape[-1] else "0"


def length_figure(sizes: TreeSizes) -> go.Figure:
    """Tokens per round against nodes: the best tree of at most so many levels, and a dynamic one."""
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "x": sizes.nodes, "y": sizes.tokens[:, index], "mode": "lines+markers",
         "name": f"{depth} level" + ("s" if depth > 1 else ""), **style.series_style(index),
         "hovertemplate": f"%{{x}} nodes, at most {depth} levels: %{{y:.2f}} tokens per round<extra></extra>"}
        for index, depth in enumerate(sizes.depths)
    ]  # fmt: skip
    traces.append({
        "type": "scatter", "x": sizes.nodes, "y": [sizes.dynamic_tokens[n][2] for n in sizes.nodes], "mode": "lines",
        "name": "dynamic", "line": {"color": style.REFERENCE, "width": 2, "dash": "dot"},
        "hovertemplate": "%{x} nodes, made anew each round: %{y:.2f} tokens per round<extra></extra>",
    })  # fmt: skip
    if sizes.named is not None and sizes.named[1].tree is not None:
        tree = sizes.named[1].tree
        tau = 1.0 + float(tree.level_products(sizes.ranks.probability(sizes.base.conditional(tree.depth))).sum())
        traces.append({
            "type": "scatter", "x": [tree.nodes], "y": [tau], "mode": "markers", "name": style.text(sizes.named[0]),
            "marker": {"size": 13, "symbol": "star", "color": style.VERMILLION},
        })  # fmt: skip
    first, last = sizes.nodes[0], sizes.nodes[-1]
    low, high = sizes.tokens[0].max(), sizes.tokens[-1].max()
    return style.drawn(
        traces,
        _over(_node_axis(sizes), "tokens per round, τ"),
        finding=f"{last // first if first else last} × the nodes keep {high / low:.2f} × the tokens per round"
        if last > first
        else f"{last} nodes keep {high:.2f} tokens per round",
        tag="at the mean rates; the probabilities of second and further candidates are a typical drafter's unless they were given",
        height=430,
    )


def speed_figure(sizes: TreeSizes) -> go.Figure:
    """Speed-up over plain decoding against nodes, one line per batch; the best size of each is marked."""
    traces: list[dict[str, Any]] = []
    best = [sizes.best_tree(batch) for batch in sizes.batches]
    for index, batch in enumerate(sizes.batches):
        cells = [sizes.trees[batch, nodes] for nodes in sizes.nodes]
        traces.append({
            "type": "scatter", "x": sizes.nodes, "y": [sizes.speedup(c) for c in cells], "mode": "lines+markers",
            "name": f"batch {batch:,}", **style.series_style(index),
            "customdata": [
                [c.tokens_per_s, c.drafted.shape.depth, "" if c.fits else "<br>the KV cache does not fit"] for c in cells
            ],
            "hovertemplate": f"batch {batch:,}, %{{x}} nodes, depth %{{customdata[1]}}: %{{y:.2f}} × plain decoding<br>"
            "%{customdata[0]:,.0f} tokens/s%{customdata[2]}<extra></extra>",
        })  # fmt: skip
    traces.append({
        "type": "scatter", "mode": "markers", "name": "best size", "hoverinfo": "skip", "showlegend": False,
        "x": [next(n for n in sizes.nodes if sizes.trees[b, n] is c) for b, c in zip(sizes.batches, best, strict=True)],
        "y": [sizes.speedup(c) for c in best],
        "marker": {"size": 16, "symbol": "circle-open", "line": {"width": 2.5},
                   "color": [style.SERIES_COLOURS[i % len(style.SERIES_COLOURS)] for i in range(len(best))]},
    })  # fmt: skip
    picked = {b: c.drafted.shape.nodes for b, c in zip(sizes.batches, best, strict=True)}
    ends = {b: picked[b] for b in (sizes.batches[0], sizes.batches[-1])}
    finding = "; ".join(f"batch {b:,} is fastest with {n} node" + ("s" if n > 1 else "") for b, n in ends.items())
    return style.drawn(
        traces, _over(_node_axis(sizes), "tokens/s over plain decoding, ×", even=True),
        finding=finding[:1].upper() + finding[1:], tag=f"{_tag(sizes)}; circles: best size", height=480,
    )  # fmt: skip


def batch_figure(sizes: TreeSizes) -> go.Figure:
    """Speed-up over plain decoding against batch: best tree, best chain, and the user's tree."""
    lines = [
        ("best tree", [sizes.best_tree(b) for b in sizes.batches]),
        ("best chain", [sizes.chains[b] for b in sizes.batches]),
    ]
    if sizes.named is not None and sizes.named_at is not None:
        lines.append((style.text(sizes.named[0]), [sizes.named_at[b] for b in sizes.batches]))
    traces = [
        {"type": "scatter", "x": sizes.batches, "y": [sizes.speedup(c) for c in cells], "mode": "lines+markers",
         "name": name, **style.series_style(index),
         "customdata": [[c.drafted.shape.nodes, c.drafted.shape.depth, c.tokens_per_s] for c in cells],
         "hovertemplate": f"{name}, batch %{{x}}: %{{y:.2f}} × plain decoding<br>%{{customdata[0]}} nodes, depth "
         "%{customdata[1]}, %{customdata[2]:,.0f} tokens/s<extra></extra>"}
        for index, (name, cells) in enumerate(lines)
    ]  # fmt: skip
    wins = [b for b in sizes.batches if branches(sizes.best(b))]
    return style.drawn(
        traces,
        _over(batch_axis(sizes.batches[0], sizes.batches[-1]), "tokens/s over plain decoding, ×", even=True),
        finding=f"Trees beat chains up to batch {wins[-1]:,}"
        if wins
        else "No tree beats the best chain at these batches",
        tag=_tag(sizes),
        height=430,
    )


def _node_axis(sizes: TreeSizes) -> dict[str, Any]:
    return {
        "type": "log", "title": {"text": "nodes (log₂)"}, "tickvals": sizes.nodes, "ticktext": [f"{n}" for n in sizes.nodes],
        "tickangle": 0,
    }  # fmt: skip


def _over(axis: dict[str, Any], title: str, *, even: bool = False) -> dict[str, Any]:
    """Layout of lines over `axis`; `even`: from zero on, with the line at which both ways are equally fast."""
    return {
        "xaxis": axis,
        "yaxis": {"title": {"text": title}, **({"rangemode": "tozero"} if even else {})},
        "shapes": [break_even()] if even else [],
        "legend": style.LEGEND_AT_FOOT,
    }


def _tag(sizes: TreeSizes) -> str:
    return f"{style.tag_of(sizes.deployment)}; context {sizes.context_tokens:,} tokens"


def tree_page(sizes: TreeSizes) -> str:
    """All of it as an HTML page."""
    part = HtmlPart(
        title=f"Which tree to draft? {sizes.deployment.target.decoder.name} on {sizes.deployment.gpu.title}",
        verdict=tree_sentence(sizes),
        conditions=[
            *rows.deployment_rows(sizes.deployment),
            ("first candidates", rows.acceptance_text(sizes.base)),
            ("context", f"{sizes.context_tokens:,} tokens each"),
        ],
        tables=[block for block in tree_report(sizes) if isinstance(block, Section)],
        figures=[tree_figure(sizes), length_figure(sizes), speed_figure(sizes), batch_figure(sizes)],
    )
    return html_page([part], tree_call(sizes))


def tree_call(sizes: TreeSizes) -> str:
    """The Python call that gives these sizes again."""
    named = ""
    if sizes.named is not None and sizes.named[1].tree is not None:
        paths = [list(path) for path in sizes.named[1].tree.paths]
        named = f", named=({sizes.named[0]!r}, Tree.from_paths({paths!r}))"
    return (
        f"{deploy_call(sizes.deployment)}\n"
        "from simulator.speculation.ranks import RankLaw\n"
        "from simulator.speculation.tree import Tree\n"
        "from simulator.speculation.tree_size import tree_sizes\n\n"
        f"law = Acceptance({sizes.base.rates!r}, {sizes.base.request_icc!r})\n"
        f"ranks = RankLaw({sizes.ranks.top1!r}, {sizes.ranks.shares!r})\n"
        f"result = tree_sizes(deployment, law, nodes={list(sizes.nodes)!r}, depths={list(sizes.depths)!r}, "
        f"batches={list(sizes.batches)!r}, context_tokens={sizes.context_tokens}, ranks=ranks{named})\n"
    )
