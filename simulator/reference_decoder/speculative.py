"""Decoding: rows of a batch that advance together, one draft-verify round at a time, each by what was accepted for it.

A row with n tokens in the cache has one token more, its pending token, which the next round verifies along with the
drafts: a plain decode step is a round without drafts. Where nothing ends a round early, a round makes the host wait
once, when the accepted tokens are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.reference_decoder.model import KvCache, Model, TreeMask, first_argmax
from simulator.reference_decoder.token_tree import Tree
from simulator.reference_decoder.verification import (
    Forced,
    Proposal,
    Verdict,
    distribution,
    draw_tokens,
    greedy,
    sampled,
)

PLAIN = Tree.chain(0)
PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per pass and row: bounds the mask and the activations of a long prompt."""


class View(NamedTuple):
    """What a drafter may look at; `batch` rows, the last of which may be padding."""

    batch: int
    live: int
    """Most tokens that any row has in the cache."""
    lengths: Tensor
    """[batch], tokens in the cache."""
    previous: Tensor
    """[batch], the last token in the cache."""
    pending: Tensor
    """[batch], the token that follows it."""
    histories: Sequence[list[int]]
    """Prompt and output of each real row, pending token included; on the host."""
    temperature: float
    generator: torch.Generator


class Drafter(Protocol):
    """Proposes tokens, and keeps its own state in step with the rows."""

    @property
    def slots(self) -> int:
        """Most slots beyond a row's length that a proposal may fill in the target's cache."""
        ...

    def start(self, cache: KvCache) -> None:
        """Called once: `cache` is the target's."""
        ...

    def admit(self, first: int, tokens: Tensor, lengths: Tensor) -> None:
        """Rows from `first` on begin with these prompts; tokens: [new rows, longest prompt]."""
        ...

    def propose(self, view: View) -> Proposal:
        """Drafts for every row, or a tree of only the root."""
        ...

    def keep(self, start: Tensor, path: Tensor) -> None:
        """The nodes of the last proposal that were accepted."""
        ...

    def copy_row(self, source: int, target: int) -> None:
        """Row `target` becomes row `source`."""
        ...


@dataclass
class Row:
    """One sequence's tokens and history of rounds: enough to replay it."""

    request: int
    tokens: list[int]
    """Prompt and output."""
    prompt_tokens: int
    output_tokens: int
    """Most that may be generated."""
    drafted: list[int] = field(default_factory=list)
    """Depth of each round's draft; 0 where none was found."""
    accepted: list[int] = field(default_factory=list)
    """Of each round, as verified: the end of the sequence may have cut the last one short."""
    done: bool = False

    @property
    def output(self) -> list[int]:
        """What was generated."""
        return self.tokens[self.prompt_tokens :]

    def extend(self, tokens: Sequence[int], eos: int | None) -> int:
        """Append tokens up to the end of the sequence; how many were appended."""
        before = len(self.tokens)
        for token in tokens:
            self.tokens.append(token)
            self.done = token == eos or len(self.tokens) - self.prompt_tokens >= self.output_tokens
            if self.done:
                break
        return len(self.tokens) - before


class Round(NamedTuple):
    """What one round brought to each row that took part."""

    requests: list[int]
    drafted: list[int]
    accepted: list[int]
    emitted: list[int]
    """Tokens that reached the user: accepted + 1, fewer at the end of the sequence."""


