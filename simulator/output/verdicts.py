"""The finding of a result as one sentence for people; `DecodeResult.verdict` is the third of them."""

from __future__ import annotations

from simulator import units
from simulator.planning.crossover import SpeculateResult
from simulator.serving.simulation import SimulationResult


def speculate_verdict(result: SpeculateResult) -> str:
    """How much speculation buys at the smallest batch, and up to which batch it pays."""
    first = result.batches[0]
    best = result.best_gamma(first)
    last = result.last_paying_batch
    if last == 0:
        return "Speculation does not pay at any batch."
    if best:
        start = f"At batch {first} γ = {best} decodes {result.cells[best, first].speedup:.2f} times as fast as plain decoding"
    else:
        start = f"At batch {first} plain decoding is faster"
    if last is None:
        return f"{start}, and speculation pays at every batch an engine runs."
    return f"{start}; beyond batch {last:,} no γ of {result.gammas[0]} to {result.gammas[-1]} pays any more."


def simulation_verdict(result: SimulationResult) -> str:
    """What users see: time per token with speculation and without, or the plain figures where nothing speculates."""
    main, plain = result.main.summary, result.plain.summary
    if result.main is result.plain or not main.tpot_s.n or not plain.tpot_s.n:
        return (
            f"{main.measured:,} requests: {units.show(main.ttft_s.p50, 's')} to the first token and "
            f"{units.show(main.tpot_s.p50, 's')} per token after it (medians), {main.output_tokens_per_s:,.0f} tokens/s in all."
        )
    ratio = plain.tpot_s.mean / main.tpot_s.mean
    effect = f"{ratio:.2f} times as fast" if ratio >= 1.0 else f"{1.0 / ratio:.2f} times slower"
    return (
        f"With γ = {result.main.gamma} tokens after the first one come {effect}: {units.show(main.tpot_s.mean, 's')} each "
        f"instead of {units.show(plain.tpot_s.mean, 's')} (means over {main.tpot_s.n:,} requests); "
        f"{main.good_share:.1%} of requests meet every objective, {plain.good_share:.1%} without speculation."
    )
