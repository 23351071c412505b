"""Why is decoding slow? One decode step taken apart."""

from __future__ import annotations

from functools import partial

from simulator import catalog
from simulator.decoding import decode
from simulator.deployment import deploy
from simulator.explorer.answer import Answer, Download, Number, Plot, Tell, Uploads
from simulator.explorer.controls import Controls
from simulator.explorer.link import Settings
from simulator.explorer.page import Question
from simulator.figures import breakdown, page, roofline, style, timeline
from simulator.output import rows
from simulator.output.chrome_trace import chrome_trace

BATCHES = tuple(2**i for i in range(11))
CONTEXTS = tuple(2**i for i in range(7, 18))


class Step(Settings):
    """A decode step."""

    model: str = "llama-3.1-8b"
    """Bundled model."""
    gpu: str = "h100-sxm"
    """Bundled GPU."""
    tp: int = 1
    """GPUs that share the model."""
    batch: int = 1
    """Sequences in the batch."""
    context: int = 1024
    """Tokens each holds."""


class WhySlow(Question[Step]):
    """The page."""

    path = "why-slow"
    title = "Why is decoding slow?"
    settings = Step

    def controls(self, draw: Controls) -> Step:
        """Model, GPU, batch and context."""
        return Step(
            model=draw.choice("model", "Model", catalog.names("model")),
            gpu=draw.choice("gpu", "GPU", catalog.names("gpu")),
            tp=draw.steps("tp", "GPUs that share it (tensor parallel)", (1, 2, 4, 8)),
            batch=draw.steps("batch", "Sequences in the batch", BATCHES),
            context=draw.steps("context", "Tokens of context each", CONTEXTS),
        )

    def answer(self, settings: Step, uploads: Uploads, tell: Tell) -> Answer:
        """The step taken apart."""
        deployment = deploy(settings.model, settings.gpu, tp=settings.tp)
        result = decode(deployment, batch=settings.batch, context_tokens=settings.context)
        schedule, tag = result.timeline(), style.tag_of(deployment)
        return Answer(
            verdict=result.verdict,
            conditions=rows.decode_conditions(result),
            numbers=[
                Number("Time per token", result.step_s, "s", "lower"),
                Number("Tokens per second", result.tokens_per_s, "", "higher"),
            ],
            plots=[
                Plot("causes", partial(breakdown.cause_figure, result)),
                Plot("roofline", partial(roofline.roofline_figure, result)),
                Plot("pass", partial(timeline.gantt_figure, schedule, tag)),
                Plot("memory", partial(breakdown.memory_figure, result.budget, tag)),
            ],
            downloads=[
                Download(
                    "Trace for Perfetto", "decode.json", "application/json", partial(chrome_trace, result, schedule)
                ),
                Download("This page as HTML", "decode.html", "text/html", partial(page.decode_page, result, schedule)),
            ],
        )
