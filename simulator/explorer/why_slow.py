"""Why is decoding slow? One decode step taken apart, and what another desk or another HBM would change."""

from __future__ import annotations

from functools import cache, partial
from typing import Final, Literal, get_args

from pydantic import Field

from simulator import catalog, units
from simulator.architecture import load_decoder
from simulator.calibration.measured_points import measured_points
from simulator.decoding import DecodeResult, Timeline, decode, what_if_sentence
from simulator.deployment import Deployment, deploy
from simulator.explorer.answer import ROOM_BYTES, Answer, Download, Number, Plot, Tell, Uploads
from simulator.explorer.controls import Controls
from simulator.explorer.link import Settings
from simulator.explorer.page import Question
from simulator.figures import breakdown, page, roofline, style
from simulator.figures.timeline import gantt_figure
from simulator.hardware import load_gpu, what_if
from simulator.output import rows
from simulator.output.chrome_trace import chrome_trace
from simulator.output.report import decode_report
from simulator.output.tables import Section
from simulator.pass_work import pass_works
from simulator.planning.matching_drafters import drafters_for
from simulator.quantization import Quantization
from simulator.records import validate

BATCHES = tuple(2**i for i in range(11))
CONTEXTS = tuple(2**i for i in range(7, 18))
TENSOR_PARALLEL = (1, 2, 4, 8)
WEIGHTS = ("model", "bf16", "fp8", "int8", "int4", "mxfp4")
KV = ("model", "bf16", "fp8", "int8", "int4")
NO_DRAFTER = "none"
_TILE_BYTES = 300
"""What a load of the timeline takes."""
AS_BUILT = "as built"
DESKS = (AS_BUILT, "1 MB", "10 MB", "100 MB", "1 GB", "10 GB", "100 GB")
BANDWIDTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)
ALL_LAYERS: Final = "all"
Layers = Literal["all", "24", "12", "6", "4", "2", "1"]
SHOWN_LAYERS: tuple[Layers, ...] = get_args(Layers)


class Step(Settings):
    """A decode step, and a wish."""

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
    weights: str = "model"
    """Number format of the weights; ``model``: the checkpoint's."""
    kv: str = "model"
    """Number format of the KV cache."""
    engine: str = "vllm"
    """Serving engine."""
    draft: str = NO_DRAFTER
    """Drafter whose passes, and whose verification, stand in the roofline."""
    gamma: int = 4
    """Drafts that are verified at once."""
    desk: str = AS_BUILT
    """What if the SRAM were as large as this."""
    hbm: float = 1.0
    """What if the HBM were so many times as fast."""
    layers: Layers = ALL_LAYERS
    """How many layers the timeline shows."""
    layer: int = Field(default=1, ge=1)
    """The first of them."""


