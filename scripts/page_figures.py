"""Pictures of the page that ``pave serve`` shows, for docs/figures: wide and narrow, light and dark.

python scripts/page_figures.py docs/figures     # needs the extra serve, Chromium, and pip install playwright
"""

import argparse
import shutil
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pave.inference.engine import Engine
from pave.playground.clips import render_clip
from pave.playground.world import draw_scene
from pave.serving.limits import Limits
from pave.serving.server import Access, bound, make_server, make_services
from pave.utils.embedded import AUDIO_PATCH, WHISTLE, embedded_path

QUESTIONS = ("which object moves first ?", "what sound is heard ?")


def show(page: Page, url: str, files: list[Path]) -> None:
    """Ask two questions about a clip and choose a frame."""
    page.goto(url)
    page.locator("#file").set_input_files(files)
    page.locator(".frame").first.wait_for()
    for question in QUESTIONS:
        page.get_by_label("Question about the video").fill(question)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("#answers[aria-busy='false'] [data-column='other'] .tag").wait_for()
    page.get_by_role("radio", name="Frame 5").click()
    page.evaluate("document.getElementById('video').currentTime = 4.8")
    page.wait_for_timeout(500)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    engine = Engine.from_pretrained("playground", device="cpu")
    access = Access()
    services = make_services(engine, {"hearing": AUDIO_PATCH}, base="playground", access=access, limits=Limits(new_tokens=32))
    server = make_server(services, access)
    with bound("127.0.0.1", 0) as listening, tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        clip, other = Path(name) / "whistle.mp4", Path(name) / "other.mp4"
        shutil.copy(embedded_path(WHISTLE), clip)
        render_clip(other, draw_scene(5, "test", 1))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            for width in (1280, 390):
                for scheme in ("light", "dark"):
                    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
                    show(page, url, [clip, other])
                    place = Path(name) / "shot.png"
                    page.screenshot(path=place, full_page=True)
                    picture = Image.open(place).convert("RGB").quantize(128, dither=Image.Dither.NONE)
                    picture.save(folder / f"page-{width}-{scheme}.png", optimize=True)
                    page.close()
        finally:
            browser.close()
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
