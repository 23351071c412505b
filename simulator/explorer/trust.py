"""Can I trust it? Predicted against measured, the source of every figure, and a profile from one's own measurements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np

from simulator import catalog
from simulator.calibration import evidence as known
from simulator.calibration.comparison import Comparison, Progress, Validation
from simulator.calibration.error_record import ErrorRecord, records_of, whole
from simulator.calibration.evidence import Evidence
from simulator.calibration.provenance import kinds, provenance
from simulator.calibration.sources import CALIBRATING
from simulator.calibration.upload import FITTED_FROM, MOST_BYTES, fit_upload, upload_kind, validate_upload
from simulator.errors import InputError
from simulator.explorer.answer import Answer, Download, Grid, Number, Plot, Tell, Upload, Uploads
from simulator.explorer.controls import Controls
from simulator.explorer.link import Settings
from simulator.explorer.page import Question
from simulator.figures import provenance as provenance_figures
from simulator.figures import validation_summary as summary
from simulator.figures.validation import points_figure
from simulator.figures.validation_page import validation_page
from simulator.figures.validation_runs import course_figure, quantity_figure, roof_figure
from simulator.figures.validation_sweeps import sweep_figure
from simulator.output.documents import to_json
from simulator.output.evidence_report import (
    columns_csv,
    operator_section,
    provenance_columns,
    provenance_sentence,
    record_section,
)
from simulator.output.rows import Table
from simulator.output.tables import Section
from simulator.output.validation_document import comparison_columns, validation_document
from simulator.output.validation_report import (
    NEAR,
    as_list,
    held_out,
    is_fitted,
    quantity_error,
    result_sections,
    verdict,
)
from simulator.scenario import load_scenario
from simulator.serving.simulation import Stopped

What = Literal["errors", "fit again", "published speeds", "sources", "my measurements"]
"""What is shown: errors on what no fit saw; the same, worked out anew; speeds that others published; where every figure comes
from; an upload."""
ALWAYS = ("matmul", "decode_attention", "prefill_attention")
"""Kinds of operators whose error is told even where it is assumed."""
MOST_PARTS = 2
"""Validations of one file with all their plots; kernel tables have four, of which two are other predictors than ours."""
NONE = "none"
"""Where nothing is chosen."""
FILE_KINDS = ("jsonl", "json", "csv", "zip")


class Trust(Settings):
    """What is doubted."""

    device: str = "h100-sxm"
    """Bundled GPU."""
    what: What = "errors"
    """What is shown of it."""
    engine: str = "vllm"
    """Whose sources are listed beside the device's."""
    model: str = "llama-3.1-8b"
    """The same."""
    draft: str = NONE
    """The same: a bundled drafter, or none."""
    gpu: str = NONE
    """Device of uploaded tables; of a measurement file, the profile to hold against it instead of a fit."""
    scenario: str = NONE
    """What served while an uploaded benchmark ran."""


class CanITrustIt(Question[Trust]):
    """The page."""

    path = "trust"
    title = "Can I trust it?"
    settings = Trust
    slow = True

    def controls(self, draw: Controls) -> Trust:
        """What is asked, of which device."""
        chosen = {"what": draw.choice("what", "Show", get_args(What))}
        if chosen["what"] == "my measurements":
            draw.upload(
                "file", "Measurements", FILE_KINDS, most_mb=MOST_BYTES >> 20,
                help="A file of memwall measure, a CSV of timings, a ZIP of kernel tables or layer timings; or a result of vllm bench "
                "serve, SGLang bench_serving or GuideLLM. It stays on this machine.",
            )  # fmt: skip
            chosen["gpu"] = draw.choice(
                "gpu",
                "Measured on",
                [NONE, *catalog.names("gpu")],
                help="Needed for tables that do not name their device.",
            )
            chosen["scenario"] = draw.choice(
                "scenario",
                "What served",
                [NONE, *catalog.names("scenario")],
                help="Needed for results of a serving benchmark.",
            )
            return Trust(**chosen)
        rests = known.devices()
        chosen["device"] = draw.choice("device", "Device", list(rests), help="Calibrated ones first.")
        if chosen["what"] == "sources":
            chosen["engine"] = draw.choice("engine", "Engine", catalog.names("engine"))
            chosen["model"] = draw.choice("model", "Model", catalog.names("model"))
            chosen["draft"] = draw.choice("draft", "Drafter", [NONE, *catalog.names("drafter")])
        return Trust(**chosen)

    def answer(self, settings: Trust, uploads: Uploads, tell: Tell) -> Answer:
        """One of the five. Raises MemwallError, and Stopped where `tell.stop` is set before there is anything to keep."""
        if settings.what == "my measurements":
            return _mine(settings, uploads.get("file"), tell)
        found = known.evidence(settings.device)
        if settings.what == "sources":
            return _sources(settings, found)
        if settings.what == "published speeds":
            return _published(found)
        return _again(found, tell) if settings.what == "fit again" else _errors(found)


