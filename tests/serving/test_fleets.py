"""From a scenario's `cluster` to fleets, and whole simulations of clusters: who serves, nobody lost, nothing but the cluster changed."""

import numpy as np
import pytest

from simulator import InputError, load_decoder, load_scenario, simulate
from simulator.cli import main
from simulator.deployment import deploy
from simulator.errors import DoesNotFit
from simulator.hardware import load_link
from simulator.serving import state
from simulator.serving.fleets import gpus_of, kinds_of, plan
from simulator.serving.intervals import simulation_intervals
from simulator.serving.model import ROUTERS
from simulator.serving.simulation import variants_of
from simulator.serving.traffic import generate
from simulator.uncertainty import slowed

DRAFT = {"draft": "llama-3.2-1b", "gamma": 3, "acceptance": 0.7}
DISAGGREGATED = {"pools": [{"role": "decode", "replicas": 3}, {"role": "prefill", "replicas": 2}]}
MIXED = {"router": "power-of-two", "pools": [{"replicas": 2}, {"gpu": "l40s", "replicas": 1}]}
FAILING = {"failures": [{"replica": 1, "at_s": 5, "down_s": 10}], "retry_delay_s": 0.5}
SCALED = {"autoscaler": {"min": 1, "max": 4, "target": 4, "startup_s": 2, "interval_s": 1, "scale_down_after_s": 5}}
CLUSTERS = {
    "prefill and decode": DISAGGREGATED, "mixed": MIXED, "failing": FAILING, "scaled": SCALED,
    **{router: {"router": router} for router in ROUTERS},
}  # fmt: skip


def scenario(cluster=None, *, requests=300, rate=20, prompt=700, output=60, **changes):
    return load_scenario({
        "model": "llama-3.1-8b", "gpu": "h100-sxm", "replicas": 3, "cluster": cluster, "warmup": 0,
        "traffic": {"kind": "poisson", "rate_per_s": rate, "requests": requests,
                    "lengths": {"prompt": prompt, "output": {"kind": "geometric", "mean": output, "max": 10 * output}}},
        **changes,
    })  # fmt: skip


def planned(chosen):
    variant = variants_of(chosen, chosen.deployment())[0]
    return plan(chosen, generate(chosen.traffic, chosen.seed), variant.deployment, variant.drafts)


# --- plans --------------------------------------------------------------------------------------------------------------
def test_without_a_cluster_there_is_one_kind_and_one_fleet():
    found = planned(scenario())
    (kind,), (fleet,) = found.kinds, found.fleets
    assert (kind.pool.role, kind.pool.built) == ("both", 3)
    assert fleet.model_of.tolist() == [0, 0, 0]
    assert ROUTERS[fleet.router] == "least-outstanding"
    assert found.control.links is None
    assert not found.control.scaled


def test_pools_are_models_of_one_fleet_and_hardware_follows_their_order():
    found = planned(scenario({**MIXED, "slack": 7}))
    (fleet,) = found.fleets
    assert fleet.model_of.tolist() == [0, 0, 1]
    assert (ROUTERS[fleet.router], fleet.slack) == ("power-of-two", 7)
    h100, l40s = deploy("llama-3.1-8b", "h100-sxm"), deploy("llama-3.1-8b", "l40s")
    assert [h.peak_bytes_per_s for h in found.hardware] == [d.gpu.hbm_bytes_per_s for d in (h100, h100, l40s)]
    assert [h.total_blocks for h in found.hardware] == [d.fit().kv_blocks(16) for d in (h100, h100, l40s)]


def test_a_drafter_on_a_gpu_of_its_own_has_a_peak_of_its_own():
    h100 = deploy("llama-3.1-8b", "h100-sxm").gpu
    for draft, gpus in (("llama-3.2-1b", 1), ("parallel-llama-3.2-1b", 2)):
        hardware = planned(scenario(speculation={**DRAFT, "draft": draft})).hardware[0]
        assert (hardware.gpus, hardware.peak_bytes_per_s) == (gpus, gpus * h100.hbm_bytes_per_s)
        assert hardware.usd_per_s == h100.price_usd_per_s


