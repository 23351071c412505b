"""The ``cluster`` section: what it says, what it refuses and in which words."""

import pytest

from simulator.engine_choice import EngineChoice
from simulator.errors import InputError, UnknownName
from simulator.hardware import load_gpu, load_link
from simulator.records import validate
from simulator.serving.cluster_config import Cluster, Transfer, exponential_s

DEFAULTS = {"gpu": "h100", "tp": 2, "replicas": 3, "engine": EngineChoice(max_sequences=64)}


def cluster(**fields):
    return validate(Cluster, fields, "scenario: cluster")


def test_without_a_word_it_is_the_scenario_s_replicas():
    (pool,) = cluster().resolved(**DEFAULTS)
    assert (pool.role, pool.gpu, pool.tp, pool.replicas, pool.built) == ("both", "h100", 2, 3, 3)
    assert pool.engine == DEFAULTS["engine"]
    assert cluster().router == "least-outstanding"


def test_pools_take_from_the_scenario_what_they_do_not_say_and_prefill_goes_first():
    found = cluster(
        pools=[
            {"role": "decode", "gpu": "h200", "replicas": 2, "engine": {"max_sequences": 512}},
            {"role": "prefill", "tp": 1, "engine": "sglang"},
        ]
    ).resolved(**DEFAULTS)
    prefill, decode = found
    assert (prefill.role, prefill.gpu, prefill.tp, prefill.replicas) == ("prefill", "h100", 1, 3)
    assert (prefill.engine.name, prefill.engine.max_sequences) == ("sglang", None)
    assert (decode.gpu, decode.tp, decode.replicas) == ("h200", 2, 2)
    assert (decode.engine.name, decode.engine.max_sequences) == ("vllm", 512)


@pytest.mark.parametrize("engine", ["vllm", {"max_sequences": 512}, {"name": "vllm", "max_sequences": 512}])
def test_what_is_written_out_reads_back_as_the_same_pools(engine):
    """Under another engine a pool that names vLLM has its defaults, one that only changes a setting does not."""
    config = cluster(pools=[{"replicas": 1, "engine": engine}])
    under = {**DEFAULTS, "engine": EngineChoice(name="sglang", max_batched_tokens=4096)}
    for dump in ({"exclude_defaults": True}, {"exclude_none": True}, {}):
        again = cluster(**config.model_dump(mode="json", **dump))
        assert again.resolved(**under) == config.resolved(**under)


def test_an_autoscaler_builds_as_many_as_it_may_start():
    (pool,) = cluster(autoscaler={"min": 2, "max": 8, "target": 4, "startup_s": "2 min"}).resolved(**DEFAULTS)
    assert (pool.replicas, pool.built) == (3, 8)
    assert pool.autoscaler.startup_s == 120.0
    (pool,) = cluster(autoscaler={"min": 4, "max": 8, "target": 4, "startup_s": 1}).resolved(**DEFAULTS)
    assert pool.replicas == 4


def test_units_are_read():
    config = cluster(
        pools=[{"role": "prefill"}, {"role": "decode"}],
        transfer={"bytes_per_s": "50 GB/s", "latency_s": "5 us"},
        failures=[{"replica": 0, "at_s": "1 min", "down_s": 30}, {"mtbf_s": "10 h", "mttr_s": "5 min"}],
        retry_delay_s="500 ms",
    )
    assert (config.transfer.bytes_per_s, config.transfer.latency_s) == pytest.approx((50e9, 5e-6))
    assert (config.failures[0].at_s, config.failures[1].mtbf_s) == (60.0, 36000.0)
    assert [failure.random for failure in config.failures] == [False, True]
    assert config.retry_delay_s == 0.5


