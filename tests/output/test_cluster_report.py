"""What reports, documents and figures say of clusters: numbers of the records, conditions in words, tables cut at twenty rows."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from simulator import load_scenario
from simulator.commands.catalog import _scenario_row
from simulator.figures import page, serving
from simulator.output import columns, documents, rows
from simulator.output.cluster_report import cluster_remarks, cluster_sections
from simulator.output.simulation_report import simulation_report
from simulator.output.tables import Section, print_blocks
from simulator.serving.control import Happening, State
from simulator.serving.simulation import SimulationResult
from tests.output.conftest import small_simulation

LOAD = {
    "kind": "poisson", "rate_per_s": 8, "requests": 80, "lengths": {"prompt": 100, "output": 60},
}  # fmt: skip


@pytest.fixture(scope="module")
def disaggregated() -> SimulationResult:
    pools = [{"role": "prefill", "replicas": 2}, {"role": "decode", "gpu": "h200", "tp": 2, "replicas": 1}]
    return small_simulation(traffic=LOAD, cluster={"pools": pools, "decode_router": "round-robin"})


@pytest.fixture(scope="module")
def failing() -> SimulationResult:
    cluster = {"failures": [{"replica": 1, "at_s": 2, "down_s": 4}], "retry_delay_s": 0.5, "router": "prefix-aware"}
    return small_simulation(traffic=LOAD, replicas=2, cluster=cluster, speculation=None)


@pytest.fixture(scope="module")
def scaled() -> SimulationResult:
    scaler = {"min": 1, "max": 3, "target": 2, "startup_s": 1, "interval_s": 1, "scale_down_after_s": 2}
    return small_simulation(traffic=LOAD, cluster={"autoscaler": scaler})


def section(result: SimulationResult, title: str) -> Section:
    return next(found for found in cluster_sections(result) if found.title.startswith(title))


def test_replicas_that_only_serve_have_no_table(simulation: SimulationResult) -> None:
    assert cluster_sections(simulation) == []
    assert cluster_remarks(simulation.main) == ""
    assert "router" not in dict(rows.simulation_conditions(simulation))
    assert dict(rows.simulation_conditions(simulation))["replicas"] == "1"


def test_conditions_name_kinds_router_and_link(disaggregated: SimulationResult) -> None:
    found = dict(rows.simulation_conditions(disaggregated))
    assert found["GPUs"] == "2 × NVIDIA H100 SXM 80 GB + 2 × NVIDIA H200 SXM 141 GB"
    assert found["kind 1"] == "2 × prefill on 1 × h100-sxm"
    assert found["kind 2"] == "1 × decode on 2 × h200-sxm; tensor parallel 2"
    assert found["engine"].startswith("vLLM")
    assert found["router"] == "least-outstanding; round-robin for decode"
    assert found["KV transfers over"] == "1 × infiniband-ndr-400, 50 GB/s after 5 µs; one per prefill replica"
    assert not {"GPU", "tensor parallel", "replicas"} & set(found)


def test_conditions_name_failures_and_autoscaler(failing: SimulationResult, scaled: SimulationResult) -> None:
    found = dict(rows.simulation_conditions(failing))
    assert found["failures"] == "replica 1 at 2 s for 4 s; requests retried after 500 ms"
    assert found["router"] == "prefix-aware (up to 4 outstanding requests more than the least loaded)"
    found = dict(rows.simulation_conditions(scaled))
    assert found["replicas"] == "1 to 3"
    assert found["autoscaler"] == (
        "1 to 3 replicas, one per 2 outstanding requests, looks every 1 s; 1 s to start one, fewer after 2 s"
    )


def test_engines_that_differ_stand_with_their_kind() -> None:
    pools = [{"replicas": 1}, {"replicas": 2, "engine": "sglang"}]
    result = small_simulation(cluster={"pools": pools, "failures": [{"mtbf_s": "1 h", "mttr_s": "5 min"}]})
    found = dict(rows.simulation_conditions(result))
    assert "engine" not in found
    assert found["kind 1"].startswith("1 replica on 1 × h100-sxm; vLLM")
    assert found["kind 2"].startswith("2 replicas on 1 × h100-sxm; SGLang")
    assert found["failures"].startswith("every replica at random, up for 3,600 s and down for 300 s in the mean")


@pytest.mark.parametrize(("other", "names"), [({}, ("pool 0", "pool 1")), ({"engine": "sglang"}, ("vllm", "sglang"))])
def test_kinds_alike_are_told_apart(other: dict[str, str], names: tuple[str, str]) -> None:
    result = small_simulation(cluster={"pools": [{"replicas": 1}, {"replicas": 1, **other}]})
    table = section(result, "By kind").table
    assert [row[0] for row in table.rows] == [f"1 replica on 1 × h100-sxm, {name}" for name in names]


def test_the_table_by_kind_adds_up(disaggregated: SimulationResult) -> None:
    run = disaggregated.main
    table = section(disaggregated, "By kind of replica, speculation on").table
    column = {name: [row[i] for row in table.rows] for i, name in enumerate(table.headers)}
    assert column["GPUs"] == ["2", "2"]
    # Every request has its first token from a prefill replica, all others from the decode replica.
    assert column["output tokens"] == ["80", f"{80 * 59:,}"]
    assert column["prompt tokens"][0] == "8,000"
    makespan_s = run.summary.makespan_s
    prices = [kind.deployment.gpu.price_usd_per_s * 2 * makespan_s for kind in run.kinds]
    assert column["USD"] == [f"{usd:.2f}" for usd in prices]


def test_transfers_are_those_of_the_records(disaggregated: SimulationResult) -> None:
    """80 prompts of 100 tokens at 131,072 bytes a token: 1.05 GB; each takes 5 µs + 13.1 MB / 50 GB/s = 267 µs."""
    table = {row[0]: row[1:] for row in section(disaggregated, "KV transfers").table.rows}
    assert table["transfers"] == ("80", "80")
    assert table["sent"] == ("1.05 GB", "1.05 GB")
    assert table["transfer, mean"] == table["transfer, p99"] == ("267 µs", "267 µs")
    assert table["links"] == ("2", "2")
    busy = disaggregated.main.transfers.busy_s / disaggregated.main.summary.makespan_s
    assert table["links busy, busiest"][0] == f"{busy.max():.1%}"


def test_outages_in_a_table_and_a_sentence(failing: SimulationResult) -> None:
    run = failing.main
    failed, back = run.happened
    assert failed.state == State.FAILED
    assert back.time_s - failed.time_s == pytest.approx(4.0)
    table = {row[0]: row[1] for row in section(failing, "Outages").table.rows}
    share = 4.0 / (2 * run.summary.makespan_s)
    assert table["failures"] == "1"
    assert table["requests thrown out and retried"] == f"{failed.requests}" == f"{run.requests['retries'].sum()}"
    assert table["down"] == f"{share:.1%}"
    assert cluster_remarks(run) == (
        f"Replicas failed once and threw out {failed.requests} requests; they were down for {share:.1%} of the time."
    )
    story = section(failing, "What happened to replicas").table
    assert story.rows == [
        (f"{failed.time_s:.1f} s", "1", "failed", f"{failed.requests}"), (f"{back.time_s:.1f} s", "1", "serving", ""),
    ]  # fmt: skip


def test_hours_of_an_autoscaler(scaled: SimulationResult) -> None:
    run = scaled.main
    table = {row[0]: row[1] for row in section(scaled, "Autoscaler").table.rows}
    held_h, most_h = run.held_s.sum() / 3600, 3 * run.summary.makespan_s / 3600
    assert table["GPU-hours held"] == f"{held_h:.3g}"
    assert table["of all its replicas all the time"] == f"{most_h:.3g}"
    assert table["held, of that"] == f"{held_h / most_h:.1%}"
    assert f"{held_h / most_h:.0%} of what all its replicas would have held" in cluster_remarks(run)


def test_twenty_rows_and_then_how_many_more(failing: SimulationResult) -> None:
    story = tuple(
        Happening(float(k), k % 2, State.FAILED if k % 4 < 2 else State.SERVING, requests=k) for k in range(33)
    )
    many = replace(failing, runs=(replace(failing.main, happened=story),))
    found = section(many, "What happened")
    assert len(found.table.rows) == 20
    assert found.note == "… 13 more"


def test_the_document_has_all_of_it(
    disaggregated: SimulationResult, failing: SimulationResult, simulation: SimulationResult
) -> None:
    import json

    loaded = json.loads(documents.to_json(documents.simulation_document(disaggregated)))["runs"][0]
    cluster, summary = loaded["cluster"], loaded["summary"]
    assert [kind["role"] for kind in cluster["kinds"]] == ["prefill", "decode"]
    assert [kind["gpu"] for kind in cluster["kinds"]] == ["h100-sxm", "h200-sxm"]
    assert cluster["transfers"]["n"] == 80
    assert cluster["end_s"] - cluster["start_s"] == pytest.approx(summary["makespan_s"])
    # Shares of the timeline are of all replicas' blocks: what was used adds up to the records'.
    run = disaggregated.main
    used = sum(loaded["timeline"]["kv_share"]) * loaded["timeline"]["width_s"] * run.fleet_blocks
    assert used == pytest.approx(run.series[3].sum(), rel=1e-4)
    assert run.fleet_blocks == 2 * run.kinds[0].total_blocks + run.kinds[1].total_blocks
    loaded = json.loads(documents.to_json(documents.simulation_document(failing)))["runs"][0]["cluster"]
    assert [h["state"] for h in loaded["happened"]] == ["failed", "serving"]
    assert loaded["outages"]["lost_requests"] == loaded["happened"][0]["requests"]
    loaded = json.loads(documents.to_json(documents.simulation_document(simulation)))["runs"][0]["cluster"]
    assert (len(loaded["kinds"]), loaded["transfers"], loaded["outages"], loaded["scaling"]) == (1, None, None, None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_have_their_transfers(
    disaggregated: SimulationResult, simulation: SimulationResult, suffix: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(columns, "ROW_GROUP", 33)  # variants share groups, and groups end inside variants
    path = tmp_path / f"rows{suffix}"
    columns.write_requests(disaggregated, str(path))
    if suffix == ".parquet":
        found = pq.read_table(path).to_pydict()
    else:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        found = {
            name: [float(line[name]) for line in lines] for name in ("kv_transfer_s", "kv_wait_s", "prefill_replica")
        }
    for name, field in (
        ("kv_transfer_s", "transfer_s"),
        ("kv_wait_s", "wait_s"),
        ("prefill_replica", "prefill_replica"),
    ):
        expected = np.concatenate([getattr(run.transfers, field) for run in disaggregated.runs])
        assert found[name] == expected.tolist()
    assert set(columns.request_columns(disaggregated)) - set(columns.request_columns(simulation)) == {
        "prefill_replica", "handed_over_s", "kv_wait_s", "kv_transfer_s",
    }  # fmt: skip


def test_replicas_over_time_are_drawn_where_they_change(
    failing: SimulationResult, simulation: SimulationResult
) -> None:
    figure = serving.load_figure(failing)
    assert len(figure.data) == 6
    steps, run = figure.data[5], failing.main
    assert steps.line.shape == "hv"
    assert list(steps.y) == [2, 1, 2, 2]
    assert list(steps.x) == pytest.approx([0.0, run.happened[0].time_s, run.happened[1].time_s, run.cluster.end_s])
    assert len(serving.load_figure(simulation).data) == 2 * 5


def test_timelines_are_of_all_kinds(disaggregated: SimulationResult) -> None:
    found = serving.timeline_of(disaggregated.main)
    busy_s = disaggregated.main.series[0].sum()
    assert found.busy_share.sum() * found.width_s * 3 == pytest.approx(busy_s)
    assert np.all(found.kv_share <= 1.0)


def test_pages_have_the_tables_and_the_memory_of_each_kind(
    disaggregated: SimulationResult, scaled: SimulationResult
) -> None:
    html = page.simulation_page(disaggregated)
    for part in ("By kind of replica, speculation on", "KV transfers", "2 × prefill on 1 × h100-sxm; calibrated"):
        assert part in html
    assert html.count("left for the KV cache") >= 2
    assert "The autoscaler held" in page.simulation_page(scaled)
    titled = page.simulation_page(
        replace(disaggregated, scenario=disaggregated.scenario.model_copy(update={"title": ""}))
    )
    assert "llama-3.1-8b on 2 × NVIDIA H100 SXM 80 GB + 2 × NVIDIA H200 SXM 141 GB" in titled


@pytest.mark.parametrize("width", [80, 120])
def test_reports_of_clusters_fit(
    disaggregated: SimulationResult, failing: SimulationResult, scaled: SimulationResult, width: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(width))
    for result in (disaggregated, failing, scaled):
        print_blocks(simulation_report(result, 1.0))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= width
    assert "nan" not in text


def test_speculation_s_room_is_that_of_the_replicas_that_draft(disaggregated: SimulationResult) -> None:
    (sentence,) = [b for b in simulation_report(disaggregated, 1.0) if isinstance(b, str) and "KV room" in b]
    on, off = disaggregated.main.kinds[1], disaggregated.plain.kinds[1]
    assert sentence.startswith(
        f"Speculation costs KV room on 2 × h200-sxm: {on.total_blocks:,} KV blocks per replica instead of {off.total_blocks:,}"
    )


def test_lists_count_the_gpus_of_all_pools() -> None:
    assert _scenario_row("mixed-gpus")[2] == "2 × h100-sxm + 2 × a100-sxm-80gb + 2 × l40s"
    assert _scenario_row("autoscaled-day")[2] == "4 × l40s"
    assert _scenario_row("disaggregated-8b")[2] == "5 × h100-sxm"
    chat = load_scenario("chat-70b-h200")
    assert _scenario_row("chat-70b-h200")[2] == f"{chat.replicas * chat.tp} × {chat.gpu}"