class WhySlow(Question[Step]):
    """The page."""

    path = "why-slow"
    title = "Why is decoding slow?"
    settings = Step

    def controls(self, draw: Controls) -> Step:
        """What serves, how much at once, and what if."""
        model = draw.choice("model", "Model", catalog.names("model"))
        found: dict[str, object] = {
            "model": model,
            "gpu": draw.choice("gpu", "GPU", catalog.names("gpu")),
            "tp": draw.steps("tp", "GPUs that share it (tensor parallel)", TENSOR_PARALLEL),
            "batch": draw.steps("batch", "Sequences in the batch", BATCHES),
            "context": draw.steps("context", "Tokens of context each", CONTEXTS),
            "weights": draw.choice("weights", "Weights", WEIGHTS, names=format_name),
            "kv": draw.choice("kv", "KV cache", KV, names=format_name),
            "engine": draw.choice("engine", "Engine", catalog.names("engine")),
        }
        found["desk"] = draw.steps(
            "desk", "What if the desk (SRAM) were …", DESKS,
            help="What the desk can keep for good is never loaded again; one too small slows the loads.",
        )  # fmt: skip
        found["hbm"] = draw.steps("hbm", "What if the HBM were … × as fast", BANDWIDTHS)
        found["layers"] = draw.steps(
            "layers", "Zoom of the timeline: layers shown", SHOWN_LAYERS,
            help="Up to 12 are drawn operator by operator, one or two tile by tile.",
        )  # fmt: skip
        if found["layers"] != ALL_LAYERS:
            found["layer"] = draw.slider("layer", "… beginning with layer", 1, _layers(model), 1)
        found["draft"] = draw.choice(
            "draft", "Drafter in the roofline", [NO_DRAFTER, *_drafters(model)],
            help="Adds a drafter's pass, and the pass that verifies its drafts.",
        )  # fmt: skip
        if found["draft"] != NO_DRAFTER:
            found["gamma"] = draw.slider("gamma", "γ, tokens drafted per round", 1, 16, 1)
        return Step.model_validate(found)

    def answer(self, settings: Step, uploads: Uploads, tell: Tell) -> Answer:
        """The step taken apart."""
        result = step(settings)
        today = result if settings.hbm == 1.0 else step(settings.model_copy(update={"hbm": 1.0}))
        desk_bytes = None if settings.desk == AS_BUILT else units.parse(settings.desk, "bytes", field="desk")
        schedule, tag = result.timeline(desk_bytes=desk_bytes), style.tag_of(result.deployment)
        passes = pass_works(result, settings.gamma if settings.draft != NO_DRAFTER else 0)
        measured = measured_points(today.deployment.gpu)
        wish = what_if_sentence(today, result, schedule)
        first, last = shown_layers(settings, schedule)
        return Answer(
            verdict=" ".join(filter(None, [result.verdict, wish])),
            conditions=rows.decode_conditions(result),
            numbers=numbers(result, schedule),
            plots=[
                Plot("causes", partial(breakdown.cause_figure, result)),
                Plot("timeline", partial(gantt_figure, schedule, tag, first, last)),
                Plot("roofline", partial(roofline.roofline_figure, result, passes, measured)),
                Plot("operators", partial(breakdown.operator_figure, result)),
                Plot("memory", partial(breakdown.memory_figure, result.budget, tag)),
            ],
            sections=[block for block in decode_report(result, schedule) if isinstance(block, Section)],
            downloads=[
                Download(
                    "Trace for Perfetto", "decode-trace.json", "application/json", partial(chrome_trace, result, schedule)
                ),
                Download("This page as HTML", "decode.html", "text/html", partial(page.decode_page, result, schedule)),
            ],
            code={"The same in Python": page.decode_call(result)},
            room=1 + len(schedule.tiles) * _TILE_BYTES // ROOM_BYTES,
        )  # fmt: skip


def step(settings: Step) -> DecodeResult:
    """The step on the GPU, or on its what-if. Raises MemwallError."""
    return decode(deployment(settings), batch=settings.batch, context_tokens=settings.context)


def deployment(settings: Step) -> Deployment:
    """What serves. Raises MemwallError."""
    gpu = load_gpu(settings.gpu)
    if settings.hbm != 1.0:
        gpu = what_if(gpu, hbm_bandwidth_factor=settings.hbm)
    formats = validate(Quantization, {"weights": settings.weights, "kv": settings.kv}, "")
    draft = None if settings.draft == NO_DRAFTER else settings.draft
    return deploy(settings.model, gpu, tp=settings.tp, engine=settings.engine, quantization=formats, draft=draft)


def numbers(result: DecodeResult, schedule: Timeline) -> list[Number]:
    """What two steps are compared by."""
    low, high = (units.show(x, "s") for x in (result.interval.low, result.interval.high))
    gpu = result.deployment.gpu
    peak = "datasheet's peak" if gpu.what_if is None else "made-up peak"
    each = " of each GPU" if result.deployment.target.gpus > 1 else ""
    wished = "" if schedule.desk_bytes == gpu.desk_bytes else "; with the desk as it is"
    return [
        Number("Time per token", result.step_s, "s", "lower", f"90 % interval: {low} to {high}{wished}"),
        Number("Tokens per second", result.tokens_per_s, "", "higher", "Of all sequences together."),
        Number("HBM moves", result.bytes_per_s, "bytes_per_s", "", f"{result.bandwidth_share:.0%} of the {peak}{each}"),
        Number("SMs reach", result.flop_per_s, "flop_per_s", "higher", f"{result.flop_share:.1%} of the dense peak{each}"),
        Number("SMs busy", result.sm_busy_share, "%", "higher", "Share of the step in which they multiply."),
        Number("Desk filled and wiped", result.desk_loads, "", "", "Times per step on one GPU, to read the weights once."),
        Number("The passes take", schedule.seconds, "s", "lower", "Without the host's time, with the desk that was wished for."),
    ]  # fmt: skip


def shown_layers(settings: Step, schedule: Timeline) -> tuple[int, int | None]:
    """First and last layer of the timeline; None: to the end."""
    if settings.layers == ALL_LAYERS:
        return 1, None
    first = min(settings.layer, schedule.layers)
    return first, min(first + int(settings.layers) - 1, schedule.layers)


def format_name(name: str) -> str:
    """A number format in words."""
    return "as in the checkpoint" if name == "model" else name


@cache
def _layers(model: str) -> int:
    return load_decoder(model).layers


@cache
def _drafters(model: str) -> list[str]:
    return drafters_for(load_decoder(model))
