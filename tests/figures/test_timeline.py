"""Areas are busy time, bars are where the schedule has them, details follow the range, and nothing is too thin to be seen."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import decode, deploy
from simulator.errors import InputError
from simulator.figures import timeline as figures
from simulator.figures.timeline import gantt_figure


def unit_s(figure) -> float:
    return 1e-3 if figure.layout.xaxis.title.text.endswith("ms") else 1e-6


def on(figure, track):
    return [bars for bars in figure.data if (min(bars.y) > 1.4) == (track == "HBM load")]


@pytest.mark.parametrize("overlap", ["stream", "wipe", "prefetch"])
@pytest.mark.parametrize("layers", [(1, None), (3, 9), (32, 32), (1, 2)])
def test_area_is_busy_time(step, overlap, layers):
    schedule = step.timeline(overlap)
    figure = gantt_figure(schedule, "tag", *layers)
    wanted = range(layers[0] - 1, layers[1] or schedule.layers)
    for track in figures.TRACKS:
        area_s = sum(np.dot(bars.x, bars.width) for bars in on(figure, track)) * unit_s(figure)
        assert area_s == pytest.approx(sum(s.busy_s for s in schedule.spans("tile", wanted) if s.track == track))


def test_the_whole_pass_is_a_bar_per_layer_and_what_is_around_them(step):
    schedule = step.timeline()
    figure = gantt_figure(schedule, "tag")
    names = [name for bars in on(figure, "HBM load") for name in bars.hovertext]
    layers = step.deployment.target.decoder.layers
    assert sorted(n for n in names if n.startswith("layer")) == sorted(f"layer {i + 1}" for i in range(layers))
    assert {"embedding", "lm_head"} <= set(names)
    assert figure.layout.xaxis.range[1] * unit_s(figure) == pytest.approx(schedule.seconds)
    hbm, _ = schedule.busy
    assert f"busy {hbm:.0%} of the time" in figure.layout.meta["finding"]
    assert f"busy {hbm:.0%}" in figure.layout.annotations[0].text


def test_two_layers_show_every_load_and_every_multiplication(step):
    schedule = step.timeline()
    figure = gantt_figure(schedule, "tag", 3, 4)
    spans = [s for s in schedule.spans("tile") if s.name.startswith(("layer 3 ", "layer 4 "))]
    drawn = sorted(width for bars in figure.data for width in bars.x)
    assert drawn == pytest.approx(sorted((s.end_s - s.start_s) * 1e6 for s in spans))
    assert all(bars.marker.line.width > 1 for bars in figure.data)
    assert "from the start of layer 3, µs" in figure.layout.xaxis.title.text
    assert min(min(bars.base) for bars in figure.data) == 0.0  # and not, as in the whole pass, what is before


@pytest.mark.parametrize(
    ("last", "detail"), [(1, "tile"), (2, "tile"), (3, "operator"), (12, "operator"), (13, "layer")]
)
def test_detail_follows_the_range(step, last, detail):
    schedule = step.timeline()
    figure = gantt_figure(schedule, "tag", 1, last)
    assert sum(len(bars.x) for bars in figure.data) == len(schedule.spans(detail, range(last)))


@pytest.mark.parametrize("desk_bytes", [1e6, None, 1e10])
@pytest.mark.parametrize("last", [1, 2, 12, 32])
def test_never_more_bars_than_can_be_drawn(step, desk_bytes, last):
    figure = gantt_figure(step.timeline(desk_bytes=desk_bytes), "tag", 1, last)
    assert 0 < sum(len(bars.x) for bars in figure.data) <= figures.MOST_BARS
    assert len(figure.data) <= 2 * 7


def test_embedding_and_head_stand_beside_the_ends(step):
    def named(first, last):
        return {n for bars in gantt_figure(step.timeline(), "tag", first, last).data for n in bars.hovertext}

    assert "embedding" in named(1, 1)
    assert "lm_head" not in named(1, 1)
    assert "lm_head" in named(32, 32)
    assert not {"embedding", "lm_head"} & named(2, 31)


def test_hover_names_what_is_moved(step):
    figure = gantt_figure(step.timeline(), "tag", 1, 2)
    bars = next(b for b in on(figure, "HBM load") if "layer 1 gate_up_proj" in b.hovertext)
    at = list(bars.hovertext).index("layer 1 gate_up_proj")
    tile = next(s for s in step.timeline().spans() if s.name == "layer 1 gate_up_proj")
    start, lasts, busy, moved = bars.customdata[at]
    assert (start * 1e-6, lasts * 1e-6) == pytest.approx((tile.start_s, tile.end_s - tile.start_s))
    assert (busy, moved * 1e6) == pytest.approx((1.0, tile.bytes_))
    assert "MB" in bars.hovertemplate
    assert "µs" in bars.hovertemplate


def test_each_meaning_is_in_the_legend_once(step):
    shown = [bars.name for bars in gantt_figure(step.timeline(), "tag", 1, 12).data if bars.showlegend]
    assert len(shown) == len(set(shown))


def test_a_model_of_one_layer_is_drawn_as_one():
    head = deploy("eagle-llama-3.1-8b", "h100")
    figure = gantt_figure(decode(head).timeline(), "tag")
    assert figure.layout.meta["finding"].startswith("The one layer: ")
    assert not any("layer 2" in (note.text or "") for note in figure.layout.annotations)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (0, 1, "first_layer=0 must be from 1 to 32, the model's layers"),
        (33, 40, "first_layer=33 must be from 1 to 32"),
        (5, 4, "last_layer=4 must be from 5 to 32"),
        (5, 33, "last_layer=33 must be from 5 to 32"),
    ],
)
def test_layers_that_are_not_there(step, first, last, said):
    with pytest.raises(InputError) as caught:
        gantt_figure(step.timeline(), "tag", first, last)
    assert said in str(caught.value)
