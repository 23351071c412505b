"""What can draft for a model, of all that is bundled."""

from __future__ import annotations

from simulator import catalog
from simulator.architecture import Decoder, load_decoder
from simulator.errors import InputError
from simulator.speculation.drafters import Drafter, check_pair, load_drafter


def drafters_for(target: Decoder) -> list[str]:
    """Names, likeliest choice first: drafters made for `target` or measured with it (published acceptance before none), those for
    any model, then smaller models of its family that have its vocabulary."""
    made: list[tuple[bool, str]] = []
    general: list[tuple[bool, str]] = []
    for name in catalog.names("drafter"):
        drafter = load_drafter(name)
        own = target.name in drafter.targets or (name == "mtp" and target.mtp_modules > 0)
        if (own or not drafter.targets) and _goes(target, drafter):
            (made if own else general).append((drafter.acceptance is None, name))
    models = [name for name in catalog.names("model") if _could_draft(load_decoder(name), target)]
    return list(dict.fromkeys([*(name for _, name in (*sorted(made), *sorted(general))), *models]))


def _goes(target: Decoder, drafter: Drafter) -> bool:
    try:
        check_pair(target, drafter)
    except InputError:
        return False
    return True


def _could_draft(model: Decoder, target: Decoder) -> bool:
    # As many tokens are no proof of one vocabulary; within a family they are. A head on a target's features is no model.
    head = model.extra_input_size or model.feature_size or model.draft_vocab_size
    families = {decoder.model_type.partition("_")[0] for decoder in (model, target)}
    same = len(families) == 1 and model.vocab_size == target.vocab_size
    return same and not head and 2 * model.parameters <= target.parameters
