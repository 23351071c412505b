"""The article's claims, run as a user would run them."""

import pytest

from simulator import catalog
from simulator.errors import InputError, UnknownName
from simulator.experiments import Experiment, load_experiment, run_experiment


@pytest.mark.parametrize("name", catalog.names("experiment"))
def test_claim_holds(name):
    outcome = run_experiment(load_experiment(name))
    broken = [f"{c.quantity} = {c.value:g}, not in [{c.at_least}, {c.at_most}]" for c in outcome.checks if not c.holds]
    assert outcome.checks
    assert not broken


def test_a_claim_that_does_not_hold_is_reported_so():
    lie = load_experiment("1-memory-wall").model_dump() | {"expect": [{"quantity": "layers", "at_most": 79}]}
    outcome = run_experiment(Experiment.model_validate(lie))
    assert not outcome.holds


def test_unknown_quantities_and_missing_bounds_are_refused():
    experiment = load_experiment("1-memory-wall").model_dump()
    with pytest.raises(UnknownName, match="did you mean layers"):
        run_experiment(Experiment.model_validate(experiment | {"expect": [{"quantity": "layer", "at_most": 79}]}))
    with pytest.raises(InputError, match="at_least or at_most"):
        Experiment.model_validate(experiment | {"expect": [{"quantity": "layers"}]})
