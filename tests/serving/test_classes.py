import math

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.serving.classes import RequestClass
from simulator.serving.traffic import generate, parse_traffic, with_load
from simulator.slo import Slo

SEED = 20250202
N = 50_000
Z = 3.29  # 99.9 % two-sided
UNIFORM = {"kind": "uniform", "low": 1, "high": 1000}
CHAT = {"name": "chat", "share": 3, "lengths": {"prompt": UNIFORM, "output": 10}, "slo": {"ttft_s": "500 ms"}}
CODE = {
    "name": "code",
    "share": 1,
    "lengths": {"prompt": 7, "output": UNIFORM},
    "priority": -1,
    "patience_s": "10 s",
    "acceptance": 0.8,
}


def mixture(*classes, **fields):
    data = {"kind": "poisson", "rate_per_s": 8, "requests": 1000, "classes": list(classes or (CHAT, CODE)), **fields}
    return parse_traffic(data, "test")


def test_classes_carry_what_was_said():
    requests = generate(mixture(), SEED)
    assert requests.classes == (
        RequestClass(name="chat", slo=Slo(ttft_s=0.5)),
        RequestClass(name="code", priority=-1, patience_s=10, acceptance=0.8),
    )
    assert requests.classes[1].acceptance.alpha == 0.8
    assert set(requests.prompt_tokens[requests.class_of == 1]) == {7}
    assert set(requests.output_tokens[requests.class_of == 0]) == {10}
    assert requests.source.startswith("1000 requests, poisson arrivals at 8 /s, 2 classes")


def test_shares_are_met():
    requests = generate(mixture(requests=N), SEED)
    assert abs((requests.class_of == 1).mean() - 0.25) < Z * math.sqrt(0.25 * 0.75 / N)


def test_classes_lengths_and_arrivals_are_independent():
    requests = generate(mixture(CHAT, {**CHAT, "name": "other"}, requests=N), SEED)
    gaps_s = np.diff(requests.arrival_s, prepend=0)
    for values in (requests.prompt_tokens, gaps_s):
        assert abs(np.corrcoef(requests.class_of, values)[0, 1]) < Z / math.sqrt(N)


def test_a_mixture_of_one_is_no_mixture():
    alone = generate(mixture(CHAT), SEED)
    plain = generate(mixture(CHAT, lengths=CHAT["lengths"], classes=None), SEED)
    assert alone.class_of is None
    assert alone.classes[0].name == "chat"
    assert plain.classes == (RequestClass(name="all"),)
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(plain, name))


def test_another_class_of_the_mixture_changes_no_request_of_this_one():
    before = generate(mixture(), SEED)
    after = generate(mixture(CHAT, {**CODE, "lengths": {"prompt": 99, "output": 99}}), SEED)
    chat = before.class_of == 0
    np.testing.assert_array_equal(before.class_of, after.class_of)
    np.testing.assert_array_equal(before.prompt_tokens[chat], after.prompt_tokens[chat])


def test_a_closed_loop_may_be_mixed():
    data = {"kind": "closed-loop", "users": 3, "think_time_s": 1, "requests": 400, "classes": [CHAT, CODE]}
    requests = generate(parse_traffic(data, "test"), SEED)
    assert requests.users == 3
    assert 0 < requests.class_of.mean() < 1
    assert np.isnan(requests.arrival_s).sum() == 397


def test_the_load_of_a_mixture_changes():
    assert with_load(mixture(), rate_per_s=2, requests=5) == mixture(rate_per_s=2, requests=5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: mixture(lengths=CHAT["lengths"]), "lengths='.given.' must be left out where there are classes"),
        (lambda: mixture(system_prompt=5), "system_prompt='.given.' must be left out where there are classes"),
        (lambda: mixture(classes=None), r"lengths='\(absent\)' must be given, or classes"),
        (lambda: mixture(classes=[]), "classes=.* must"),
        (lambda: mixture(CHAT, CHAT), "classes.name='chat' must be given to one of them only"),
        (lambda: mixture({**CHAT, "share": 0}), "classes.0.share=0 must be greater than"),
        (lambda: mixture({**CHAT, "name": ""}), "classes.0.name='' must"),
        (lambda: mixture({**CHAT, "prority": 1}), "classes.0.prority must .* did you mean priority"),
        (lambda: mixture({**CHAT, "slo": {"tpot": 1}}), "classes.0.slo.tpot must .* did you mean tpot_s"),
        (lambda: mixture({**CHAT, "patience_s": 0}), "classes.0.patience_s=0 must be greater than"),
        (lambda: mixture({**CHAT, "acceptance": 1.5}), "alpha=1.5 must be between 0 and 1"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        change()
    assert "\n" not in str(caught.value)
