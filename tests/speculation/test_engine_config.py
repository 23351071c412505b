"""Engines' own speculative configurations: read as they are, written back, or refused in one sentence."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.errors import InputError, UnknownName
from simulator.records import validate
from simulator.scenario import Speculation, load_scenario
from simulator.speculation import engine_config, engine_flags, engine_trtllm
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.drafters import load_drafter
from simulator.speculation.engine_config import read_vllm, speculation_from_vllm, vllm_config
from simulator.speculation.engine_flags import read_sglang, sglang_flags
from simulator.speculation.engine_names import bundled_name, repository
from simulator.speculation.engine_trtllm import read_tensorrt_llm
from simulator.speculation.policies import PolicyConfig
from simulator.speculation.tree_config import TreeConfig

EAGLE = "yuhuili/EAGLE-LLaMA3.1-Instruct-8B"
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"


def check_speculation(fields):
    """Whether these are fields of a scenario's speculation."""
    assert set(fields) <= {"draft", "gamma", "tree", "policy", "acceptance", "draft_tp", "draft_quantization"}
    validate(Speculation, {k: v for k, v in fields.items() if k in Speculation.model_fields}, "")
    assert not fields.get("policy") or validate(PolicyConfig, fields["policy"], "")
    assert not fields.get("tree") or validate(TreeConfig, fields["tree"], "")
    assert not fields.get("acceptance") or validate(AcceptanceConfig, fields["acceptance"], "")
    load_drafter(fields["draft"])


def test_the_dynamic_example_of_vllms_documentation():
    read = read_vllm(
        json.dumps(
            {
                "method": "eagle",
                "model": EAGLE,
                "num_speculative_tokens": 3,
                "num_speculative_tokens_per_batch_size": [[1, 64, 3], [65, 128, 1], [129, 512, 0]],
            }
        )
    )
    assert read.speculation == {
        "draft": "eagle-llama-3.1-8b",
        "gamma": 3,
        "policy": {"table": {"batches": [1, 65, 129], "gamma": [3, 1, 0]}},
    }
    assert not read.remarks()
    check_speculation(read.speculation)


def test_every_option_is_used_or_said_to_be_left_out():
    read = read_vllm(
        {
            "model": LLAMA,
            "num-speculative-tokens": 5,
            "draft_tensor_parallel_size": 1,
            "quantization": "fp8",
            "disable_padded_drafter_batch": True,
            "enforce_eager": True,
            "use_heterogeneous_vocab": True,
            "revision": "main",
            "attention_backend": None,
        }
    )
    formats = {"draft_tp": 1, "draft_quantization": {"weights": "fp8"}}
    assert read.speculation == {"draft": "llama-3.2-1b", "gamma": 5, **formats}
    assert read_vllm(vllm_config(read.speculation)).speculation == read.speculation
    assert read.settings == {"engine.draft_batch": "ragged"}
    assert read.unpriced == ("enforce_eager",)
    assert read.acceptance == ("use_heterogeneous_vocab",)
    assert read.idle == ("revision=main",)
    mentioned = {o.partition("=")[0] for o in (*read.used, *read.unpriced, *read.acceptance, *read.idle)}
    assert len(mentioned) == 8


@pytest.mark.parametrize("method", ["ngram", "[ngram]", "ngram_gpu"])
def test_prompt_look_up(method):
    read = read_vllm({"method": method, "num_speculative_tokens": 4, "prompt_lookup_max": 4})
    assert read.speculation == {"draft": "ngram", "gamma": 4}
    assert read.acceptance == ("prompt_lookup_max=4",)


@pytest.mark.parametrize(
    ("model", "draft"),
    [(EAGLE, "eagle-llama-3.1-8b"), (LLAMA, "llama-3.2-1b"), ("JackFram/llama-68m", "llama-68m"), ("ngram", "ngram")],
)
def test_the_method_is_told_from_the_model(model, draft):
    assert speculation_from_vllm({"model": model, "num_speculative_tokens": 2})["draft"] == draft


def test_off_above_a_batch_in_old_and_new_words():
    fields = {"model": LLAMA, "num_speculative_tokens": 4}
    old = speculation_from_vllm({**fields, "disable_by_batch_size": 33})
    new = speculation_from_vllm({**fields, "num_speculative_tokens_per_batch_size": [[1, 32, 4], [33, 256, 0]]})
    assert old == new
    assert old["policy"] == {"off_above": 32}


