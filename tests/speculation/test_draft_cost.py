"""Bytes and FLOP of each kind of drafter by hand, what it keeps in memory, and the experts that verified tokens wake."""

import dataclasses

import numpy as np
import pytest
import yaml

from simulator.architecture import load_decoder
from simulator.cost.forward import Batch
from simulator.deployment import Deployment, deploy
from simulator.errors import DoesNotFit, InputError
from simulator.memory import budget, draft_weights_on_gpu, kv_bytes_per_token, weights_on_gpu
from simulator.quantization import Quantization
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.drafters import load_drafter

H, VOCAB = 4096, 128_256
LAYER = (H * (H + 2 * 1024) + H * H + 3 * H * 14_336) * 2  # Llama-3.1-8B: GQA with 8 KV heads, SwiGLU; bf16


def drafting(model: str, draft: str, gpu: str = "h100", **kwargs) -> Deployment:
    return deploy(model, gpu, draft=draft, **kwargs)


def own(tmp_path, target: str, kind: str, *, gpu: str = "h100", tp: int = 1, pp: int = 1, **fields) -> Deployment:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "title": "Mine", "kind": kind, **fields}))
    return deploy(target, gpu, draft=str(path), tp=tp, pp=pp)


def weight_bytes(draft: DraftCost, sequences: int = 1) -> float:
    return draft.pass_cost(Batch.decode(sequences, 1000)).total("weight_bytes")


# One pass


def test_an_eagle_pass_reads_one_layer_its_input_matrix_and_the_whole_lm_head():
    draft = drafting("llama-3.1-8b", "eagle-llama-3.1-8b").draft
    assert weight_bytes(draft) == LAYER + 2 * (2 * H * H) + 2 * H * VOCAB


def test_an_eagle3_pass_reads_a_wider_layer_and_a_smaller_lm_head():
    draft = drafting("llama-3.1-8b", "eagle3-llama-3.1-8b").draft
    wider = H * (H + 2 * 1024) * 2  # q, k and v read embedding beside feature
    assert weight_bytes(draft) == LAYER + wider + 2 * H * 32_000
    # The features of three layers pass their matrix once per token, in the first pass.
    seconds, moved, flop = draft.intake(np.array([0.0, 1.0, 7.0])).T[1:].T
    assert flop.tolist() == [2 * 3 * H * H, 7 * 2 * 3 * H * H]
    assert moved.tolist() == [2 * 3 * H * H + 2 * tokens * 4 * H for tokens in (1, 7)]
    assert (seconds > 0.0).all()
    assert draft.intake(np.zeros(1)).tolist() == [[0.0]] * 3


def test_only_eagle3_takes_features_in():
    for name in ("eagle-llama-3.1-8b", "llama-3.2-1b"):
        deployment = drafting("llama-3.1-8b", name)
        assert not deployment.draft_intake(8).any()
    assert drafting("llama-3.1-8b", "eagle3-llama-3.1-8b").draft_intake(8)[:, 1:].all()
    assert not drafting("llama-3.1-8b", "ngram").draft_intake(8).any()


def test_a_medusa_pass_is_all_its_heads_and_nothing_else():
    draft = drafting("vicuna-7b", "medusa-vicuna-7b").draft
    per_head = H * H + H * 32_000
    assert weight_bytes(draft) == 5 * per_head * 2
    assert draft.head_work(np.array([4.0]))[2, 0] == 5 * 4 * 2 * per_head
    assert not draft.linear(np.array([1.0, 64.0])).any()
    assert draft.attention((1,) * 4, (1000,) * 4) == 0.0
    assert draft.decoder.layers == 0


def test_medusa_heads_share_their_lm_heads_over_the_group_and_copy_their_blocks():
    two = drafting("vicuna-7b", "medusa-vicuna-7b", tp=2).draft
    assert two.heads_bytes == 5 * (H * H + H * 16_000) * 2


