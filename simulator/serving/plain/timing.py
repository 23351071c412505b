"""Seconds of one pass through a model: tables by token count, and attention from sums over the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.cost.roofline import attention_time, one_kernel
from simulator.cost.tables import BYTES, FLOP, SECONDS, AttentionKind, FastTables
from simulator.operators import attention_pairs, kv_tokens_read

FINE_TOKENS = 512
KNOT_TOKENS = 64.0
"""Contexts between which attention is interpolated are multiples of this many tokens."""

Work = tuple[int, int]
"""New tokens of one sequence, and tokens of it that are in the cache."""


@dataclass
class Spent:
    """What passes have moved and multiplied, on one rank."""

    hbm_bytes: float = 0.0
    flop: float = 0.0


class Kernels:
    """Sums over a batch: what the decode kernel and the prefill kernel have to do, one layer of one kind."""

    def __init__(self, batch: Sequence[Work], window_tokens: float):
        self.sequences = self.tokens = self.kv_tokens = self.pairs = 0.0
        self.prompts = self.prompt_tokens = self.prompt_kv_tokens = self.prompt_pairs = 0.0
        for new, cached in batch:
            kv_tokens = kv_tokens_read(float(new), float(cached), window_tokens)
            pairs = attention_pairs(float(new), float(cached), window_tokens)
            if new <= DECODE_QUERY_LIMIT:
                self.sequences += 1.0
                self.tokens += new
                self.kv_tokens += kv_tokens
                self.pairs += pairs
            else:
                self.prompts += 1.0
                self.prompt_tokens += new
                self.prompt_kv_tokens += kv_tokens
                self.prompt_pairs += pairs


class PassTimer:
    """Prices passes of one model; the sequence of floating-point operations is that of the compiled loop."""

    def __init__(self, tables: FastTables):
        self.tables = tables
        self.has_window = any(math.isfinite(kind.window_tokens) for kind in tables.kinds)

    def micro_batches(self, sequences: int) -> int:
        """Parts into which a pipeline cuts a pass."""
        return min(self.tables.pipeline, max(1, sequences))

    def linear_s(self, sequences: int, tokens: int, rows: int, *, prompts: bool, spent: Spent) -> float:
        """Seconds of everything but attention; with a pipeline, of its largest micro-batch."""
        parts = self.micro_batches(sequences)
        share = parts / self.tables.pipeline
        linear = self.tables.linear[int(prompts)]
        at_once = linear.shape[1] - 1
        tokens, seconds = -(-tokens // parts), 0.0
        while tokens > at_once:  # a drafter that has much to read reads it in pieces
            spent.hbm_bytes += share * float(linear[BYTES, at_once])
            spent.flop += share * float(linear[FLOP, at_once])
            seconds += float(linear[SECONDS, at_once])
            tokens -= at_once
        head = self.tables.head[:, -(-rows // parts)]
        spent.hbm_bytes += share * (float(linear[BYTES, tokens]) + float(head[BYTES]))
        spent.flop += share * (float(linear[FLOP, tokens]) + float(head[FLOP]))
        return seconds + (float(linear[SECONDS, tokens]) + float(head[SECONDS]))

    def intake_s(self, intake: Any, tokens: int, spent: Spent) -> float:
        """What a drafter's first pass of a round costs beyond its others, with `tokens` that are new to it."""
        at_once, seconds = intake.shape[1] - 1, 0.0
        while tokens > at_once:
            spent.hbm_bytes += float(intake[BYTES, at_once])
            spent.flop += float(intake[FLOP, at_once])
            seconds += float(intake[SECONDS, at_once])
            tokens -= at_once
        spent.hbm_bytes += float(intake[BYTES, tokens])
        spent.flop += float(intake[FLOP, tokens])
        return seconds + float(intake[SECONDS, tokens])

    def extra_host_s(self, sequences: int, tokens: int, *, prompts: bool) -> float:
        """Launch gaps of a step that no captured graph covers, s."""
        return float(self.tables.extra_host_s[int(prompts), -(-tokens // self.micro_batches(sequences))])

    def launches_s(self, sequences: int, tokens: int, *, prompts: bool, of_sequences: bool) -> float:
        """What a drafter's pass waits for its launches; `of_sequences`: captured graphs count sequences, not tokens. s."""
        extra_host_s = self.tables.extra_host_s[int(prompts)]
        most = self.tables.linear.shape[-1] - 1
        waits_s = float(extra_host_s[min(tokens, most)])
        return min(waits_s, float(extra_host_s[min(sequences, most)])) if of_sequences else waits_s

    def attention_s(self, batch: Sequence[Work], *, prompts: bool, spent: Spent) -> float:
        """Seconds of attention in a pass of the target: interpolated where every sequence has the same few new tokens."""
        first = batch[0][0]
        alike = all(new == first for new, _ in batch) and first <= DECODE_QUERY_LIMIT and not prompts
        if alike and (first == 1 or not self.has_window):
            return self.alike_s(first, self.cached([cached for _, cached in batch]), len(batch), 0.0, spent)
        return self.exact_s(batch, spent)

    def exact_s(self, batch: Sequence[Work], spent: Spent) -> float:
        """Seconds of all layers' attention kernels for any batch."""
        return self._summed_s([Kernels(batch, kind.window_tokens) for kind in self.tables.kinds], len(batch), spent)

    def grouped_s(self, groups: Sequence[tuple[int, Work]], spent: Spent) -> float:
        """As `exact_s`, for so many sequences of each kind of work."""
        sums = [Kernels([], kind.window_tokens) for kind in self.tables.kinds]
        for kind, kernels in zip(self.tables.kinds, sums, strict=True):
            for sequences, work in groups:
                for name, one in vars(Kernels([work], kind.window_tokens)).items():
                    setattr(kernels, name, getattr(kernels, name) + sequences * one)
        return self._summed_s(sums, sum(sequences for sequences, _ in groups), spent)

    def _summed_s(self, sums: Sequence[Kernels], sequences: int, spent: Spent) -> float:
        seconds = 0.0
        parts = float(self.micro_batches(sequences))
        share = 1.0 / self.tables.pipeline
        for kind, kernels in zip(self.tables.kinds, sums, strict=True):
            seconds += kind.layers * self._one_layer_s(kind, kernels, parts)
            kv_tokens = kernels.kv_tokens + kernels.prompt_kv_tokens
            flop = kernels.pairs * kind.decode_flop_per_pair + kernels.prompt_pairs * kind.prefill_flop_per_pair
            spent.hbm_bytes += share * kind.layers * kv_tokens * kind.kv_bytes_per_token
            spent.flop += share * kind.layers * flop
        return seconds

    def cached(self, contexts: Sequence[int]) -> list[float]:
        """Σ min(context, window − 1) by kind."""
        return [
            sum((min(float(context), kind.window_tokens - 1.0) for context in contexts), 0.0)
            for kind in self.tables.kinds
        ]

    def alike_s(self, new: int, cached: Sequence[float], sequences: int, ahead: float, spent: Spent) -> float:
        """Seconds of all layers' attention where each of `sequences` has `new` tokens, on top of `cached` in all, by kind.

        `ahead` tokens are added to the caches of kinds without a window. Linear between knots of equal contexts.
        """
        seconds = 0.0
        share = 1.0 / self.tables.pipeline
        q = float(new)
        for kind, tokens in zip(self.tables.kinds, cached, strict=True):
            context = tokens + (0.0 if math.isfinite(kind.window_tokens) else ahead)
            x = context / sequences
            if x >= FINE_TOKENS:
                x = FINE_TOKENS + (x - FINE_TOKENS) / KNOT_TOKENS
            place = int(x)
            low, high = self._knot_s(sequences, new, place), self._knot_s(sequences, new, place + 1)
            seconds += kind.layers * (low + (high - low) * (x - place))
            kv_tokens = context + sequences * q
            pairs = q * context + sequences * q * (0.5 * (q + 1.0))
            spent.hbm_bytes += share * kind.layers * kv_tokens * kind.kv_bytes_per_token
            spent.flop += share * kind.layers * pairs * kind.decode_flop_per_pair
        return seconds

    def equal_s(self, new: int, cached: Sequence[float], sequences: int, ahead: float, spent: Spent) -> float:
        """As `alike_s`, for any number of new tokens; where that has no knots, from the sums over the batch."""
        if new == 1 or (new <= DECODE_QUERY_LIMIT and not self.has_window):
            return self.alike_s(new, cached, sequences, ahead, spent)
        seconds = 0.0
        parts = float(self.micro_batches(sequences))
        share = 1.0 / self.tables.pipeline
        q, n = float(new), float(sequences)
        for kind, tokens in zip(self.tables.kinds, cached, strict=True):
            context = tokens + (0.0 if math.isfinite(kind.window_tokens) else ahead)
            kv_tokens, pairs = context + n * q, q * context + n * q * (0.5 * (q + 1.0))
            kernels = Kernels([], math.inf)
            if new <= DECODE_QUERY_LIMIT:
                kernels.sequences, kernels.tokens, kernels.kv_tokens, kernels.pairs = n, n * q, kv_tokens, pairs
                flop = pairs * kind.decode_flop_per_pair
            else:
                kernels.prompts, kernels.prompt_tokens = n, n * q
                kernels.prompt_kv_tokens, kernels.prompt_pairs = kv_tokens, pairs
                flop = pairs * kind.prefill_flop_per_pair
            seconds += kind.layers * self._one_layer_s(kind, kernels, parts)
            spent.hbm_bytes += share * kind.layers * kv_tokens * kind.kv_bytes_per_token
            spent.flop += share * kind.layers * flop
        return seconds

    def _knot_s(self, sequences: int, new: int, place: int) -> float:
        """Seconds of one layer without window, every sequence with `new` tokens on top of so many cached: knots are a token apart up
        to 512, then 64."""
        kernels = Kernels([], math.inf)
        cached = float(min(place, FINE_TOKENS)) + max(0, place - FINE_TOKENS) * KNOT_TOKENS
        kernels.sequences = float(sequences)
        kernels.tokens = float(sequences * new)
        kernels.kv_tokens = sequences * kv_tokens_read(float(new), cached, math.inf)
        kernels.pairs = sequences * attention_pairs(float(new), cached, math.inf)
        return self._one_layer_s(self.tables.kinds[0], kernels, float(self.micro_batches(sequences)))

    def _one_layer_s(self, kind: AttentionKind, kernels: Kernels, parts: float) -> float:
        """Seconds of one layer's kernels in one of `parts` micro-batches."""
        seconds = 0.0
        prefill_rates = self.tables.prefill_rates
        together = one_kernel(kernels.sequences, kernels.tokens, kernels.prompts, prefill_rates)
        if kernels.sequences > 0.0:
            # What shares a launch pays for it once.
            saved_s = prefill_rates.t0_s if together and kernels.prompts > 0.0 else 0.0
            rates = prefill_rates if together else self.tables.decode_rates
            kv_bytes = kernels.kv_tokens * kind.kv_bytes_per_token / parts
            flop = kernels.pairs * kind.decode_flop_per_pair / parts
            seconds += (
                attention_time(kernels.sequences / parts, kernels.tokens / parts, kv_bytes, flop, rates)[0] - saved_s
            )
        if kernels.prompts > 0.0:
            kv_bytes = kernels.prompt_kv_tokens * kind.kv_bytes_per_token / parts
            flop = kernels.prompt_pairs * kind.prefill_flop_per_pair / parts
            seconds += attention_time(
                kernels.prompts / parts, kernels.prompt_tokens / parts, kv_bytes, flop, prefill_rates
            )[0]
        return seconds
