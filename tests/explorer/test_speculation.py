"""Page 2 without a browser: what it shows is what the public functions say, and every control does what it names."""

from __future__ import annotations

import csv
import hashlib
import io
import shlex

import pytest

from simulator import Acceptance, catalog, deploy, speculate
from simulator.architecture import load_decoder
from simulator.errors import InputError, MemwallError
from simulator.explorer.answer import Tell, Upload
from simulator.explorer.drafting import BY_DEPTH, FROM_LOG, ONE_RATE, PUBLISHED, Drafting
from simulator.explorer.link import of_query
from simulator.explorer.presets import PRESETS
from simulator.explorer.speculation import WhatSpeculationBuys, offered
from simulator.speculation.acceptance_text import fields_of_text
from simulator.speculation.drafters import load_drafter
from simulator.speculation.tree_size import tree_sizes
from tests.explorer.conftest import findings, shown

PAGE = WhatSpeculationBuys()
LOG = b"request,accepted,drafted\n" + b"1,2,2\n1,1,2\n1,0,2\n1,2,2\n" * 50


def answer(uploads=None, **settings):
    return PAGE.answer(Drafting(**{"gamma": 4, "most": 64, **settings}), uploads or {}, Tell())


def sent(content=LOG, name="mine.csv"):
    return {"log": Upload(name, content, hashlib.sha256(content).hexdigest())}


def numbers(found):
    return {number.label: number.value for number in found.numbers}


# --- the answer -------------------------------------------------------------------------------------------------------
def test_chains_are_those_of_speculate():
    found = numbers(answer(accept=ONE_RATE, alpha=0.6, batch=8, context=2048))
    deployment = deploy("llama-3.1-8b", "h100-sxm", draft="eagle3-llama-3.1-8b")
    result = speculate(deployment, Acceptance((0.6,)), gammas=range(1, 5), batches=[8], context_tokens=2048)
    gamma = result.best_gamma(8)
    cell = result.cells[gamma, 8]
    assert found["Speed-up"] == pytest.approx(cell.speedup)
    assert found["Best γ"] == gamma
    # τ = 1 + α + … + α^γ, and of γ drafts all but τ − 1 are wasted.
    tau = sum(0.6**j for j in range(gamma + 1))
    assert found["Tokens per round"] == pytest.approx(tau)
    assert found["Drafts wasted"] == pytest.approx(1 - (tau - 1) / gamma)
    # Joules: the H100's 700 W as long as a token takes, shared by the batch.
    assert found["Joules per token"] == pytest.approx(700 * found["Time per token"] / 8)
    assert found["Tokens per second"] == pytest.approx(8 / found["Time per token"])


def test_trees_are_those_of_tree_sizes():
    found = numbers(answer(accept=ONE_RATE, alpha=0.6, tree=True, nodes=16, depth=4, batch=2))
    deployment = deploy("llama-3.1-8b", "h100-sxm", draft="eagle3-llama-3.1-8b")
    sizes = tree_sizes(
        deployment, Acceptance((0.6,)), nodes=[1, 2, 4, 8, 16], depths=range(1, 5), batches=[2], context_tokens=1024
    )
    best = sizes.best_tree(2)
    assert found["Nodes of the best tree"] == best.drafted.shape.nodes
    assert found["Speed-up"] == pytest.approx(sizes.speedup(best))


def test_a_batch_beside_the_doubling_ones_is_priced_too():
    assert numbers(answer(batch=1024, most=16))["Speed-up"] is not None


@pytest.mark.parametrize("tree", [False, True])
def test_where_the_kv_cache_is_full_the_page_says_so(tree):
    found = answer(tree=tree, batch=512, context=16384)
    assert any("The KV cache holds" in note and "512" in note for note in found.notes)
    assert "65,536" not in found.verdict


def test_nothing_that_is_accepted_pays_nowhere():
    found = answer(accept=ONE_RATE, alpha=0.0)
    assert numbers(found)["Best γ"] is None
    assert numbers(found)["Pays up to batch"] == 0
    assert "does not pay at any batch" in found.verdict
    assert "nothing pays" in found.verdict


@pytest.mark.parametrize("settings", [{}, {"tree": True, "nodes": 8, "depth": 3}, {"draft": "ngram", "match": 0.4}])
def test_all_its_figures_and_files_can_be_made(settings):
    found = answer(**settings)
    for plot in found.plots:
        meta = found.figure(plot, dark=True).layout.meta
        assert meta["finding"]
        assert meta["tag"]
    for download in found.downloads:
        assert download.make()


