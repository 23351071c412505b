"""Questions that people ask, and the article's experiments, as settings to start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from simulator.explorer import cart
from simulator.explorer.link import of_query

if TYPE_CHECKING:
    from simulator.explorer.page import Question


class Preset(NamedTuple):
    """A named setting of one page."""

    path: str
    """The page's."""
    title: str
    query: str
    """Its settings, as a link holds them."""


PRESETS: tuple[Preset, ...] = (
    Preset(
        "speculation",
        "A 1B model drafts for a 70B one",
        "model=llama-3.1-70b&gpu=h200-sxm&tp=4&draft=llama-3.2-1b&accept=one+rate&alpha=0.8&context=2048&gamma=8",
    ),
    Preset("speculation", "EAGLE-3 on an 8B model", "draft=eagle3-llama-3.1-8b&context=2048"),
    Preset(
        "speculation",
        "When does it stop paying with 32k tokens of context?",
        "model=llama-3.1-70b&gpu=h200-sxm&tp=4&draft=eagle3-llama-3.1-70b&context=32768&most=256",
    ),
    Preset(
        "speculation",
        "DeepSeek-V3 with its own prediction module",
        "model=deepseek-v3&gpu=h200-sxm&tp=8&draft=mtp-deepseek-v3&gamma=4",
    ),
    Preset(
        "speculation",
        "Code edits with drafts copied from the prompt",
        "draft=ngram-code-edits&context=4096&gamma=10",
    ),
    Preset(
        "speculation",
        "A tree or a chain?",
        "draft=eagle-llama-3.1-8b&tree=true&nodes=64&depth=6&most=128",
    ),
    Preset("why-slow", "The article's 70B on one node, batch 1", "model=llama-3.1-70b&tp=4&batch=1&context=2048"),
    Preset(
        "gpus",
        "8B chat for 10,000 users, a question each every 100 s",
        "load=100&prompt_tokens=768&answer_tokens=256",
    ),
    Preset(
        "gpus",
        "70B at 5 requests/s: H100, H200 or B200?",
        "model=llama-3.1-70b&load=5&gpus=h100-sxm&gpus=h200-sxm&gpus=b200&formats=model&formats=fp8",
    ),
    Preset(
        "gpus",
        "Does speculation save GPUs?",
        "load=300&tpot_target_ms=15&gpus=h100-sxm&gpus=h200-sxm",
    ),
    Preset(
        "gpus",
        "Agents: long prompts, short answers",
        "load=5&prompt_tokens=16384&answer_tokens=128&ttft_target_ms=3000",
    ),
    Preset("gpus", "Nothing is fast enough: what is nearest?", "model=llama-3.1-405b&load=1&tpot_target_ms=7"),
)


def draw(questions: Sequence[Question[Any]]) -> None:
    """The list at the top of the side bar; whoever takes one goes to its page."""
    with st.sidebar.popover("Start from a question", icon=":material/lightbulb:", width="stretch"):
        for question in questions:
            mine = [p for p in PRESETS if p.path == question.path]
            if mine:
                st.caption(question.title)
            for preset in mine:
                st.button(
                    preset.title, key=f"preset-{preset.path}-{preset.title}", type="tertiary", on_click=cart.go,
                    args=(question, of_query(question.settings, preset.query)),
                )  # fmt: skip