def _or_stop(tell: Tell) -> Progress:
    def told(what: str, done: int, of: int) -> None:
        tell(what, done, of)
        if tell.stop.is_set():
            raise Stopped("Stopped before the fits were made.")

    return told


# --- how far off is it? -------------------------------------------------------------------------------------------------
def _errors(found: Evidence) -> Answer:
    records = whole(found.errors.records) if found.errors is not None else []
    subject = found.efficiency.label
    numbers = [
        Number(
            f"Mean error, {o.name}" if o.measured else f"Assumed error, {o.name}", o.mape, "%", "lower",
            (f"n = {o.points:,}, " if o.points else "") + "on what the fit did not see" if o.measured else "nobody measured it here",
        )
        for o in found.operators
        if o.measured or o.kind in ALWAYS
    ]  # fmt: skip
    sections = [operator_section(found)]
    downloads = [_sources_download(found)]
    plots = [Plot("operators", partial(summary.operators_figure, found))]
    if found.errors is not None:
        numbers.insert(0, _coverage_number(records))
        plots += _record_plots(records, subject, middles=True)
        note = f"{found.errors.source}; {found.errors.date}. {found.errors.command} finds them again."
        sections.append(record_section(found.errors.records, "What no fit saw", note))
        text = found.errors.model_dump_json(indent=1, exclude_none=True)
        downloads.append(Download("Errors as JSON", f"{found.gpu.name}-errors.json", "application/json", lambda: text))
    return Answer(
        verdict=found.says,
        conditions=_conditions(found),
        numbers=numbers,
        plots=plots,
        sections=sections,
        downloads=downloads,
        code={"On the command line": f"memwall show gpu {found.gpu.name}\nmemwall validate"},
    )


def _conditions(found: Evidence) -> list[tuple[str, str]]:
    c = found.calibration
    told = [("rests on", found.rests_on), ("calibration", f"{c.name}, {c.kind}, {c.date}"), ("measurements", c.source)]
    return [*told, ("note", c.note)] if c.note else told


def _coverage_number(records: Sequence[ErrorRecord]) -> Number:
    claiming = [r for r in records if r.coverage]
    n = sum(r.points for r in claiming)
    held = sum(r.coverage["0.9"] * r.points for r in claiming)
    share = held / n if n else None
    return Number(
        "Inside 90% intervals", share, "%", "", f"of {n:,} predictions of what their fits did not see; 90% is claimed"
    )


def _record_plots(records: Sequence[ErrorRecord], subject: str, *, middles: bool, key: str = "") -> list[Plot]:
    plots = [Plot(f"{key}middles", partial(summary.middles_figure, records, subject))] if middles else []
    plots.append(Plot(f"{key}spread", partial(summary.spread_figure, records, subject), wide=False))
    if any(r.coverage for r in records):
        plots.append(Plot(f"{key}coverage", partial(_coverage, records, subject), wide=False))
    for label in summary.course_labels(records):
        plots.append(Plot(f"{key}by-{label}", partial(summary.course_figure, records, label, subject), wide=False))
    return plots


def _coverage(records: Sequence[ErrorRecord], subject: str) -> object:
    return summary.held_coverage_figure(records, subject)