class Decoding:
    """Up to `batch` rows over one static cache; rows come and go, those running are always the first ones."""

    def __init__(
        self,
        model: Model,
        batch: int,
        max_len: int,
        *,
        drafter: Drafter | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        forced: Forced | None = None,
        eos: int | None = None,
        pad_to: Sequence[int] = (),
    ) -> None:
        """`max_len`: prompt and output of the longest row. `pad_to`: batch sizes that graphs exist for."""
        self.model, self.drafter, self.temperature, self.forced, self.eos = model, drafter, temperature, forced, eos
        self.batch, self.pad_to = batch, sorted(pad_to)
        self.cache = model.new_cache(batch, max_len + 1 + (drafter.slots if drafter else 0))
        self.rows: list[Row] = []
        self._generator = torch.Generator(model.device).manual_seed(seed)
        self._lengths, self._previous, self._pending = torch.zeros(3, batch, dtype=torch.long, device=model.device)
        if drafter is not None:
            drafter.start(self.cache)

    def admit(
        self, prompts: Sequence[Sequence[int]], output_tokens: int | Sequence[int], first_request: int = 0
    ) -> None:
        """Prefill new rows and draw the first token of each."""
        first, new = len(self.rows), len(prompts)
        limits = [output_tokens] * new if isinstance(output_tokens, int) else list(output_tokens)
        if first + new > self.batch or not prompts or min(map(len, prompts)) < 1 or min(limits) < 1:
            raise ValueError(
                f"prompts must be 1 to {self.batch - first} rows of at least one token and one to generate"
            )
        room = self.cache.max_len - 1 - (self.drafter.slots if self.drafter else 0)
        if max(len(p) + n for p, n in zip(prompts, limits, strict=True)) > room:
            raise ValueError(f"prompt and output must be at most max_len={room} tokens")
        rows = slice(first, first + new)
        self._pending[rows] = self._choose(self._read(first, prompts))
        for i, (prompt, limit, token) in enumerate(zip(prompts, limits, self._pending[rows].tolist(), strict=True)):
            self.rows.append(Row(first_request + i, list(prompt), len(prompt), limit))
            self.rows[-1].extend([token], self.eos)

    def admit_texts(self, texts: Sequence[Sequence[int]]) -> None:
        """Rows whose next token is given and not drawn: the last one of each text. They never end by themselves."""
        first = len(self.rows)
        if first + len(texts) > self.batch or not texts or min(map(len, texts)) < 2:
            raise ValueError(f"texts must be 1 to {self.batch - first} rows of at least two tokens")
        self._read(first, [text[:-1] for text in texts])
        pending = torch.tensor([text[-1] for text in texts], device=self.model.device)
        self._pending[first : first + len(texts)] = pending
        for text in texts:
            self.rows.append(Row(len(self.rows), list(text), len(text) - 1, self.cache.max_len))

    def _read(self, first: int, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Prompts go through the target, and the drafter, as rows from `first` on → logits after each: [rows, vocab]."""
        rows = slice(first, first + len(prompts))
        padded = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        tokens = torch.from_numpy(padded).to(self.model.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.model.device)
        logits = prefill(self.model, self.cache.rows(rows.start, rows.stop), tokens, lengths)
        if self.drafter is not None:
            self.drafter.admit(first, tokens, lengths)
        self._lengths[rows] = lengths
        self._previous[rows] = tokens.gather(1, lengths[:, None] - 1)[:, 0]
        return logits

    def admit_synthetic(self, batch: int, context_tokens: int, output_tokens: int) -> None:
        """Rows with a random context of that length, cache included, without the time a prefill takes."""
        tokens = torch.randint(
            self.model.vocab, (batch, context_tokens + 1), generator=torch.Generator().manual_seed(0)
        )
        self.cache.data.normal_(generator=self._generator)
        for row in tokens.tolist():
            self.rows.append(Row(len(self.rows), row, context_tokens, output_tokens))
        self._lengths[:batch] = context_tokens
        self._previous[:batch] = tokens[:, -2].to(self.model.device)
        self._pending[:batch] = tokens[:, -1].to(self.model.device)

    def step(self) -> Round:
        """One round of every row that runs."""
        n = len(self.rows)
        if not n or any(row.done for row in self.rows):
            raise RuntimeError("admit() rows, and retire() those that are done, before step()")
        batch = next((size for size in self.pad_to if n <= size <= self.batch), n)
        # Rows that pad the batch are computed too; from length 0 they stay inside the cache.
        self._lengths[n:batch] = 0
        lengths, pending = self._lengths[:batch], self._pending[:batch]
        live = max(len(row.tokens) for row in self.rows) - 1
        histories = [row.tokens for row in self.rows]
        view = View(batch, live, lengths, self._previous[:batch], pending, histories, self.temperature, self._generator)
        proposal = self.drafter.propose(view) if self.drafter else Proposal(pending[:, None], PLAIN)
        tree = proposal.tree
        logits = self._verify(proposal, lengths, live)
        forced = self.forced.mask(batch, tree, self.model.device) if self.forced and tree.nodes > 1 else None
        if self.temperature > 0.0:
            verdict = sampled(logits, proposal, self.temperature, self._generator, forced)
        else:
            verdict = greedy(logits, proposal, forced)
        if not tree.is_chain:
            self.cache.keep_path(lengths, verdict.path)
        if self.drafter is not None:
            self.drafter.keep(lengths, verdict.path)
        emitted = self._advance(proposal, verdict)
        drafted = torch.full((batch,), tree.depth, device=self.model.device)
        if proposal.drafted is not None:
            drafted = drafted * proposal.drafted
        # The one wait of a round: how far each row came, and with which tokens.
        return self._record(torch.cat((verdict.accepted[:, None], drafted[:, None], emitted), dim=1)[:n].cpu().numpy())

    def retire(self) -> list[Row]:
        """Take out the rows that are done; the last rows move into their places."""
        gone = []
        for i in reversed(range(len(self.rows))):
            if self.rows[i].done:
                gone.append(self.rows[i])
                last = self.rows.pop()
                if i < len(self.rows):
                    self.rows[i] = last
                    self._copy_row(len(self.rows), i)
        return gone[::-1]

    def _copy_row(self, source: int, target: int) -> None:
        self.cache.copy_row(source, target)
        for state in (self._lengths, self._previous, self._pending):
            state[target] = state[source]
        if self.drafter is not None:
            self.drafter.copy_row(source, target)

    def _verify(self, proposal: Proposal, lengths: Tensor, live: int) -> Tensor:
        """[batch, nodes, vocab]"""
        tree = proposal.tree
        t = tree.on(self.model.device)
        positions = lengths[:, None] + t.depth
        if tree.is_chain:
            return self.model.forward(proposal.tokens, positions, self.cache, live + tree.nodes)
        slots = lengths[:, None] + torch.arange(tree.nodes, device=self.model.device)
        mask = TreeMask(t.visible, lengths)
        return self.model.forward(proposal.tokens, positions, self.cache, live + tree.nodes, tree=mask, slots=slots)

    def _advance(self, proposal: Proposal, verdict: Verdict) -> Tensor:
        """Move the rows' state on; [batch, depth + 1]: accepted drafts, then the target's token, then anything."""
        tokens = proposal.tokens.gather(1, verdict.path)  # [batch, depth + 1], the pending token first
        last = verdict.accepted[:, None]
        batch = tokens.shape[0]
        emitted = torch.cat((tokens[:, 1:], verdict.token[:, None]), dim=1).scatter(1, last, verdict.token[:, None])
        self._lengths[:batch] += verdict.accepted + 1
        self._previous[:batch] = tokens.gather(1, last)[:, 0]
        self._pending[:batch] = verdict.token
        return emitted

    def _record(self, result: NDArray[np.int64]) -> Round:
        """result: [rows, 2 + depth + 1]: accepted, drafted, tokens."""
        emitted = []
        for row, (accepted, drafted, *tokens) in zip(self.rows, result.tolist(), strict=True):
            row.accepted.append(accepted)
            row.drafted.append(drafted)
            emitted.append(row.extend(tokens[: accepted + 1], self.eos))
        return Round([r.request for r in self.rows], result[:, 1].tolist(), result[:, 0].tolist(), emitted)

    def _choose(self, logits: Tensor) -> Tensor:
        """[rows, vocab] → [rows]"""
        if self.temperature > 0.0:
            return draw_tokens(distribution(logits, self.temperature), 1, self._generator)[:, 0]
        return first_argmax(logits)


def prefill(model: Model, cache: KvCache, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Fill the cache with prompts and return the logits after the last token of each: [rows, vocab].

    tokens: [rows, longest prompt], padded at the end. What padding writes lies beyond the row's length, where nothing
    looks before the row's own tokens overwrite it.
    """
    result = torch.zeros(tokens.shape[0], model.vocab, device=tokens.device)
    for start in range(0, tokens.shape[1], PREFILL_CHUNK_TOKENS):
        chunk = tokens[:, start : start + PREFILL_CHUNK_TOKENS]
        size = chunk.shape[1]
        positions = torch.arange(start, start + size, device=tokens.device).expand_as(chunk)
        place = lengths - 1 - start
        logits = model.forward(chunk, positions, cache, start + size, last=place.clamp(0, size - 1))[:, 0]
        ends_here = (place >= 0) & (place < size)
        result = torch.where(ends_here[:, None], logits, result)
    return result


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    output_tokens: int,
    *,
    drafter: Drafter | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    forced: Forced | None = None,
    eos: int | None = None,
    pad_to: Sequence[int] = (),
) -> list[Row]:
    """Decode prompts as one batch until every row is done; the rows in the order of the prompts."""
    longest = max(map(len, prompts)) + output_tokens
    decoding = Decoding(
        model, len(prompts), longest, drafter=drafter, temperature=temperature, seed=seed, forced=forced, eos=eos,
        pad_to=pad_to,
    )  # fmt: skip
    decoding.admit(prompts, output_tokens)
    finished = decoding.retire()
    while decoding.rows:
        decoding.step()
        finished += decoding.retire()
    return sorted(finished, key=lambda row: row.request)
