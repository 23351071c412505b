"""Kinds of requests in one stream of traffic: who goes first, what counts as good service, how drafts fare, who gives up,
and what their prompts and answers are like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from simulator.errors import InputError
from simulator.records import Record
from simulator.serving.lengths import Lengths
from simulator.serving.prefixes import SystemPrompt
from simulator.serving.quantities import in_si
from simulator.serving.sessions import Conversation
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig

MOST_CLASSES = 1000
"""More are a mistake: some other column read as the class."""

Patience = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(lambda value: in_si(value, "s"))]


class RequestClass(Record):
    """What requests of one class have in common, apart from their lengths."""

    name: str = Field(min_length=1)
    """Short name, under which metrics report the class."""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    """Who goes first where the engine orders by priority, no unit: smaller before larger."""
    slo: Slo | None = None
    """What counts as good service; left out, the scenario's."""
    acceptance: AcceptanceConfig | None = None
    """How drafts fare on these requests; left out, the scenario's."""
    patience_s: Patience | None = None
    """The user cancels a request that is not finished this long after its arrival, s; left out, never."""


EVERYTHING = (RequestClass(name="all"),)
"""The classes of traffic that has none."""


class Content(RequestClass):
    """A class of requests with what is in them."""

    lengths: Lengths
    """Prompt and output lengths. Where there is a system prompt it comes on top; in a conversation the prompt length is
    that of one turn's new text."""
    system_prompt: SystemPrompt | None = None
    """Text that begins the prompts of many requests."""
    conversation: Conversation | None = None
    """Left out: every request stands for itself."""

    @property
    def request_class(self) -> RequestClass:
        """The class without its contents."""
        return RequestClass(**{name: getattr(self, name) for name in RequestClass.model_fields})


class TrafficClass(Content):
    """One class of a mixture."""

    share: float = Field(gt=0, le=1e9)
    """Share of the arrivals, relative to the other classes' (70 and 30, or 0.7 and 0.3), no unit. Where there are
    conversations, a share of those that begin, not of their turns."""


def sources_of(contents: Sequence[Content]) -> str:
    """Where their lengths come from, each said once."""
    return "; ".join(dict.fromkeys(content.lengths.source for content in contents if content.lengths.source))


def with_sources(text: str, contents: Sequence[Content]) -> str:
    """`text` with a word on the classes and where their lengths come from."""
    if len(contents) > 1:
        text += f", {len(contents)} classes"
    sources = sources_of(contents)
    return f"{text}; lengths: {sources}" if sources else text


def check_names(names: Sequence[str], field: str) -> None:
    """InputError where a name is given twice."""
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"{field}.name", twice[0], "be given to one of them only")
