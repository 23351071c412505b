"""Pair: a target and a smaller drafter that have learned the same text, so that acceptance is real and not forced.

    python -m simulator.reference_decoder.pair bytes-500k --out folder

trains a pair, says how well it predicts held-out files, and writes both checkpoints.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from simulator.reference_decoder.checkpoint import save, set_weights, weights_of
from simulator.reference_decoder.corpus import Corpus, CorpusError, standard_library
from simulator.reference_decoder.model import AttentionMethod, Decoder
from simulator.reference_decoder.shapes import SHAPES
from simulator.reference_decoder.training import Course, bits_per_byte, train

DRAFT_SHARE = 0.3
"""Of a target's training time that its drafter may take besides: it is five times smaller and more, not five times
faster."""


@dataclass(frozen=True)
class Recipe:
    """How a target, which names the recipe, gets its drafter."""

    draft: str
    course: Course


RECIPES = {
    "toy": Recipe("toy-draft", Course(steps=120, batch=4, tokens=96, learning_rate=4e-3)),
    "bytes-500k": Recipe("bytes-80k", Course(steps=1100, batch=4, tokens=160, learning_rate=3e-3)),
    "bytes-24m": Recipe("bytes-2m", Course(steps=1000, batch=64, tokens=256, learning_rate=1.5e-3)),
}
"""A second; a minute of one CPU thread; half a minute of a GPU."""


@dataclass(frozen=True)
class Pair:
    """Two trained decoders and what is known of them."""

    target: Decoder
    draft: Decoder
    corpus: Corpus
    training_s: float
    """Of both."""
    training_bytes: int
    """Read by each."""
    target_bits_per_byte: float
    """Of held-out files."""
    draft_bits_per_byte: float
    target_training_bits_per_byte: float
    """Of the files trained on."""
    draft_training_bits_per_byte: float

    def fields(self) -> dict[str, float | int | str]:
        """As they stand in a measurement file."""
        return {
            "training_s": self.training_s, "training_bytes": self.training_bytes, "corpus_sha256": self.corpus.sha256,
            "target_bits_per_byte": self.target_bits_per_byte, "draft_bits_per_byte": self.draft_bits_per_byte,
            "target_training_bits_per_byte": self.target_training_bits_per_byte,
            "draft_training_bits_per_byte": self.draft_training_bits_per_byte,
        }  # fmt: skip


def train_pair(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: AttentionMethod = "auto",
    fuse: bool = False,
    seed: int = 0,
    limit_s: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
) -> Pair:
    """Train in single precision; the pair is then given out in `dtype`. Raises CorpusError and training.TooLong."""
    recipe, corpus = RECIPES[name], standard_library()
    course = recipe.course
    begin_s = time.perf_counter()
    trained = []
    for which, part in ((name, 1.0), (recipe.draft, DRAFT_SHARE)):
        say(f"training {which} on {course.steps * course.batch * course.tokens / 1e6:.1f} MB of Python's own sources")
        model = Decoder(SHAPES[which], device=device, seed=seed)
        train(model, corpus.training, course, seed=seed, limit_s=limit_s * part / (1.0 + DRAFT_SHARE))
        trained.append(model)
    training_s = time.perf_counter() - begin_s
    held_out, seen = (
        [bits_per_byte(model, texts, course.tokens) for model in trained]
        for texts in (corpus.held_out, corpus.training)
    )
    say(f"trained in {training_s:.0f} s: held-out files take {held_out[0]:.2f} and {held_out[1]:.2f} bits per byte")
    for i, model in enumerate(trained):
        trained[i] = Decoder(model.shape, dtype=dtype, device=device, attention=attention, fuse=fuse)
        set_weights(trained[i], weights_of(model))
    target, draft = trained
    return Pair(
        target, draft, corpus, training_s, course.steps * course.batch * course.tokens, *held_out, *seen
    )  # fmt: skip


def passages(corpus: Corpus, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Pieces of held-out files, from one file after the other, each from a random place."""
    files = [text for text in corpus.held_out if len(text) >= length]
    if not files:
        raise CorpusError(f"length={length} must be at most that of a held-out file")
    random = np.random.default_rng(seed)
    pieces = []
    for i in range(count):
        text = files[i % len(files)]
        start = int(random.integers(0, len(text) - length + 1))
        pieces.append(list(text[start : start + length]))
    return pieces


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    p = argparse.ArgumentParser(prog="python -m simulator.reference_decoder.pair", description=__doc__.split("\n")[0])
    p.add_argument("pair", choices=tuple(RECIPES), help="which, by its target's name")
    p.add_argument("--out", type=Path, required=True, help="folder for the two checkpoints")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        pair = train_pair(
            options.pair, device=options.device, seed=options.seed, say=lambda text: print(text, file=sys.stderr)
        )
        options.out.mkdir(parents=True, exist_ok=True)
        save(pair.target, options.out / f"{options.pair}.pt")
        save(pair.draft, options.out / f"{RECIPES[options.pair].draft}.pt")
    except (CorpusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