def test_a_prediction_module_is_one_layer_of_experts():
    # DeepSeek-V3: latent attention, 1 shared and 256 routed experts of 2048, router; 2·hidden → hidden stays in bf16.
    h, q, kv, heads = 7168, 1536, 512, 128
    attention = h * q + q * heads * 192 + h * (kv + 64) + kv * heads * 256 + heads * 128 * h
    expert = 3 * h * 2048
    fp8 = 1 + 4 / 128**2
    draft = drafting("deepseek-v3", "mtp-deepseek-v3", "b200", tp=8).draft
    parts = {o.name: o.weight_bytes for o in draft.pass_cost(Batch.decode(1, 1000)).operators}
    assert parts["input_fc"] == 2 * h * h * 2
    assert parts["experts_gate_up"] + parts["experts_down"] == pytest.approx(8 * expert * fp8 / 8)
    assert parts["lm_head"] == 129_280 / 8 * h * 2
    # README_WEIGHTS.md of the checkpoint: 11.5B parameters that are not shared with the model.
    assert attention + 257 * expert + h * 256 + 2 * h * h == pytest.approx(11.5e9, rel=0.015)
    whole = attention * fp8 + 257 * expert * fp8 + 2 * h * h * 2
    one = drafting("deepseek-v3", "mtp-deepseek-v3", "b200").draft  # on one GPU, whether it fits or not
    assert draft_weights_on_gpu(one, one.target) == pytest.approx(whole, rel=1e-3)


def test_an_early_exit_reads_its_share_of_the_layers_and_the_head(tmp_path):
    deployment = own(tmp_path, "llama-3.1-8b", "early-exit", exit_layer=8)
    assert weight_bytes(deployment.draft) == 8 * LAYER + 2 * H * VOCAB
    assert deployment.draft.decoder.layers == 8


def test_first_layers_keep_their_kinds(tmp_path):
    # DeepSeek-V3's first three layers are dense.
    draft = own(tmp_path, "deepseek-v3", "early-exit", gpu="b200", tp=8, exit_layer=5).draft
    assert [kind.count for kind in draft.decoder.layer_kinds] == [3, 2]


@pytest.mark.parametrize(("context", "read"), [(100, 101), (10_000, 512)])
def test_a_sparse_pass_reads_the_target_s_weights_and_little_of_its_cache(tmp_path, context, read):
    deployment = own(tmp_path, "llama-3.1-8b", "sparse-kv", kv_budget_tokens=512)
    draft = deployment.draft.pass_cost(Batch.decode(4, context))
    target = deployment.target.pass_cost(Batch.decode(4, context))
    assert draft.total("weight_bytes") == target.total("weight_bytes")
    assert draft.total("kv_bytes") == 4 * read * 2 * 8 * 128 * 2 * 32


def test_within_its_budget_a_sparse_pass_is_the_target_s(tmp_path):
    deployment = own(tmp_path, "llama-3.1-8b", "sparse-kv", kv_budget_tokens=4096)
    batch = Batch.decode(8, 1000)
    assert deployment.draft.seconds(batch) == pytest.approx(deployment.target.seconds(batch), rel=1e-9)


def test_a_draft_model_may_have_a_short_memory(tmp_path):
    short = own(tmp_path, "llama-3.1-8b", "model", model="llama-3.2-1b", kv_budget_tokens=256).draft
    assert short.pass_cost(Batch.decode(1, 9000)).total("kv_bytes") == 256 * 2 * 8 * 64 * 2 * 16


@pytest.mark.parametrize("name", ["ngram", "suffix", "lookahead"])
def test_what_is_looked_up_runs_no_model(name):
    deployment = drafting("llama-2-7b", name)
    assert deployment.draft is None
    assert deployment.draft_tables(8, 8) is None
    assert deployment.fit().kv_bytes == deployment.plain().fit().kv_bytes


# Memory


@pytest.mark.parametrize(
    ("name", "model"), [("early-exit-llama-2-7b", "llama-2-7b"), ("sparse-kv-512", "llama-3.1-8b")]
)
def test_the_target_s_own_layers_take_no_memory_again(name, model):
    alone, pair = (deploy(model, "h100", draft=draft).fit() for draft in (None, name))
    assert pair == alone


def test_medusa_heads_in_memory():
    alone, pair = (deploy("vicuna-7b", "h100", draft=draft).fit() for draft in (None, "medusa-vicuna-7b"))
    assert pair.draft_weight_bytes == 5 * (H * H + H * 32_000) * 2
    assert pair.kv_bytes_per_token == alone.kv_bytes_per_token


