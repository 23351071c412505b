"""Pages stand alone, carry the numbers of the command line, treat users' text as text, and reproduce themselves."""

from __future__ import annotations

import json

import pytest
import yaml

import simulator
from simulator import load_scenario
from simulator.figures import page
from simulator.hardware import load_gpu, what_if
from simulator.output.report import speculate_sentence
from simulator.output.simulation_report import simulation_table
from tests.figures.conftest import HOSTILE


@pytest.fixture(scope="session")
def pages(step, grid, service, plain_service):
    return {
        "decode": page.decode_page(step, step.timeline()),
        "speculate": page.speculate_page(grid),
        "simulate": page.simulation_page(service),
        "plain": page.simulation_page(plain_service),
    }


@pytest.mark.parametrize("name", ["decode", "speculate", "simulate", "plain"])
def test_page_is_one_file_that_loads_nothing(pages, outline, name):
    found = outline(pages[name])
    assert found.loads == []
    assert not found.open
    assert pages[name].count("plotly.js v") == 1
    assert "default-src 'none'" in pages[name]
    assert len(found.ids) == len(set(found.ids))
    assert "@import" not in pages[name].split("</style>")[0]


@pytest.mark.parametrize(("name", "figures"), [("decode", 6), ("speculate", 2), ("simulate", 8), ("plain", 6)])
def test_every_figure_is_there_with_finding_and_data(pages, outline, name, figures):
    found = outline(pages[name])
    assert len(found.plots) == figures
    for text in found.plots:
        figure = json.loads(text)
        assert figure["data"]
        assert figure["layout"].get("title", {}).get("text") is None
        assert figure["layout"]["meta"]["finding"] in " ".join(found.visible)


def test_decode_page_carries_verdict_conditions_and_numbers(pages, outline, step):
    text = outline(pages["decode"]).text
    for part in (
        step.verdict,
        "llama-3.1-8b",
        step.deployment.gpu.title,
        step.deployment.engine.title,
        "2048 tokens each",
    ):
        assert part in text
    assert step.deployment.target.efficiency.label in text
    assert f"{step.step_s * 1e3:.3f}" in text


def test_speculate_page_carries_the_grid(pages, outline, grid):
    text = outline(pages["speculate"]).text
    assert speculate_sentence(grid) in text
    assert f"{grid.cells[4, 8].speedup:.2f}" in text


def test_simulation_page_carries_the_table_of_the_command_line(pages, outline, service):
    found = outline(pages["simulate"])
    for row in simulation_table(service).rows:
        for cell in row:
            assert cell.strip() in found.text
    assert "200 read = 200 used" in found.text
    assert service.traffic.source in found.text


def test_hostile_title_is_text(pages, outline):
    ours = outline(pages["decode"]).scripts - len(outline(pages["decode"]).plots)
    found = outline(pages["simulate"])
    assert HOSTILE in found.text
    assert HOSTILE not in pages["simulate"]
    assert found.scripts == ours + len(found.plots)


def test_hostile_model_name_is_text_in_figures(step, outline):
    from dataclasses import replace

    target = step.deployment.target
    decoder = replace(target.decoder, name="</script><script>alert(1)</script>")
    hostile = simulator.deploy(decoder, "h100")
    result = simulator.decode(hostile)
    found = outline(page.decode_page(result))
    assert found.scripts == 2 + len(found.plots)
    assert not any("<script" in plot for plot in found.plots)


def test_scenario_yaml_gives_the_scenario_back(service, plain_service, cluster_service):
    for result in (service, plain_service, cluster_service):
        again = load_scenario(yaml.safe_load(page.scenario_yaml(result.scenario)))
        assert again == result.scenario


def test_calls_give_the_results_back(step, grid):
    for text, expected in (
        (page.decode_call(step), step.step_s),
        (page.speculate_call(grid), grid.cells[4, 8].speedup),
    ):
        names: dict[str, object] = {}
        exec(text, names)
        result = names["result"]
        value = result.step_s if hasattr(result, "step_s") else result.cells[4, 8].speedup
        assert value == pytest.approx(expected, rel=1e-12)


def test_the_call_gives_back_what_is_spread_over_gpus():
    spread = simulator.deploy("gpt-oss-120b", "h100", tp=2, pp=2, ep=4, expert_skew=1.5, expert_exponent=0.5)
    names: dict[str, object] = {}
    exec(page.decode_call(simulator.decode(spread, batch=3)), names)
    again = names["deployment"].target
    assert (again.tp, again.pp, again.experts) == (2, 2, spread.target.experts)
    assert names["result"].step_s == simulator.decode(spread, batch=3).step_s


def test_the_call_gives_back_a_gpu_that_nobody_sells(outline):
    faster = what_if(load_gpu("h100"), hbm_bandwidth_factor=2.5)
    result = simulator.decode(simulator.deploy("llama-3.1-8b", faster), batch=3)
    names: dict[str, object] = {}
    exec(page.decode_call(result), names)
    assert names["result"].deployment.gpu == faster
    assert names["result"].step_s == result.step_s
    text = outline(page.decode_page(result)).text
    assert "2.5 × the HBM bandwidth" in text
    assert "calibrated (h100-sxm)" not in text.replace("uncalibrated", "")


def test_same_result_gives_the_same_page(step):
    assert page.decode_page(step) == page.decode_page(step)
