"""Explorer in the browser: ``streamlit run app.py``. Controls in, results of the public API out; no physics here."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from plotly.graph_objects import Figure

from simulator import catalog
from simulator.decoding import DecodeResult, decode
from simulator.deployment import Deployment, deploy
from simulator.errors import MemwallError
from simulator.figures import breakdown, page, roofline, serving, speedup, style, timeline
from simulator.output import rows
from simulator.output.cluster_report import cluster_sections
from simulator.output.report import speculate_sentence
from simulator.output.simulation_report import simulation_sentence, simulation_table
from simulator.planning.crossover import SpeculateResult, speculate
from simulator.scenario import Scenario, load_scenario
from simulator.serving.simulation import SimulationResult, acceptance_of, simulate
from simulator.speculation.acceptance import AcceptanceConfig

BATCHES = tuple(2**i for i in range(11))
CONTEXTS = tuple(2**i for i in range(7, 18))
PUBLISHED = "as published for the drafter"


def main() -> None:
    """The page that was chosen; whatever a user's choice makes impossible is said in one sentence."""
    st.set_page_config(page_title="memwall", layout="wide")
    pages: dict[str, Callable[[], None]] = {
        "Why is decoding slow?": decoding_page,
        "What does speculation buy?": speculation_page,
        "Many users": serving_page,
    }
    choice = st.sidebar.radio("Question", list(pages), key="question")
    st.title(choice)
    try:
        pages[choice]()
    except MemwallError as error:
        st.error(str(error))


def decoding_page() -> None:
    """One decode step taken apart."""
    deployment = chosen_deployment(draft=False)
    batch = st.sidebar.select_slider("Sequences in the batch", BATCHES, value=1, key="batch")
    context = st.sidebar.select_slider("Tokens of context each", CONTEXTS, value=1024, key="context")
    result: DecodeResult = decode(deployment, batch=batch, context_tokens=context)
    schedule, tag = result.timeline(), style.tag_of(deployment)
    opening(result.verdict, rows.decode_conditions(result))
    show(breakdown.cause_figure(result), "causes")
    show(timeline.pass_figure(schedule, tag), "pass")
    show(timeline.layers_figure(schedule, tag), "layers")
    show(breakdown.operator_figure(result), "operators")
    show(roofline.roofline_figure(result), "roofline")
    show(breakdown.memory_figure(result.budget, tag), "memory")
    offer(page.decode_page(result, schedule), "decode.html")


def speculation_page() -> None:
    """Speed-up over batch and γ."""
    deployment = chosen_deployment(draft=True)
    drafter = deployment.drafter
    known = drafter.acceptance if drafter is not None else None
    options = [PUBLISHED, "one rate for all depths"] if known is not None else ["one rate for all depths"]
    config = known
    if st.sidebar.radio("Acceptance", options, key="acceptance") != PUBLISHED or config is None:
        config = AcceptanceConfig(
            alpha=st.sidebar.slider("Conditional acceptance rate", 0.0, 1.0, 0.7, 0.01, key="alpha")
        )
    longest = st.sidebar.slider("Longest draft, γ", 1, 12, 8, key="gamma")
    largest = st.sidebar.select_slider("Largest batch", BATCHES, value=256, key="largest")
    context = st.sidebar.select_slider("Tokens of context each", CONTEXTS, value=1024, key="context")
    batches = [b for b in BATCHES if b <= largest]
    result: SpeculateResult = speculate(
        deployment, config.law(), gammas=range(1, longest + 1), batches=batches, context_tokens=context
    )
    opening(speculate_sentence(result), rows.speculate_conditions(result))
    show(speedup.speedup_figure(result), "speedup")
    show(speedup.gamma_figure(result), "gamma")
    offer(page.speculate_page(result), "speculate.html")