# --- measurements held against predictions ------------------------------------------------------------------------------
def _again(found: Evidence, tell: Tell) -> Answer:
    if found.measurements is None and found.tables is None:
        here = [name for name in known.devices() if _has_measurements(name)]
        rule = f"be one whose measurements are on this machine: {', '.join(here)}"
        raise InputError("device", found.gpu.name, rule)
    validations = known.validate_bundled(found, _or_stop(tell))
    command = "memwall validate" if found.measurements else f"memwall validate {found.tables} --gpu {found.gpu.name}"
    return _validated(validations, command, _conditions(found))


def _has_measurements(name: str) -> bool:
    e = known.evidence(name)
    return e.measurements is not None or e.tables is not None


def _published(found: Evidence) -> Answer:
    own = known.published_on(found.gpu.name)
    notes = []
    if own is None:
        notes.append(f"No published speed on {found.gpu.title} is bundled; these are all of them, on other devices.")
    answer = _validated([own or known.published()], "memwall validate", _conditions(found) if own else [])
    answer.notes.extend(notes)
    return answer


def _validated(validations: Sequence[Validation], command: str, conditions: Sequence[tuple[str, str]] = ()) -> Answer:
    shown = as_list(validations)
    plots: list[Plot] = []
    sections: list[Section] = []
    for i, v in enumerate(shown):
        plots += _validation_plots(v, f"{i}-") if i < MOST_PARTS else []
        several = f", {v.title}" if len(shown) > 1 else ""
        sections += [s._replace(title=f"{s.title}{several}" or v.title) for s in result_sections(v)]
        if v.notes:
            sections.append(Section(f"Notes{several}", Table(("",), [(note,) for note in v.notes]), numeric=False))
    first = shown[0]
    return Answer(
        verdict=" ".join(verdict(v) for v in shown),
        conditions=[("validated", first.subject), *first.conditions, *conditions],
        numbers=_validation_numbers(shown),
        plots=plots,
        sections=sections,
        grids=[Grid("Every point", partial(comparison_columns, shown))] if any(v.comparisons for v in shown) else [],
        downloads=[
            Download("Page as HTML", "validation.html", "text/html", partial(validation_page, shown, command)),
            Download("Statistics as JSON", "validation.json", "application/json",
                     lambda: to_json(validation_document(shown))),
            Download("Every point as CSV", "validation.csv", "text/csv", lambda: columns_csv(comparison_columns(shown))),
        ],
        code={"On the command line": command},
    )  # fmt: skip


def _unseen(validation: Validation) -> list[Comparison]:
    comparisons, _ = held_out(validation)
    return whole(comparisons)


def _validation_plots(v: Validation, key: str) -> list[Plot]:
    comparisons = _unseen(v)
    plots: list[Plot] = []
    if v.sweeps:
        plots.append(Plot(f"{key}sweeps", partial(sweep_figure, v.sweeps, v.subject)))
    elif comparisons:
        plots.append(Plot(f"{key}points", partial(points_figure, comparisons, v.subject)))
        records = records_of(comparisons)
        if not all(is_fitted(c.basis) for c in comparisons):
            plots += _record_plots(records, v.subject, middles=False, key=key)
    if v.roof is not None and len(v.roof.flop):
        plots.append(Plot(f"{key}roof", partial(roof_figure, v.roof, v.subject)))
    if any(quantity_error(q) is not None for q in v.quantities):
        plots.append(Plot(f"{key}runs", partial(quantity_figure, v.quantities, v.subject)))
    if any(len(c.time_s) for c in v.courses):
        plots.append(Plot(f"{key}courses", partial(course_figure, v.courses, v.subject)))
    return plots


def _validation_numbers(validations: Sequence[Validation]) -> list[Number]:
    comparisons = [c for v in validations for c in _unseen(v) if not v.sweeps]
    numbers: list[Number] = []
    if comparisons:
        errors = np.abs(np.concatenate([c.errors for c in comparisons]))
        basis = f"n = {len(errors):,}; {', '.join(dict.fromkeys(c.basis for c in comparisons))}"
        numbers += [
            Number("Mean error", float(errors.mean()), "%", "lower", basis),
            Number("Median error", float(np.median(errors)), "%", "lower", basis),
            Number("Worst error", float(errors.max()), "%", "lower", basis),
        ]
        records = records_of(comparisons)
        if any(r.coverage for r in records):
            numbers.append(_coverage_number(records))
    runs = [abs(e) for v in validations for q in held_out(v)[1] if (e := quantity_error(q)) is not None]
    if runs:
        n = f"n = {len(runs):,} figures of whole runs, none fitted on"
        numbers += [
            Number(f"Runs within {NEAR:.0%}", float(np.mean(np.array(runs) <= NEAR)), "%", "higher", n),
            Number("Median error of runs", float(np.median(runs)), "%", "lower", n),
        ]
    return numbers


