"""Checkpoint: a decoder's weights by name; in memory, and as a file that holds tensors and nothing else."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from simulator.reference_decoder.model import Decoder
from simulator.reference_decoder.shapes import ConfigError


def weights_of(model: Decoder) -> dict[str, Tensor]:
    """Every weight once, by name; the tensors are the model's own."""
    named = {"embedding": model.embedding, "norm": model.norm}
    if not model.shape.tied_head:
        named["head"] = model.head
    for i, layer in enumerate(model.layers):
        named |= {f"layers.{i}.{name}": weight for name, weight in layer._asdict().items() if weight is not None}
    return named


def set_weights(model: Decoder, weights: dict[str, Tensor]) -> None:
    """Overwrite the model's weights, in its dtype and on its device. Raises ConfigError where names or sizes differ."""
    ours = weights_of(model)
    for name in sorted(ours.keys() ^ weights.keys()):
        raise ConfigError(f"weights must have {name}" if name in ours else f"weights must not have {name}")
    for name, weight in ours.items():
        if weight.shape != weights[name].shape:
            raise ConfigError(f"{name} is {tuple(weights[name].shape)} and must be {tuple(weight.shape)}")
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(weights[name])


def save(model: Decoder, path: Path) -> None:
    """Write the weights; a reader sees all of the file or none of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({name: weight.detach().cpu() for name, weight in weights_of(model).items()}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(model: Decoder, path: Path) -> None:
    """Read what `save` wrote. Anything but tensors by name is refused with ConfigError, and never executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch wonders at foreign pickles before it refuses them
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise ConfigError(f"{path} must be a checkpoint that holds nothing but tensors") from None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ConfigError(f"{path} must hold tensors by name")
    set_weights(model, weights)
