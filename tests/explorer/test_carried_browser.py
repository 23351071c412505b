"""Pages whose controls have the same names, walked through in a browser: values stay where they belong."""

from __future__ import annotations

import pytest

TITLES = {
    "": "Why is decoding slow?",
    "speculation": "What does speculation buy?",
    "many-users": "Many users",
    "gpus": "How many GPUs?",
    "trust": "Can I trust it?",
}


def go(tab, path: str) -> None:
    """To another page, by the links at the top."""
    tab.page.get_by_role("link", name=TITLES[path]).click()
    tab.page.get_by_role("heading", name=TITLES[path], level=1).wait_for()
    tab.page.wait_for_function("() => !document.querySelector('[data-testid=stProgress]')", timeout=90_000)
    tab.settle()


def query(tab) -> dict[str, str]:
    from urllib.parse import parse_qsl, urlsplit

    return dict(parse_qsl(urlsplit(tab.page.url).query))


def test_a_control_that_only_shares_its_name_is_not_another_page_s(tab):
    one = tab()
    one.open("?model=llama-3.1-70b&gpu=b200&tp=4&draft=eagle3-llama-3.1-70b&gamma=7")
    go(one, "many-users")
    assert query(one) == {}
    assert "eagle-llama-3.1-8b" in one.page.inner_text('[data-testid="stAlert"]')
    go(one, "speculation")
    assert query(one) == {"model": "llama-3.1-70b", "gpu": "b200", "tp": "4"}
    go(one, "")
    assert query(one) == {
        "model": "llama-3.1-70b", "gpu": "b200", "tp": "4", "draft": "eagle3-llama-3.1-70b", "gamma": "7"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "model=llama-3.1-70b&tp=8&draft=eagle3-llama-3.1-70b&gamma=7&layers=2&layer=70&weights=fp8&hbm=2.0&desk=10+GB"),
        ("speculation", "accept=one+rate&alpha=0.55&tree=true&depth=3&nodes=16&most=64&batch=4"),
        ("many-users", "requests=100&rate_per_s=3.5&seed=4&tp=2&gpu=b200&draft=none"),
        ("gpus", "load=3&gpus=b200&gpus=h200-sxm&tps=2&speculate=none&prices=b200%3D3&share=99"),
        ("trust", "what=sources&device=l40s&engine=reference&model=phi-2&draft=llama-3.2-1b"),
    ],
)  # fmt: skip
def test_a_page_is_as_one_left_it(tab, path, asked):
    one = tab()
    one.open(f"{path}?{asked}")
    link = query(one)
    assert len(link) == len({part.split("=")[0] for part in asked.split("&")})
    verdict = one.page.inner_text('[data-testid="stAlert"]')
    go(one, "gpus" if path == "trust" else "trust")
    go(one, path)
    assert query(one) == link
    assert one.page.inner_text('[data-testid="stAlert"]') == verdict


def test_layers_of_another_model_are_no_layers_of_this_one(tab):
    one = tab()
    one.open("?model=llama-3.1-70b&tp=8&layers=2&layer=70")
    go(one, "speculation")
    model = one.page.get_by_role("combobox", name="Model")
    model.fill("llama-3.1-8b")
    one.page.get_by_role("option", name="llama-3.1-8b", exact=True).click()
    one.page.get_by_text("model: llama-3.1-8b").wait_for()
    go(one, "")
    assert query(one) == {"tp": "8", "layers": "2", "layer": "32"}


def test_a_pin_stays_on_its_page(tab):
    one = tab()
    one.open("?gpu=b200")
    one.page.get_by_role("button", name="Pin this as A").click()
    one.page.get_by_text("A is what the controls show").wait_for()
    go(one, "speculation")
    assert query(one) == {"gpu": "b200"}
    assert one.page.get_by_role("button", name="Unpin A").count() == 0
    go(one, "")
    assert query(one) == {"gpu": "b200", "a": "gpu=b200"}
    one.page.get_by_role("button", name="Unpin A").click()
    one.page.get_by_role("button", name="Unpin A").wait_for(state="detached")
    assert query(one) == {"gpu": "b200"}


def test_the_back_button_undoes_a_pin(tab):
    one = tab()
    one.open("?gpu=b200")
    one.page.get_by_role("button", name="Pin this as A").click()
    one.page.get_by_text("A is what the controls show").wait_for()
    one.page.go_back()
    one.page.get_by_role("button", name="Unpin A").wait_for(state="detached")
    assert query(one) == {"gpu": "b200"}
    one.page.go_forward()
    one.page.get_by_role("button", name="Unpin A").wait_for()


def test_the_first_page_has_a_name_too(tab):
    one = tab()
    one.open("why-slow?gpu=b200&batch=64")
    assert query(one) == {"gpu": "b200", "batch": "64"}
    one.page.get_by_text("batch: 64").wait_for()
    assert one.page.get_by_role("dialog").count() == 0
