"""What a cluster did, in tables: each kind of replica, KV transfers, outages, autoscaling, and what happened when."""

from __future__ import annotations

import math
from collections.abc import Callable

from simulator import units
from simulator.output.cluster_conditions import kind_names
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.serving.cluster_metrics import ClusterSummary, kind_of
from simulator.serving.control import State
from simulator.serving.simulation import Run, SimulationResult

NONE = "–"
MOST_HAPPENINGS = 20
"""Rows of the table of what happened; the rest is counted."""

Line = tuple[str, Callable[[ClusterSummary], str]]


def cluster_sections(result: SimulationResult) -> list[Section]:
    """The tables that have something to say, nothing for replicas of one kind that just serve."""
    sections = []
    for run in result.runs:
        if len(run.kinds) > 1:
            sections.append(_kind_section(run, "By kind of replica" + _which(result, run)))
    clusters = [run.cluster for run in result.runs if run.cluster is not None]
    for title, lines, note, there in (
        ("KV transfers", _TRANSFERS, "wait: for a link that others had taken", _has("transfers")),
        ("Outages", _OUTAGES, "down: share of the time in which replicas were held or down", _has("outages")),
        ("Autoscaler", _SCALING, "serving: replicas that took requests, over time", _has("scaling")),
    ):
        if clusters and there(clusters[0]):
            body = [(name, *(show(cluster) for cluster in clusters)) for name, show in lines]
            sections.append(Section(title, Table(_headers(result), body), note))
    for run in result.runs:
        if run.happened:
            sections.append(_happened_section(run, "What happened to replicas" + _which(result, run)))
    return sections


def cluster_remarks(run: Run) -> str:
    """Outages and autoscaling of a run in a sentence each; empty where there was neither."""
    found = []
    cluster = run.cluster
    if cluster is not None and cluster.outages is not None and cluster.outages.n:
        outages = cluster.outages
        times, requests = ("once" if outages.n == 1 else f"{outages.n:,} times"), f"{outages.lost_requests:,} requests"
        found.append(
            f"Replicas failed {times} and threw out {requests}; they were down for {outages.down_share:.1%} of the time."
        )
    if cluster is not None and cluster.scaling is not None and cluster.scaling.most_gpu_hours:
        scaling = cluster.scaling
        part = scaling.gpu_hours / scaling.most_gpu_hours
        found.append(
            f"The autoscaler held {_hours(scaling.gpu_hours)} GPU-hours, {part:.0%} of what all its replicas would have held."
        )
    return " ".join(found)


def _has(field: str) -> Callable[[ClusterSummary], bool]:
    return lambda cluster: getattr(cluster, field) is not None


def _which(result: SimulationResult, run: Run) -> str:
    return "" if len(result.runs) == 1 else f", speculation {'off' if run.variant == 'plain' else 'on'}"


def _headers(result: SimulationResult) -> tuple[str, ...]:
    if len(result.runs) == 1:
        return ("", "plain decoding" if result.main.variant == "plain" else result.main.variant)
    return ("", "speculation", "off")


def _kind_section(run: Run, title: str) -> Section:
    body = []
    for name, kind in zip(kind_names(run.kinds), run.cluster.kinds if run.cluster else (), strict=True):
        body.append((
            name, f"{kind.gpus}", _share(kind.gpu_busy_share), _number(kind.mean_running), f"{kind.most_running:,}",
            _share(kind.kv_occupancy_mean), _share(kind.kv_occupancy_most), f"{kind.prompt_tokens:,}",
            f"{kind.output_tokens:,}", NONE if kind.usd is None else f"{kind.usd:,.2f}",
        ))  # fmt: skip
    headers = (
        "kind", "GPUs", "busy", "running", "most", "KV filled", "most ", "prompt tokens", "output tokens", "USD",
    )  # fmt: skip
    note = "busy: of the time held; running and KV filled: mean per replica while busy; prompt tokens: computed"
    return Section(title, Table(headers, body), note)


def _happened_section(run: Run, title: str) -> Section:
    of, names = kind_of(run.kinds), kind_names(run.kinds)
    fails = any(change.state == State.FAILED for change in run.happened)
    body = []
    for change in run.happened[:MOST_HAPPENINGS]:
        kind = (names[of[change.replica]],) if len(names) > 1 else ()
        lost = (f"{change.requests:,}" if change.state == State.FAILED else "",) if fails else ()
        body.append((f"{change.time_s:,.1f} s", f"{change.replica}", *kind, change.state.value, *lost))
    kind, lost = (("kind",) if len(names) > 1 else ()), (("requests thrown out",) if fails else ())
    headers = ("time", "replica", *kind, "from then on", *lost)
    more = len(run.happened) - MOST_HAPPENINGS
    return Section(title, Table(headers, body), f"… {more:,} more" if more > 0 else "")


# --- lines of the tables by variant ------------------------------------------------------------------------------------
def _of(part: str, show: Callable[..., str], *fields: str) -> Callable[[ClusterSummary], str]:
    """`show` of the named fields of one part of the summary; a dot leads into a distribution."""

    def line(cluster: ClusterSummary) -> str:
        values = []
        for field in fields:
            value = getattr(cluster, part)
            for name in field.split("."):
                value = getattr(value, name)
            values.append(value)
        return show(*values)

    return line


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else NONE


def _number(value: float) -> str:
    return f"{value:,.1f}" if math.isfinite(value) else NONE


def _count(value: int) -> str:
    return f"{value:,}"


def _seconds(value: float) -> str:
    return units.show(value, "s") if math.isfinite(value) else NONE


def _bytes(value: float) -> str:
    return units.show(value, "bytes")


def _hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 9.95 else f"{value:.3g}"


_TRANSFERS: tuple[Line, ...] = (
    ("transfers", _of("transfers", _count, "n")),
    ("sent", _of("transfers", _bytes, "sent_bytes")),
    ("wait for the link, mean", _of("transfers", _seconds, "wait_s.mean")),
    ("wait for the link, p99", _of("transfers", _seconds, "wait_s.p99")),
    ("transfer, mean", _of("transfers", _seconds, "transfer_s.mean")),
    ("transfer, p99", _of("transfers", _seconds, "transfer_s.p99")),
    ("links", _of("transfers", _count, "links")),
    ("links busy, mean", _of("transfers", _share, "link_busy_share")),
    ("links busy, busiest", _of("transfers", _share, "busiest_link_share")),
)
_OUTAGES: tuple[Line, ...] = (
    ("failures", _of("outages", _count, "n")),
    ("requests thrown out and retried", _of("outages", _count, "lost_requests")),
    ("down", _of("outages", _share, "down_share")),
    ("down, all replicas together", _of("outages", _seconds, "down_s")),
)
_SCALING: tuple[Line, ...] = (
    ("GPU-hours held", _of("scaling", _hours, "gpu_hours")),
    ("of all its replicas all the time", _of("scaling", _hours, "most_gpu_hours")),
    ("held, of that", _of("scaling", lambda held, most: _share(held / most if most else math.nan), "gpu_hours", "most_gpu_hours")),
    ("serving, mean", _of("scaling", lambda mean: f"{mean:.2f}" if math.isfinite(mean) else NONE, "mean_serving")),
    ("serving, fewest to most", _of("scaling", lambda low, high: f"{low} to {high}", "fewest_serving", "most_serving")),
    ("starts and stops", _of("scaling", lambda starts, stops: f"{starts} and {stops}", "starts", "stops")),
)  # fmt: skip
