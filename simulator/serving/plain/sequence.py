"""One request at a replica: what it asks, how far it is, and what is written into its record in the end."""

from __future__ import annotations

from typing import Any

from simulator.serving import state
from simulator.serving.plain.blocks import Key
from simulator.speculation.shape import MAX_GAMMA


class Sequence:
    """A request from its arrival at a replica until it leaves.

    All fields of its record (`state.REQUEST`) are here under their names; below are those that the rules turn on.
    """

    prompt_tokens: int
    output_tokens: int
    generated_tokens: int
    carried_tokens: int
    preemptions: int
    recomputed_tokens: int
    cached_tokens: int
    decode_rounds: int
    rounds: int
    drafted_tokens: int
    accepted_tokens: int
    chunks: int
    rank: int
    session: int
    retries: int
    measured: int
    replica: int
    status: int
    ready_s: float
    cancel_s: float
    scheduled_s: float
    first_token_s: float
    last_token_s: float
    longest_gap_s: float
    finish_s: float

    def __init__(self, index: int, order: int, record: Any, source: Any, end_tokens: Any):
        for name in state.REQUEST.names or ():
            setattr(self, name, record[name].item())
        self.index, self.order = index, order
        first = int(record["first_piece"])
        self.shared = [(int(end_tokens[p]), int(source[p])) for p in range(first, first + int(record["pieces"]))]
        """(end, source) of the pieces of its prompt that it may share with others."""
        self.arrived_with_tokens = self.generated_tokens
        """Tokens that another replica had generated for it."""
        self.started = False
        """Whether it has run on this replica."""
        self.swapped_tokens = 0
        """Tokens of its KV in the swap space."""
        self.held = 0
        """1: it has finished just now; 2: and keeps its place for the present schedule."""
        self.blocks: list[int] = []
        self.offered_blocks = 0
        """Leading ones that the cache has been offered, or that were found there."""
        self.computed_tokens = 0
        """Tokens whose KV is valid."""
        self.goal_tokens = 0
        """Tokens to compute before it (again) makes one of its own: its prompt, and after a preemption what it had generated."""
        self.step_tokens = 0
        """Tokens of the present step, 0: it has no part in it."""
        self.drafts = 0
        """Drafts among them."""
        self.shape = 0
        """Which of the plan's shapes its next round has."""
        self.depth = 0
        """Drafts of the present round that can be accepted."""
        self.own_gamma = MAX_GAMMA
        """Drafts that its own past suggests."""
        self.lag_tokens = 0
        """Tokens with KV that its drafter has not read."""
        self.kept_drafts = 0
        """Those of them that the target keeps and the answer needs."""
        self.emitted_tokens = 0
        """Tokens that reach its user at the end of the present step."""

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the lines."""
        return self.rank, self.order

    @property
    def inside_prompt(self) -> bool:
        """Whether tokens of its goal are still to be computed."""
        return self.computed_tokens < self.goal_tokens

    @property
    def left_tokens(self) -> int:
        """Tokens of its answer that it has not generated."""
        return self.output_tokens - self.generated_tokens

    @property
    def complete(self) -> bool:
        """Whether it has its whole answer (one of no tokens: when its prompt is computed)."""
        return not self.inside_prompt and self.left_tokens <= 0

    def key(self, place: int, block_tokens: int, *, shares: bool) -> Key:
        """Content of its block at `place`: the piece in which the block ends, or what follows, its session's own text."""
        if not shares:
            return "request", self.index, place
        end = (place + 1) * block_tokens
        for end_tokens, source in self.shared:
            if end_tokens >= end:
                return "piece", source, place
        return "session", self.session, place

    def write(self, record: Any) -> None:
        """Puts what became of it into its record."""
        for name in state.REQUEST.names or ():
            record[name] = getattr(self, name)
