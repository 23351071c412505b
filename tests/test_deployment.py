"""From names to a deployment, and every mistake on the way as a sentence."""

from dataclasses import replace

import pytest

from simulator.deployment import Deployment, EngineChoice, deploy
from simulator.errors import InputError, UnknownName
from simulator.experts import ExpertPlacement


def said(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        deploy(*args, **kwargs)
    return str(caught.value)


def test_names_become_a_deployment():
    d = deploy("llama-3.1-8b", "H100", tp=2, draft="llama-3.2-1b", engine=EngineChoice(name="ideal", max_sequences=4))
    assert (d.target.decoder.name, d.gpu.name, d.target.tp) == ("llama-3.1-8b", "h100-sxm", 2)
    assert (d.drafter.name, d.draft.tp, d.draft.gpu) == ("llama-3.2-1b", 2, d.gpu)
    assert d.draft.efficiency is d.target.efficiency
    assert (d.engine.name, d.engine.settings.max_sequences) == ("ideal", 4)


def test_look_up_drafter_has_no_passes():
    d = deploy("llama-3.1-8b", "h100", draft="ngram")
    assert (d.drafter.kind, d.draft) == ("ngram", None)


def test_plain_gives_the_drafter_s_memory_back():
    d = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    plain = d.plain()
    assert isinstance(plain, Deployment)
    assert (plain.drafter, plain.draft) == (None, None)
    assert plain.fit() == deploy("llama-3.1-8b", "h100").fit()
    assert plain.fit().kv_tokens > d.fit().kv_tokens


@pytest.mark.parametrize(
    ("args", "kwargs", "sentence"),
    [
        (("llama-3.1-8b", "h100"), {"tp": 3}, "tp=3 must divide the 32 attention heads of llama-3.1-8b; did you mean"),
        (("llama-3.1-8b", "h100"), {"tp": 0}, "tp=0 must be at least 1"),
        (("llama-3.1-8b", "h100"), {"pp": 0}, "pp=0 must be at least 1"),
        (("llama-3.1-8b", "h100"), {"pp": 33}, "pp=33 must be between 1 and the 32 layers of llama-3.1-8b"),
        (("llama-3.1-8b", "h100"), {"ep": 4}, "ep=4 must be 1, for llama-3.1-8b has no experts"),
        (("mixtral-8x7b", "h100"), {"tp": 2, "ep": 2, "expert_skew": 3.0}, "expert_skew=3.0 must be between 1 and ep=2"),
        (("llama-3.1-8b", "h100"), {"network": "ethernet"}, "must be a known link"),
        (("llama-3.1-8b", "h100"), {"tp": 16}, "tp=16 must be at most the 8 GPUs that nvlink-4 joins in one node"),
        (("lama-3.1-8b", "h100"), {}, "did you mean llama-3.1-8b?"),
        (("llama-3.1-8b", "h1000"), {}, "must be a known gpu"),
        (("llama-3.1-8b", "h100"), {"draft": "lama-68m"}, "did you mean llama-68m?"),
        (("llama-3.1-8b", "h100"), {"engine": "vlm"}, "did you mean vllm?"),
        (("llama-3.1-8b", "h100"), {"link": "nvlink"}, "must be a known link"),
        (("llama-3.1-8b", "./no-such-gpu.yaml"), {}, "gpu='./no-such-gpu.yaml' must be an existing file"),
        (("llama-3.1-8b", "h100"), {"draft": "qwen3-0.6b"},
         "draft='qwen3-0.6b' must share the target's vocabulary, but has 151936 tokens where llama-3.1-8b has 128256"),
        (("llama-3.1-70b", "h100"), {"draft": "eagle-llama-3.1-8b"},
         "draft='eagle-llama-3.1-8b' must have the hidden size 8192 of llama-3.1-70b, not 4096"),
        (("vicuna-7b", "h100"), {"draft": "eagle-llama-3.1-8b"}, "must have at most the 32000 tokens of vicuna-7b"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(args, kwargs, sentence):
    assert sentence in said(*args, **kwargs)


def test_unknown_names_list_what_is_known():
    with pytest.raises(UnknownName) as caught:
        deploy("llama-3.1-8b", "h1000")
    assert "h100-sxm" in caught.value.known


def test_own_files_are_found_from_the_scenario_s_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nkind: model\nmodel: llama-3.2-1b\n")
    assert deploy("llama-3.1-8b", "h100", draft="mine.yaml", base=tmp_path).drafter.name == "mine"


# Several GPUs


def test_pipelines_and_spread_experts_reach_the_costs():
    d = deploy("mixtral-8x7b", "a100", tp=4, pp=2, ep=4, expert_skew=1.5, expert_exponent=0.5)
    assert (d.target.tp, d.target.pp, d.gpus) == (4, 2, 8)
    assert d.target.experts == ExpertPlacement(4, 1.5, 0.5)
    assert d.target.network.name == "infiniband-hdr-200"
    assert deploy("mixtral-8x7b", "a100", network="infiniband-ndr-400").target.network.name == "infiniband-ndr-400"
    assert d.host_link.bytes_per_s == pytest.approx(31.5e9)


def test_a_drafter_is_not_cut_into_stages():
    d = deploy("llama-3-70b", "h100", tp=4, pp=2, draft="llama-3.2-1b")
    assert (d.draft.tp, d.draft.pp, d.gpus) == (4, 1, 8)


# Captured graphs


def test_tables_are_those_of_the_engine_s_graphs():
    engine = EngineChoice(name="ideal", graph_capture_sizes=(8, 16), graphs="decode")
    d = deploy("llama-3.1-8b", "h100", engine=engine, draft="llama-3.2-1b")
    d = replace(d, engine=replace(d.engine, host_eager_step_s=0.1, host_eager_layer_s=1e-2))
    tables = d.target_tables(20, 20)
    assert tables.linear[0, 0, 3] == tables.linear[0, 0, 8] == d.target.tables(20, 20).linear[0, 0, 8]
    assert tables.linear[1, 0, 3] < tables.linear[1, 0, 8]
    # 0.1 s and 32 layers of 10 ms, of which the GPU's own work covers a few ms.
    assert tables.extra_host_s[0, :17].tolist() == [0.0] * 17
    assert tables.extra_host_s[0, 17:] == pytest.approx(0.42, rel=0.02)
    assert tables.extra_host_s[1, 1] == pytest.approx(0.42, rel=0.02)
    assert d.draft_tables(20, 20).extra_host_s[1, 1] == pytest.approx(0.26, rel=0.02)
    assert d.plain().draft_tables(20, 20) is None