def test_prefill_replicas_have_no_drafter_and_come_first():
    found = planned(scenario({**DISAGGREGATED, "decode_router": "least-kv"}, speculation=DRAFT))
    prefill, decode = found.kinds
    assert [prefill.pool.role, decode.pool.role] == ["prefill", "decode"]
    assert (prefill.nodes, prefill.deployment.drafter) == (0, None)
    assert (decode.nodes, decode.deployment.drafter.name) == (3, "llama-3.2-1b")
    assert [fleet.model_of.tolist() for fleet in found.fleets] == [[0, 0], [0, 0, 0]]
    assert [ROUTERS[fleet.router] for fleet in found.fleets] == ["least-outstanding", "least-kv"]
    assert len(found.hardware) == 5
    assert prefill.total_blocks > decode.total_blocks  # no drafter's weights


def test_links_carry_the_target_s_kv_cache_of_all_gpus():
    """Llama-3.1-8B keeps 2 · 32 layers · 8 heads · 128 · 2 bytes = 131,072 bytes per token, whatever the drafter keeps."""
    found = planned(scenario({**DISAGGREGATED}, tp=2, speculation=DRAFT)).control.links
    assert found.bytes_per_token == pytest.approx(131_072)
    network = load_link(deploy("llama-3.1-8b", "h100-sxm").gpu.network_link)
    assert [wire.bytes_per_s for wire in found.wires] == [2 * network.bytes_per_s] * 2
    assert list(found.link_of) == [0, 1]
    shared = planned(scenario({**DISAGGREGATED, "transfer": {"bytes_per_s": "1 GB/s", "per": "cluster"}})).control.links
    assert [wire.bytes_per_s for wire in shared.wires] == [1e9]
    assert list(shared.link_of) == [0, 0]


def test_an_autoscaler_s_replicas_are_built_and_counted_from_the_first_of_its_pool():
    pools = [{"replicas": 2}, {"replicas": 1, "autoscaler": SCALED["autoscaler"]}]
    found = planned(scenario({"pools": pools}))
    ((config, first, replicas),) = [(s.config, s.first, s.replicas) for s in found.control.scaled]
    assert (config.max, first, replicas) == (4, 2, 1)
    assert len(found.hardware) == len(found.fleets[0].model_of) == 6


def test_a_pool_has_a_layout_of_its_own():
    spread = {"tp": 2, "pp": 2, "ep": 4, "expert_skew": 1.5, "expert_exponent": 0.5}
    chosen = scenario({"pools": [{"replicas": 1}, {"replicas": 2, **spread}]}, model="gpt-oss-20b")
    one, four = kinds_of(chosen, chosen.deployment(), None)
    target = four.deployment.target
    assert one.deployment.gpus == 1
    assert (target.tp, target.pp, target.experts) == (2, 2, deploy("gpt-oss-20b", "h100-sxm", **spread).target.experts)
    assert gpus_of(chosen) == {"h100-sxm": 1 + 2 * 4}


def test_what_has_to_fit_is_what_serves():
    pools = {"pools": [{"tp": 4, "replicas": 1}]}
    chosen = scenario(pools, model="llama-3.1-70b")
    with pytest.raises(DoesNotFit):
        chosen.deployment().fit()
    (kind,) = kinds_of(chosen, chosen.deployment(), None)
    assert kind.total_blocks > 0
    assert simulate(chosen.model_copy(update={"traffic": scenario(requests=5).traffic})).main.summary.measured == 5


