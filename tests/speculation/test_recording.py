"""Recorded rounds: files read or refused in one sentence, and the law they make, counted by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import load_scenario, simulate
from simulator.errors import InputError
from simulator.records import validate
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig, RecordedAcceptance
from simulator.speculation.recording import Recording, Replay

LINE = {
    "kind": "acceptance", "drafter": "small", "text": "sampled", "gamma": 4,
    "accepted_by_request": [[4, 1, 0], [2, 3]], "drafted_by_request": [[4, 4, 4], [4, 4]],
}  # fmt: skip
# Rounds that kept at least 1, 2, 3, 4 drafts: 4, 3, 2, 1 of 5.


def file_of(tmp_path, *lines, end="\n"):
    path = tmp_path / "rounds.jsonl"
    path.write_text("\n".join(json.dumps(line) if not isinstance(line, str) else line for line in lines) + end)
    return path


def law_of(path, **choice) -> RecordedAcceptance:
    law = validate(AcceptanceConfig, {"replay": {"path": str(path), **choice}}, "here").law()
    assert isinstance(law, RecordedAcceptance)
    return law


def test_a_measurement_file_s_line(tmp_path):
    law = law_of(file_of(tmp_path, {"kind": "header"}, LINE, {"kind": "step"}))
    assert law.recording.accepted == ((4, 1, 0), (2, 3))
    assert law.recording.gamma == 4
    assert "line 2" in law.recording.source


def test_a_plain_document_without_what_was_drafted(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"gamma": 3, "accepted_by_request": [[1], [], [2, 0]]}, indent=1))
    found = Replay(path=str(path)).load()
    assert found.drafted == ((3,), (3, 3))
    assert (found.accepted, found.without_rounds) == (((1,), (2, 0)), 1)


def test_relative_to_the_scenario_s_folder(tmp_path):
    file_of(tmp_path, LINE)
    assert validate(AcceptanceConfig, {"replay": "rounds.jsonl"}, "here").law(tmp_path).rates == pytest.approx(
        (0.8, 0.75, 2 / 3, 0.5)
    )


def test_one_of_several_recordings(tmp_path):
    path = file_of(tmp_path, LINE, {**LINE, "text": "held_out"}, {**LINE, "drafter": "ngram", "gamma": 5})
    assert law_of(path, text="held_out").recording.source.endswith("line 2 drafter=small text=held_out gamma=4")
    assert law_of(path, gamma=5).recording.gamma == 5
    with pytest.raises(
        InputError, match=r"exactly one of 3 recordings .*drafter=small text=sampled gamma=4; drafter=small text=held"
    ):
        law_of(path, drafter="small")
    with pytest.raises(InputError, match=r"replay=.*large.* must name exactly one of 3 recordings"):
        law_of(path, drafter="large")


def test_what_a_killed_run_left_of_its_last_line_is_not_counted(tmp_path):
    whole = json.dumps(LINE)
    assert law_of(file_of(tmp_path, {"kind": "header"}, LINE, whole[:70], end="")).recording.gamma == 4
    # A whole last line counts, line break or not.
    assert law_of(file_of(tmp_path, {"kind": "header"}, whole, end="")).recording.gamma == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accepted_by_request": [[5]], "drafted_by_request": [[5]]}, "accepted_by_request[0][0]=5 must be 0 to the 5 drafted, and those at most γ = 4"),
        ({"accepted_by_request": [[4, 1, 2], [2, 3]], "drafted_by_request": [[4, 4, 1], [4, 4]]}, "accepted_by_request[0][2]=2 must be 0 to the 1 drafted"),
        ({"accepted_by_request": [[4, -1, 0], [2, 3]]}, "accepted_by_request[0][1]=-1 must be"),
        ({"accepted_by_request": [[4, 1.5, 0], [2, 3]]}, "accepted_by_request[0][1]=1.5 must be a count"),
        ({"accepted_by_request": [[True]]}, "must be a count"),
        ({"accepted_by_request": 3}, "accepted_by_request='int' must be a list of lists of counts"),
        ({"accepted_by_request": [3]}, "must be a list of lists of counts"),
        ({"accepted_by_request": [[1], [2]]}, "must have as many requests and rounds as accepted_by_request"),
        ({"accepted_by_request": [[], []], "drafted_by_request": None}, "must have at least one request with a round"),
        ({"gamma": None}, "gamma='(absent)' must be 1 to"),
        ({"gamma": 0}, "gamma=0 must be 1 to"),
        ({"gamma": 1e99}, "gamma=1e+99 must be 1 to"),
    ],
)  # fmt: skip
def test_recordings_that_make_no_sense(tmp_path, change, said):
    path = file_of(tmp_path, {"kind": "header"}, {**LINE, **change})
    with pytest.raises(InputError) as caught:
        law_of(path)
    assert said in str(caught.value)
    assert f"{path}: line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a file with recorded rounds"),
        ('{"kind": "header"}\n', "must be a file with recorded rounds"),
        ("not json\n{}\n", "must be a file with recorded rounds"),
        ("{not json\n{}\n", "line 1: content='(damaged)' must be JSON"),
        (
            '# HELP\nvllm:spec_decode_num_drafts_total 5\nvllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 3\n',
            "must be a file with recorded rounds",
        ),
        ("[" * 100_000 + "\n", "line 1: content='(damaged)' must be JSON"),
        ("\xff\xfe", "must be a readable file (no UTF-8 text)"),
    ],
)
def test_files_that_hold_no_recording(tmp_path, text, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        law_of(path)
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="must be a readable file"):
            law_of(path)


# The law


def test_the_law_by_hand(tmp_path):
    law = law_of(file_of(tmp_path, LINE))
    assert law.conditional(4) == pytest.approx([4 / 5, 3 / 4, 2 / 3, 1 / 2])
    # Over rounds: 5 + 4 + 3 + 2 + 1 tokens in 5 rounds; with γ = 2: 3 + 2 + 1 + 3 + 3.
    assert law.live_tokens(4) == pytest.approx(15 / 5)
    assert law.live_tokens(2) == pytest.approx(12 / 5)
    # Over requests: (8/3 + 7/2) / 2.
    assert law.expected_tokens(4) == pytest.approx((8 / 3 + 7 / 2) / 2)
    assert law.length_distribution(4) == pytest.approx([0.2] * 5)
    assert law.length_distribution(2) == pytest.approx([0.2, 0.2, 0.6])
    rates, row_of = law.per_request(seed=0, requests=5, gamma=3)
    assert rates == pytest.approx(np.array([[2 / 3, 1 / 2, 1], [1, 1, 1 / 2]]))
    assert row_of.tolist() == [0, 1, 0, 1, 0]


def test_rounds_without_a_draft_are_the_match_probability(tmp_path):
    line = {**LINE, "accepted_by_request": [[2, 0, 0, 1]], "drafted_by_request": [[2, 0, 0, 2]], "gamma": 2}
    law = law_of(file_of(tmp_path, line))
    assert law.match_probability == 0.5
    assert law.conditional(2) == pytest.approx([1.0, 0.5])
    assert law.live_tokens(2) == pytest.approx(7 / 4)


def test_a_longer_draft_than_was_recorded_is_refused(tmp_path):
    law = law_of(file_of(tmp_path, LINE))
    for ask in (law.conditional, law.live_tokens, law.expected_tokens, law.length_distribution):
        with pytest.raises(InputError, match="gamma=5 must be at most the 4 drafts per round that were recorded"):
            ask(5)


rounds = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=1, max_size=6)


@given(rounds, st.integers(1, 6))
def test_means_over_rounds_are_those_of_the_same_rates(accepted, gamma):
    # Whoever knows the rates by depth only, finds the recorded tokens per round: E[min(x, γ)] = Σ P(x ≥ j).
    drafted = tuple((6,) * len(row) for row in accepted)
    law = RecordedAcceptance.of(Recording(tuple(map(tuple, accepted)), drafted, 6, "by hand"))
    every = np.concatenate([np.minimum(row, gamma) for row in accepted])
    assert law.live_tokens(gamma) == pytest.approx(1 + every.mean())
    assert Acceptance(law.rates).expected_tokens(gamma) == pytest.approx(1 + every.mean())
    assert law.expected_tokens(gamma) == pytest.approx(1 + np.mean([np.minimum(row, gamma).mean() for row in accepted]))
    assert law.length_distribution(gamma) == pytest.approx(np.bincount(every, minlength=gamma + 1) / len(every))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"alpha": 0.5}, "give exactly one of alpha, conditional, marginal, length, rate, replay"),
        ({"request_icc": 0.1}, "request_icc=0.1 must be left out with replay"),
        ({"match_probability": 0.5}, "match_probability=0.5 must be left out with replay"),
    ],
)
def test_a_recording_says_the_rest_itself(extra, said):
    with pytest.raises(InputError) as caught:
        validate(AcceptanceConfig, {"replay": "rounds.jsonl", **extra}, "here")
    assert said in str(caught.value)


# Through the whole simulation


def scenario(path, gamma):
    return load_scenario({
        "model": "llama-3.1-8b", "gpu": "h100-sxm", "engine": "reference", "warmup": 0,
        "traffic": {"kind": "poisson", "rate_per_s": 4.0, "requests": 40, "lengths": {"prompt": 300, "output": 12}},
        "speculation": {"draft": "llama-3.2-1b", "gamma": gamma, "acceptance": {"replay": str(path)}},
    })  # fmt: skip


def test_a_scenario_replays_every_count(tmp_path):
    run = simulate(scenario(file_of(tmp_path, LINE), 4)).main
    # Answers of 12: 1 + 5 + 2 + 1, then 3 of the next 5; and 1 + 3 + 4, then 3 and 1 of 4.
    assert run.requests["rounds"].tolist() == [4, 4] * 20
    assert run.requests["accepted_tokens"].tolist() == [4 + 1 + 0 + 3, 2 + 3 + 2 + 1] * 20


def test_a_scenario_with_longer_drafts_is_refused(tmp_path):
    with pytest.raises(InputError, match="gamma=5 must be at most the 4 drafts"):
        simulate(scenario(file_of(tmp_path, LINE), 5))