def test_a_prediction_module_has_a_cache_of_one_layer():
    pair = drafting("deepseek-v3", "mtp-deepseek-v3", "h200", tp=8).fit()
    assert pair.draft_kv_bytes_per_token == 576 * 2  # the latent and the rotary key, on every rank
    assert pair.kv_bytes_per_token == 62 * 576 * 2


def test_more_modules_take_more_memory_and_no_more_time(tmp_path):
    one, three = (own(tmp_path, "deepseek-v3", "mtp", gpu="b200", tp=8, modules=k) for k in (1, 3))
    small, large = one.fit(), three.fit()
    assert large.draft_weight_bytes == pytest.approx(3 * small.draft_weight_bytes)
    assert large.draft_kv_bytes_per_token == 3 * small.draft_kv_bytes_per_token
    batch = Batch.decode(4, 1000)
    assert one.draft.seconds(batch) == three.draft.seconds(batch)


def test_a_borrowed_lm_head_is_read_in_the_target_s_format():
    wide, narrow = (
        deploy("llama-3.1-8b", "h100", draft="eagle-llama-3.1-8b", quantization=Quantization(lm_head=form))
        for form in ("model", "int8")
    )
    saved = weight_bytes(wide.draft) - weight_bytes(narrow.draft)
    assert saved == pytest.approx(H * VOCAB * (2.0 - 1.0 - 4.0 / 4096))
    # An LM head of its own is what it was.
    wide, narrow = (
        deploy("llama-3.1-8b", "h100", draft="eagle3-llama-3.1-8b", quantization=Quantization(lm_head=form))
        for form in ("model", "int8")
    )
    assert weight_bytes(wide.draft) == weight_bytes(narrow.draft)


def test_modules_on_one_gpu_are_as_many(tmp_path):
    # Embedding and LM head once, 129,280 · 7168 values each; matrix and layer as often as there are modules.
    one, three = (own(tmp_path, "deepseek-v3", "mtp", gpu="b200", tp=8, modules=k) for k in (1, 3))
    small, large = (
        draft_weights_on_gpu(DraftCost(dataclasses.replace(d.drafter, tp=1), d.target), d.target) for d in (one, three)
    )
    edges = 2 * 129_280 * 7168 * 2
    assert large - edges == pytest.approx(3 * (small - edges))


def test_a_module_s_experts_are_reached_over_the_target_s_network():
    seconds = []
    for network in ("infiniband-ndr-400", "infiniband-hdr-200"):
        d = deploy("deepseek-v3", "h200", tp=8, ep=16, network=network, draft="mtp-deepseek-v3")
        seconds.append((d.target.linear(np.array([256.0]))[0], d.draft.linear(np.array([256.0]))[0]))
    (fast, drafts_fast), (slow, drafts_slow) = seconds
    assert slow > fast
    assert drafts_slow - drafts_fast == pytest.approx((slow - fast) / 58)  # of 58 layers with experts


def test_a_module_keeps_an_embedding_of_its_own_away_from_the_target_s():
    near, far = (drafting("deepseek-v3", "mtp-deepseek-v3", "b200", tp=8, pp=n) for n in (1, 2))
    more = draft_weights_on_gpu(far.draft, far.target) - draft_weights_on_gpu(near.draft, near.target)
    assert more == pytest.approx(129_280 / 8 * 7168 * 2)


def test_a_drafter_apart_leaves_the_target_s_gpus_alone(tmp_path):
    apart = own(tmp_path, "llama-3.1-70b", "model", tp=4, model="llama-3.2-1b", parallel={"gpus": 1, "hit": 0.5})
    assert (apart.gpus, apart.target.gpus, apart.draft.gpus) == (5, 4, 1)
    assert apart.plain().gpus == 4
    assert apart.fit().kv_tokens == apart.plain().fit().kv_tokens