def test_two_settings_pair_by_label_but_for_what_is_of_one_kind():
    chain, tree = answer(), answer(tree=True)
    alike = set(numbers(chain)) & set(numbers(tree))
    assert {"Speed-up", "Tokens per round", "Time per token", "Drafts wasted", "Joules per token"} <= alike
    assert {plot.key for plot in chain.plots} & {plot.key for plot in tree.plots} >= {"speedup", "rounds", "waste"}


def test_the_table_holds_every_cell():
    found = answer(most=16)
    (made,) = [d.make() for d in found.downloads if d.file_name.endswith(".csv")]
    rows = list(csv.DictReader(io.StringIO(made)))
    assert {(int(r["gamma"]), int(r["batch"])) for r in rows} == {(g, b) for g in range(1, 5) for b in (1, 2, 4, 8, 16)}


@pytest.mark.parametrize(
    "settings",
    [
        {"accept": ONE_RATE, "alpha": 0.65, "weights": "fp8", "engine": "sglang", "batch": 4},
        {"draft": "ngram", "match": 0.4, "accept": BY_DEPTH, "rates": "marginal:0.7,0.5"},
        {},
        {"tree": True, "nodes": 8, "depth": 3, "accept": ONE_RATE},
    ],
)
def test_the_command_line_gives_the_same_speed_up(settings, tmp_path, capsys):
    from simulator.cli import main

    found = answer(most=8, **settings)
    file = tmp_path / "cells.csv"
    words = shlex.split(found.code["On the command line"])
    assert words[0] == "memwall"
    assert main([*words[1:], "--csv", str(file)]) == 0
    (ours,) = [d.make() for d in found.downloads if d.file_name.endswith(".csv")]
    assert file.read_text(encoding="utf-8") == ours
    assert capsys.readouterr().out


@pytest.mark.parametrize("settings", [{}, {"tree": True, "nodes": 8, "depth": 3}])
def test_python_gives_the_same(settings):
    found = answer(most=8, **settings)
    names: dict[str, object] = {}
    exec(found.code["In Python"], names)
    result = names["result"]
    speedup = numbers(found)["Speed-up"]
    if settings:
        assert result.speedup(result.best_tree(1)) == pytest.approx(speedup)
    else:
        assert result.cells[result.best_gamma(1), 1].speedup == pytest.approx(speedup)


# --- acceptance -------------------------------------------------------------------------------------------------------
def test_published_rates_are_the_drafters():
    found = answer(gamma=1, accept=PUBLISHED)
    law = load_drafter("eagle3-llama-3.1-8b").acceptance.law(kind="eagle3")
    assert numbers(found)["Tokens per round"] == pytest.approx(1 + law.conditional(1)[0])
    assert not found.notes


def test_where_none_is_published_the_page_says_what_it_takes():
    found = answer(draft="llama-3.2-1b", gamma=1, alpha=0.75)
    assert numbers(found)["Tokens per round"] == pytest.approx(1.75)
    assert any("No acceptance is published" in note and "0.75" in note for note in found.notes)


def test_conditional_and_marginal_rates_are_not_the_same():
    conditional, marginal = (
        numbers(answer(gamma=2, accept=BY_DEPTH, rates=rates)) for rates in ("0.8,0.5", "marginal:0.8,0.4")
    )
    assert conditional == pytest.approx(marginal)
    assert conditional != numbers(answer(gamma=2, accept=BY_DEPTH, rates="0.8,0.4"))


@pytest.mark.parametrize(
    ("rates", "word"), [("", "empty"), ("many", "numbers"), ("0.5,1.2", "numbers"), ("length:9@2", "3 tokens")]
)
def test_rates_that_make_no_sense(rates, word):
    with pytest.raises(InputError, match=word):
        answer(accept=BY_DEPTH, rates=rates)


def test_one_number_names_the_doubt_it_leaves():
    assert any("one number" in note for note in answer(accept=BY_DEPTH, rates="length:2.5@2").notes)


def test_without_a_log_the_page_says_what_it_takes_instead():
    assert any("No log" in note for note in answer(accept=FROM_LOG).notes)


