"""What fits: the article's 70B on one H100, budgets that add up, KV tokens by hand, suggestions that hold."""

import re

import pytest

from simulator import units
from simulator.deployment import EngineChoice, deploy
from simulator.errors import DoesNotFit, InputError
from simulator.memory import budget, draft_weights_on_gpu, kv_bytes_per_token, require_fit, weights_on_gpu
from simulator.quantization import Quantization


def test_article_seventy_billion_parameters_are_140_gb_in_16_bit():
    deployment = deploy("llama-3-70b", "h100")
    assert weights_on_gpu(deployment.target) == pytest.approx(140e9, rel=0.01)
    with pytest.raises(DoesNotFit) as caught:
        deployment.fit()
    said = str(caught.value)
    assert said.startswith("llama-3-70b on 1 x h100-sxm needs 14")
    assert "141 GB of it weights" in said
    assert "KV cache for 1 x 1 tokens" in said


@pytest.mark.parametrize(
    ("model", "kwargs", "ask"),
    [
        ("llama-3-70b", {}, {}),
        ("llama-3.1-8b", {}, {"context_tokens": 8192, "sequences": 100}),
        ("llama-3.1-8b", {"draft": "llama-3.2-1b"}, {"context_tokens": 8192, "sequences": 70}),
        ("llama-3-70b", {"draft": "eagle-llama-3.1-70b", "tp": 2}, {"context_tokens": 8192, "sequences": 50}),
    ],
)
def test_every_suggestion_really_fits(model, kwargs, ask):
    with pytest.raises(DoesNotFit) as caught:
        deploy(model, "h100", **kwargs).fit(**ask)
    said = str(caught.value)
    assert said.endswith("would fit")
    larger, gpu = re.search(r"--tp (\d+)", said), re.search(r"--gpu (\S+)", said)
    assert larger or gpu
    if larger:
        smaller = int(larger[1]) // 2
        assert deploy(model, "h100", **{**kwargs, "tp": int(larger[1])}).fit(**ask)
        with pytest.raises(DoesNotFit):
            deploy(model, "h100", **{**kwargs, "tp": smaller}).fit(**ask)
    if gpu:
        assert deploy(model, gpu[1], **kwargs).fit(**ask)


def test_a_drafter_alone_on_its_gpu_is_shared_where_the_target_is():
    # The drafter has one GPU only because the target has: on four of each it takes a quarter of 2.5 GB.
    with pytest.raises(DoesNotFit, match=r"--tp 4 "):
        deploy("llama-3-70b", "l40s", draft="llama-3.2-1b").fit(context_tokens=4096, sequences=8)
    assert deploy("llama-3-70b", "l40s", tp=4, draft="llama-3.2-1b").fit(context_tokens=4096, sequences=8)


def test_a_drafter_bound_to_one_gpu_stays_there_in_suggestions(tmp_path):
    bound = tmp_path / "bound.yaml"
    bound.write_text("name: bound\ntitle: One GPU\nkind: model\nmodel: llama-3.2-1b\ntp: 1\n")
    with pytest.raises(DoesNotFit, match=r"--tp 8 "):
        deploy("llama-3-70b", "l40s", draft=str(bound)).fit(context_tokens=4096, sequences=8)
    assert deploy("llama-3-70b", "l40s", tp=8, draft=str(bound)).fit(context_tokens=4096, sequences=8)


def test_more_gpus_of_another_kind_where_neither_alone_would_do():
    with pytest.raises(DoesNotFit, match=r"--tp \d+ with --gpu") as caught:
        deploy("llama-3.1-405b", "h100").fit()
    tp, gpu = re.search(r"--tp (\d+) with --gpu (\S+)", str(caught.value)).groups()
    assert deploy("llama-3.1-405b", gpu, tp=int(tp)).fit()


def test_nothing_bundled_holds_it():
    with pytest.raises(DoesNotFit, match="no TP degree of one node and no bundled GPU would hold it"):
        deploy("llama-3.1-405b", "h100").fit(context_tokens=131_072, sequences=10_000)


