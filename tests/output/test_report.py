"""What is printed: columns that add up, sentences that follow from the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.decoding import DecodeResult, decode
from simulator.deployment import Deployment, deploy
from simulator.figures.page import simulation_verdict
from simulator.output import documents, report, rows, simulation_report
from simulator.output.tables import Section, _column_blocks, print_blocks
from simulator.planning.crossover import SpeculateResult, speculate
from simulator.serving.intervals import RATIO, Intervals
from simulator.serving.replications import Replicated, Replications
from simulator.serving.simulation import Run, SimulationResult
from simulator.speculation.acceptance import Acceptance
from simulator.uncertainty import Interval
from tests.output.conftest import made_up, small_simulation


def section(blocks: list[report.Block], title: str) -> Section:
    return next(b for b in blocks if isinstance(b, Section) and b.title.startswith(title) and (title or not b.title))


@pytest.mark.parametrize("title", ["where the time goes, by cause", "where the time goes, by operator"])
def test_milliseconds_add_up_to_the_step(step: DecodeResult, title: str) -> None:
    table = section(report.decode_report(step), title).table
    column = table.headers.index("ms")
    parts = sum(float(row[column]) for row in table.rows if row[0] != "total")
    assert parts == pytest.approx(step.step_s * 1e3, abs=0.0005 * len(table.rows))


def test_shares_name_the_datasheet_and_the_calibration_its_error(step: DecodeResult) -> None:
    blocks = report.decode_report(step)
    text = str(blocks)
    assert text.count("of the datasheet's peak") == 2
    assert "calibrated" in str(blocks[-1])
    assert "typical error" in str(blocks[-1])


def test_each_batch_has_one_best_gamma_marked(grid: SpeculateResult) -> None:
    table = section(report.speculate_report(grid), "speed-up").table
    assert [row[0] for row in table.rows] == ["1", "3"]
    for column in (1, 2):
        assert [row[column].rstrip(")").endswith("*") for row in table.rows].count(True) == 1


def test_nothing_is_said_of_batches_beyond_the_kv_cache() -> None:
    deployment = deploy("llama-3.1-8b", "h100-sxm", draft="ngram")
    result = speculate(deployment, Acceptance((0.9,)), gammas=[2], batches=[1, 1024], context_tokens=8000)
    room = deployment.concurrency(context_tokens=8000, gamma=2).speculative
    assert not result.cells[2, 1024].fits
    sentence = report.speculate_sentence(result)
    assert f"pays at every batch that fits: the KV cache holds {room} sequences" in sentence
    assert "1,024" not in sentence
    table = section(report.speculate_report(result), "where each").table
    assert [row[:2] for row in table.rows] == [("2", f"{room} (all that fit)")]


def test_the_simulation_has_every_percentile_of_every_latency(simulation: SimulationResult) -> None:
    table = simulation_report.simulation_table(simulation)
    assert table.headers == ("", "speculation", "off", "ratio")
    names = [row[0].strip() for row in table.rows]
    for point in ("p50", "p90", "p95", "p99", "n"):
        assert names.count(point) == 4
    assert [n for n in names if n.endswith(" mean") and "," not in n] == [
        "TTFT mean",
        "TPOT mean",
        "ITL mean",
        "E2E mean",
    ]


def test_the_ratio_is_speculation_over_off(simulation: SimulationResult) -> None:
    row = next(r for r in simulation_report.simulation_table(simulation).rows if r[0] == "TPOT mean")
    expected = simulation.main.summary.tpot_s.mean / simulation.plain.summary.tpot_s.mean
    assert row[3] == f"{expected:.2f}"


def test_intervals_stand_by_variant_and_as_a_ratio(simulation: SimulationResult) -> None:
    found = Intervals({
        ("speculation", "tpot_s.mean"): Interval(8e-3, 9e-3), ("plain", "tpot_s.mean"): Interval(10e-3, 12e-3),
        (RATIO, "tpot_s.mean"): Interval(0.7, 0.8),
    })  # fmt: skip
    table = simulation_report.interval_section(simulation, found).table
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["TPOT mean"] == ("8.00 ms to 9.00 ms", "10.0 ms to 12.0 ms", "0.70 to 0.80")
    assert rows["TTFT p99"] == ("–", "–", "–")


def test_a_step_has_its_interval(step: DecodeResult) -> None:
    """Not symmetric: as far below as above in proportion."""
    interval = step.interval
    assert interval.low < step.step_s < interval.high
    assert interval.low * interval.high == pytest.approx(step.step_s**2)
    assert "90 %" in str(report.decode_report(step))


def test_the_sentence_says_faster_or_slower(simulation: SimulationResult) -> None:
    faster = simulation.main.summary.tpot_s.mean < simulation.plain.summary.tpot_s.mean
    assert ("faster" if faster else "slower") in simulation_report.simulation_sentence(simulation)
    hopeless = small_simulation(speculation={"draft": "llama-3.2-1b", "gamma": 8, "acceptance": 0.0})
    assert "slower" in simulation_report.simulation_sentence(hopeless)


def test_a_single_class_has_no_table_of_classes(simulation: SimulationResult) -> None:
    assert not [b for b in simulation_report.simulation_report(simulation, 1.0) if "classes" in str(b)]


def test_classes_stand_with_their_objectives(with_classes: SimulationResult) -> None:
    blocks = simulation_report.simulation_report(with_classes, 1.0)
    assert section(blocks, "").note == "goodput: requests that met the objectives of their class"
    assert section(blocks, "classes, speculation off")
    table = section(blocks, "classes, speculation on").table
    assert [row[0] for row in table.rows] == ["kind 0", "kind 1", "kind 2"]
    assert [row[-1] for row in table.rows] == ["TTFT ≤ 1 s", "TPOT ≤ 15 ms", "TPOT ≤ 15 ms"]
    measured = sum(int(row[1].replace(",", "")) for row in table.rows)
    assert measured == with_classes.main.summary.measured


def test_doubts_come_before_the_verdict_and_remarks_after_it(with_classes: SimulationResult) -> None:
    verdict = simulation_verdict(with_classes)
    places = [verdict.index(words) for words in ("requests finished", "makes tokens", "Speculation costs KV room")]
    assert places == sorted(places)


def test_every_end_is_told_once(with_classes: SimulationResult) -> None:
    said = simulation_report.statements(with_classes)
    (ends,) = [s for s in said if "requests finished" in s]
    for name in ("rejected as larger than the KV cache", "refused", "timed out", "cancelled", "abandoned"):
        assert name in ends


def test_a_growing_queue_is_told_of_the_variant_it_grows_in(growing: SimulationResult) -> None:
    (sentence,) = [s for s in simulation_report.statements(growing) if "only grows" in s]
    assert sentence.startswith("Without: The queue only grows: 12.0 requests/s arrive, 9.3/s leave")


def test_half_widths_stand_beside_their_figures(with_classes: SimulationResult, simulation: SimulationResult) -> None:
    blocks = simulation_report.simulation_report(with_classes, 1.0)
    rows = {row[0]: row for row in section(blocks, "How well").table.rows}
    width = with_classes.main.summary.confidence["ttft_s.mean"]
    assert rows["TTFT mean"][1].endswith(f"± {width.half_width * 1e3:.1f} ms")
    assert rows["TTFT mean"][3:] == (f"{width.batches}", f"{width.batch_size}", f"{width.correlation:.2f}")
    assert simulation_report.confidence_section(simulation) is None  # twenty requests say nothing of that kind


def test_an_interrupted_run_says_so_and_compares_nothing(cut_short: SimulationResult) -> None:
    blocks = simulation_report.simulation_report(cut_short, 1.0)
    text = [b for b in blocks if isinstance(b, str)]
    assert any(b.startswith("Speculation interrupted at t = 150 s after ") for b in text)
    assert any("unfinished" in b for b in text)
    assert not any("makes tokens" in b for b in text)
    assert simulation_report.simulation_table(cut_short).headers == ("", "speculation")


def test_requests_that_nobody_could_serve_are_not_passed_over(with_classes: SimulationResult) -> None:
    def strand(run: Run) -> Run:
        return replace(run, summary=replace(run.summary, requests={**run.summary.requests, "unfinished": 7}))

    result = made_up(strand)
    assert [s for s in simulation_report.statements(result) if "incomplete" in s] == [
        "The run is incomplete: nothing was left that could serve 7 of the requests."
    ]
    assert documents.simulation_document(result)["complete"] is False
    assert not [s for s in simulation_report.statements(with_classes) if "incomplete" in s]


def test_speculation_costs_room(simulation: SimulationResult) -> None:
    sentence = simulation_report.room_sentence(simulation)
    room = simulation.deployment.concurrency(context_tokens=112, gamma=3)
    ours, plain = simulation.main.total_blocks, simulation.plain.total_blocks
    assert sentence == (
        f"Speculation costs KV room: {ours:,} KV blocks per replica instead of {plain:,}, {room.speculative:,} requests of "
        f"112 tokens at once instead of {room.plain:,} ({-100 * room.lost_share:+.1f}%)."
    )
    assert simulation_report.room_sentence(small_simulation(speculation=None)) == ""


def test_replications_stand_by_variant_and_as_a_ratio(simulation: SimulationResult) -> None:
    found = Replications(
        8, {("speculation", "tpot_s.mean"): Replicated(8e-3, 1e-4), (RATIO, "tpot_s.mean"): Replicated(0.75, 0.01)}
    )
    block = simulation_report.replication_section(simulation, found)
    assert "8 replications" in block.title
    rows = {row[0]: row[1:] for row in block.table.rows}
    assert rows["TPOT mean"] == ("8.00 ms ± 0.10 ms", "–", "0.750 ± 0.010")


@pytest.mark.parametrize("width", [80, 100])
def test_reports_of_all_kinds_fit(
    with_classes: SimulationResult, growing: SimulationResult, cut_short: SimulationResult, width: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(width))
    for result in (with_classes, growing, cut_short):
        print_blocks(simulation_report.simulation_report(result, 1.0))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= width
    assert "nan" not in text


def test_plain_decoding_alone_has_one_column() -> None:
    result = small_simulation(speculation=None)
    table = simulation_report.simulation_table(result)
    assert table.headers == ("", "plain decoding")
    assert not [row for row in table.rows if "draft" in row[0] or "acceptance" in row[0]]
    assert not any("Speculation" in b for b in simulation_report.simulation_report(result, 1.0) if isinstance(b, str))


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_lines_are_no_wider_than_the_terminal(
    step: DecodeResult, grid: SpeculateResult, simulation: SimulationResult, width: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(width))
    print_blocks(
        [
            *report.decode_report(step),
            *report.speculate_report(grid),
            *simulation_report.simulation_report(simulation, 1.0),
        ]
    )
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text  # nothing is cut off


def test_a_table_that_is_too_wide_repeats_its_first_column() -> None:
    table = report.Table(("name", "aaaa", "bbbb", "cccc"), [("x", "1", "2", "3")])
    assert _column_blocks(table, 80) == [[0, 1, 2, 3]]
    assert _column_blocks(table, 16) == [[0, 1, 2], [0, 3]]
    assert _column_blocks(table, 5) == [[0, 1], [0, 2], [0, 3]]


# --- several GPUs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sixteen() -> Deployment:
    """A copy of the model on a pipeline of two groups of eight."""
    return deploy("llama-3.1-405b", "h200", tp=8, pp=2)


def test_a_pipeline_counts_the_gpus_of_all_its_stages(sixteen: Deployment) -> None:
    step = decode(sixteen, batch=6, context_tokens=100)
    head, conditions = str(report.decode_report(step)[0]), dict(rows.decode_conditions(step))
    assert head.startswith("llama-3.1-405b on 16 × NVIDIA H200")
    assert "batch 6 in 2 micro-batches" in head
    assert conditions["GPU"].startswith("16 × ")
    assert (conditions["tensor parallel"], conditions["pipeline"]) == ("8", "2 stages")
    assert conditions["batch"] == "6 sequences in 2 micro-batches"
    assert documents.decode_document(step)["deployment"]["gpus"] == 16


def test_where_the_experts_are_is_a_condition() -> None:
    spread = deploy("gpt-oss-120b", "h100", tp=4, ep=4, expert_skew=1.5, expert_exponent=0.5)
    conditions = dict(rows.deployment_rows(spread))
    assert conditions["experts"] == (
        "spread over 4 GPUs, the busiest with 1.5 × the mean of their tokens, popularity ∝ 1/rank^0.5"
    )
    evenly = dict(rows.deployment_rows(deploy("gpt-oss-120b", "h100", tp=4)))
    assert not {"pipeline", "experts"} & set(evenly)


def test_costs_are_compared_where_they_differ(simulation: SimulationResult) -> None:
    def costing(usd: float | None, usd_off: float) -> str:
        runs = [
            replace(run, summary=replace(run.summary, usd_per_million_tokens=each))
            for run, each in zip(simulation.runs, (usd, usd_off), strict=True)
        ]
        return simulation_report.simulation_sentence(replace(simulation, runs=tuple(runs)))

    assert "and a million tokens cost 0.5 instead of 0.6 USD" in costing(0.5, 0.6)
    assert "million tokens" not in costing(0.616, 0.622)  # how long the last answers take
    assert "million tokens" not in costing(None, 0.6)
