"""Policies as they are written down: forms that are accepted, sentences that refuse, plans that come of them."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator import load_scenario
from simulator.errors import InputError, MemwallError
from simulator.records import validate
from simulator.scenario import Speculation
from simulator.speculation.policies import (
    BY_ORACLE,
    BY_PAST,
    BY_TABLE,
    always,
    by_table,
    off_above,
)
from simulator.speculation.shape import MAX_GAMMA, PLAIN, DraftShape, chain

TRAFFIC = {"kind": "poisson", "rate_per_s": 1, "requests": 10, "lengths": {"prompt": 100, "output": 20}}


def policy(data):
    """A policy as part of what it belongs to, from YAML or from what YAML is read as."""
    data = yaml.safe_load(data) if isinstance(data, str) else data
    return validate(Speculation, {"draft": "llama-3.2-1b", "policy": data}, "").policy


def refused(**speculation):
    """The sentence that refuses `speculation`."""
    with pytest.raises(InputError) as caught:
        validate(Speculation, {"draft": "llama-3.2-1b", **speculation}, "")
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def scenario(speculation, **more):
    return load_scenario({
        "model": "llama-3.1-8b", "gpu": "h100-sxm", "traffic": TRAFFIC, "speculation": speculation, **more,
    })  # fmt: skip


# What is written


@pytest.mark.parametrize(
    ("text", "kind", "mode"),
    [
        ("fixed", "fixed", BY_TABLE),
        ("goodput", "goodput", BY_TABLE),
        ("per-request", "per-request", BY_PAST),
        ("oracle", "oracle", BY_ORACLE),
        ("{kind: oracle}", "oracle", BY_ORACLE),
        ("{off_above: 32}", "off-above", BY_TABLE),
        ("{kind: off-above, off_above: 32}", "off-above", BY_TABLE),
        ("{table: {batches: [1, 9], gamma: [4, 0]}}", "table", BY_TABLE),
        ("{}", "fixed", BY_TABLE),
    ],
)
def test_a_policy_is_a_name_or_a_mapping(text, kind, mode):
    found = policy(text)
    assert (found.kind, found.mode) == (kind, mode)


def test_with_one_context_a_plain_list_of_gammas_will_do():
    short = policy("{table: {batches: [1, 9, 33], gamma: [5, 2, 0]}}")
    assert short == policy("{table: {batches: [1, 9, 33], contexts: [0], gamma: [[5], [2], [0]]}}")
    assert short.table.gamma == ((5,), (2,), (0,))


def test_what_is_read_can_be_written_and_read_again():
    found = policy("{table: {batches: [1, 9], contexts: [0, 1000], gamma: [[4, 2], [0, 1]]}}")
    assert policy(found.model_dump(exclude_none=True)) == found


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("sometimes", "kind"),
        ({"off_above": 0}, "policy.off_above=0 must be at least 1"),
        ({"off_above": -3}, "policy.off_above=-3 must be at least 1"),
        ({"kind": "off-above"}, "policy.off_above='(absent)' must be given with kind off-above and with no other"),
        ({"kind": "table"}, "policy.table='(absent)' must be given with kind table and with no other"),
        ({"kind": "goodput", "off_above": 4}, "policy.off_above=4 must be given with kind off-above and with no other"),
        ({"off_above": 4, "table": {"batches": [1], "gamma": [4]}}, "must be given with kind table and with no other"),
        ({"off_abve": 4}, "off_abve must be a known field"),
        ({"table": {"batches": [1]}}, "gamma"),
        ({"table": {"batches": [], "gamma": []}}, "policy.table.batches=[] must begin with 1 and rise"),
        ({"table": {"batches": [2, 4], "gamma": [3, 0]}}, "policy.table.batches=[2, 4] must begin with 1 and rise"),
        ({"table": {"batches": [1, 4, 4], "gamma": [3, 1, 0]}}, "policy.table.batches=[1, 4, 4] must begin with 1 and rise"),
        (
            {"table": {"batches": [1], "contexts": [5], "gamma": [[3]]}},
            "policy.table.contexts=[5] must begin with 0 and rise",
        ),
        (
            {"table": {"batches": [1], "contexts": [0, 9, 8], "gamma": [[3, 2, 1]]}},
            "policy.table.contexts=[0, 9, 8] must begin with 0 and rise",
        ),
        (
            {"table": {"batches": [1, 4], "gamma": [3]}},
            "policy.table.gamma=[[3]] must have 2 rows (batches) of 1 (contexts)",
        ),
        (
            {"table": {"batches": [1, 4], "contexts": [0, 9], "gamma": [[3, 2], [1]]}},
            "policy.table.gamma=[[3, 2], [1]] must have 2 rows (batches) of 2 (contexts)",
        ),
        ({"table": {"batches": [1], "gamma": [-1]}}, f"policy.table.gamma=-1 must be between 0 and {MAX_GAMMA}"),
        (
            {"table": {"batches": [1], "gamma": [MAX_GAMMA + 1]}},
            f"policy.table.gamma={MAX_GAMMA + 1} must be between 0 and {MAX_GAMMA}",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(data, said):
    assert said in refused(policy=data)


@pytest.mark.parametrize("data", [3, [4, 0], {"off_above": 2.5}, {"off_above": "many"}, {"table": [4, 0]}])
def test_what_is_no_policy_is_refused(data):
    assert "policy" in refused(policy=data)


@given(st.recursive(st.none() | st.integers(-2, 70) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_stands_in_a_table_is_a_policy_or_a_sentence(entry):
    try:
        found = policy({"table": {"batches": [1, 2], "gamma": entry}})
    except InputError:
        return
    assert [len(row) for row in found.table.gamma] == [1, 1]


# What goes with what


@pytest.mark.parametrize("kind", ["per-request", {"table": {"batches": [1], "gamma": [4]}}])
def test_a_tree_has_no_policy_of_chains(kind):
    said = refused(tree=[[0], [1]], policy=kind)
    assert said.endswith("must draft chains: leave out the tree")


@pytest.mark.parametrize("kind", ["fixed", "goodput", "oracle", {"off_above": 2}])
def test_a_tree_goes_with_all_other_policies(kind):
    assert scenario({"draft": "llama-3.2-1b", "tree": [[0], [1]], "policy": kind}).speculation.tree is not None


@pytest.mark.parametrize("gamma", [0, -1, MAX_GAMMA + 1])
def test_gamma_is_a_number_of_drafts(gamma):
    assert f"speculation.gamma={gamma} must be between 1 and {MAX_GAMMA}" in refused(gamma=gamma)


# An engine's own words in a scenario


def test_vllm_s_own_configuration_stands_for_ours():
    own = {"method": "eagle3", "model": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "num_speculative_tokens": 3}
    found = scenario({"vllm": own, "policy": {"off_above": 16}, "acceptance": 0.7}).speculation
    assert (found.draft, found.gamma, found.policy.off_above) == ("eagle3-llama-3.1-8b", 3, 16)


def test_what_else_is_said_goes_before_the_engine_s_words():
    own = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    assert scenario({"vllm": own}).speculation.gamma == 3
    assert scenario({"vllm": own, "gamma": 6}).speculation.gamma == 6


def test_sglang_s_flags_stand_for_ours():
    flags = (
        "--speculative-algorithm EAGLE3 --speculative-draft-model-path jamesliu1/sglang-EAGLE3-Llama-3.1-Instruct-8B "
        "--speculative-num-steps 5 --speculative-eagle-topk 1 --speculative-num-draft-tokens 6"
    )
    found = scenario({"sglang": flags}, engine="sglang")
    assert found.speculation.draft == "eagle3-llama-3.1-8b"
    assert found.speculation.tree is None
    assert found.speculation.gamma == 5


def test_an_engine_s_settings_go_with_its_words_but_not_before_the_scenario_s():
    own = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    assert (
        scenario({"vllm": own}, engine={"name": "vllm", "max_sequences": 7}).engine.model_dump()["max_sequences"] == 7
    )


@pytest.mark.parametrize(
    ("speculation", "said"),
    [
        ({"vllm": {"method": "ngram", "num_speculative_tokens": 3}, "sglang": ""}, "name one engine's configuration"),
        ({"vllm": {"method": "crystal-ball", "num_speculative_tokens": 3}}, "method"),
        ({"vllm": {"method": "ngram", "num_speculative_token": 3}}, "num_speculative_token"),
        ({"vllm": 3}, "speculation.vllm=3 must be a mapping or JSON text"),
        ({"vllm": None}, "speculation.vllm=None must be a mapping or JSON text"),
        ({"tensorrt-llm": [1]}, "speculation.tensorrt-llm=[1] must be a mapping or JSON text"),
        ({"sglang": {"a": 1}}, "must be its flags, as text or as a list"),
    ],
)
def test_an_engine_s_words_are_refused_in_one_sentence(speculation, said):
    with pytest.raises(MemwallError) as caught:
        scenario(speculation)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_engine_is_what_is_refused():
    own = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    with pytest.raises(InputError, match="engine=3 must"):
        scenario({"vllm": own}, engine=3)


# Plans


def test_a_table_holds_from_each_entry_up_to_the_next():
    one, two, three = chain(1), chain(2), chain(3)
    plan = by_table([PLAIN, one, two, three], [1, 4, 9], [0, 100], [[3, 2], [2, 1], [1, 0]])
    assert [plan.shape(n, 0) for n in (0, 1, 3, 4, 8, 9, 1000)] == [three, three, three, two, two, one, one]
    assert [plan.shape(9, mean) for mean in (0.0, 99.9, 100.0, 1e9)] == [one, one, PLAIN, PLAIN]
    assert plan.most_nodes == 3


@given(st.integers(1, 40), st.integers(0, 100), st.floats(0, 1e6))
def test_off_above_is_a_table_of_two_rows(most, sequences, context):
    shape = DraftShape(6, 2, (1, 3))
    plan = off_above(shape, most)
    assert plan.shape(sequences, context) == (shape if sequences <= most else PLAIN)
    assert always(shape).shape(sequences, context) == shape