def test_synthetic_acceptance_is_an_acceptance():
    fields = {"model": LLAMA, "num_speculative_tokens": 4, "rejection_sample_method": "synthetic"}
    rates = speculation_from_vllm({**fields, "synthetic_acceptance_rates": [0.8, 0.6, 0.3, 0.1]})["acceptance"]
    assert rates["marginal"] == [0.8, 0.6, 0.3, 0.1]
    length = validate(
        AcceptanceConfig, speculation_from_vllm({**fields, "synthetic_acceptance_length": 3.25})["acceptance"], ""
    )
    assert length.law().expected_tokens(4) == pytest.approx(3.25)
    assert length.marginal == (1.0, 1.0, 0.25, 0.0)


def test_lossy_acceptance_is_labelled():
    read = read_vllm({"model": LLAMA, "num_speculative_tokens": 4, "acceptance_method": "typical_acceptance_sampler"})
    assert any(line.startswith("Lossy: acceptance_method") for line in read.remarks())
    assert read_sglang(
        f"--speculative-algorithm STANDALONE --speculative-draft-model-path {LLAMA} --speculative-accept-threshold-single 0.8"
    ).lossy == ["accept_threshold_single=0.8"]
    assert read_tensorrt_llm({"decoding_type": "NGram", "max_draft_len": 3, "greedy_sampling": False}).lossy


def test_a_head_that_memwall_lacks_is_priced_as_the_targets_and_says_so():
    fields = {"method": "eagle", "model": "somebody/my-own-head", "num_speculative_tokens": 3}
    with pytest.raises(UnknownName):
        read_vllm(fields)
    read = read_vllm(fields, "meta-llama/Llama-3.1-8B-Instruct")
    assert read.speculation["draft"] == "eagle-llama-3.1-8b"
    assert "stands in for somebody/my-own-head" in read.remarks()[0]