def test_links_of_a_replica_are_those_of_its_gpus_together():
    gpu = load_gpu("h100")
    network, nvlink = load_link(gpu.network_link), load_link("nvlink-4")
    wire = Transfer().wire(gpu, 4)
    assert (wire.bytes_per_s, wire.latency_s) == (4 * network.bytes_per_s, network.latency_s)
    assert Transfer(link="nvlink-4").wire(gpu, 1).bytes_per_s == nvlink.bytes_per_s
    assert Transfer(bytes_per_s=1e9).wire(gpu, 4).bytes_per_s == 1e9
    assert wire.seconds(0) == network.latency_s
    assert wire.seconds(8 * network.bytes_per_s) == pytest.approx(network.latency_s + 2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router": "least-outstandin"}, r"router='least-outstandin' must be a known router .* mean least-outstanding\?"),
        ({"pools": [{"role": "prefill"}]}, "must come with a pool of role decode"),
        ({"pools": [{"role": "decode"}]}, "must come with a pool of role prefill"),
        ({"pools": [{"role": "both"}, {"role": "decode"}]}, "must not be mixed with prefill and decode"),
        ({"pools": [{"role": "prefil"}]}, r"pools\.0\.role='prefil' must be"),
        ({"pools": [{"rolle": "both"}]}, r"did you mean role\?"),
        ({"pools": [{"replicas": 0}]}, r"pools\.0\.replicas=0 must be greater than or equal to 1"),
        ({"transfer": {"latency_s": 1, "bytes_per_s": 1}}, "must come with pools of roles prefill and decode"),
        ({"transfer": {"latency_s": 1}}, "latency_s=1.0 must come with bytes_per_s"),
        ({"transfer": {"link": "nvlink-4", "bytes_per_s": 1}}, "must be left out where bytes_per_s is given"),
        ({"transfer": {"bytes_per_s": "fast"}}, "must be a number with a unit"),
        ({"failures": [{"replica": 0, "at_s": 1}]}, r"failures='at_s' must be either replica, at_s and down_s or mtbf_s"),
        ({"failures": [{"at_s": 1, "down_s": 1}]}, r"failures\.replica='\(absent\)' must be given with at_s"),
        ({"failures": [{"at_s": 1, "down_s": 1, "mtbf_s": 1}]}, "must be either"),
        ({"failures": [{"replica": -1, "at_s": 1, "down_s": 1}]}, "must be greater than or equal to 0"),
        ({"failures": [{"mtbf_s": 0, "mttr_s": 1}]}, "must be greater than 0"),
        ({"autoscaler": {"min": 3, "max": 2, "target": 1, "startup_s": 0}}, r"max=2 must be at least min = 3"),
        ({"autoscaler": {"max": 2, "target": 1}}, r"startup_s='\(absent\)' must be given"),
        ({"autoscaler": {"max": 2, "target": 0, "startup_s": 0}}, r"target=0 must be greater than 0"),
        ({"retry_delay_s": -1}, "must be greater than or equal to 0"),
        ({"slack": -1}, "must be greater than or equal to 0"),
        ({"decode_router": "round-robin"}, "must come with pools of roles prefill and decode"),
    ],
)  # fmt: skip
def test_what_it_refuses(fields, message):
    with pytest.raises(InputError, match=message):
        cluster(**fields)


def test_an_autoscaler_for_several_pools_is_each_pool_s_own():
    scaler = {"max": 2, "target": 1, "startup_s": 0}
    with pytest.raises(InputError, match="given in each pool where there are several"):
        cluster(pools=[{"gpu": "h100"}, {"gpu": "a100"}], autoscaler=scaler)
    found = cluster(pools=[{"gpu": "h100", "replicas": 1, "autoscaler": scaler}, {"gpu": "a100"}]).resolved(**DEFAULTS)
    assert [pool.built for pool in found] == [2, 3]


def test_numbers_must_fit_each_other():
    with pytest.raises(InputError, match=r"replica=3 must be below the 3 replicas there are"):
        cluster(failures=[{"replica": 3, "at_s": 1, "down_s": 1}]).resolved(**DEFAULTS)
    with pytest.raises(InputError, match=r"replicas=9 must be between the autoscaler's 1 and 4"):
        cluster(pools=[{"replicas": 9}], autoscaler={"max": 4, "target": 1, "startup_s": 0}).resolved(**DEFAULTS)
    with pytest.raises(InputError, match="must add up to at most 1024"):
        cluster(pools=[{"replicas": 1000}, {"replicas": 25}]).resolved(**DEFAULTS)


def test_an_unknown_link_is_named_with_its_nearest():
    with pytest.raises(UnknownName, match="did you mean nvlink-4"):
        Transfer(link="nvlnk-4").wire(load_gpu("h100"), 1)


def test_the_time_to_an_event_without_memory():
    # P(T > t) = e^(−t/m): half of them are later than m·ln 2.
    assert exponential_s(10.0, 0.0) == 0.0
    assert exponential_s(10.0, 0.5) == pytest.approx(6.931471805599453)
