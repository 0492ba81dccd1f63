"""The page in a real browser: drop, ask, stream, seek, compare, and open again."""

import base64
import re
import shutil
import subprocess
import sys
import time

import pytest

from pave.inference import Counterfactual, Lender, Request
from pave.inference.engine import Engine
from pave.serving.auth import Keys
from pave.serving.server import Access
from served import QUESTION, own_answer, running

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is driven by Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is driven in Chromium: apt-get install chromium")
KEY = "a-key-of-a-test-0001"
LENGTH = {"max_new_tokens": 24}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def served(patches):
    """A server with two patches, each with a channel of its own."""
    engine = Engine.from_pretrained("playground", device="cpu")
    chosen = {name: patches[name] for name in ("hearing", "moving")}
    with running(engine, chosen, new_tokens=LENGTH["max_new_tokens"]) as server:
        yield server


@pytest.fixture
def tab(browser, served):
    """The page, opened; at its end it must have complained of nothing and asked nobody else."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    yield page
    strangers = [url for url in asked if not url.startswith((served.url, "blob:", "data:"))]
    context.close()
    assert (said, strangers) == ([], [])


def drop(page, *paths):
    """Files from a folder, let go over the page."""
    files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, text] of files) transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            return transfer;
        }""",
        files,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.locator(".frame").first.wait_for()


def ask(page, question=QUESTION):
    page.get_by_label("Question about the video").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    settled(page)


def settled(page):
    """Until every column that was asked has its answer."""
    page.locator("#answers[aria-busy='false'] .tag").first.wait_for()