# --- where does every figure come from? ---------------------------------------------------------------------------------
def _sources(settings: Trust, found: Evidence) -> Answer:
    draft = None if settings.draft == NONE else settings.draft
    rows = provenance(settings.device, settings.engine, settings.model, draft)
    counted = kinds(rows)
    measured = sum(counted.get(kind, 0) for kind in ("measured", "fitted"))
    return Answer(
        verdict=provenance_sentence(rows),
        conditions=[
            ("device", found.gpu.title), ("engine", settings.engine), ("model", settings.model), ("drafter", settings.draft),
        ],
        numbers=[
            Number("Measured or fitted", measured / len(rows), "%", "higher", f"{measured} of {len(rows)} figures"),
            Number("From datasheets", counted.get("datasheet", 0) / len(rows), "%"),
            Number("Estimated or set", counted.get("estimate", 0) / len(rows), "%", "lower"),
        ],
        plots=[Plot("provenance", partial(provenance_figures.provenance_figure, rows))],
        grids=[Grid("Every figure with its source", lambda: provenance_columns(rows))],
        downloads=[
            Download("Every figure as CSV", "sources.csv", "text/csv", lambda: columns_csv(provenance_columns(rows)))
        ],
        code={"On the command line": f"memwall show gpu {settings.device}\nmemwall show engine {settings.engine}"},
    )  # fmt: skip


def _sources_download(found: Evidence) -> Download:
    def made() -> str:
        return columns_csv(provenance_columns(provenance(found.gpu.name)))

    return Download("Sources as CSV", f"{found.gpu.name}-sources.csv", "text/csv", made)


# --- one's own measurements ---------------------------------------------------------------------------------------------
def _mine(settings: Trust, sent: Upload | None, tell: Tell) -> Answer:
    if sent is None:
        return Answer(
            verdict="Send your measurements at the side: they are fitted, validated on what the fit did not see, and given back as a "
            "profile whose path works wherever a GPU's name does.",
            conditions=[("files", f"to be fitted: {FITTED_FROM.removeprefix('be ')}"), ("size", f"at most {MOST_BYTES >> 20} MiB")],
            numbers=[],
            plots=[],
            code={
                "Measure this machine": "pip install 'memwall[torch]'\nmemwall measure -o mine.jsonl",
                "On the command line": "memwall calibrate mine.jsonl -o mine.yaml\nmemwall decode --gpu mine.yaml --engine reference",
            },
        )  # fmt: skip
    tell("Reading the file", 0, 0)
    told, gpu = _or_stop(tell), None if settings.gpu == NONE else settings.gpu
    kind = upload_kind(sent.name, sent.content)
    tables = kind in ("kernels", "layers", "points")
    if kind not in CALIBRATING or (gpu is not None and not tables):
        scenario = None if settings.scenario == NONE else load_scenario(settings.scenario)
        validations = validate_upload(sent.name, sent.content, told, gpu=gpu, scenario=scenario)
        return _validated(validations, f"memwall validate {_quoted(sent.name)}" + (f" --gpu {gpu}" if gpu else ""))
    fitted = fit_upload(sent.name, sent.content, told, gpu=gpu)
    answer = _validated(
        fitted.validations,
        f"memwall calibrate {_quoted(sent.name)} -o {fitted.name}.yaml" + (f" --gpu {gpu}" if gpu else ""),
    )
    text = fitted.profile_yaml
    profile = Download(f"Profile {fitted.name}.yaml", f"{fitted.name}.yaml", "application/yaml", lambda: text)
    answer.downloads.insert(0, profile)
    return answer


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(name)