@pytest.mark.parametrize("source", ["matmul", "host", "step"])
def test_what_is_slower_is_slower_in_all_kinds(source):
    chosen = scenario({"pools": [{"replicas": 1}, {"gpu": "l40s", "replicas": 1}]})
    own, other = (kind.deployment for kind in kinds_of(chosen, slowed(chosen.deployment(), source, 0.2), None))
    expected = slowed(deploy("llama-3.1-8b", "l40s"), source, 0.2)
    assert dict(other.target.efficiency.slower) == dict(expected.target.efficiency.slower)
    assert dict(own.target.efficiency.slower) == dict(other.target.efficiency.slower)
    assert other.engine.host_step_s == pytest.approx(expected.engine.host_step_s)


def test_intervals_know_the_errors_of_pools_that_the_scenario_does_not_run_on():
    """All of the time is spent on the L40S of the pool: an interval that left its errors out would have no width."""
    chosen = scenario({"pools": [{"gpu": "l40s", "replicas": 1}]}, requests=20, rate=1)
    found = simulation_intervals(simulate(chosen)).get("plain", "tpot_s.mean")
    assert found.high / found.low > 1.05


# --- simulations --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("speculation", [None, DRAFT], ids=["plain", "speculation"])
def test_every_request_is_served_once_with_all_its_tokens(name, speculation):
    for run in simulate(scenario(CLUSTERS[name], speculation=speculation)).runs:
        requests = run.requests
        assert (requests["status"] == state.FINISHED).all()
        assert (requests["generated_tokens"] == requests["output_tokens"]).all()
        assert run.summary.requests["finished"] == len(requests) == 300
        assert sum(kind.output_tokens for kind in run.cluster.kinds) == requests["output_tokens"].sum()
        # Whatever is thrown out by a failure is computed again.
        prompts = sum(kind.prompt_tokens for kind in run.cluster.kinds)
        assert prompts >= requests["prompt_tokens"].sum()
        assert (requests["first_token_s"] > requests["arrival_s"]).all()
        assert (requests["last_token_s"] >= requests["first_token_s"]).all()


@pytest.mark.parametrize("router", ROUTERS)
def test_equal_pools_are_replicas_byte_for_byte(router):
    """Two pools of the same GPU are two models of one fleet, and serve as one model does."""
    whole = simulate(scenario({"router": router}, rate=60)).main
    pools = {"router": router, "pools": [{"replicas": 1}, {"gpu": "h100", "replicas": 2}]}
    parts = simulate(scenario(pools, rate=60)).main
    assert len(parts.kinds) == 2
    assert parts.requests.tobytes() == whole.requests.tobytes()
    assert parts.summary.usd_per_million_tokens == whole.summary.usd_per_million_tokens
    if router == "least-outstanding":
        assert simulate(scenario(rate=60)).main.requests.tobytes() == whole.requests.tobytes()


def test_long_prompts_wait_less_where_nobody_decodes_beside_them():
    """Prompts of 4,000 tokens share steps with dozens who decode, or have replicas of their own; as many GPUs either way."""
    load = {"prompt": 4000, "output": 200, "rate": 20, "requests": 600}
    alone = simulate(
        scenario({"pools": [{"role": "prefill", "replicas": 4}, {"role": "decode", "replicas": 2}]}, **load)
    )
    mixed = simulate(scenario(replicas=6, **load))
    assert alone.main.summary.ttft_s.mean < mixed.main.summary.ttft_s.mean
    assert alone.main.summary.itl_s.p99 < 0.5 * mixed.main.summary.itl_s.p99


def test_what_is_handed_over_is_decoded_after_its_transfer():
    run = simulate(scenario(DISAGGREGATED)).main
    sent, requests = run.transfers, run.requests
    longer = requests["output_tokens"] > 1  # the others have had all they asked for
    assert (np.isnan(sent.transfer_s) == ~longer).all()
    assert sent.handed_over_s[longer] == pytest.approx(requests["first_token_s"][longer])
    arrived_s = sent.handed_over_s + sent.wait_s + sent.transfer_s
    assert np.isfinite(arrived_s[longer]).all()
    assert (requests["last_token_s"][longer] > arrived_s[longer]).all()
    assert (requests["replica"][longer] >= 2).all()  # prefill replicas are 0 and 1
    assert np.isin(sent.prefill_replica[longer], (0, 1)).all()