def test_missing_bytes_are_what_is_missing():
    deployment = deploy("llama-3.1-8b", "h100")
    found = deployment.fit()
    assert deployment.fit(sequences=found.kv_tokens)
    missing = units.show((found.kv_tokens + 1) * 131_072 - found.kv_bytes, "bytes")
    with pytest.raises(DoesNotFit, match=f"which is {missing} more than"):
        deployment.fit(sequences=found.kv_tokens + 1)


def test_budget_adds_up_and_holds_the_tokens_it_says():
    found = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b").fit()
    parts = (
        found.weight_bytes + found.draft_weight_bytes + found.activation_bytes + found.reserved_bytes + found.kv_bytes
    )
    assert parts == pytest.approx(found.usable_bytes)
    assert 0 <= found.kv_bytes - found.kv_tokens * found.kv_bytes_per_token < found.kv_bytes_per_token
    assert found.kv_blocks(16) * 16 <= found.kv_tokens < (found.kv_blocks(16) + 1) * 16


def test_kv_tokens_by_hand():
    # An engine that reserves nothing and may fill all; Llama-3.1-8B stores 2·8·128 values of 2 bytes in 32 layers.
    deployment = deploy("llama-3.1-8b", "h100", engine="ideal")
    found = deployment.fit()
    assert found.kv_bytes_per_token == 131_072
    assert found.weight_bytes == pytest.approx(2 * 8.03e9, rel=1e-3)
    # 8192 tokens: two residuals of 4096 and three MLP tensors of 14336; 256 rows of 128256 logits, twice, in fp32.
    activations = 8192 * (2 * 4096 + 3 * 14336) * 2 + 256 * 128_256 * 8
    assert found.activation_bytes == activations
    assert found.reserved_bytes == 0
    assert found.kv_tokens == int((found.hbm_bytes - found.weight_bytes - activations) // 131_072)


def test_drafter_adds_its_kv_and_its_weights():
    alone, pair = (deploy("llama-3.1-8b", "h100", draft=d).fit() for d in (None, "llama-3.2-1b"))
    assert pair.draft_kv_bytes_per_token == 16 * 2 * 8 * 64 * 2
    assert pair.kv_bytes_per_token == alone.kv_bytes_per_token + pair.draft_kv_bytes_per_token
    assert pair.draft_weight_bytes == pytest.approx(2 * 1.2358e9, rel=1e-3)


def test_eagle_head_borrows_embedding_and_lm_head():
    deployment = deploy("llama-3.1-8b", "h100", draft="eagle-llama-3.1-8b")
    head = deployment.draft
    own = head.decoder.parameters - 2 * 128_256 * 4096
    assert draft_weights_on_gpu(head, deployment.target) == pytest.approx(2 * own, rel=1e-3)
    # EAGLE-3 borrows the embedding only: its LM head has 32000 columns of its own.
    third = deploy("llama-3.1-8b", "h100", draft="eagle3-llama-3.1-8b").draft
    assert draft_weights_on_gpu(third, deployment.target) == weights_on_gpu(third) - 128_256 * 4096 * 2


def test_head_on_one_gpu_of_several_keeps_its_own_copies():
    target, head = deploy("llama-3.1-8b", "h100", tp=2).target, deploy("eagle-llama-3.1-8b", "h100").target
    assert draft_weights_on_gpu(head, target) == weights_on_gpu(head)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_shares_weights_and_kv(tp):
    whole, rank = (
        budget(deploy("llama-3-70b", "h100", tp=n).target, deploy("llama-3-70b", "h100").engine) for n in (1, tp)
    )
    assert tp * rank.weight_bytes == pytest.approx(whole.weight_bytes)
    assert tp * rank.kv_bytes_per_token == whole.kv_bytes_per_token


def test_quantised_formats_shrink_weights_and_cache():
    wide = deploy("llama-3-70b", "h100", tp=4).fit()
    narrow = deploy("llama-3-70b", "h100", tp=4, quantization=Quantization(weights="fp8", kv="fp8")).fit()
    kept = 2 * 128_256 * 8192 * 2 / 4  # embedding and head, a quarter of each on a GPU
    assert narrow.weight_bytes - kept == pytest.approx((wide.weight_bytes - kept) / 2, rel=1e-3)
    assert narrow.kv_bytes_per_token == wide.kv_bytes_per_token / 2


def test_a_tied_head_in_another_format_is_a_second_copy():
    # The embedding's rows stay in 16 bit, so an int8 head of the same matrix has to be stored beside it.
    tied, copied = (
        weights_on_gpu(deploy("llama-3.2-1b", "h100", quantization=Quantization(lm_head=form)).target)
        for form in ("model", "int8")
    )
    assert copied - tied == pytest.approx(128_256 * 2048, rel=2e-3)
    same = deploy("llama-3.2-1b", "h100", quantization=Quantization(lm_head="bf16")).target
    assert weights_on_gpu(same) == tied


def test_verification_needs_logits_for_every_drafted_token():
    deployment = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    plain, speculative, long = (deployment.fit(gamma=gamma).activation_bytes for gamma in (0, 4, 64))
    assert speculative - plain == 256 * 4 * 128_256 * 8
    # A step of 8192 tokens has no more than 8192 rows of logits.
    assert long - plain == (8192 - 256) * 128_256 * 8


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01])
def test_impossible_utilization(share):
    with pytest.raises(InputError, match=r"memory_utilization=.* must be above 0 and at most 1"):
        require_fit(
            deploy("llama-3.1-8b", "h100").target, EngineChoice(name="vllm", memory_utilization=share).load(), None
        )