def test_a_drafter_apart_must_hold_the_same_sequences(tmp_path):
    # An 8B model on one GPU has 128 KiB of KV per token, as much as a quarter of the 70B model's and its weights leave less.
    apart = own(tmp_path, "llama-3.1-70b", "model", tp=8, model="llama-3.1-8b", parallel={"gpus": 1, "hit": 0.5})
    found = apart.fit()
    assert found.kv_tokens < apart.plain().fit().kv_tokens
    assert found == budget(apart.draft, apart.engine)


def test_a_drafter_that_does_not_fit_beside_its_target():
    with pytest.raises(DoesNotFit, match=r"llama-3.1-70b with llama-3.1-8b on 2 x h100-sxm needs .* would fit"):
        drafting("llama-3.1-70b", "llama-3.1-8b", tp=2).fit(context_tokens=8192, sequences=8)


def test_every_suggestion_counts_the_drafter(tmp_path):
    with pytest.raises(DoesNotFit, match=r"--gpu (\S+)") as caught:
        own(tmp_path, "vicuna-7b", "medusa", gpu="l4", heads=64).fit(context_tokens=2048, sequences=4)
    gpu = str(caught.value).rsplit("--gpu ", 1)[1].split()[0]
    assert own(tmp_path, "vicuna-7b", "medusa", gpu=gpu, heads=64).fit(context_tokens=2048, sequences=4)


# Where it runs


@pytest.mark.parametrize(
    ("kind", "fields"), [("early-exit", {"exit_layer": 8}), ("sparse-kv", {"kv_budget_tokens": 512})]
)
def test_the_target_s_layers_draft_on_the_target_s_gpus(tmp_path, kind, fields):
    assert own(tmp_path, "llama-3-70b", kind, tp=4, **fields).draft.tp == 4
    with pytest.raises(InputError, match=r"drafter\.tp=1 must be the target's 4, whose layers draft"):
        deploy("llama-3-70b", "h100", tp=4, draft=str(tmp_path / "mine.yaml"), draft_tp=1)
    with pytest.raises(InputError, match="pp=2 must be 1 for mine"):
        own(tmp_path, "llama-3-70b", kind, tp=4, pp=2, **fields)


@pytest.mark.parametrize("name", ["eagle3-llama-3.1-8b", "llama-3.2-1b", "sparse-kv-512"])
def test_tables_are_the_passes(name):
    draft = drafting("llama-3.1-8b", name, engine="ideal").draft
    tables = draft.tables(16, 16)
    points = np.arange(17.0)
    assert tables.linear[0, 0] == pytest.approx(draft.linear(points))
    assert tables.head[0] == pytest.approx(draft.head(points))


# Experts


@pytest.mark.parametrize(("model", "experts", "each"), [("mixtral-8x7b", 8, 2), ("deepseek-v3", 256, 8)])
def test_verified_tokens_wake_experts(model, experts, each):
    decoder = load_decoder(model)
    target = deploy(model, "b200", tp=8).target
    gamma = 4

    def read(tokens: int) -> tuple[float, float]:
        cost = target.pass_cost(Batch.decode(1, 1000, tokens))
        routed = sum(o.repeat * o.weight_bytes for o in cost.operators if o.name.startswith("experts_"))
        return routed, cost.total("weight_bytes") - routed

    woken = [experts * (1 - (1 - each / experts) ** tokens) for tokens in (1, gamma + 1)]
    (few, rest), (many, same) = read(1), read(gamma + 1)
    assert woken[0] == pytest.approx(each)
    assert many / few == pytest.approx(woken[1] / woken[0])
    assert rest == same
    moe = decoder.layer_kinds[-1]
    per_expert = 3 * decoder.hidden_size * moe.mlp.width / 8 * target.formats.weight_bytes
    assert few == pytest.approx(moe.count * each * per_expert)


def test_kv_and_weights_of_a_plain_cost_are_the_model_s_own():
    target = deploy("llama-3.2-1b", "h100").target
    assert kv_bytes_per_token(target) == 16 * 2 * 8 * 64 * 2
    assert draft_weights_on_gpu(target, deploy("llama-3.1-8b", "h100").target) == weights_on_gpu(target)


def test_a_looked_up_draft_has_no_cost():
    with pytest.raises(InputError, match="draft='ngram' must be a drafter with a model"):
        DraftCost(load_drafter("ngram"), deploy("llama-3.1-8b", "h100").target)