def until(page, condition):
    """Until a condition holds in the page. Its own policy forbids what Playwright waits with."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def text_of(page, column):
    return page.locator(f"[data-column='{column}'] .text").inner_text()


def own(alone, clip, **fields):
    return own_answer(alone, clip, sampling=LENGTH, **fields)


def test_dropped_files_are_read_and_columns_are_the_engines_answers(tab, alone, world):
    clip, other, log = world / "0.mp4", world / "1.mp4", world / "imu.csv"
    drop(tab, clip, other, log)
    read = alone.read(Request(clip, QUESTION, patches="hearing"))
    assert tab.locator(".frame").count() == len(read.item.times_F)
    ask(tab)
    sides, both = {"moving": {"imu": log}}, {"hearing": 1.0, "moving": 1.0}
    swap = Counterfactual("swapped", lender=Lender(other))
    expected = {
        "base": own(alone, clip, patches=None),
        "patch-hearing": own(alone, clip, patches="hearing"),
        "patch-moving": own(alone, clip, patches="moving", side_channels=sides),
        "together": own(alone, clip, patches=both, side_channels=sides),
        "off": own(alone, clip, patches=both, side_channels={"hearing": {"audio": None}, "moving": {"imu": None}}),
        "other": own(alone, clip, patches=both, side_channels=sides, counterfactual=swap),
    }
    assert {column: text_of(tab, column) for column in expected} == expected
    assert len({expected[name] for name in ("base", "patch-hearing", "patch-moving", "together")}) == 4
    assert expected["off"] == expected["base"]
    assert "= base" in tab.locator("[data-column='off'] .tag").inner_text()
    assert "≠ base" in tab.locator("[data-column='together'] .tag").inner_text()
    assert expected["together"] in tab.locator("#answer-status").inner_text()


def test_answers_stream(tab, alone, world):
    drop(tab, world / "0.mp4")
    tab.evaluate(
        """() => {
            window.seen = [];
            const note = () => {
                const text = document.querySelector("[data-column='patch-hearing'] .text")?.textContent;
                if (text && text !== window.seen.at(-1)) window.seen.push(text);
            };
            new MutationObserver(note).observe(document.getElementById('answers'), { subtree: true, childList: true, characterData: true });
        }"""
    )
    ask(tab)
    seen, whole = tab.evaluate("window.seen"), own(alone, world / "0.mp4", patches="hearing")
    assert len(seen) >= 3 and seen[-1] == whole
    assert all(whole.startswith(piece) for piece in seen) and sorted(seen, key=len) == seen


def test_lanes_seek_by_click_and_by_keys(tab, world):
    drop(tab, world / "0.mp4")
    until(tab, "document.getElementById('video').readyState >= 2")
    lane = tab.locator("[data-lane='steps'] .track").first
    box = lane.bounding_box()
    for share in (0.25, 0.75):
        lane.click(position={"x": share * box["width"], "y": box["height"] / 2})
        assert tab.evaluate("document.getElementById('video').currentTime") == pytest.approx(share * 8, abs=0.1)
        cursor = tab.locator(".cursor").bounding_box()
        assert cursor["x"] == pytest.approx(box["x"] + share * box["width"], abs=2)
    ruler = tab.get_by_role("slider", name="Position in the video")
    ruler.focus()
    before = float(ruler.get_attribute("aria-valuenow"))
    tab.keyboard.press("ArrowLeft")
    assert float(ruler.get_attribute("aria-valuenow")) < before
    tab.keyboard.press("Home")
    assert tab.evaluate("document.getElementById('video').currentTime") == 0
    assert ruler.get_attribute("aria-valuetext") == "0.00 s"


def test_a_frame_is_chosen_by_keys_and_told_in_words(tab, world):
    drop(tab, world / "0.mp4")
    ask(tab)
    tab.locator(".frame").first.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".frame").nth(1).get_attribute("aria-checked") == "true"
    inspector = tab.get_by_role("complementary", name="The chosen frame")
    told = inspector.inner_text()
    assert "Frame 2" in told and re.search(r"× \d+\.\d\d at strength 1", told) and re.search(r"\d\.\d\d s: \d+ %", told)
    tab.keyboard.press("Escape")
    assert "Frame 2" not in inspector.inner_text()


def test_strength_zero_is_the_base(tab, alone, world):
    drop(tab, world / "0.mp4")
    ask(tab)
    base = own(alone, world / "0.mp4", patches=None)
    assert text_of(tab, "patch-hearing") == own(alone, world / "0.mp4", patches="hearing") != base == text_of(tab, "base")
    slider = tab.get_by_role("slider", name="Strength of hearing")
    slider.focus()
    tab.keyboard.press("Home")
    settled(tab)
    assert tab.locator("output").first.inner_text() == "base"
    assert text_of(tab, "patch-hearing") == base
    assert "= base" in tab.locator("[data-column='patch-hearing'] .tag").inner_text()
    tab.locator(".frame").first.click()
    assert "× 0.00 at strength 0" in tab.get_by_role("complementary", name="The chosen frame").inner_text()
    slider.focus()
    for _ in range(10):
        tab.keyboard.press("ArrowRight")
    settled(tab)
    assert text_of(tab, "patch-hearing") == own(alone, world / "0.mp4", patches={"hearing": 0.5})


def test_a_link_and_the_history_open_a_question_again(tab, browser, served, world):
    drop(tab, world / "0.mp4", world / "imu.csv")
    tab.get_by_role("checkbox", name="hearing").uncheck()
    ask(tab)
    first = text_of(tab, "patch-moving")
    link = tab.url
    ask(tab, "which object moves first ?")
    assert tab.locator("#history li").count() == 2
    again = browser.new_page()
    again.set_default_timeout(20_000)
    again.goto(link)
    settled(again)
    assert again.get_by_label("Question about the video").input_value() == QUESTION
    assert text_of(again, "patch-moving") == first and again.locator("[data-column='patch-hearing']").count() == 0
    until(again, "document.getElementById('video').readyState >= 2")
    again.close()
    tab.locator(".past", has_text=QUESTION).click()
    until(tab, f"document.getElementById('question').value === {QUESTION!r}")
    settled(tab)
    assert text_of(tab, "patch-moving") == first


def test_an_expired_link_says_so(browser, served):
    page = browser.new_page()
    page.goto(f"{served.url}/#video=file-{'0' * 32}&q=who")
    page.get_by_text("has expired on the server").wait_for()
    page.close()


def test_copied_code_gives_the_same_answer(tab, world):
    drop(tab, world / "0.mp4", world / "imu.csv")
    question = "what sound is $HEARD, 'here' or \"there\" \\ `ls` ?"
    ask(tab, question)
    tab.get_by_label("Which answer").select_option("together")
    python = tab.locator("#code").inner_text()
    tab.get_by_label("Language").select_option("curl")
    shell = tab.locator("#code").inner_text()
    done = subprocess.run([sys.executable, "-c", python], cwd=world, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == text_of(tab, "together"), done.stderr
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-c", shell], cwd=world, capture_output=True, text=True, timeout=120)
        assert f'"content":"{text_of(tab, "together")}"' in done.stdout, (shell, done)


def test_a_server_with_keys_asks_for_one(browser, world, patches):
    engine = Engine.from_pretrained("playground", device="cpu")
    with running(engine, {"hearing": patches["hearing"]}, Access(keys=Keys([KEY])), new_tokens=8) as server:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(server.url)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("playground with one patch").wait_for()
        drop(page, world / "0.mp4")
        ask(page)
        assert page.locator("#key-card").is_hidden() and KEY not in page.content() and KEY not in page.url
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_every_control_has_a_name(browser, served, world, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(20_000)
    page.goto(served.url)
    drop(page, world / "0.mp4", world / "1.mp4", world / "imu.csv")
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [role]')].filter((node) => node.checkVisibility()
            && !(node.textContent.trim() || node.getAttribute('aria-label') || node.labels?.length)
            && !['status'].includes(node.getAttribute('role'))).map((node) => node.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate(_CONTRAST) == []
    page.close()


_CONTRAST = """() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => { const [r, g, b] = parts(colour).slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const back = (node) => { for (; node; node = node.parentElement) { const colour = getComputedStyle(node).backgroundColor;
        if (colour.startsWith('rgb(')) return colour; } return 'rgb(255, 255, 255)'; };
    const bad = [];
    for (const node of document.querySelectorAll('h1, h2, h3, h4, p, span, label, dt, dd, li, button, strong, output')) {
        if (!node.checkVisibility() || ![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) continue;
        if (node.closest('.out, .visually-hidden, .skip')) continue;
        const [a, b] = [light(getComputedStyle(node).color), light(back(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${node.className || node.tagName} ${node.textContent.slice(0, 40)}`);
    }
    return bad;
}"""
"""Text whose contrast is below 4.5 : 1 (WCAG AA)."""
