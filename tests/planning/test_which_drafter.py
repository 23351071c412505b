"""Drafters side by side: each as if priced alone, the fastest first, and nobody left out without a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.deployment import Deployment, deploy
from simulator.errors import DoesNotFit, InputError, UnknownName
from simulator.planning.crossover import speculate
from simulator.planning.which_drafter import GIVEN, Compared, Comparison, candidates, compare_drafters
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig
from simulator.speculation.drafters import load_drafter
from simulator.speculation.tree_size import tree_sizes
from simulator.speculation.typical import acceptance_interval

PLAIN = deploy("llama-3.1-8b", "h100")
ONE_B, APART = "llama-3.2-1b", "parallel-llama-3.2-1b"


def alpha(rate: float, **more: float) -> AcceptanceConfig:
    return AcceptanceConfig(alpha=rate, **more)


def compare(rates: dict[str, AcceptanceConfig], plain: Deployment = PLAIN, **options) -> Comparison:
    """Just these drafters."""
    options = {"gammas": (1, 2, 4), "batches": (1, 16), **options}
    return compare_drafters(plain, names=list(rates), acceptance=rates, **options)


def only(found: Comparison) -> Compared:
    (one,) = found.compared
    return one


def test_every_drafter_for_the_model_is_compared_or_left_out_with_a_reason():
    found = compare_drafters(PLAIN, gammas=(2,), batches=(1,))
    names = [one.name for one in found.compared] + [one.name for one in found.left_out]
    assert sorted(names) == candidates(PLAIN)
    assert {"eagle-llama-3.1-8b", "eagle3-llama-3.1-8b"} <= {one.name for one in found.compared}
    for name in set(catalog.names("drafter")) - set(names):
        assert load_drafter(name).targets
        assert "llama-3.1-8b" not in load_drafter(name).targets
    for left in found.left_out:
        assert (load_drafter(left.name).acceptance is None) == (left.why == "acceptance")


def test_what_copies_from_one_kind_of_text_is_compared_where_asked_for_or_alone():
    left = {one.name: one.why for one in compare_drafters(PLAIN, gammas=(2,), batches=(1,)).left_out}
    assert left["ngram-code-edits"] == "text"
    assert (
        only(compare_drafters(PLAIN, names=["ngram-code-edits"], gammas=(2,), batches=(1,))).name == "ngram-code-edits"
    )
    alone = compare_drafters(deploy("qwen3-14b", "h100-sxm"), gammas=(2,), batches=(1,))
    assert "ngram-code-edits" in {one.name for one in alone.compared}


def test_modules_of_the_model_itself_are_offered():
    assert {"mtp", "mtp-deepseek-v3"} <= set(candidates(deploy("deepseek-v3", "h200", tp=8)))
    assert "mtp" not in candidates(PLAIN)


def test_each_is_what_it_is_alone():
    rates = {ONE_B: alpha(0.7), "eagle3-llama-3.1-8b": AcceptanceConfig(marginal=(0.7, 0.5, 0.4))}
    found = compare(rates)
    for one in found.compared:
        law = rates[one.name].law()
        alone = speculate(
            deploy("llama-3.1-8b", "h100", draft=one.name), law, gammas=(1, 2, 4), batches=(1, 16), context_tokens=1024
        )
        for batch in found.batches:
            choice = one.choices[batch]
            assert choice.depth == alone.shown_gamma(batch)
            assert choice.speedup == pytest.approx(alone.cells[choice.depth, batch].speedup, rel=1e-12)
            assert choice.interval.low == pytest.approx(alone.intervals[batch].low, rel=1e-12)
            assert choice.interval.high == pytest.approx(alone.intervals[batch].high, rel=1e-12)
            assert found.plain[batch].round.tpot_s == alone.cells[1, batch].plain.tpot_s


def test_the_order_of_names_changes_nothing():
    rates = {ONE_B: alpha(0.7), "ngram": alpha(0.5, match_probability=0.6), "eagle-llama-3.1-8b": alpha(0.6)}
    one_way, other = compare(rates), compare(dict(reversed(rates.items())))
    for batch in one_way.batches:
        assert [one.name for one in one_way.ranking(batch)] == [one.name for one in other.ranking(batch)]
    speedups = {one.name: [c.speedup for c in one.choices.values()] for one in one_way.compared}
    assert speedups == {one.name: [c.speedup for c in one.choices.values()] for one in other.compared}


def test_a_tree_is_chosen_where_it_beats_chains():
    found = only(compare({ONE_B: alpha(0.6)}, trees=(4, 16), gammas=tuple(range(1, 5)), batches=(1, 64)))
    sizes = tree_sizes(found.deployment, Acceptance((0.6,)), nodes=(4, 16), depths=range(1, 5), batches=(1, 64))
    for batch, choice in found.choices.items():
        tree, chain = sizes.best_tree(batch), sizes.chains[batch]
        assert choice.priced.tokens_per_s == pytest.approx(max(tree.tokens_per_s, chain.tokens_per_s), rel=1e-12)
        assert choice.is_tree == (tree.tokens_per_s > chain.tokens_per_s)
    assert found.choices[1].is_tree


def test_look_ups_draft_no_trees():
    found = only(compare({"ngram": alpha(0.8)}, trees=(16,)))
    assert found.trees is None
    assert not any(choice.is_tree for choice in found.choices.values())


def test_the_last_batch_that_pays():
    short = {"gammas": (3,), "batches": (1, 8), "context_tokens": 64}
    one = only(compare({ONE_B: alpha(0.55)}, **short))
    assert 0 < one.pays_up_to < one.largest_batch
    cells = speculate(
        one.deployment,
        Acceptance((0.55,)),
        gammas=(3,),
        batches=(one.pays_up_to, one.pays_up_to + 1),
        context_tokens=64,
    ).cells
    assert cells[3, one.pays_up_to].speedup > 1.0 >= cells[3, one.pays_up_to + 1].speedup
    # As far as the cache and the engine go.
    sure = only(compare({ONE_B: alpha(0.95)}, context_tokens=8192))
    room = sure.deployment.concurrency(context_tokens=8192, gamma=1).speculative
    assert sure.pays_up_to == sure.largest_batch == min(room, sure.deployment.engine.settings.max_sequences)


def test_drafts_that_are_never_accepted_lose_to_plain_decoding():
    found = compare({ONE_B: alpha(0.0), "ngram": alpha(0.0)})
    assert [found.winner(batch) for batch in found.batches] == [None, None]
    assert [found.cheapest(batch) for batch in found.batches] == [None, None]
    assert [one.pays_up_to for one in found.compared] == [0, 0]
    # The least bad is to draft least.
    assert {choice.depth for one in found.compared for choice in one.choices.values()} == {1}


def test_what_does_not_fit_does_not_win():
    found = compare({ONE_B: alpha(0.9)}, batches=(1, 400), context_tokens=1024)
    one = only(found)
    assert one.concurrency.speculative < 400 <= one.concurrency.plain
    assert not one.choices[400].priced.fits
    assert found.plain[400].fits
    assert one.choices[400].speedup > 1.0
    assert found.winner(1) is one
    assert found.winner(400) is None


def test_gpus_that_only_draft_are_paid_for():
    found = compare({ONE_B: alpha(0.7), APART: alpha(0.7)})
    shared, apart = found.compared
    assert (shared.extra_gpus, apart.extra_gpus) == (0, 1)
    price = PLAIN.gpu.price_usd_per_s
    assert price is not None
    for batch in found.batches:
        assert shared.choices[batch].cost_ratio == pytest.approx(1.0 / shared.choices[batch].speedup)
        choice = apart.choices[batch]
        assert choice.cost_ratio == pytest.approx(2.0 / choice.speedup)
        plain_usd = price / found.plain[batch].tokens_per_s * 1e6
        assert choice.usd_per_million_tokens == pytest.approx(plain_usd * choice.cost_ratio)
    assert found.winner(1) is apart
    assert found.cheapest(1) is shared


def test_memory_by_hand():
    shared, apart = compare({ONE_B: alpha(0.7), APART: alpha(0.7)}).compared
    # 16 layers, 8 KV heads of 64, keys and values, 2 bytes each; 1,235,814,400 parameters of which the LM head is the embedding.
    assert shared.draft_kv_bytes_per_token == apart.draft_kv_bytes_per_token == 16 * 8 * 64 * 2 * 2
    assert apart.weight_bytes == pytest.approx(2 * 1_235_814_400, rel=1e-3)
    assert shared.weight_bytes == apart.weight_bytes
    assert shared.concurrency.speculative < apart.concurrency.speculative <= apart.concurrency.plain


def test_one_number_leaves_nothing_open_at_its_own_gamma():
    config = AcceptanceConfig(length=2.6, at_gamma=4)
    at_it = only(compare({ONE_B: config}, gammas=(4,))).choices[1]
    assert at_it.known_to == pytest.approx((at_it.speedup, at_it.speedup), rel=1e-9)
    elsewhere = only(compare({ONE_B: config}, gammas=(8,))).choices[1]
    laws = acceptance_interval(config, "model")
    assert laws is not None
    tau = [law.live_tokens(8) for law in laws]
    assert elsewhere.known_to is not None
    least, most = elsewhere.known_to
    # The first pass takes τ tokens of each sequence; one token more or less does not show in its time.
    assert least / elsewhere.speedup == pytest.approx(min(tau) / tau[1], rel=1e-3)
    assert most / elsewhere.speedup == pytest.approx(max(tau) / tau[1], rel=1e-3)
    assert only(compare({ONE_B: alpha(0.6)})).choices[1].known_to is None


def test_one_number_of_a_tree():
    one = only(compare({ONE_B: AcceptanceConfig(length=2.2, at_gamma=6)}, trees=(16,), batches=(1,)))
    choice = one.choices[1]
    assert choice.is_tree
    assert choice.known_to is not None
    assert choice.known_to[0] < choice.speedup < choice.known_to[1]


@settings(max_examples=10, deadline=None)
@given(st.floats(0.05, 0.9), st.floats(0.01, 0.1))
def test_better_drafts_are_not_slower(rate: float, more: float):
    options = {"gammas": (1, 3), "batches": (1, 32)}
    worse, better = (only(compare({"eagle-llama-3.1-8b": alpha(r)}, **options)) for r in (rate, rate + more))
    assert all(better.choices[b].speedup > worse.choices[b].speedup for b in (1, 32))


def test_given_acceptance_goes_first_and_says_so():
    found = compare_drafters(PLAIN, acceptance={ONE_B: alpha(0.7)}, gammas=(2,), batches=(1,))
    one = next(one for one in found.compared if one.name == ONE_B)
    assert (one.given, one.dataset, one.source) == (True, GIVEN, "given")
    assert GIVEN in found.texts
    assert one in found.on(GIVEN)
    published = next(one for one in found.compared if not one.given)
    assert published.dataset == published.config.dataset != ""


def test_what_does_not_go_with_the_model_is_said():
    rates = {ONE_B: alpha(0.7), "eagle-llama-3.1-70b": alpha(0.7), "qwen3-0.6b": alpha(0.7), "mtp": alpha(0.7)}
    found = compare(rates)
    assert [one.name for one in found.compared] == [ONE_B]
    reasons = {left.name: left.reason for left in found.left_out}
    assert "hidden size 4096" in reasons["eagle-llama-3.1-70b"]
    assert "vocabulary" in reasons["qwen3-0.6b"]
    assert "multi-token-prediction" in reasons["mtp"]
    assert {left.why for left in found.left_out} == {"fit"}


def test_a_drafter_without_room_is_said():
    small = deploy("llama-3.1-8b", "rtx-4090")
    found = compare({"llama-3.1-8b": alpha(0.8), "ngram": alpha(0.5)}, small, batches=(1,))
    assert [one.name for one in found.compared] == ["ngram"]
    assert "more than the" in found.left_out[0].reason


def test_heads_limit_the_drafts():
    vicuna = deploy("vicuna-7b", "h100")
    assert compare({"medusa-vicuna-7b": alpha(0.6)}, vicuna, gammas=(3, 8)).compared[0].choices[1].depth == 3
    with pytest.raises(InputError, match="make 6 drafts in a row"):
        compare({"medusa-vicuna-7b": alpha(0.6)}, vicuna, gammas=(6, 8))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"names": [ONE_B]}, "no acceptance is published"),
        ({"names": ["eagle-llama-3.1-70b"]}, "hidden size"),
        ({"names": ["eagle3-lama-3.1-8b"]}, "did you mean eagle3-llama-3.1-8b"),
        ({"names": ["ngram"], "acceptance": {ONE_B: AcceptanceConfig(alpha=0.5)}}, "drafters compared"),
        ({"gammas": ()}, "gamma"),
        ({"gammas": (65,)}, "gamma"),
        ({"batches": ()}, "batch"),
        ({"batches": (0,)}, "batch"),
        ({"context_tokens": 131_072}, "context"),
        ({"trees": (1000,)}, "nodes"),
    ],
)
def test_refusals(options, complaint):
    with pytest.raises(InputError, match=complaint):
        compare_drafters(PLAIN, **options)


def test_a_deployment_that_speculates_already():
    with pytest.raises(InputError, match="be left out"):
        compare_drafters(deploy("llama-3.1-8b", "h100", draft=ONE_B))


def test_unknown_names_are_unknown_names():
    with pytest.raises(UnknownName):
        compare_drafters(PLAIN, names=["nobody"])


def test_a_target_that_does_not_fit():
    with pytest.raises(DoesNotFit):
        compare_drafters(deploy("llama-3.1-70b", "h100"))
