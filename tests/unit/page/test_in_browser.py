"""The page in a real browser, headless Chromium, before a stand-in for SGLang."""

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.unit.page.conftest import QUESTION_LEN, Script

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install .[test]")
BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs a Chromium: apt-get install chromium-headless-shell"
)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, page_url) -> Iterator:
    """The opened page, which must neither fail nor look anywhere but at its own server."""
    page = browser.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: request.url.startswith(page_url) or troubles.append(request.url))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.goto(page_url)
    yield page
    page.close()
    assert troubles == []


def ask(page, question: str = "Why?") -> None:
    page.fill("#question", question)
    page.click("#ask")


def ended(page) -> None:
    sync_api.expect(page.locator("#status")).to_have_text("Ended by stop.")


def tokens(page) -> list[tuple[str, float, bool]]:
    """Text, heat, and whether it is dropped, of every token of the trace."""
    script = """spans => spans.map(span => [span.textContent,
        Number(span.style.getPropertyValue('--heat')), span.classList.contains('dropped')])"""
    return [tuple(one) for one in page.eval_on_selector_all("#trace .token", script)]


def corners(page, line: str) -> list[tuple[float, float]]:
    points = page.get_attribute(line, "points") or ""
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def words(count: int) -> list[str]:
    return [f"w{index} " for index in range(count)]


def test_the_page_says_who_answers(page):
    server = page.locator("#server")
    sync_api.expect(server).to_have_text("a-model: budget 12, local window 4, keep ratio 0.5")
    assert page.input_value("#question") == "From the command line"


def test_tokens_are_coloured_by_score_and_dropped_ones_fade(page, script: Script):
    script.texts = words(12)
    script.drops = {9: [4, 5, 7]}
    ask(page)
    ended(page)
    shown = tokens(page)
    assert [text for text, _, _ in shown] == script.texts
    gone = {index for index, (_, _, dropped) in enumerate(shown) if dropped}
    assert gone == {0, 1, 3}
    scored = [(script.score(QUESTION_LEN + index), heat) for index, (_, heat, _) in enumerate(shown)]
    by_score = [heat for _, heat in sorted(scored[:-1])]  # the newest has no score yet
    assert by_score == sorted(by_score)
    assert by_score[0] < 0.2 < 0.6 < by_score[-1]
    faded, kept = page.locator("#trace .dropped").first, page.locator("#trace .token:not(.dropped)").first
    sync_api.expect(faded).to_have_css("opacity", "0.25")
    sync_api.expect(kept).to_have_css("opacity", "1")


def test_the_sawtooth_falls_at_each_compaction_and_the_full_cache_does_not(page, script: Script):
    script.texts = words(20)
    script.drops = {9: [4, 5, 7], 15: [6, 8]}
    ask(page)
    ended(page)
    sync_api.expect(page.locator("#full")).to_have_text("23")
    held, full = corners(page, "#held-line"), corners(page, "#full-line")
    heights = [y for _, y in held]  # downwards
    assert len(held) == 6
    assert heights[2] > heights[1] < heights[0]
    assert heights[4] > heights[3]
    assert len(full) == 2
    assert full[1][1] < min(heights)
    shown = ("held", "full", "compactions", "dropped")
    numbers = {name: page.text_content(f"#{name}") for name in shown}
    assert numbers == {"held": "18", "full": "23", "compactions": "2", "dropped": "5"}


def test_what_model_and_user_write_is_text_and_nothing_else(page, script: Script):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    script.texts = [evil, " and </pre> more"]
    ask(page, question=f"{evil}?")
    ended(page)
    assert page.text_content("#trace") == f"{evil}?\n\n{evil} and </pre> more"
    assert page.locator("#trace img, #trace script").count() == 0


def test_what_the_server_refuses_is_shown_in_its_words(page, script: Script):
    script.refusal = "custom_params.dynts.budget=3 must be larger than <b>local_window</b>=4"
    page.fill("#budget", "3")
    ask(page)
    sync_api.expect(page.locator("#status.failed")).to_have_text(script.refusal)
    assert script.asked[0]["sampling_params"]["custom_params"]["dynts"]["budget"] == 3


def test_stop_ends_the_request_at_the_server(page, script: Script):
    script.texts, script.endless = words(3), True
    ask(page)
    sync_api.expect(page.locator("#trace .token")).to_have_count(3)
    page.click("#stop")
    sync_api.expect(page.locator("#status")).to_have_text("Stopped.")
    assert script.hung_up.wait(30)


def test_a_second_question_starts_a_new_trace(page, script: Script):
    script.texts = words(5)
    ask(page)
    ended(page)
    script.texts = ["again"]
    ask(page, "And now?")
    sync_api.expect(page.locator("#trace")).to_have_text(re.compile(r"^And now\?\s+again$"))