def serving_page() -> None:
    """A bundled scenario with many users, with speculation and without."""
    name = st.sidebar.selectbox("Scenario", catalog.names("scenario"), key="scenario")
    scenario = load_scenario(str(name))
    requests = st.sidebar.select_slider("Requests", (200, 500, 1000, 2000, 5000, 10_000), value=1000, key="requests")
    load: dict[str, float] = {"requests": requests}
    rate = getattr(scenario.traffic, "rate_per_s", None)
    if rate is not None:
        load["rate_per_s"] = st.sidebar.number_input(
            "Arrivals per second", 0.01, 1e4, float(rate), format="%.2f", key=f"rate-{name}"
        )
    users = getattr(scenario.traffic, "users", None)
    if users is not None:
        load["users"] = st.sidebar.number_input("Users", 1, 100_000, int(users), key=f"users-{name}")
    replicas = scenario.replicas
    if not (scenario.cluster and scenario.cluster.pools):
        # A failure names its replica, so there must be so many.
        named = [f.replica for f in scenario.cluster.failures if f.replica is not None] if scenario.cluster else []
        replicas = st.sidebar.slider("Replicas", 1 + max(named, default=0), 16, replicas, key=f"replicas-{name}")
    seed = int(st.sidebar.number_input("Seed", 0, 2**31, scenario.seed, key=f"seed-{name}"))
    scenario = load_scenario(str(name), load=load, replicas=replicas, seed=seed)
    if scenario.speculation is not None:
        gamma = st.sidebar.slider("γ, tokens drafted per round", 1, 12, scenario.speculation.gamma, key=f"gamma-{name}")
        speculation = scenario.speculation.model_copy(update={"gamma": gamma})
        scenario = scenario.model_copy(update={"speculation": speculation})
        acceptance_of(scenario, scenario.deployment())
    with st.spinner(f"Simulating {requests:,} requests"):
        result = simulated(scenario)
    sentence = simulation_sentence(result) if len(result.runs) > 1 else page.plain_sentence(result)
    opening(sentence, rows.simulation_conditions(result))
    for latency in serving.LATENCIES:
        show(serving.latency_figure(result, latency), latency.field)
    show(serving.load_figure(result), "load")
    show(serving.arrivals_figure(result), "arrivals")
    histogram = serving.tokens_per_round_figure(result)
    if histogram is not None:
        show(histogram, "rounds")
    table = simulation_table(result)
    with st.expander("All figures as a table"):
        st.table([dict(zip(("", *table.headers[1:]), row, strict=True)) for row in table.rows])
    for section in cluster_sections(result):
        with st.expander(section.title):
            headers = (" ", *section.table.headers[1:])
            st.table([dict(zip(headers, row, strict=True)) for row in section.table.rows])
    with st.expander("The scenario as YAML"):
        st.code(page.scenario_yaml(result.scenario), language="yaml")
    offer(page.simulation_page(result), f"{name}.html")


@st.cache_resource(max_entries=8, hash_funcs={Scenario: lambda s: s.model_dump_json()}, show_spinner=False)
def simulated(scenario: Scenario) -> SimulationResult:
    """`simulate`, remembered while its scenario is unchanged."""
    return simulate(scenario)


# --- parts of every page -------------------------------------------------------------------------------------------------
def chosen_deployment(*, draft: bool) -> Deployment:
    """Model, GPU and tensor parallelism from the sidebar, with a drafter where asked for."""
    models, gpus = catalog.names("model"), catalog.names("gpu")
    model = st.sidebar.selectbox("Model", models, index=models.index("llama-3.1-8b"), key="model")
    gpu = st.sidebar.selectbox("GPU", gpus, index=gpus.index("h100-sxm"), key="gpu")
    tp = st.sidebar.select_slider("GPUs per copy (tensor parallel)", (1, 2, 4, 8), value=1, key="tp")
    drafter = None
    if draft:
        drafters = catalog.names("drafter")
        drafter = st.sidebar.selectbox("Drafter", drafters, index=drafters.index("llama-3.2-1b"), key="draft")
    return deploy(str(model), str(gpu), tp=tp, draft=drafter)


def opening(sentence: str, conditions: list[tuple[str, str]]) -> None:
    """The finding, and the conditions it holds under."""
    st.info(sentence.replace("$", "\\$"))
    st.caption(" · ".join(f"{label}: {value}" for label, value in conditions).replace("$", "\\$"))


def show(figure: Figure, key: str) -> None:
    """A figure under its finding and its tag."""
    st.subheader(figure.layout.meta["finding"], anchor=False)
    st.caption(figure.layout.meta["tag"])
    plot = style.without_title(figure)
    theme = getattr(st.context, "theme", None)
    if getattr(theme, "type", "light") == "dark":
        plot = style.dark(plot)
    plot.update_layout(paper_bgcolor="rgba(0,0,0,0)")
    st.plotly_chart(plot, theme=None, key=f"figure-{key}")


def offer(html: str, name: str) -> None:
    """The whole page as a file that works offline."""
    st.download_button("Save this as one HTML file", html, file_name=name, mime="text/html")


main()
