"""Scenarios: files, overrides, and what is refused."""

import pytest

from simulator import catalog, load_scenario, simulate
from simulator.errors import DoesNotFit, InputError, UnknownName

MINIMAL = {
    "model": "llama-3.1-8b", "gpu": "h100",
    "traffic": {"kind": "poisson", "rate_per_s": 1, "requests": 10, "lengths": {"prompt": 8, "output": 8}},
}  # fmt: skip


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_every_bundled_scenario_loads_fits_and_names_itself(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.deployment().fit().kv_tokens > 0


def test_traffic_by_name_takes_the_files_load_and_then_the_callers():
    scenario = load_scenario("chat-70b-h200")
    assert (scenario.traffic.rate_per_s, scenario.traffic.requests) == (4, 2000)
    fewer = load_scenario("chat-70b-h200", load={"requests": 50})
    assert (fewer.traffic.rate_per_s, fewer.traffic.requests) == (4, 50)


def test_relative_paths_start_at_the_scenario_file(tmp_path):
    (tmp_path / "rows.csv").write_text("arrival,prompt_tokens,output_tokens\n0,5,5\n")
    (tmp_path / "s.yaml").write_text("model: llama-3.1-8b\ngpu: h100\ntraffic: {kind: trace, path: rows.csv}\n")
    scenario = load_scenario(tmp_path / "s.yaml")
    assert scenario.base == tmp_path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"modle": "x"}, "modle must be a known field .* did you mean model"),
        ({"traffic": "chatt"}, "did you mean chat"),
        ({"traffic": {"kind": "poison"}}, "did you mean poisson"),
        ({"load": {"users": 5}}, "users=5 must be left out for poisson traffic"),
        ({"load": {"rate": 5}}, "rate must be a known field"),
        ({"speculation": {"draft": "ngram", "gamma": 0}}, "gamma=0 must be between 1 and"),
        ({"speculation": {"draft": "ngram", "acceptance": 1.5}}, "alpha=1.5 must be between 0 and 1"),
        ({"slo": {"ttft_s": "2 parsecs"}}, "number with a unit"),
        ({"slo": {"ttft_s": -1}}, "greater than 0"),
        ({"replicas": 0}, "replicas=0"),
        ({"seed": -1}, "seed=-1"),
        ({"warmup": 1.0}, "warmup=1.0"),
        ({"tp": "four"}, "tp='four'"),
    ],
)
def test_what_is_refused_says_field_value_and_rule(changes, sentence):
    with pytest.raises((InputError, UnknownName), match=sentence):
        load_scenario({**MINIMAL, **changes})


def test_stages_and_experts_reach_the_costs():
    spread = {"model": "gpt-oss-120b", "tp": 2, "pp": 2, "ep": 4, "expert_skew": 1.5, "expert_exponent": 0.5}
    links = {"link": "pcie-5-x16", "network": "infiniband-hdr-200"}
    deployment = load_scenario({**MINIMAL, **spread, **links}).deployment()
    target = deployment.target
    assert (deployment.gpus, target.tp, target.pp) == (4, 2, 2)
    assert (target.link.name, target.network.name) == ("pcie-5-x16", "infiniband-hdr-200")
    assert (target.experts.ep, target.experts.skew, target.experts.exponent) == (4, 1.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pp": 0}, "pp=0 must be at least 1"),
        ({"ep": 2}, "ep=2 must be 1, for llama-3.1-8b has no experts"),
        ({"expert_skew": 2.0}, "expert_skew=2.0 must be between 1 and ep=1"),
        ({"expert_exponent": -1.0}, "expert_exponent=-1.0 must be between 0 and 10"),
    ],
)
def test_gpus_that_do_not_suit_the_model_are_refused_when_deployed(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        load_scenario({**MINIMAL, **changes}).deployment()


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ({"name": "vlm"}, "did you mean vllm"),
        ({"name": "vllm", "max_sequences": 0}, "max_sequences=0 must be between 1"),
        ({"name": "vllm", "memory_utilization": 1.5}, "memory_utilization"),
    ],
)
def test_engine_settings_are_checked_when_deployed(engine, sentence):
    with pytest.raises(InputError, match=sentence):
        load_scenario({**MINIMAL, "engine": engine}).deployment().fit()


# What the bundled scenarios say of themselves


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_every_bundled_scenario_can_be_simulated(name):
    result = simulate(load_scenario(name, load={"requests": 60}))
    for run in result.runs:
        ends = run.summary.requests
        assert ends["finished"] > 50
        assert sum(ends.values()) == 60


def test_classes_by_priority_meet_objectives_that_they_miss_in_order_of_arrival():
    served = {}
    for order in ("priority", "fcfs"):
        scenario = load_scenario("mixed-classes")
        engine = scenario.engine.model_copy(update={"order": order})
        found = simulate(scenario.model_copy(update={"engine": engine})).main.summary
        served[order] = {c.name: c.good_share for c in found.classes}
    assert min(served["priority"]["chat"], served["priority"]["code"]) > 0.9
    assert max(served["fcfs"]["chat"], served["fcfs"]["code"]) < 0.5
    assert served["priority"]["background"] < served["fcfs"]["background"]


def test_agents_without_a_prefix_cache_overrun_the_server():
    scenario = load_scenario("agents-multi-turn")
    without = scenario.engine.model_copy(update={"prefix_caching": False})
    cached = simulate(scenario).main.summary
    computed = simulate(scenario.model_copy(update={"engine": without})).main.summary
    assert cached.cached_share > 0.9
    assert computed.cached_share == 0.0
    assert cached.good_share > 0.95
    assert computed.good_share < 0.1


def test_weights_that_need_two_nodes_do_not_fit_one():
    scenario = load_scenario("pipeline-405b")
    assert scenario.deployment().gpus == 16
    with pytest.raises(DoesNotFit):
        scenario.model_copy(update={"pp": 1}).deployment().fit()


def test_on_one_node_spread_experts_cost_more_than_they_save():
    scenario = load_scenario("moe-deepseek-v3-ep", load={"requests": 300})
    split = scenario.model_copy(update={"ep": None, "expert_skew": 1.0})
    even = scenario.model_copy(update={"expert_skew": 1.0})
    skewed, spread, whole = (simulate(s).main.summary.tpot_s.mean for s in (scenario, even, split))
    assert skewed > spread > whole
