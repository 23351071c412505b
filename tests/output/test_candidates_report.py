"""How many GPUs, in words: figures are those of the records, missing prices and missed objectives are said once and clearly."""

from __future__ import annotations

import math

import pytest

from simulator import units
from simulator.output.candidates_report import (
    COLUMNS,
    HEADERS,
    LIMITS,
    binding_text,
    cells,
    conditions,
    level_text,
    plan_row,
    plan_text,
    price_text,
    sections,
    verdict,
)
from simulator.planning.candidate_search import DraftOption, find_plans
from simulator.planning.candidates import Plans
from simulator.planning.capacity import Level
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig

DRAFTS = (DraftOption("llama-3.2-1b", (1, 3), AcceptanceConfig(alpha=0.7)),)
LEVEL = Level(Slo(ttft_s=1.0, tpot_s=0.03))


def search(rate: float = 150.0, level: Level = LEVEL, model: str = "llama-3.1-8b", **changes: object) -> Plans:
    given: dict[str, object] = {"gpus": ("h100", "l4", "mi325x"), "drafts": DRAFTS, **changes}
    return find_plans(model, rate, Work.of_lengths(512, 256), level, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plans() -> Plans:
    return search()


def test_the_verdict_is_of_the_cheapest(plans: Plans) -> None:
    said, best, other = verdict(plans), plans.cheapest, plans.runner_up
    assert best is not None
    assert other is not None
    assert said.startswith(f"Cheapest: {best.gpus} × {best.gpu.title} (")
    assert f"{best.gpus * 2.69:,.2f} USD/h" in said  # the bundled price of an H100
    assert f"{best.usd_per_million_tokens:.3g} USD per million output tokens" in said
    assert f"{1.0 / best.tpot_s:.3g} tokens/s per user" in said
    assert f"Runner-up: {plan_text(other).split(' (')[0]}" in said
    assert binding_text(best) in said
    assert "  " not in said
    assert ".." not in said


def test_a_plan_on_a_gpu_that_nobody_measured_says_so(plans: Plans) -> None:
    calibrated, prior = search(gpus=("h100",)), search(gpus=("h200",))
    assert plans.cheapest is not None
    assert plans.cheapest.gpu.name == "h100-sxm"
    assert "alibrated" not in verdict(calibrated)
    assert "Not calibrated: nobody measured NVIDIA H200 SXM 141 GB here" in verdict(prior)
    only = search(gpus=("mi325x",))  # without a price
    assert "Not calibrated: nobody measured AMD Instinct MI325X 256 GB here" in verdict(only)
    told = dict(conditions(plans))
    assert "h100-sxm: calibrated (h100-sxm)" in told["times rest on"]
    assert "mi325x: uncalibrated (prior of generic)" in told["times rest on"]
    assert "pipelines" in told["left out"]
    assert all(one.share_met <= 1.0 for one in plans.candidates)


def test_missing_prices_are_said_once(plans: Plans) -> None:
    assert verdict(plans).count("No price is known for AMD Instinct MI325X 256 GB") == 1
    assert price_text(search(prices_usd_per_h={"mi325x": 3.0})) == ""
    assert "none for mi325x" in dict(conditions(plans))["prices"]
    assert "mi325x 3 USD/h (given)" in dict(conditions(search(prices_usd_per_h={"mi325x": 3.0})))["prices"]
    only = search(gpus=("mi325x",))
    assert verdict(only).startswith(
        "Nothing that has a price meets TTFT 1 s and TPOT 30 ms for 95% of requests. Without one: "
    )
    assert "USD/h." not in verdict(only).split("No price")[0]


def test_what_binds_is_said_with_the_capacity(plans: Plans) -> None:
    for one in plans.candidates:
        said = binding_text(one)
        assert f"{one.capacity.rate_per_s:.3g} requests/s" in said
        assert ("One replica is enough" in said) == (one.replicas == 1)
        if one.limit == "tpot":
            assert "95% of requests keep a TPOT of 30 ms" in said
        if one.limit == "sequences":
            assert "256 places" in said


@pytest.mark.parametrize(
    ("slo", "said"),
    [(Slo(tpot_s=0.001), "Nothing meets TPOT 1 ms for 95% of requests. Nearest: TPOT "), (Slo(ttft_s=0.001), "Nothing meets TTFT 1 ms")],
)  # fmt: skip
def test_what_cannot_be_met_names_the_nearest(slo: Slo, said: str) -> None:
    found = search(level=Level(slo))
    assert verdict(found).startswith(said)
    relaxed = found.relaxations[0]
    value = getattr(relaxed.slo, relaxed.relaxed[0])
    assert units.show(value, "s") in verdict(found)
    assert units.parse(units.show(value, "s"), "s") >= value * (1.0 - 1e-9)  # what is printed is enough


def test_what_fits_nowhere_is_said_with_the_memory() -> None:
    found = search(model="llama-3.1-405b", drafts=(), gpus=("h100", "l4"))
    said = verdict(found)
    assert said.startswith("llama-3.1-405b fits on none of these: NVIDIA H100 SXM 80 GB with TP 8 needs ")
    assert len(sections(found)) == 1
    none = search(tps=(3,))
    assert "can be served on none of these" in verdict(none)
    assert "tp=3 must" in verdict(none)


def test_tables_have_a_row_per_gpu_and_per_reason(plans: Plans) -> None:
    cheapest, *others = sections(plans)
    assert [row[0] for row in cheapest.table.rows] == [
        *(c.gpu.title for c in plans.cheapest_of.values()), "AMD Instinct MI325X 256 GB",
    ]  # fmt: skip
    assert cheapest.table.rows[-1][HEADERS.index("USD/h")] == "no price"
    for section in (cheapest, *others):
        assert all(len(row) == len(section.table.headers) for row in section.table.rows)
    refused = next(s for s in others if s.title == "what cannot serve this")
    assert {row[0] for row in refused.table.rows} == {r.gpu.title for r in plans.rejected}
    best = plans.cheapest
    assert best is not None
    row = dict(zip(HEADERS, plan_row(best), strict=True))
    assert row["GPUs"] == str(best.gpus)
    assert row["binds"] == LIMITS[best.limit]


def test_cells_recompute(plans: Plans) -> None:
    rows = cells(plans)
    assert len(rows) == len(plans.candidates) + len(plans.rejected)
    for row in rows:
        assert tuple(row) == COLUMNS
        if row["rejected"] is not None:
            assert row["reason"]
            assert row["gpus"] is None
            continue
        assert row["replicas"] == math.ceil(150.0 / row["capacity_per_s"])
        assert row["gpus"] == row["replicas"] * row["tp"]
        assert row["tokens_per_s_per_user"] == pytest.approx(1.0 / row["tpot_s"])
        if row["usd_per_h"] is not None:
            per_million = row["usd_per_h"] / 3600.0 / (150.0 * 256.0) * 1e6
            assert row["usd_per_million_tokens"] == pytest.approx(per_million)
        else:
            assert row["gpu"] == "mi325x"


def test_levels_in_words() -> None:
    assert level_text(Level(Slo(ttft_s=0.5), 0.9)) == "TTFT 500 ms for 90% of requests"
    assert level_text(Level(Slo())) == "no objective for 95% of requests"