def test_trees_of_older_versions():
    fields = {"method": "eagle", "model": EAGLE}
    chain = speculation_from_vllm({**fields, "num_speculative_tokens": 2, "speculative_token_tree": "[(0,), (0, 0)]"})
    assert chain == {"draft": "eagle-llama-3.1-8b", "gamma": 2}
    tree = speculation_from_vllm({**fields, "num_speculative_tokens": 3, "speculative_token_tree": "[(0,),(1,),(0,0)]"})
    assert tree["tree"] == {"paths": [[0], [1], [0, 0]]}
    assert tree["gamma"] == 2
    check_speculation(tree)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("[1]", "must be a JSON object"),
        ("{", "must be a JSON object"),
        ('{"model": "a", "model": "b"}', "model='\\(twice\\)' must be given once"),
        ({"methdo": "eagle"}, "methdo must be a known field.*did you mean method"),
        ({"method": "eagel", "model": EAGLE}, "did you mean eagle"),
        ({"method": "dflash", "model": "x", "num_speculative_tokens": 3}, "method='dflash' must be another one"),
        ({"method": "custom_class", "model": "x.y"}, "known to nobody else"),
        ({"num_speculative_tokens": 3}, "method='\\(absent\\)' must be given"),
        ({"method": "eagle", "num_speculative_tokens": 3}, "model='\\(absent\\)' must be given for method eagle"),
        ({"model": LLAMA}, "num_speculative_tokens='\\(absent\\)' must be given"),
        ({"model": LLAMA, "num_speculative_tokens": 0}, "num_speculative_tokens=0 must be between 1 and 64"),
        ({"model": LLAMA, "num_speculative_tokens": "3"}, "must be a whole number"),
        ({"model": LLAMA, "num_speculative_tokens": True}, "must be a whole number"),
        ({"model": "llama-3.2-1bb", "num_speculative_tokens": 3}, "did you mean llama-3.2-1b"),
        ({"method": "eagle", "model": LLAMA, "num_speculative_tokens": 3}, "model=.*kind eagle"),
        ({"method": "draft_model", "model": EAGLE, "num_speculative_tokens": 3}, "be a drafter of kind model"),
        ({"model": LLAMA, "num_speculative_tokens": 3, "tensor_parallel_size": 2}, "draft_tensor_parallel_size"),
        ({"model": LLAMA, "num_speculative_tokens": 3, "synthetic_acceptance_length": 2.0}, "rejection_sample_method"),
        (
            {"model": LLAMA, "num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[2, 9, 3]]},
            "begin with 1 and follow one another",
        ),
        (
            {"model": LLAMA, "num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": [[1, 9, 4]]},
            "draft 0 to 3 tokens",
        ),
    ],
)
def test_what_vllm_or_memwall_would_not_take_is_refused(data, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read_vllm(data)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from([EAGLE, LLAMA, "eagle", "ngram", "suffix", "synthetic", "Eagle3", "NGram", "(0,)", "[(0,),(0,0)]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


def objects(options):
    keys = st.sampled_from(sorted(options))
    return st.dictionaries(keys | st.text(max_size=6), json_values, max_size=6)


@given(objects(engine_config._OPTIONS))
@settings(max_examples=300, deadline=None)
def test_any_object_is_a_speculation_or_an_input_error(data):
    base = {"method": "ngram", "num_speculative_tokens": 3}
    for fields in (data, {**base, **data}, {**data, **base}):
        try:
            read = read_vllm(json.dumps(fields))
        except InputError:
            continue
        check_speculation(read.speculation)
        assert all("\n" not in line for line in read.remarks())


@given(objects(engine_trtllm._OPTIONS))
@settings(max_examples=200, deadline=None)
def test_any_object_is_a_speculation_or_an_input_error_for_tensorrt_llm(data):
    for fields in (data, {**data, "decoding_type": "NGram", "max_draft_len": 3}):
        try:
            read = read_tensorrt_llm(fields)
        except InputError:
            continue
        check_speculation(read.speculation)


@given(
    st.lists(
        st.sampled_from([f"--speculative-{name.replace('_', '-')}" for name in engine_flags._OPTIONS])
        | st.sampled_from(["NGRAM", "EAGLE", "STANDALONE", "1", "4", "16", "0.5", EAGLE, LLAMA, "--tp", "'"]),
        max_size=8,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_flags_are_a_speculation_or_an_input_error(words):
    for given_words in (words, ["--speculative-algorithm", "NGRAM", *words], " ".join(words)):
        try:
            read = read_sglang(given_words)
        except InputError:
            continue
        check_speculation(read.speculation)


policies = st.one_of(
    st.none(),
    st.just("fixed"),
    st.integers(1, 500).map(lambda n: {"off_above": n}),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), min_size=1, max_size=4).map(
        lambda steps: {
            "table": {
                "batches": [1 + sum(width for width, _ in steps[:i]) for i in range(len(steps))],
                "gamma": [gamma for _, gamma in steps],
            }
        }
    ),
)


def drafted(speculation, sequences):
    given_policy = speculation.get("policy") or "fixed"
    policy = validate(PolicyConfig, {"kind": given_policy} if given_policy == "fixed" else given_policy, "")
    if policy.off_above is not None:
        return speculation["gamma"] if sequences <= policy.off_above else 0
    if policy.table is None:
        return speculation["gamma"]
    row = sum(first <= sequences for first in policy.table.batches) - 1
    return policy.table.gamma[row][0]


@pytest.mark.parametrize("draft", ["llama-3.2-1b", "eagle-llama-3.1-8b", "ngram", "eagle-llama-3.1-70b"])
@given(gamma=st.integers(4, 9), policy=policies)
@settings(max_examples=40, deadline=None)
def test_what_is_written_for_vllm_reads_back_as_the_same_speculation(draft, gamma, policy):
    speculation = {"draft": draft, "gamma": gamma} | ({} if policy is None else {"policy": policy})
    read = read_vllm(json.dumps(vllm_config(speculation)))
    assert not read.notes
    assert (read.speculation["draft"], read.speculation["gamma"]) == (draft, gamma)
    for sequences in (1, 2, 7, 30, 64, 65, 200, 900):
        assert drafted(read.speculation, sequences) == drafted(speculation, sequences)


@pytest.mark.parametrize(
    "speculation",
    [
        {"draft": "llama-3.2-1b", "gamma": 4},
        {"draft": "ngram", "gamma": 7},
        {"draft": "eagle-llama-3.1-8b", "gamma": 3, "tree": {"nodes": 15, "depth": 3, "kind": "dynamic", "top_k": 4}},
    ],
)
def test_what_is_written_for_sglang_reads_back_as_the_same_speculation(speculation):
    assert read_sglang(sglang_flags(speculation)).speculation == speculation
    assert (
        read_sglang(" ".join(["sglang", "serve", "--tp", "2", *sglang_flags(speculation)])).speculation == speculation
    )


def test_sglang_counts_the_targets_own_token_among_the_drafts():
    # Documentation's own example: 3 steps, top 4, 16 tokens verified, of which the root was not drafted.
    read = read_sglang(
        "python3 -m sglang.launch_server --model meta-llama/Meta-Llama-3-8B-Instruct --speculative-algorithm EAGLE "
        "--speculative-draft-model-path lmsys/sglang-EAGLE-LLaMA3-Instruct-8B --speculative-num-steps 3 "
        "--speculative-eagle-topk 4 --speculative-num-draft-tokens 16 --mem-fraction-static 0.7"
    )
    assert read.speculation["tree"] == {"nodes": 15, "depth": 3, "kind": "dynamic", "top_k": 4}
    check_speculation(read.speculation)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("", "speculative-algorithm"),
        ("--speculative-algorithm EAGEL", "did you mean EAGLE"),
        ("--speculative-algoritm EAGLE", "did you mean --speculative-algorithm"),
        ("--speculative-algorithm", "must be followed by its value"),
        ("--speculative-algorithm NGRAM --speculative-num-draft-tokens many", "be a whole number"),
        (f"--speculative-algorithm EAGLE --speculative-draft-model-path {EAGLE} --speculative-num-steps 2 "
         "--speculative-eagle-topk 2 --speculative-num-draft-tokens 60", "be 2 to the 7"),
        ("--speculative-algorithm DFLASH", "must be another one"),
        ("--speculative-algorithm 'NGRAM", "quotes closed"),
        ("@/no/such/file", "readable file"),
    ],
)  # fmt: skip
def test_flags_that_sglang_or_memwall_would_not_take_are_refused(flags, sentence):
    with pytest.raises(InputError, match=sentence):
        read_sglang(flags)


def test_tensorrt_llms_schedule_holds_up_to_each_number():
    read = read_tensorrt_llm(
        {
            "decoding_type": "Eagle3",
            "speculative_model": EAGLE,
            "max_draft_len": 4,
            "draft_len_schedule": {4: 4, 8: 2, 32: 1},
        }
    )
    assert [drafted(read.speculation, n) for n in (1, 4, 5, 8, 9, 32, 33)] == [4, 4, 2, 2, 1, 1, 0]
    simple = read_tensorrt_llm(
        {"speculative_config": {"decoding_type": "NGram", "max_draft_len": 3, "max_concurrency": 8}}
    )
    assert simple.speculation == {"draft": "ngram", "gamma": 3, "policy": {"off_above": 8}}


@pytest.mark.parametrize(
    ("speculation", "sentence"),
    [
        ({"draft": "llama-3.2-1b", "policy": "oracle"}, "fixed, off-above or a table"),
        ({"draft": "llama-3.2-1b", "tree": {"nodes": 8, "depth": 2}}, "drafts chains"),
        (
            {"draft": "llama-3.2-1b", "policy": {"table": {"batches": [1], "contexts": [0, 9], "gamma": [[1, 2]]}}},
            "look at batches only",
        ),
    ],
)
def test_what_no_engine_can_do_is_not_written(speculation, sentence):
    with pytest.raises(InputError, match=sentence):
        vllm_config(speculation)
    with pytest.raises(InputError):
        sglang_flags(speculation)


def test_a_drafters_own_gpus_and_formats_reach_its_cost():
    fields = {"model": LLAMA, "num_speculative_tokens": 4, "draft_tensor_parallel_size": 1, "quantization": "fp8"}
    data = {
        "model": "llama-3.1-70b", "gpu": "h200", "tp": 4, "speculation": {**speculation_from_vllm(fields), "acceptance": 0.7},
        "traffic": {"kind": "poisson", "rate_per_s": 1, "requests": 3, "lengths": {"prompt": 9, "output": 9}},
    }  # fmt: skip
    drafter = load_scenario(data).deployment().drafter
    assert drafter is not None
    assert (drafter.tensor_parallel(4), drafter.quantization.weights) == (1, "fp8")
    plain = load_scenario({**data, "speculation": {"draft": "llama-3.2-1b", "gamma": 4, "acceptance": 0.7}})
    own = plain.deployment().drafter
    assert own is not None
    assert (own.tensor_parallel(4), own.quantization.weights) == (4, "model")


@pytest.mark.parametrize("name", catalog.names("drafter"))
def test_every_bundled_drafter_is_written_for_vllm_and_read_back_or_refused(name):
    speculation = {"draft": name, "gamma": 2}
    target = next(iter(load_drafter(name).targets), None)
    try:
        config = vllm_config(speculation)
    except InputError as error:
        refused = str(error)
        config = None
    if config is None:
        assert "draft=" in refused
        return
    read = read_vllm(config, target).speculation
    assert load_drafter(read["draft"]).kind == load_drafter(name).kind
    assert read["gamma"] == 2


def test_models_serve_their_own_modules():
    read = read_vllm({"method": "deepseek_mtp", "num_speculative_tokens": 2}, "deepseek-ai/DeepSeek-R1")
    assert load_drafter(read.speculation["draft"]).kind == "mtp"
    flags = read_sglang("--speculative-algorithm EAGLE --speculative-num-steps 1", "deepseek-v3")
    assert load_drafter(flags.speculation["draft"]).kind == "mtp"
    with pytest.raises(InputError, match="none of kind mtp"):
        read_vllm({"method": "mtp", "num_speculative_tokens": 1}, "llama-3.1-8b")


@pytest.mark.parametrize("name", ["llama-3.2-1b", "eagle-llama-3.1-8b", "eagle-vicuna-7b", "llama-68m", "ngram"])
def test_repositories_of_bundled_names_lead_back_to_them(name):
    assert bundled_name(repository(name))[0] == name
