"""The token page in a real browser: clicks, keys, the slider, narrow and dark screens.

It takes the system's Chromium (Debian: `apt-get install chromium`), driven by playwright.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.stories import TEXT, make_reading, make_tokenizer
from versatileffn.analysis.token_page import tokens_outcome

playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install `chromium`")
TOKENS = 5000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of 5,000 tokens in two windows."""
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    half = (ids * TOKENS)[: TOKENS // 2]
    readings = [make_reading(half, seed) for seed in (0, 1)]
    outcome = tokens_outcome(readings, tokenizer, "a model", "a story")
    path = tmp_path_factory.mktemp("page") / "tokens.html"
    path.write_bytes(outcome.files["tokens.html"])
    return path, json.loads(outcome.files["tokens.json"])


@pytest.fixture
def page(browser, made) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 900, "height": 700})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(made[0].as_uri())
    yield page
    page.close()
    assert all(address.startswith("file:") for address in complaints)  # pages, and nothing else
    assert len(complaints) <= 2


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of a model with real experts."""
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    reading = make_reading(ids, loops_decided=False)
    outcome = tokens_outcome([reading], tokenizer, "a model", "a story")
    path = tmp_path_factory.mktemp("routed") / "tokens.html"
    path.write_bytes(outcome.files["tokens.html"])
    return path, json.loads(outcome.files["tokens.json"])


def choose_layer(page: Any, layer: int) -> None:
    page.focus("#layer")
    page.keyboard.press("Home")
    for _ in range(layer - int(page.get_attribute("#layer", "min"))):
        page.keyboard.press("ArrowRight")


def test_the_slider_colours_every_token_by_its_loops_in_that_layer(page, made) -> None:
    data = made[1]
    page.evaluate("spans[7].mark = 'the same element'")
    classes = "spans.map((span) => span.className).join('').replaceAll('l', '')"
    assert page.evaluate("spans.length") == TOKENS == page.locator("#tokens span").count()
    for number in (1, 2):
        choose_layer(page, number)
        assert page.evaluate(classes) == data["layers"][number - 1]["loops"]
        assert f"layer {number}: mean" in page.inner_text("#shown")
        assert f"{data['layers'][number - 1]['own']:.2f}".replace("-", "−") in page.inner_text(
            "#correlation"
        )
    assert page.evaluate("spans[7].mark") == "the same element"  # nothing was built anew
    assert page.locator("#tokens hr").count() == 1


def test_pointing_and_clicking_tell_a_tokens_facts(page, made) -> None:
    data = made[1]
    choose_layer(page, 2)
    layer = data["layers"][1]
    for act, token in (("hover", 5), ("click", 11)):
        getattr(page.locator("#tokens span").nth(token), act)()
        told = page.inner_text("#reading")
        assert data["tokens"][token].strip() in told
        assert f"{layer['loops'][token]} loop" in told
        assert f"λ {layer['lam'][token]:.2f}" in told
        assert f"experts {', '.join(map(str, layer['experts'][2 * token : 2 * token + 2]))}" in told
        assert f"surprise {data['nats'][token]:.2f} nats" in told
    page.locator("#tokens span").first.hover()
    assert "nothing foretells it" in page.inner_text("#reading")


def test_keys_lead_through_the_text(page, made) -> None:
    page.focus("#layer")
    page.keyboard.press("Tab")
    for key, token in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4999),
                       ("ArrowRight", 4999), ("PageUp", 4949), ("Home", 0)):  # fmt: skip
        page.keyboard.press(key)
        focused = page.evaluate(
            "(({dataset, tabIndex, ariaLabel, ariaSelected}) => "
            "[Number(dataset.token), tabIndex, ariaLabel, ariaSelected])(document.activeElement)"
        )
        assert focused[0] == token
        assert focused[1:2] + focused[3:] == [0, "true"]
        assert "λ" in focused[2]  # what a screen reader says
    assert page.locator('#tokens [tabindex="0"]').count() == 1
    assert page.get_by_role("slider", name="Layer").count() == 1
    assert page.get_by_role("listbox", name="The text, token by token").count() == 1


def test_real_experts_colour_their_tokens(page, routed) -> None:
    data = routed[1]
    page.goto(routed[0].as_uri())
    classes = "spans.map((span) => Number(span.className.slice(1)))"
    for number in (1, 2):
        choose_layer(page, number)
        layer = data["layers"][number - 1]
        assert page.evaluate(classes) == layer["experts"][::2]
        told = page.inner_text("#correlation")
        assert f"8: {100 * layer['load'][7]:.1f} %, {layer['expert_nats'][7]:.2f} nats" in told
    page.locator("#tokens span").nth(5).click()
    told = page.inner_text("#reading")
    assert f"experts {layer['experts'][10]}, {layer['experts'][11]} · surprise" in told
    assert "λ" not in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("which", "colours"), [("made", 4), ("routed", 8)])
def test_letters_stand_out_on_every_colour(page, request, scheme, which, colours) -> None:
    """At least 4.5 to 1 (WCAG AA), on the colours as the browser paints them."""
    page.goto(request.getfixturevalue(which)[0].as_uri())
    page.emulate_media(color_scheme=scheme)
    choose_layer(page, 1)
    ratios = page.evaluate(
        """(colours) => {
          const dot = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
          const shine = (colour) => {
            dot.fillStyle = colour; dot.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...dot.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
              .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          return [...Array(colours).keys()].map((n) => {
            const style = getComputedStyle(document.querySelector(`#tokens .l${n + 1}`));
            const [low, high] = [shine(style.color), shine(style.backgroundColor)].sort();
            return (Math.max(low, high) + 0.05) / (Math.min(low, high) + 0.05);
          });
        }""",
        colours,
    )
    assert len({round(ratio, 3) for ratio in ratios}) == colours  # they differ
    assert min(ratios) >= 4.5


def test_a_telephone_shows_it_without_scrolling_sideways(page) -> None:
    page.set_viewport_size({"width": 340, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 340