def test_a_log_is_shown_beside_what_its_rates_give():
    # First drafts are kept in 3 of 4 rounds, second ones in 2 of those 3.
    found = answer(sent(), accept=BY_DEPTH, rates="conditional:0.75,0.66667", gamma=2)
    assert any(label == "your log" and "200 rounds" in text for label, text in found.conditions)
    assert fields_of_text(next(text for title, text in found.code.items() if "table" in title))
    assert "log" in {plot.key for plot in found.plots}
    other = answer(sent(), accept=BY_DEPTH, rates="0.7,0.6", gamma=2)  # pinned while the file was there
    assert "log" not in {plot.key for plot in other.plots}


def test_more_drafts_than_a_drafter_has_heads():
    found = answer(model="vicuna-7b", draft="medusa-vicuna-7b", gamma=16)
    heads = load_drafter("medusa-vicuna-7b").heads
    assert any(f"at most {heads} drafts" in note for note in found.notes)


# --- the page ---------------------------------------------------------------------------------------------------------
def test_it_shows_its_figures(app):
    page = app("speculation")
    assert page.title[0].value == "What does speculation buy?"
    assert shown(page)["Speed-up"].endswith("×")
    assert len(findings(page)) == 6


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.path == "speculation"], ids=lambda p: p.title)
def test_a_preset_is_a_link_that_works(app, preset):
    settings = of_query(Drafting, preset.query)
    assert settings.draft in offered(settings.model)
    assert settings.query()  # a preset that changes nothing would be none
    page = app("speculation", **{name: str(value) for name, value in settings.changed().items()})
    assert shown(page) == {n.label: n.text for n in PAGE.answer(settings, {}, Tell()).numbers}
    assert not page.warning or "one number" in page.warning[0].value


def test_only_drafters_that_go_with_the_model_are_offered(app):
    page = app("speculation")
    assert "eagle-llama-3.1-70b" not in page.selectbox(key="draft").options
    page.selectbox(key="model").set_value("deepseek-v3")
    page.selectbox(key="gpu").set_value("h200-sxm")
    page.select_slider(key="tp").set_value(8).run()
    assert page.selectbox(key="draft").value == "mtp-deepseek-v3"
    assert shown(page)


def test_trees_have_controls_of_their_own(app):
    page = app("speculation")
    page.toggle(key="tree").set_value(True).run()
    assert "Nodes of the best tree" in shown(page)
    assert not [s for s in page.slider if s.key == "gamma"]
    page.select_slider(key="nodes").set_value(8).run()
    assert int(shown(page)["Nodes of the best tree"]) <= 8
    page.selectbox(key="draft").set_value("ngram").run()  # which finds one candidate only
    assert not [t for t in page.toggle if t.key == "tree"]
    assert "Best γ" in shown(page)


def test_wrong_rates_explain_themselves_beside_the_control(app):
    page = app("speculation", accept=BY_DEPTH, rates="0.7,0.6")
    good = {metric.label: metric.value for metric in page.metric}
    page.text_input(key="rates").set_value("lots").run()
    assert not page.exception
    assert any("rates='lots'" in error.value.replace("\\", "") for error in page.error)
    assert {metric.label: metric.value for metric in page.metric} == good


def test_a_slider_of_acceptance_moves_the_figures(app):
    page = app("speculation", accept=ONE_RATE)
    before = shown(page)["Speed-up"]
    page.slider(key="alpha").set_value(0.9).run()
    assert float(shown(page)["Speed-up"].split()[0]) > float(before.split()[0])


@pytest.mark.parametrize("model", ["gemma-3-27b", "phi-2", "gpt-oss-20b", "mixtral-8x7b"])
def test_every_model_has_something_that_drafts(app, model):
    page = app("speculation", model=model, gpu="h200-sxm")
    assert not page.exception
    assert page.metric


def test_settings_name_what_is_bundled():
    settings = Drafting()
    assert settings.model in catalog.names("model")
    assert settings.draft in offered(settings.model)
    assert load_decoder(settings.model).max_context_tokens >= settings.context


def test_a_link_that_asks_for_too_much_is_refused_in_one_sentence():
    with pytest.raises(MemwallError) as caught:
        of_query(Drafting, "accept=much")
    assert "\n" not in str(caught.value)


def test_a_batch_that_the_kv_cache_cannot_hold_is_said_so_where_its_speed_up_is():
    assert "At batch 64, for which the KV cache has no room, γ = " in answer(context=65536, batch=64).verdict
    assert "At batch 4, γ = " in answer(context=65536, batch=4).verdict