def test_a_faster_pool_gets_more_from_a_router_that_looks():
    found = simulate(scenario({"pools": [{"replicas": 1}, {"gpu": "l40s", "replicas": 1}]}, rate=12)).main
    h100, l40s = np.bincount(found.requests["replica"])
    assert h100 > 1.2 * l40s
    blind = simulate(
        scenario({"router": "round-robin", "pools": [{"replicas": 1}, {"gpu": "l40s", "replicas": 1}]}, rate=12)
    )
    assert np.bincount(blind.main.requests["replica"]).tolist() == [150, 150]


def test_two_simulations_of_a_cluster_are_byte_identical():
    for cluster in (DISAGGREGATED, MIXED, FAILING, SCALED):
        first, second = (simulate(scenario(cluster)).main for _ in range(2))
        assert first.requests.tobytes() == second.requests.tobytes()
        assert first.happened == second.happened


def test_the_summary_of_the_run_is_the_kinds_put_together():
    run = simulate(scenario(MIXED, rate=12)).main
    kinds, summary = run.cluster.kinds, run.summary
    held_s = np.array([k.held_s for k in kinds])
    assert summary.gpu_busy_share == pytest.approx(np.array([k.gpu_busy_share for k in kinds]) @ held_s / held_s.sum())
    usd = sum(k.usd for k in kinds)
    assert summary.usd_per_million_tokens == pytest.approx(usd / run.requests["output_tokens"].sum() * 1e6)
    assert summary.kv_occupancy_most == max(k.kv_occupancy_most for k in kinds)
    gpus = sum(k.gpus for k in kinds)
    assert summary.tokens_per_s_per_gpu == pytest.approx(summary.output_tokens_per_s / gpus)


def test_tokens_per_gpu_count_the_gpus_that_were_held():
    run = simulate(scenario(SCALED, rate=5)).main
    held_gpus = run.held_s.sum() / run.summary.makespan_s
    assert held_gpus < 4
    assert run.summary.tokens_per_s_per_gpu == pytest.approx(run.summary.output_tokens_per_s / held_gpus)


