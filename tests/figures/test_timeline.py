"""Areas are busy time, bars are where the schedule has them, and nothing is too thin to be seen."""

from __future__ import annotations

import pytest

from simulator import decode, deploy
from simulator.figures import timeline as figures


@pytest.mark.parametrize("overlap", ["stream", "wipe", "prefetch"])
def test_area_of_the_pass_is_the_busy_time(step, overlap):
    schedule = step.timeline(overlap)
    figure = figures.pass_figure(schedule, "tag")
    unit_s = 1e-3 if "ms" in figure.layout.xaxis2.title.text else 1e-6
    for bars, busy in zip(figure.data, schedule.busy, strict=True):
        area_s = sum(w * y / 100 for w, y in zip(bars.width, bars.y, strict=True)) * unit_s
        assert area_s == pytest.approx(busy * schedule.seconds, rel=1e-9)
        assert len(bars.x) >= step.deployment.target.decoder.layers


def test_first_layers_show_every_load_and_every_multiplication(step):
    schedule = step.timeline()
    figure = figures.layers_figure(schedule, "tag")
    spans = [s for s in schedule.spans("tile") if s.name.startswith(("layer 1 ", "layer 2 "))]
    drawn = sorted(width for bars in figure.data for width in bars.x)
    assert drawn == pytest.approx(sorted((s.end_s - s.start_s) * 1e6 for s in spans))
    assert all(bars.marker.line.width > 1 for bars in figure.data)
    assert "µs" in figure.layout.xaxis.title.text


def test_many_tiles_are_drawn_by_operator(step, monkeypatch):
    monkeypatch.setattr(figures, "MOST_TILES", 10)
    figure = figures.layers_figure(step.timeline(), "tag")
    spans = [s for s in step.timeline().spans("operator") if s.name.startswith(("layer 1 ", "layer 2 "))]
    assert sum(len(bars.x) for bars in figure.data) == len(spans)


def test_hover_names_what_is_moved(step):
    figure = figures.layers_figure(step.timeline(), "tag")
    hovers = [text for bars in figure.data for text in bars.hovertext]
    assert any("layer 1 gate_up_proj, HBM load" in text and "MB" in text and "µs" in text for text in hovers)


def test_a_model_of_one_layer_is_drawn_as_one():
    head = deploy("eagle-llama-3.1-8b", "h100")
    figure = figures.layers_figure(decode(head).timeline(), "tag")
    assert "first 1 layer:" in figure.layout.meta["finding"]
    assert not any("layer 2" in (note.text or "") for note in figure.layout.annotations)
