"""Who gets how many tokens in one step, and who has to make room for it. Rules a, b and c of docs/engine-rules.md."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from simulator.serving.plain.blocks import blocks_for
from simulator.serving.plain.sequence import Sequence
from simulator.serving.state import ADMITTED, PREEMPTED_, RUNNING
from simulator.speculation.shape import MAX_GAMMA

if TYPE_CHECKING:
    from simulator.serving.plain.replica import Replica


class Schedule:
    """The schedule of one step, which `decide` fills in."""

    def __init__(self, replica: Replica):
        self.replica = replica
        self.budget = int(replica.settings.max_batched_tokens)
        self.prompts = 0
        """Prompts that have a part in the step."""
        self.preempted = 0
        self.swapped_tokens = 0
        """Tokens of KV that cross PCIe, one way or the other."""

    def decide(self) -> None:
        """Gives every running sequence its tokens of the step, maybe none, after preemption and admission."""
        for sequence in self.replica.running:
            sequence.step_tokens = sequence.drafts = sequence.depth = sequence.emitted_tokens = 0
        prompts_first = bool(self.replica.settings.prefill_first)
        if not prompts_first:
            self.decode()
        self.go_on_with_prompts()
        if not self.preempted:  # nobody joins in the step that just made room the hard way
            self.admit()
        if prompts_first and not any(sequence.step_tokens for sequence in self.replica.running):
            self.decode()

    def decode(self) -> None:
        """a: a token and its drafts for every sequence past its prompt, or a pause where the budget does not reach."""
        replica = self.replica
        if not replica.drafts_ahead:
            deciding = [s for s in replica.running if not s.inside_prompt and not s.held]
            shape = replica.luck.shape_for([s.computed_tokens for s in deciding])
            for sequence in deciding:
                sequence.shape = shape
        for sequence in list(replica.running):
            if sequence not in replica.running:  # preempted by one before it, as all after it were
                break
            if sequence.inside_prompt or sequence.held:
                continue
            drafts, depth = replica.luck.drafts(sequence, sequence.generated_tokens, sequence.left_tokens)
            if 1 + drafts > self.budget:
                continue
            if self.has_room(sequence, 1 + drafts):
                self.give(sequence, 1 + drafts, drafts)
                sequence.depth = depth

    def go_on_with_prompts(self) -> None:
        """b: the next chunk of every prompt that has begun."""
        settings = self.replica.settings
        for sequence in list(self.replica.running):
            if sequence not in self.replica.running or self.budget == 0 or self.prompts == settings.prompts_per_pass:
                break
            if not sequence.inside_prompt:
                continue
            tokens = self.chunk(sequence)
            if self.has_room(sequence, tokens):
                self.give(sequence, tokens)
                self.prompts += 1

    def admit(self) -> None:
        """c: who waits joins, the first in line first, until one does not fit."""
        replica, settings = self.replica, self.replica.settings
        while (
            self.budget > 0
            and self.prompts < settings.prompts_per_pass
            and len(replica.running) < settings.max_sequences
            and replica.line.waiting
        ):
            sequence = replica.line.waiting[0]
            goal = sequence.prompt_tokens + sequence.generated_tokens
            brought = sequence.swapped_tokens if sequence.started else sequence.carried_tokens
            found = [] if brought else replica.found(sequence, goal)
            idle = sum(replica.pool.users[block] == 0 for block in found)
            spare = settings.watermark_blocks if replica.running else 0
            if blocks_for(settings, goal) - len(found) + idle + spare > replica.pool.free_blocks:
                break
            replica.line.waiting.remove(sequence)
            replica.pool.hold(found)
            sequence.blocks = found
            sequence.offered_blocks = len(found)
            self.begin(sequence, goal, brought or len(found) * settings.block_tokens)

    def begin(self, sequence: Sequence, goal_tokens: int, computed_tokens: int) -> None:
        """A sequence of which so much is computed takes its place among the running ones and its first tokens."""
        replica = self.replica
        sequence.status = RUNNING
        sequence.goal_tokens, sequence.computed_tokens = goal_tokens, computed_tokens
        sequence.shape, sequence.own_gamma = 0, MAX_GAMMA
        if not sequence.swapped_tokens:
            sequence.lag_tokens = 0  # what is found was read when it was made, by whoever made it
        if sequence.swapped_tokens:
            replica.swapped_blocks -= blocks_for(replica.settings, sequence.swapped_tokens)
            self.swapped_tokens += sequence.swapped_tokens
        elif sequence.started:
            sequence.recomputed_tokens -= computed_tokens
        elif sequence.scheduled_s < 0 or not (sequence.carried_tokens or sequence.retries):
            sequence.scheduled_s = replica.clock_s
            sequence.cached_tokens = computed_tokens
            replica.counters.cached_tokens += computed_tokens
        sequence.started = True
        sequence.swapped_tokens = sequence.carried_tokens = 0
        insort(replica.running, sequence, key=lambda other: other.place)
        replica.note(replica.clock_s, ADMITTED, sequence, computed_tokens)
        tokens = self.chunk(sequence)
        wanted = blocks_for(replica.settings, computed_tokens + tokens)
        sequence.blocks += replica.pool.take(max(0, wanted - len(sequence.blocks)))
        self.give(sequence, tokens)
        self.prompts += 1

    def chunk(self, sequence: Sequence) -> int:
        """Tokens of its goal that one step may compute."""
        rest = sequence.goal_tokens - sequence.computed_tokens
        return int(min(rest, self.budget, self.replica.settings.prefill_chunk_tokens))

    def has_room(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for `tokens` more; as long as too few are free the last of the line is preempted, in the end itself."""
        replica = self.replica
        wanted = blocks_for(replica.settings, sequence.computed_tokens + tokens)
        while wanted - len(sequence.blocks) > replica.pool.free_blocks:
            last = replica.running[-1]
            self.preempt(last)
            if last is sequence:
                return False
        sequence.blocks += replica.pool.take(max(0, wanted - len(sequence.blocks)))
        return True

    def give(self, sequence: Sequence, tokens: int, drafts: int = 0) -> None:
        """The sequence has so many tokens in this step; blocks that will be full of known ones can be found from now on."""
        sequence.step_tokens, sequence.drafts = tokens, drafts
        self.budget -= tokens
        self.replica.enter(sequence, sequence.computed_tokens + tokens - drafts)

    def preempt(self, sequence: Sequence) -> None:
        """The sequence gives back its blocks and waits, its KV in the swap space if that holds it, else lost."""
        replica, settings = self.replica, self.replica.settings
        self.preempted += 1
        if sequence.held:
            replica.let_go(sequence)
            return
        self.budget += sequence.step_tokens
        sequence.step_tokens = sequence.drafts = 0
        sequence.preemptions += 1
        replica.counters.preemptions += 1
        replica.running.remove(sequence)
        replica.release(sequence)
        held = blocks_for(settings, sequence.computed_tokens)
        swaps = sequence.computed_tokens > 0 and replica.swapped_blocks + held <= settings.swap_blocks
        if swaps:
            sequence.swapped_tokens = sequence.computed_tokens
            replica.swapped_blocks += held
            replica.counters.swaps += 1
            self.swapped_tokens += sequence.computed_tokens
        else:
            sequence.recomputed_tokens += sequence.computed_tokens
        sequence.computed_tokens = 0
        insort(replica.line.waiting, sequence, key=lambda other: other.place)
        replica.note(replica.clock_s, PREEMPTED_, sequence, int(swaps))
