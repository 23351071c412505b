"""One engine: at a boundary it hears of requests, decides on a step and runs it. The whole of docs/engine-rules.md, "A replica"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from simulator.serving import state
from simulator.serving.model import StepModel
from simulator.serving.plain.balance import Numbers
from simulator.serving.plain.blocks import BlockPool, blocks_for
from simulator.serving.plain.drafting import Drafter
from simulator.serving.plain.events import Event
from simulator.serving.plain.invariants import InvariantViolation
from simulator.serving.plain.line import Line
from simulator.serving.plain.luck import Luck
from simulator.serving.plain.schedule import Schedule
from simulator.serving.plain.sequence import Sequence
from simulator.serving.plain.series import Step
from simulator.serving.plain.timing import PassTimer, Spent
from simulator.speculation.policies import BY_TABLE


@dataclass
class Counters(Spent):
    """Totals of a replica; the same names as in `state.REPLICA`."""

    wasted_flop: float = 0.0
    busy_s: float = 0.0
    draft_s: float = 0.0
    host_s: float = 0.0
    swap_s: float = 0.0
    steps: int = 0
    emitted_tokens: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    sequence_rounds: int = 0
    preemptions: int = 0
    swaps: int = 0
    submitted: int = 0
    left: int = 0
    most_blocks: int = 0
    most_running: int = 0
    most_waiting: int = 0


class Replica:
    """An engine between two steps."""

    def __init__(self, number: int, model: StepModel):
        row = np.atleast_1d(model.config)[0]
        self.settings: Any = SimpleNamespace(**{name: row[name].item() for name in state.CONFIG.names or ()})
        self.number = number
        self.luck = Luck(model, self.settings)
        self.timer = PassTimer(model.target)
        self.drafter = Drafter(PassTimer(model.draft), self.luck, model.plan, model.draft_intake, self.settings)
        self.pool = BlockPool(self.settings.total_blocks)
        self.line = Line(self.settings)
        self.running: list[Sequence] = []
        """In the order (rank, number of submission)."""
        self.left: list[Sequence] = []
        """In the order in which they left."""
        self.leaving: list[Sequence] = []
        """Those of them that leave at the end of the step that runs."""
        self.swapped_blocks = 0
        self.clock_s = 0.0
        self.step_started_s = 0.0
        self.in_flight = False
        """Whether a step ended at `clock_s`."""
        self.counters = Counters()
        self.events: list[Event] = []
        self.steps: list[Step] = []
        self.gaps_s: list[float] = []
        """Times between two chunks of output of measured requests."""

    # --- between steps -------------------------------------------------------------------------------------------------
    def submit(self, sequence: Sequence) -> None:
        """The request joins the line when it is ready."""
        self.counters.submitted += 1
        self.line.unheard.append(sequence)

    @property
    def idle(self) -> bool:
        """Whether nobody waits or runs."""
        return not self.line.waiting and not self.running

    @property
    def drafts_ahead(self) -> bool:
        """Whether drafts are made at the end of a step, for the next one."""
        return bool(self.settings.drafter == state.MODEL_DRAFTER and not self.settings.draft_first)

    def next_boundary_s(self) -> float:
        """When it looks for work again; infinity where it has no request."""
        if not self.idle:
            return self.clock_s
        if self.line.unheard:
            return max(self.clock_s, self.line.unheard[0].ready_s)
        return math.inf

    def outstanding(self, now_s: float) -> int:
        """Requests sent here whose answers are not complete by `now_s`; steps that begin before then have begun."""
        unfinished = len(self.line.unheard) + len(self.line.waiting) + sum(not s.held for s in self.running)
        return unfinished + (len(self.leaving) if self.clock_s > now_s else 0)

    def boundary(self) -> list[Sequence]:
        """One boundary and, if there is work, the step that follows; returns who leaves, then or at that step's end."""
        if self.idle and self.line.unheard and self.line.unheard[0].ready_s > self.heard_s:
            self.clock_s = self.next_boundary_s()
            self.in_flight = False
        before = len(self.left)
        self.leaving = []
        for refused in self.line.join(self.heard_s):
            self._leave(refused, state.REFUSED)
        here = [s for s in self.line.waiting + self.running if s.cancel_s <= self.clock_s and not s.held]
        for sequence in sorted(here, key=lambda s: (s.cancel_s, s.index)):
            self._stop(sequence)
            self._leave(sequence, state.CANCELLED)
        for sequence in self.line.overdue(self.clock_s):
            self.line.waiting.remove(sequence)
            self._leave(sequence, state.TIMED_OUT)
        for sequence in [s for s in self.running if s.held]:
            if sequence.held == 2 or not self.line.waiting:
                self.let_go(sequence)
            else:
                sequence.held = 2
        if not self.idle:
            self._step()
        return self.left[before:]

    @property
    def heard_s(self) -> float:
        """Requests ready by then are in the next schedule; an overlapped one is made when the step before begins."""
        return self.step_started_s if self.settings.overlap and self.in_flight else self.clock_s

    def _stop(self, sequence: Sequence) -> None:
        """The sequence gives up what it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.release(sequence)
        else:
            self.line.waiting.remove(sequence)
            self.swapped_blocks -= blocks_for(self.settings, sequence.swapped_tokens)
            sequence.swapped_tokens = 0

    def _leave(self, sequence: Sequence, status: int) -> None:
        """The sequence is gone, now."""
        sequence.status = status
        if status != state.HANDED_OVER:
            sequence.finish_s = self.clock_s
        self.counters.left += 1
        self.left.append(sequence)
        self.note(self.clock_s, state.LEFT, sequence, status)

    def note(self, time_s: float, kind: int, sequence: Sequence, value: int) -> None:
        """Keeps an event."""
        self.events.append(Event(time_s, kind, sequence.index, value))

    # --- what is in the cache --------------------------------------------------------------------------------------------
    @property
    def caches(self) -> bool:
        """Whether blocks are found again."""
        return bool(self.settings.prefix_caching) and self.settings.window_tokens == 0

    def key(self, sequence: Sequence, place: int) -> Any:
        """Content of one of its blocks."""
        return sequence.key(place, self.settings.block_tokens, shares=bool(self.settings.shares))

    def found(self, sequence: Sequence, goal_tokens: int) -> list[int]:
        """Leading blocks of a sequence that are in the cache; at least one token is left to compute."""
        if not self.caches:
            return []
        places = range((goal_tokens - 1) // self.settings.block_tokens)
        return self.pool.leading([self.key(sequence, place) for place in places])

    def enter(self, sequence: Sequence, known_tokens: int) -> None:
        """Offers the cache those of its blocks that are, or will be at this step's end, full of known tokens; each once."""
        if self.caches:
            full = known_tokens // self.settings.block_tokens
            for place in range(sequence.offered_blocks, full):
                self.pool.enter(sequence.blocks[place], self.key(sequence, place))
            sequence.offered_blocks = max(sequence.offered_blocks, full)

    def release(self, sequence: Sequence) -> None:
        """The sequence gives back its blocks; those full of valid tokens can be found until they are taken."""
        if self.caches:
            self.enter(sequence, sequence.computed_tokens)
            # What was entered for this step and will not be computed is not there to be found.
            for block in sequence.blocks[sequence.computed_tokens // self.settings.block_tokens :]:
                if self.pool.users[block] == 1:
                    self.pool.forget(block)
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.offered_blocks = 0

    # --- a step ---------------------------------------------------------------------------------------------------------
    def _step(self) -> None:
        schedule = Schedule(self)
        schedule.decide()
        held = [sequence for sequence in self.running if sequence.held]
        if held and not any(sequence.step_tokens for sequence in self.running):
            # Nothing fits beside them: the next schedule, then.
            for sequence in held:
                self.let_go(sequence)
            schedule = Schedule(self)
            schedule.decide()
        batch = [sequence for sequence in self.running if sequence.step_tokens > 0]
        if not batch:  # it would preempt, or pause, for ever
            numbers: Numbers = {
                "running": len(self.running),
                "waiting": len(self.line.waiting),
                "blocks": self.pool.total_blocks,
            }
            raise InvariantViolation("every step has tokens", numbers, self.number)
        for sequence in batch:
            self._draw(sequence)
        seconds = self._seconds(batch, schedule.swapped_tokens)
        counters = self.counters
        counters.most_blocks = max(counters.most_blocks, self.pool.used_blocks)
        counters.most_running = max(counters.most_running, len(self.running))
        counters.most_waiting = max(counters.most_waiting, len(self.line.waiting))
        self.steps.append(
            Step(
                self.clock_s, seconds, sum(not s.held for s in self.running), len(self.line.waiting),
                self.pool.used_blocks,
                tokens=sum(s.step_tokens for s in batch),
                prompt_tokens=sum(s.step_tokens for s in batch if s.inside_prompt),
                emitted_tokens=sum(s.emitted_tokens for s in batch),
            )
        )  # fmt: skip
        counters.steps += 1
        counters.prefill_tokens += self.steps[-1].prompt_tokens
        self.step_started_s = self.clock_s
        self.clock_s += seconds
        self.in_flight = True
        for sequence in batch:
            self._emit(sequence)

    def _draw(self, sequence: Sequence) -> None:
        """How many tokens the step makes for a sequence."""
        sequence.kept_drafts = 0
        if sequence.inside_prompt:
            ends = sequence.computed_tokens + sequence.step_tokens == sequence.goal_tokens
            sequence.emitted_tokens = min(1, sequence.left_tokens) if ends else 0
            return
        kept = 0
        if sequence.drafts > 0:
            kept = self.luck.accepted(sequence, sequence.generated_tokens, sequence.depth)
            self.luck.learn(sequence, kept)
            sequence.kept_drafts = min(kept, sequence.left_tokens)
            sequence.rounds += 1
            sequence.drafted_tokens += sequence.drafts
            sequence.accepted_tokens += sequence.kept_drafts
            self.counters.sequence_rounds += 1
            self.counters.drafted_tokens += sequence.drafts
            self.counters.accepted_tokens += sequence.kept_drafts
        sequence.decode_rounds += 1
        sequence.emitted_tokens = min(kept + 1, sequence.left_tokens)

    def _seconds(self, batch: list[Sequence], swapped_tokens: int) -> float:
        """Seconds of a step: the GPU's (target, drafter, swap) and the host's, part of which may run beside them."""
        settings, counters = self.settings, self.counters
        decoding = [s for s in batch if not s.inside_prompt]
        prompts = len(decoding) < len(batch)
        rounds = sum(s.drafts > 0 for s in decoding)
        padded = bool(settings.padded) and rounds > 0
        widest = max((self._widest(s) for s in decoding), default=1)
        work = [(widest if padded and not s.inside_prompt else s.step_tokens, s.computed_tokens) for s in batch]
        tokens = sum(new for new, _ in work)
        rows = sum(
            new if not s.inside_prompt else int(s.computed_tokens + new == s.goal_tokens)
            for s, (new, _) in zip(batch, work, strict=True)
        )
        flop_before = counters.flop
        target_s = self.timer.linear_s(len(batch), tokens, rows, prompts=prompts, spent=counters)
        target_s += self.timer.attention_s(work, prompts=prompts, spent=counters)
        if rounds > 0 and settings.tree_attention > 0.0:
            target_s += self._tree_s([s for s in decoding if self._has_tree(s)])
        if rows > 0:
            # Rejected drafts' share of the pass: their part of its FLOP.
            rejected = sum(s.drafts - s.kept_drafts for s in batch)
            counters.wasted_flop += (counters.flop - flop_before) * rejected / tokens
        host_s = settings.host_step_s + settings.host_per_sequence_s * len(batch)
        host_s += self.timer.extra_host_s(len(batch), tokens, prompts=prompts)
        if settings.drafter != state.NO_DRAFTER and rounds > 0:
            host_s += settings.host_speculative_round_s
        if settings.drafter == state.NGRAM_DRAFTER and self._looks_up(decoding):
            host_s += settings.host_ngram_per_sequence_s * (len(decoding) if settings.draft_first else len(batch))
        draft_s = 0.0
        if settings.drafter == state.MODEL_DRAFTER:
            draft_s = self.drafter.seconds(batch, target_s, counters)
        swap_s = settings.swap_s_per_token * swapped_tokens
        gpu_s = target_s + draft_s + swap_s
        # Host work that an overlapped schedule does beside the GPU's, right after another step.
        hidden_s = settings.host_hidden_step_s + settings.host_hidden_per_sequence_s * len(batch)
        if settings.overlap and self.in_flight:
            seconds: float = host_s + max(gpu_s, hidden_s)
        else:
            seconds = host_s + (gpu_s + hidden_s)
        counters.busy_s += seconds
        counters.draft_s += draft_s
        counters.host_s += seconds - gpu_s
        counters.swap_s += swap_s
        return seconds

    def _looks_up(self, decoding: list[Sequence]) -> bool:
        """Whether the step's shape has drafts that somebody has to find."""
        shape = decoding[0].shape if decoding else self.luck.shape_for([])
        return bool(self.luck.model.plan.shapes[shape, state.NODES] > 0)

    def _has_tree(self, sequence: Sequence) -> bool:
        nodes, depth = self.luck.model.plan.shapes[sequence.shape, [state.NODES, state.DEPTH]]
        return bool(self.settings.policy == BY_TABLE and sequence.drafts > 0 and nodes > depth)

    def _tree_s(self, trees: list[Sequence]) -> float:
        """Seconds by which trees make a step longer than chains of as many drafts would: attention has a mask, and what is
        accepted is moved to where a chain would have it."""
        if not trees:
            return 0.0
        work = [(s.step_tokens, s.computed_tokens) for s in trees]
        widths = {new for new, _ in work}
        if len(widths) == 1 and not self.timer.has_window:
            contexts = self.timer.cached([context for _, context in work])
            attention_s = self.timer.equal_s(widths.pop(), contexts, len(trees), 0.0, Spent())
        else:
            attention_s = self.timer.exact_s(work, Spent())
        settings = self.settings
        pairs = float(sum(new * new for new, _ in work))
        kept = sum(s.emitted_tokens - 1 for s in trees)
        moving_s = settings.tree_step_s + (settings.tree_mask_s * pairs + settings.tree_move_s * kept)
        return float(settings.tree_attention * attention_s + moving_s)

    def _widest(self, sequence: Sequence) -> int:
        """Tokens of a sequence's round when it drafts all that its shape has; under a policy of its own, those it has."""
        if self.settings.policy == BY_TABLE and self.settings.drafter != state.NO_DRAFTER:
            return 1 + int(self.luck.model.plan.shapes[sequence.shape, state.NODES])
        return sequence.step_tokens

    def _emit(self, sequence: Sequence) -> None:
        """The step has ended: tokens reach their user, and who has its whole answer leaves."""
        sequence.computed_tokens += sequence.step_tokens if sequence.inside_prompt else sequence.emitted_tokens
        if sequence.emitted_tokens > 0:
            self._deliver(sequence)
        if sequence.complete:
            self._go(sequence, state.FINISHED)
        elif self.settings.prefill_only and sequence.generated_tokens > 0:
            self._go(sequence, state.HANDED_OVER)

    def _deliver(self, sequence: Sequence) -> None:
        if sequence.generated_tokens == 0:
            sequence.first_token_s = self.clock_s
        else:
            sequence.chunks += 1
            gap_s = self.clock_s - sequence.last_token_s
            sequence.longest_gap_s = max(sequence.longest_gap_s, gap_s)
            if sequence.measured:
                self.gaps_s.append(gap_s)
        sequence.last_token_s = self.clock_s
        sequence.generated_tokens += sequence.emitted_tokens
        self.counters.emitted_tokens += sequence.emitted_tokens
        self.note(self.clock_s, state.EMITTED, sequence, sequence.emitted_tokens)

    def let_go(self, sequence: Sequence) -> None:
        """A finished sequence gives back its blocks and its place."""
        self.running.remove(sequence)
        self.release(sequence)

    def _go(self, sequence: Sequence, status: int) -> None:
        if status == state.FINISHED and self.settings.overlap:
            sequence.held = 1  # the next schedule has been made already
        else:
            self.let_go(sequence)
        self._leave(sequence, status)
        self.leaving.append(sequence)