# Pipelines and spread experts


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_stages_share_weights_and_kv(pp):
    whole, cut = (deploy("llama-3-70b", "h100", tp=2, pp=n).target for n in (1, pp))
    engine = deploy("llama-3-70b", "h100").engine
    one = budget(whole, engine)
    found = budget(cut, engine)
    assert found.kv_bytes_per_token * pp == one.kv_bytes_per_token
    # The last stage has the head beside its layers, and logits: no other holds fewer tokens.
    layers = 80 * (8192 * (64 + 16) * 128 + 8192 * 8192 + 3 * 8192 * 28672) * 2 / 2
    assert found.weight_bytes == pytest.approx(layers / pp + 128_256 * 8192 * 2 / 2, rel=1e-4)
    assert found.activation_bytes == one.activation_bytes


def test_a_tied_head_is_copied_to_the_last_stage():
    target = deploy("llama-3.2-1b", "h100", pp=2).target
    layers = 8 * (2048 * (32 + 16) * 64 + 2048 * 2048 + 3 * 2048 * 8192) * 2
    assert weights_on_gpu(target) == pytest.approx(layers + 128_256 * 2048 * 2, rel=1e-4)


def test_a_drafter_is_beside_the_head():
    pair = deploy("llama-3-70b", "h100", tp=4, pp=2, draft="eagle-llama-3.1-70b").fit()
    assert pair.draft_kv_bytes_per_token > 0
    # It borrows the head there, and has an embedding of its own.
    near, far = (deploy("llama-3-70b", "h100", tp=4, pp=n, draft="eagle-llama-3.1-70b") for n in (1, 2))
    more = draft_weights_on_gpu(far.draft, far.target) - draft_weights_on_gpu(near.draft, near.target)
    assert more == 128_256 / 4 * 8192 * 2


def test_experts_spread_over_more_gpus_leave_more_room():
    narrow, wide = (deploy("deepseek-v3", "h200", tp=8, ep=ep).target for ep in (8, 64))
    experts = 58 * 256 * 3 * 7168 * 2048 * (1 + 4 / 128**2)
    assert weights_on_gpu(narrow) - weights_on_gpu(wide) == pytest.approx(experts / 8 - experts / 64)


def test_a_pipeline_is_suggested_where_a_node_is_too_small():
    ask = {"context_tokens": 8192, "sequences": 16}
    with pytest.raises(DoesNotFit, match=r"on 8 x h100-sxm .* --pp 2 or --gpu \S+ would fit") as caught:
        deploy("llama-3.1-405b", "h100", tp=8).fit(**ask)
    assert deploy("llama-3.1-405b", "h100", tp=8, pp=2).fit(**ask)
    gpu = re.search(r"--gpu (\S+)", str(caught.value))[1]
    assert deploy("llama-3.1-405b", gpu, tp=8).fit(**ask)