# --- mistakes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["cluster.router=round-robbin"], "did you mean round-robin?"),
        (["cluster.pools=[{role: decode}]"], "must come with a pool of role prefill"),
        (["cluster.pools=[{replicas: 1000}, {replicas: 25}]"], "must add up to at most 1024"),
        (["cluster.failures=[{replica: 3, at_s: 1, down_s: 1}]"], "replica=3 must be below the 3 replicas there are"),
        (["cluster.pools=[{gpu: l40}]"], "did you mean l40s?"),
        (["cluster.pools=[{tp: 3}]"], "tp=3 must divide"),
        (["cluster.pools=[{replica: 3}]"], "did you mean replicas?"),
        (["cluster.pools=[{role: prefill}, {role: decode}]", "cluster.transfer={link: nvlnk-4}"], "did you mean nvlink-4?"),
        (["cluster.pools=[{gpu: rtx-4090}]", "model=llama-3.1-70b"], "more than the"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(changes, sentence, tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text(
        "model: llama-3.1-8b\ngpu: h100-sxm\nreplicas: 3\n"
        "traffic: {kind: poisson, rate_per_s: 5, requests: 20, lengths: {prompt: 100, output: 12}}\n"
    )
    assert main(["simulate", str(path), *(part for change in changes for part in ("--set", change))]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out


def test_an_option_that_would_change_nothing_is_refused(capsys):
    assert main(["simulate", "mixed-gpus", "--replicas", "4"]) == 2
    assert "replicas=4 must be left out where each pool of the cluster has its own" in capsys.readouterr().err


# --- what the bundled scenarios say of themselves -----------------------------------------------------------------------
def bundled(name, **changes):
    chosen = load_scenario(name)
    return simulate(chosen.model_copy(update=changes))


def with_router(name, router):
    cluster = load_scenario(name).cluster
    return bundled(name, cluster=cluster.model_copy(update={"router": router})).main.summary


def test_disaggregation_evens_out_the_gaps_and_first_tokens_are_no_later():
    ours, mixed = bundled("disaggregated-8b").main, bundled("disaggregated-8b", cluster=None, replicas=5).main
    assert ours.summary.itl_s.p99 < 0.5 * mixed.summary.itl_s.p99
    assert ours.summary.ttft_s.mean < mixed.summary.ttft_s.mean


def test_round_robin_overruns_the_slow_gpus_of_a_mix_first():
    ours, blind = bundled("mixed-gpus").main.summary, with_router("mixed-gpus", "round-robin")
    assert ours.stability.stable is not False
    assert blind.stability.stable is False
    cluster = load_scenario("mixed-gpus").cluster.model_copy(update={"router": "round-robin"})
    fast, _, slow = bundled("mixed-gpus", cluster=cluster).main.cluster.kinds
    assert slow.mean_running > 3 * fast.mean_running


def test_speculation_leaves_room_for_a_lost_replica():
    run = bundled("failing-replica")
    assert run.main.summary.most_waiting < 0.5 * run.plain.summary.most_waiting
    assert run.main.cluster.outages.down_s == pytest.approx(120.0)


def test_half_of_the_hours_serve_the_day():
    run = bundled("autoscaled-day").main
    scaling = run.cluster.scaling
    assert 0.4 < scaling.gpu_hours / scaling.most_gpu_hours < 0.6
    assert (scaling.fewest_serving, scaling.most_serving) == (1, 4)
    always = bundled("autoscaled-day", cluster=None, replicas=4).main
    assert run.summary.usd_per_million_tokens < 0.6 * always.summary.usd_per_million_tokens
    assert always.summary.tpot_s.mean < run.summary.tpot_s.mean < 1.2 * always.summary.tpot_s.mean


def test_a_router_that_knows_the_caches_finds_more_in_them():
    aware = bundled("prefix-aware-agents").main.summary
    for router in ("least-outstanding", "round-robin"):
        assert aware.cached_share > 1.5 * with_router("prefix-aware-agents", router).cached_share


def pools_of_two(**more):
    return {"pools": [{"role": "prefill", **more}, {"role": "decode"}]}


def links_of(**changes):
    chosen = scenario(**changes)
    deployment = chosen.deployment().plain()
    traffic = generate(chosen.traffic, chosen.seed)
    return plan(chosen, traffic, deployment, None).control.links


@pytest.mark.parametrize(("pool", "model"), [({"pp": 3}, "llama-3.1-8b"), ({"tp": 8}, "deepseek-v2-lite")])
def test_a_transfer_sends_each_part_of_the_cache_once(pool, model):
    """Neither the largest stage's share for all nor a copy for every rank."""
    decoder = load_decoder(model)
    per_layer = 2 * 8 * 128 if model == "llama-3.1-8b" else 576  # KV heads × head_dim, keys and values; MLA's latent
    found = links_of(model=model, cluster=pools_of_two(**pool)).bytes_per_token
    assert found == per_layer * 2 * decoder.layers


def test_a_prefill_replica_need_not_hold_the_answer():
    small = {"engine": {"memory_utilization": 0.28}}
    lengths = {"prompt": 1000, "output": 100_000}
    work = {"kind": "poisson", "rate_per_s": 1.0, "requests": 2, "lengths": lengths}
    chosen = scenario(gpu="h200-sxm", traffic=work, cluster=pools_of_two(gpu="h100-sxm", **small))
    assert simulate(chosen).plain.summary.requests == {"finished": 2}


def test_pools_that_rank_requests_rank_them_alike():
    ranked = [{"engine": {"order": "priority"}}, {"engine": {"order": "shortest"}}]
    with pytest.raises(InputError, match=r"engine.order='priority, shortest' must be the same in all pools"):
        simulate(scenario(cluster={"pools": ranked}))
