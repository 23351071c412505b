"""What a device's numbers rest on agrees with the files it is read from, and with what a validation finds."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import catalog
from simulator.calibration.comparison import Comparison
from simulator.calibration.error_record import LEVELS, MEASURED, QUANTILES, folder, read_errors, record_of, records_of
from simulator.calibration.evidence import devices, evidence, published_on, validate_bundled
from simulator.calibration.provenance import kinds, provenance
from simulator.cost.efficiency import PRIOR_ERROR
from simulator.errors import UnknownName
from simulator.output.validation_report import is_fitted
from simulator.uncertainty import interval_factor


def comparison(n=2000, sd=0.1, claimed=0.1):
    rng = np.random.default_rng(7)
    measured = np.exp(rng.uniform(-9, -3, n))
    predicted = measured * np.exp(sd * rng.standard_normal(n))
    labels = {"batch": np.tile([1, 2, 4, 8], n // 4), "model": np.array(["a", "b"] * (n // 2), object)}
    return Comparison("matmul", measured, predicted, "held out by matrix", labels, claimed)


def test_every_gpu_rests_on_something_and_says_so():
    found = devices()
    assert set(found) == set(catalog.names("gpu"))
    assert list(found.values()) == sorted(found.values())  # calibrated, family prior, uncalibrated
    for name, rests_on in found.items():
        e = evidence(name)
        assert e.says.startswith("Calibrated" if rests_on == "calibrated" else "Not calibrated")
        assert e.gpu.title in e.says
        assert (e.errors is not None) == (rests_on == "calibrated")
        if rests_on != "calibrated":
            assert not any(o.measured for o in e.operators)
            assert min(o.mape for o in e.operators) >= PRIOR_ERROR


@pytest.mark.parametrize(
    ("name", "rests_on", "calibration"),
    [
        ("h100", "calibrated", "h100-sxm"),
        ("h200", "family prior", "h100-sxm"),
        ("l4", "family prior", "l40s"),
        ("b200", "uncalibrated", "generic"),
        ("cpu-generic", "uncalibrated", "cpu"),
        ("epyc-9004-1-thread", "calibrated", "epyc-9004-1-thread"),
    ],
)
def test_whose_parameters_a_gpu_takes(name, rests_on, calibration):
    found = evidence(name)
    assert (found.rests_on, found.calibration.name) == (rests_on, calibration)


def test_an_interval_is_the_spread_at_its_quantile():
    matmul = next(o for o in evidence("h100-sxm").operators if o.kind == "matmul")
    # 1.6449 standard deviations to either side hold 90 % of a normal law.
    assert matmul.factor() == pytest.approx(np.exp(1.6449 * matmul.log_sd), rel=1e-4)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(UnknownName, match="did you mean h100-sxm"):
        evidence("h100-smx")


def test_a_users_own_profile_has_nothing_bundled_to_be_held_against(tmp_path):
    path = catalog.locate("gpu", "epyc-9004-1-thread")
    mine = tmp_path / "mine.yaml"
    mine.write_text(path.read_text())
    found = evidence(str(mine))
    assert (found.rests_on, found.errors, found.measurements) == ("calibrated", None, None)


@pytest.mark.parametrize("path", sorted(folder().glob("*.json")), ids=lambda p: p.stem)
def test_the_bundled_records_are_those_of_the_calibration(path):
    """Both were written by the same validation: a calibration that was fitted anew needs its records anew."""
    errors, found = read_errors(path.stem), evidence(path.stem)
    assert errors is not None
    assert errors.gpu == path.stem
    for record in errors.records:
        assert not is_fitted(record.basis)
        assert abs(record.worst_error) >= record.p95_error >= record.median_error
        assert all(sum(slot.points for slot in slots) <= record.points for slots in record.by.values())
    if path.stem == "epyc-9004-1-thread":  # whose records are of whole steps; held against a new fit below
        return
    compared = 0
    for operator in found.operators:
        mapes = [record.mape for record in errors.records if record.name == operator.name]
        if operator.measured and mapes:
            assert any(mape == pytest.approx(operator.mape, rel=0.01) for mape in mapes), operator.name
            compared += 1
    assert compared >= 3


def test_a_record_sums_up_what_the_comparison_says():
    c = comparison()
    record = record_of(c)
    assert record.points == len(c)
    assert record.mape == pytest.approx(c.mape, rel=1e-3)
    assert record.coverage == {f"{level:g}": pytest.approx(c.coverage(level), abs=1e-4) for level in LEVELS}
    np.testing.assert_allclose(record.ratios, np.quantile(c.predicted_s / c.measured_s, QUANTILES), rtol=1e-4)
    assert record.interval_factor == pytest.approx(float(interval_factor(0.1)), rel=1e-4)
    assert [slot.text for slot in record.by["batch"]] == ["1", "2", "4", "8"]
    assert [slot.text for slot in record.by["model"]] == ["a", "b"]
    assert sum(slot.points for slot in record.by[MEASURED]) == len(c)
    assert all(a.median_s < b.median_s for a, b in zip(record.by[MEASURED], record.by[MEASURED][1:], strict=False))


def test_points_without_a_time_are_left_out_of_a_record():
    c = comparison(n=8)
    c.predicted_s[0], c.measured_s[1] = np.nan, 0.0
    (record,) = records_of([c])
    assert record.points == 6
    empty = c.where(np.zeros(8, bool), "none")
    assert records_of([empty]) == ()


def test_a_label_of_many_values_is_gathered_in_stretches_that_hold_all_points():
    rng = np.random.default_rng(3)
    measured = np.ones(500)
    c = Comparison("x", measured, measured, "held out", {"tokens": rng.integers(1, 100, 500)})
    slots = record_of(c).by["tokens"]
    assert sum(slot.points for slot in slots) == 500
    assert len(slots) <= 8


def test_published_speeds_belong_to_the_gpu_they_were_measured_on():
    found = published_on("h100-sxm")
    assert found is not None
    assert all(q.unit in ("s", "tokens/s") for q in found.quantities)
    assert "H100" in found.title
    assert published_on("mi325x") is None
    whole = sum(len(v.quantities) for name in catalog.names("gpu") if (v := published_on(name)) is not None)
    assert whole >= len(found.quantities)


def test_the_bundled_measurements_are_fitted_again_and_tell_how_far_they_are():
    told = []
    (found,) = validate_bundled(evidence("epyc-9004-1-thread"), lambda *what: told.append(what))
    errors = read_errors("epyc-9004-1-thread")
    assert errors is not None
    assert told
    ours = {c.name: c.mape for c in found.comparisons}
    for record in errors.records:
        assert ours[record.name] == pytest.approx(record.mape, rel=0.02), record.name


def test_a_gpu_without_measurements_has_none_to_validate():
    assert validate_bundled(evidence("b200")) == []


def test_every_figure_has_its_source():
    rows = provenance("h200", "vllm", "llama-3.1-8b", "eagle-llama-3.1-8b")
    assert {"datasheet", "fitted", "estimate", "price-list", "configuration", "measured"} == set(kinds(rows))
    assert sum(kinds(rows).values()) == len(rows)
    bandwidth = next(r for r in rows if r.figure == "hbm bandwidth")
    assert (bandwidth.value, bandwidth.kind) == ("4.8 TB/s", "datasheet")
    assert bandwidth.url.startswith("https://")
    for row in rows:
        assert row.source, row
        assert row.value, row
    taken = [r for r in rows if "taken over by h200-sxm" in r.subject]
    assert all(r.kind in ("fitted", "estimate") for r in taken)


@pytest.mark.parametrize("kind", ["gpu", "engine", "model", "drafter"])
def test_everything_bundled_says_where_it_comes_from(kind):
    for name in catalog.names(kind):
        given = {} if kind == "gpu" else {kind: name}
        rows = provenance(name if kind == "gpu" else "l4", **given)
        assert all(row.source for row in rows), name


def test_one_published_number_of_acceptance_does_not_make_rates_by_depth_measured():
    rows = {
        row.figure: row for row in provenance("h100", drafter="mtp-deepseek-v3") if row.subject.startswith("drafter")
    }
    assert (rows["tokens per round at γ = 1"].value, rows["tokens per round at γ = 1"].kind) == ("1.875", "measured")
    by_depth = rows["conditional acceptance by depth"]
    assert by_depth.kind == "estimate"
    assert by_depth.value.startswith("0.87,")  # 1.875 − 1, cut
    assert "one number is stated" in by_depth.note


def test_no_more_depths_are_told_as_measured_than_were_published():
    (row,) = (r for r in provenance("h100", drafter="eagle3-qwen3-8b") if "acceptance" in r.figure)
    # marginal 0.6541, 0.3993, 0.202 are conditional 0.6541, 0.6105, 0.5059
    assert (row.value, row.kind) == ("0.65, 0.61, 0.51", "measured")
    (row,) = (r for r in provenance("h100", drafter="llama-3.1-8b") if "acceptance" in r.figure)
    assert (row.figure, row.value, row.kind) == ("conditional acceptance at every depth", "0.80", "estimate")


def test_intervals_of_published_speeds_are_counted_on_the_gpu_they_are_shown_for():
    found = published_on("a100-sxm-80gb")
    assert found is not None
    held = sum(q.low <= q.measured <= q.high for q in found.quantities)
    assert dict(found.conditions)["intervals"].endswith(f"they hold {held} of {len(found.quantities)} figures")
