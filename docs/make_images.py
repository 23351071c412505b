"""The pictures of README and docs, from the code: ``python docs/make_images.py`` (needs Chromium on the PATH)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from plotly.graph_objects import Figure

from simulator import AcceptanceConfig, catalog, decode, deploy, speculate
from simulator.calibration.device_profile import DeviceProfile
from simulator.calibration.device_validation import validate_device
from simulator.calibration.measured import read_measurements
from simulator.figures.speedup import speedup_figure
from simulator.figures.timeline import gantt_figure
from simulator.figures.tree import speed_figure, tree_figure
from simulator.figures.validation import points_figure
from simulator.speculation.tree_size import TreeSizes, tree_sizes

IMAGES = Path(__file__).parent / "images"
WIDTH_PX = 1000


def speedup() -> Figure:
    """README: what speculation buys at each batch, Llama-3.1-70B with a 1B drafter on four H100."""
    served = deploy("llama-3.1-70b", "h100-sxm", tp=4, draft="llama-3.2-1b")
    batches = [2**i for i in range(10)]
    law = AcceptanceConfig(alpha=0.8).law()
    return speedup_figure(speculate(served, law, gammas=[1, 2, 3, 5, 8], batches=batches, context_tokens=512))


def timeline() -> Figure:
    """The library and the desk: the first layers of a decode step at batch 1."""
    result = decode(deploy("llama-3.1-70b", "h100-sxm", tp=4), batch=1, context_tokens=2048)
    return gantt_figure(result.timeline(), result.deployment.target.efficiency.label, 1, 2)


def measured() -> Figure:
    """README: a measured device's steps and rounds against predictions that had not seen them."""
    path = catalog.root() / "hardware_profiles" / "measurements" / "epyc-9004-1-thread.jsonl"
    validation = validate_device(DeviceProfile.of(read_measurements(path), path.stem))
    unseen = [c for c in validation.comparisons if c.basis == "held out by model" or c.name.startswith("rounds")]
    return points_figure(unseen, validation.subject)


def tree_sizes_of_eagle() -> TreeSizes:
    """Trees of an EAGLE-1 head on one H200."""
    served = deploy("llama-3.1-8b", "h200", draft="eagle-llama-3.1-8b")
    assert served.drafter is not None
    assert served.drafter.acceptance is not None
    law, batches = served.drafter.acceptance.law(), [2**i for i in range(8)]
    return tree_sizes(served, law, nodes=[1, 2, 4, 8, 16, 32, 64], depths=range(1, 9), batches=batches)


def tree() -> Figure:
    """docs/trees.md: the best tree for one sequence."""
    return tree_figure(tree_sizes_of_eagle())


def tree_speed() -> Figure:
    """docs/trees.md: what each size buys at each batch."""
    return speed_figure(tree_sizes_of_eagle())


def photograph(figure: Figure, path: Path, chromium: str) -> None:
    """Renders `figure` in a headless browser."""
    height = int(figure.layout.height or 420)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.update_layout(width=WIDTH_PX)
        body = figure.to_html(include_plotlyjs="inline", full_html=False, config={"displayModeBar": False})
        page.write_text(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{body}", encoding="utf-8")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
            "--force-device-scale-factor=1.5", f"--user-data-dir={folder}/profile", f"--window-size={WIDTH_PX},{height}",
            "--virtual-time-budget=8000", f"--screenshot={path}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Writes every picture."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on the PATH")
    for make in (speedup, timeline, measured, tree, tree_speed):
        photograph(make(), IMAGES / f"{make.__name__}.png", chromium)


if __name__ == "__main__":
    main()
