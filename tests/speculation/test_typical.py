"""Laws by depth from one number: it is met exactly at its own γ, and elsewhere the doubt is there to see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError, UnknownName
from simulator.records import validate
from simulator.speculation import typical
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.typical import (
    acceptance_interval,
    law_from_alpha,
    law_from_config,
    law_from_length,
    law_from_rate,
    shape_names,
    typical_shapes,
)

KINDS = [*shape_names(), "early-exit", None]


@given(
    kind=st.sampled_from(KINDS),
    gamma=st.integers(1, 12),
    share=st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_the_given_length_is_met_exactly_at_its_own_gamma(kind, gamma, share):
    length = 1.0 + share * gamma
    laws = law_from_length(min(length, gamma + 1.0), gamma, kind)
    for config in laws.configs:
        assert config.law().live_tokens(gamma) == pytest.approx(length, abs=1e-9)


@pytest.mark.parametrize("icc", [0.08, 0.16])
def test_a_length_is_one_over_rounds_where_requests_differ(icc):
    like = AcceptanceConfig(alpha=0.0, request_icc=icc)
    law = law_from_length(2.9, 4, "eagle3", like=like).config.law()
    assert law.request_icc == icc
    assert law.live_tokens(4) == pytest.approx(2.9, abs=1e-9)
    assert law.expected_tokens(4) > 2.9


def test_a_match_probability_counts_on_top():
    law = law_from_length(3.0, 5, "ngram", like=AcceptanceConfig(alpha=0.0, match_probability=0.4)).config.law()
    assert law.live_tokens(5) == pytest.approx(1.0 + 0.4 * 2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rate_length_and_alpha_are_one_number_in_three_forms(kind):
    # α = 0.5, γ = 3: 1 + 1/2 + 1/4 + 1/8 tokens, of whose drafts 7/24 are accepted.
    expected = law_from_length(1.875, 3, kind)
    for laws in (law_from_rate(7 / 24, 3, kind), law_from_alpha(0.5, 3, kind)):
        for one, other in zip(laws.configs, expected.configs, strict=True):
            assert one.conditional == pytest.approx(other.conditional, abs=1e-9)


def test_an_unknown_kind_of_drafter_has_the_same_rate_at_every_depth():
    conditional = law_from_alpha(0.7, 5).config.conditional
    assert conditional is not None
    assert conditional == pytest.approx([0.7] * len(conditional))


def test_shapes_keep_their_run():
    eagle, model = law_from_length(2.5, 4, "eagle").config, law_from_length(2.5, 4, "model").config
    assert eagle.conditional is not None
    assert model.conditional is not None
    assert eagle.conditional[0] > eagle.conditional[1] > eagle.conditional[-1]
    assert list(model.conditional[1:]) == sorted(model.conditional[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_doubt_fans_out_from_the_given_gamma(kind):
    laws = [config.law() for config in law_from_length(2.6, 4, kind).configs]
    spread = [np.ptp([law.live_tokens(gamma) for law in laws]) for gamma in (1, 2, 4, 6, 10)]
    assert spread[2] == pytest.approx(0.0, abs=1e-9)
    assert spread[0] > 1e-5
    assert spread[4] > spread[3] > 1e-3
    assert laws[0].live_tokens(10) <= laws[1].live_tokens(10) <= laws[2].live_tokens(10)


@pytest.mark.parametrize("kind", shape_names())
def test_a_published_list_comes_back_from_its_own_length(kind):
    # Each list is among the laws of its kind's number, so the three must enclose what it says about other γ.
    for shape in typical_shapes(kind).shapes:
        depth = len(shape.rates)
        gamma = max(1, depth // 2)
        own = AcceptanceConfig(conditional=shape.rates).law()
        laws = [config.law() for config in law_from_length(own.live_tokens(gamma), gamma, kind).configs]
        far = 2 * gamma + 2
        tokens = [law.live_tokens(far) for law in laws]
        assert min(tokens) - 1e-9 <= own.live_tokens(far) <= max(tokens) + 1e-9


def test_measured_lists_are_met_by_the_others_as_the_documentation_says(monkeypatch):
    # docs/acceptance-one-number.md: from the number at half of a list's depth to the whole, each list left out in turn.
    misses, inside = [], []
    for kind in ("eagle", "eagle3"):
        file = typical_shapes(kind)
        for left_out in file.shapes:
            if left_out.source.kind != "measured":
                continue
            rest = file.model_copy(update={"shapes": tuple(shape for shape in file.shapes if shape is not left_out)})
            monkeypatch.setattr(typical, "typical_shapes", lambda _, rest=rest: rest)
            far = len(left_out.rates)
            own = AcceptanceConfig(conditional=left_out.rates).law()
            laws = law_from_length(own.live_tokens(far // 2), far // 2, kind)
            tokens = [config.law().live_tokens(far) for config in laws.configs]
            misses.append(abs(tokens[1] / own.live_tokens(far) - 1.0))
            inside.append(min(tokens) <= own.live_tokens(far) <= max(tokens))
    assert len(misses) == 9
    assert max(misses) < 0.065
    assert sum(inside) >= 7


@pytest.mark.parametrize("kind", shape_names())
def test_files_are_named_for_their_kind_and_say_where_figures_are_from(kind):
    file = typical_shapes(kind)
    assert file.name == kind
    assert len(file.shapes) >= 2
    for shape in file.shapes:
        assert shape.source.url
        assert all(0.0 < rate < 1.0 for rate in shape.rates)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"length": 6.0, "at_gamma": 4}, "length=6.0 must be between 1 and the 5 tokens that 4 drafts can give"),
        ({"length": 0.9, "at_gamma": 4}, "length=0.9 must be between 1 and the 5 tokens"),
        ({"rate": 1.2, "at_gamma": 4}, "rate=1.2 must be between 0 and 1"),
        ({"rate": 0.5}, "at_gamma=.* must be given with rate"),
        ({"length": 2.0}, "at_gamma=.* must be given with length"),
        ({"rate": 0.5, "at_gamma": 0}, "at_gamma=0 must be between 1 and 64"),
        ({"rate": 0.5, "length": 2.0, "at_gamma": 3}, "give exactly one of"),
        ({"marginal": [0.5], "at_gamma": 3}, "at_gamma=3 must be given with length, rate or alpha only"),
    ],
)
def test_impossible_numbers_are_refused_in_one_sentence(data, sentence):
    with pytest.raises(InputError, match=sentence):
        validate(AcceptanceConfig, data, "")


def test_functions_refuse_what_the_configuration_refuses():
    for call in (
        lambda: law_from_length(5.1, 4),
        lambda: law_from_rate(-0.1, 4),
        lambda: law_from_alpha(1.1, 4),
        lambda: law_from_length(1.0, 0),
        lambda: law_from_rate(0.5, 65),
    ):
        with pytest.raises(InputError):
            call()
    with pytest.raises(UnknownName, match="did you mean eagle"):
        typical_shapes("eagel")


def test_certain_numbers_have_certain_laws():
    assert law_from_length(1.0, 3, "eagle").config.law().live_tokens(8) == 1.0
    assert law_from_rate(1.0, 3, "medusa").config.law().live_tokens(8) == 9.0


def test_a_configuration_says_its_law_and_its_doubt():
    config = validate(AcceptanceConfig, {"length": 2.9, "at_gamma": 4, "request_icc": 0.0}, "")
    assert config.law(kind="eagle").live_tokens(4) == pytest.approx(2.9)
    assert config.law(kind="eagle").rates != config.law().rates
    laws = acceptance_interval(config, "eagle")
    assert laws is not None
    assert [law.live_tokens(4) for law in laws] == pytest.approx([2.9] * 3)
    known = AcceptanceConfig(conditional=(0.8, 0.7))
    assert law_from_config(known) is None
    assert acceptance_interval(known, "eagle") is None
