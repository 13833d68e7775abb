"""Pictures of the report, the web page and the graph, taken of the latest finished run.

`make screenshots` writes them beside this file. It needs Chromium on the PATH.
"""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from urllib.error import URLError

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
REPORTS = PROJECT / "data/08_reporting/report.html"
PLACE = PROJECT / "docs"
KEDRO = (sys.executable, "-m", "kedro")
COLORS = 128
START_SECONDS = 120
QUESTION = "Where does the Elbe rise?"  # among serving.examples
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
}
GRAPH = {"viewport": {"width": 1100, "height": 900}, "device_scale_factor": 1.5}


def main() -> None:
    """Take all pictures.

    Raises:
        SystemExit: Chromium or a finished run is missing.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    reports = sorted(REPORTS.glob("*/report.html"))
    if not chromium or not reports:
        missing = "a finished run: kedro run" if chromium else "Chromium: apt-get install chromium"
        raise SystemExit(f"make screenshots needs {missing}.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        picture_report(browser, reports[-1].as_uri())
        with served_answers() as address:
            picture_page(browser, address)
        with exported_graph() as address:
            picture_graph(browser, address)
        browser.close()


@contextmanager
def served_answers() -> Iterator[str]:
    """Run `kedro serve`; yield its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([*KEDRO, "serve", f"--port={port}"], cwd=PROJECT)  # noqa: S603
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("kedro serve did not start.")
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextmanager
def exported_graph() -> Iterator[str]:
    """Export Kedro-Viz's page into `build` and serve it; yield its address."""
    subprocess.run([*KEDRO, "viz", "build"], cwd=PROJECT, check=True)  # noqa: S603
    handler = partial(SimpleHTTPRequestHandler, directory=PROJECT / "build")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def answers(url: str) -> bool:
    """Whether a page can be fetched."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return True
    except (URLError, TimeoutError):
        return False


def picture_report(browser: Browser, url: str) -> None:
    """Picture the report's head, scores and first figures."""
    page = browser.new_page(viewport={"width": 1440, "height": 1060})
    page.goto(url)
    page.locator(".main-svg").first.wait_for()
    save(page, "report.png")


def picture_page(browser: Browser, address: str) -> None:
    """Picture the web page after an example was asked, on a desktop and on a phone."""
    for name, device in (("page.png", DESKTOP), ("page-phone.png", PHONE)):
        page = browser.new_page(**device)
        page.goto(address)
        page.get_by_text(QUESTION).click()
        page.locator(".context mark").first.wait_for()
        page.wait_for_timeout(2_000)  # the answer scrolls into view
        save(page, name)


def picture_graph(browser: Browser, address: str) -> None:
    """Picture the default pipeline, collapsed, without Kedro-Viz's menu."""
    page = browser.new_page(**GRAPH)
    page.goto(address)
    page.locator(".feature-hints__close").click()
    for button in ("Change to light theme", "Turn minimap off", "Hide menu"):
        page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_timeout(1_000)
    page.get_by_role("button", name="Reset zoom", exact=True).click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(3_000)  # the graph moves to its place
    save(page, "kedro-viz.png")


def save(page: Page, name: str) -> None:
    """Save what the window shows as a PNG of few colours."""
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(PLACE / name, optimize=True)
    print(f"{(PLACE / name).stat().st_size / 1024:6.1f} KiB  docs/{name}")
    page.close()


if __name__ == "__main__":
    main()