def test_suggestions_keep_stages_and_spread_experts():
    with pytest.raises(DoesNotFit, match=r"--tp (\d+)") as caught:
        deploy("qwen3-235b-a22b", "h100", tp=2, pp=2, ep=2).fit()
    tp = int(re.search(r"--tp (\d+)", str(caught.value))[1])
    assert deploy("qwen3-235b-a22b", "h100", tp=tp, pp=2, ep=tp).fit()
    with pytest.raises(DoesNotFit):
        deploy("qwen3-235b-a22b", "h100", tp=tp // 2, pp=2, ep=tp // 2).fit()


# Sizes of the KV cache by hand


def test_latent_attention_stores_576_values():
    # DeepSeek-V3: 512 of the latent and 64 rotary ones in each of 61 layers, on every rank, of 2 bytes.
    for tp in (8, 1):
        assert kv_bytes_per_token(deploy("deepseek-v3", "h200", tp=tp).target) == 61 * 576 * 2
    narrow = deploy("deepseek-v3", "h200", tp=8, quantization=Quantization(kv="fp8")).target
    assert kv_bytes_per_token(narrow) == 61 * 576
    found = budget(deploy("deepseek-v3", "h200", tp=8).target, deploy("deepseek-v3", "h200").engine)
    assert (found.window_tokens, found.windowed_share) == (0, 0.0)


@pytest.mark.parametrize(
    ("model", "layers", "windowed", "window", "kv_heads", "head_dim"),
    [("gpt-oss-20b", 24, 12, 128, 8, 64), ("gemma-3-27b", 62, 52, 1024, 16, 128), ("mistral-7b", 32, 32, 4096, 8, 128)],
)
def test_windows_by_hand(model, layers, windowed, window, kv_heads, head_dim):
    found = deploy(model, "h100").fit()
    layer = 2 * kv_heads * head_dim * 2
    assert found.kv_bytes_per_token == layers * layer
    assert found.window_tokens == window
    assert found.windowed_share == pytest.approx(windowed / layers)
    # 10,000 tokens of context: all of them in the full layers, the window in the others.
    by_hand = layer * ((layers - windowed) * 10_000 + windowed * window)
    assert found.held_bytes(10_000, hybrid=True) == pytest.approx(by_hand)
    assert found.held_bytes(10_000) == layer * layers * 10_000
    assert found.held_bytes(window, hybrid=True) == found.held_bytes(window)


def test_a_drafter_s_own_windows_count():
    # Gemma 3 drafting for itself: twice the bytes, the same share in windowed layers.
    alone, pair = (deploy("gemma-3-27b", "b200", draft=d).fit() for d in (None, "gemma-3-27b"))
    assert (pair.window_tokens, pair.windowed_share) == (alone.window_tokens, pytest.approx(alone.windowed_share))
    assert pair.kv_bytes_per_token == 2 * alone.kv_bytes_per_token


# What speculation costs in concurrency


def test_concurrency_by_hand():
    deployment = deploy("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    plain, pair = deployment.plain().fit(), deployment.fit(gamma=4)
    found = deployment.concurrency(context_tokens=1000, gamma=4)
    # 1000 tokens are 63 blocks of 16, 1005 as well; the drafter adds 16 layers of 2·8·64 values.
    assert found.plain == int(plain.kv_bytes // (1008 * 131_072))
    assert found.beside_draft_weights == int(pair.kv_bytes // (1008 * 131_072))
    assert found.with_draft_kv == int(pair.kv_bytes // (1008 * (131_072 + 32_768)))
    assert found.speculative == found.with_draft_kv
    assert found.lost_share == pytest.approx(1 - found.speculative / found.plain)
    # One token more begins another block.
    assert deployment.concurrency(context_tokens=1004, gamma=4).speculative == int(
        pair.kv_bytes // (1024 * (131_072 + 32_768))
    )


def test_look_up_drafts_cost_only_their_slots():
    found = deploy("llama-3.1-8b", "h100", draft="ngram").concurrency(context_tokens=1600, gamma=8)
    assert found.plain >= found.beside_draft_weights == found.with_draft_kv >= found.speculative
    nothing = deploy("llama-3-70b", "h100").concurrency(context_tokens=100, gamma=0)
    assert (nothing.plain, nothing.speculative, nothing.lost_share) == (0, 0, 0.0)
