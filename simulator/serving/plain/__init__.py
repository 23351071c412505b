"""The serving engine in plain Python: the specification of the compiled loop, in objects and dictionaries, without hurry.

Read in this order:
`blocks`     the KV cache: a queue of free blocks and a table of their contents
`sequence`   one request at a replica
`line`       who waits
`luck`       drafts, and how many are kept
`timing`     seconds of a pass; `drafting`: seconds of a drafter
`schedule`   who gets how many tokens in a step
`replica`    boundary, step, end of step; `series`: what is kept of steps
`routers`, `cluster`   several replicas and the people who ask
`invariants`, `balance`   what must hold at every step, and of the results

The rules in words: docs/engine-rules.md. `simulate` fills in the same records as the compiled loop, to the last bit.
"""

from simulator.serving.plain.cluster import PlainResult, simulate
from simulator.serving.plain.events import Event
from simulator.serving.plain.invariants import INVARIANTS, InvariantViolation

__all__ = ["INVARIANTS", "Event", "InvariantViolation", "PlainResult", "simulate"]
