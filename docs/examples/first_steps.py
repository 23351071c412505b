"""The three questions in a handful of lines: why is decoding slow, what does speculation buy, what do many users get?"""

from simulator import AcceptanceConfig, decode, deploy, load_scenario, simulate, speculate

# Why is my decode this slow?
served = deploy("llama-3.1-70b", "h100-sxm", tp=4, draft="llama-3.2-1b")
step = decode(served, batch=1, context_tokens=2048)
print(step.verdict)

# What does speculation buy, and when does it stop paying?
grid = speculate(served, AcceptanceConfig(alpha=0.8).law(), gammas=range(1, 9), batches=[1, 8, 64, 256])
for batch in grid.batches:
    gamma = grid.best_gamma(batch)
    if gamma:
        print(f"batch {batch}: γ = {gamma} is best, {grid.cells[gamma, batch].speedup:.2f} x plain decoding")
    else:
        print(f"batch {batch}: speculation does not pay")

# What do many users get, with speculation and without?
result = simulate(load_scenario("chat-8b-h100-eagle", load={"requests": 500}))
for run in result.runs:
    summary = run.summary
    print(
        f"{run.variant}: p99 TTFT {summary.ttft_s.p99 * 1e3:.0f} ms, mean TPOT {summary.tpot_s.mean * 1e3:.1f} ms, "
        f"{summary.output_tokens_per_s:.0f} tokens/s over {summary.measured} requests"
    )
