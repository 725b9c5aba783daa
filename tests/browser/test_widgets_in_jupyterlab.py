"""The widgets in a real JupyterLab in headless Chromium: they appear, and moving a control changes the picture.

Needs Chromium and its driver; without them the tests are skipped and say so.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1600"
)
TOKEN = "tests-only"
PATIENCE = 120  # seconds; a busy machine starts JupyterLab and its kernel slowly

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no Chromium or no chromedriver found: install chromium and chromium-driver to run the browser tests",
    ),
]

SETUP = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1] / "show")!r})
from drawn_data import ByLabel, EveryRectangle, make_dataset
from pixel_readers import AlwaysSure, Segmenting, Silent
from seewhere.show import widgets
data = make_dataset(Path.cwd())
"""
CELLS = {
    "browse": "widgets.browse(data)",
    "ask": "widgets.ask(EveryRectangle(data), ByLabel(), data)",
    "draw": "widgets.draw(data)",
    "pixels": "from PIL import Image\nfrom seewhere.show.pixel_asking import PixelAsker\n"
    "Image.new('L', (300, 200), 60).save('grey.png')\n"
    "half = Image.new('RGB', (80, 60), (200, 0, 0))\nhalf.paste((0, 0, 100), (40, 0, 80, 60))\n"
    "PixelAsker({'sure': AlwaysSure(), 'silent': Silent()}, {'halves': half})",
    "growing": "import numpy as np\nfrom types import SimpleNamespace\nfrom seewhere.show.growing import Growth\n"
    "seen = np.array([np.full((1, 64, 64, 3), 60 * n, np.uint8) for n in (1, 2, 3)])\n"
    "Growth({'shades': SimpleNamespace(stages=['1', '1', '2'], questions=np.array([10, 20, 30]), names=['a shade'],\n"
    "    targets=seen[-1], reconstructions=seen, errors=np.array([[90.0], [40.0], [7.5]]))})",
    "masks": "from PIL import Image\nfrom seewhere.show.masking import MaskAsker\n"
    "Image.new('L', (120, 80), 60).save('grey.png')\nMaskAsker(Segmenting(data), data)",
    "annotate": "from types import SimpleNamespace\nfrom seewhere.show.annotate import annotate\n"
    "items = [SimpleNamespace(item_id=n, expression=e) for n, e in enumerate(data.expressions)]\n"
    "annotate(items, Path.cwd() / 'answers.jsonl', 'anna')",
}

PHRASE = ".jp-OutputArea input[placeholder='a phrase, then Enter']"
OWN_FILE = ".jp-OutputArea input[placeholder^='path of your own picture']"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(found: Callable[[], Any], what: str) -> Any:
    """Call `found` until it returns something true; an element that is replaced meanwhile counts as not found."""
    from selenium.common.exceptions import WebDriverException

    stop = time.monotonic() + PATIENCE
    while time.monotonic() < stop:
        try:
            value = found()
        except WebDriverException:
            value = None
        if value:
            return value
        time.sleep(0.3)
    raise AssertionError(f"{what}: not seen within {PATIENCE} s")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a JupyterLab that serves one small notebook per widget, with settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    for name, code in CELLS.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SETUP), nbformat.v4.new_code_cell(code)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
    port = free_port()
    home = tmp_path_factory.mktemp("jupyter")
    places = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "RUNTIME", "DATA")}
    places |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | places, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    stop = time.monotonic() + PATIENCE
    while time.monotonic() < stop:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start; its log ends:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install seewhere[test]"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def open_and_run(driver: Any, lab: str, name: str) -> None:
    """Open a notebook in a fresh workspace and run all its cells from the menu."""
    driver.get(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}&reset")
    wait_for(lambda: find(driver, ".jp-Notebook .jp-CodeCell"), "the notebook")
    wait_for(lambda: "Idle" in kernel_state(driver), "an idle kernel")
    wait_for(lambda: click_menu(driver, "Run", "Run All Cells"), "the menu entry Run All Cells")


def find(driver: Any, selector: str) -> list[Any]:
    from selenium.webdriver.common.by import By

    return [element for element in driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def kernel_state(driver: Any) -> str:
    lamps = find(driver, ".jp-Notebook-ExecutionIndicator")
    return " ".join(filter(None, (lamp.get_attribute("data-status") for lamp in lamps))).replace("idle", "Idle")


def click_menu(driver: Any, menu: str, entry: str) -> bool:
    if not find(driver, ".lm-Menu-item"):
        next(item for item in find(driver, ".lm-MenuBar-item") if item.text == menu).click()
        time.sleep(0.3)
    for item in find(driver, ".lm-Menu-item"):
        if item.text.strip().startswith(entry):
            item.click()
            return True
    return False


def picture(driver: Any) -> str:
    """The pixels of the widget's picture as the browser shows them, as a PNG data address; "" while it is loading."""
    images = find(driver, ".jp-OutputArea img.widget-image, .jp-OutputArea img.jupyter-widgets")
    if not images:
        return ""
    return str(
        driver.execute_script(
            "const i = arguments[0]; if (!i.complete || !i.naturalWidth) return '';"
            "const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;"
            "c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL();",
            images[0],
        )
    )


def new_picture(driver: Any, old: str) -> str:
    return str(wait_for(lambda: (now := picture(driver)) and now != old and now, "another picture"))


def output_text(driver: Any) -> str:
    return " ".join(area.text for area in find(driver, ".jp-Notebook .jp-OutputArea"))


def test_browse_next_and_style_change_what_is_shown(driver: Any, lab: str) -> None:
    from selenium.webdriver.support.ui import Select

    open_and_run(driver, lab, "browse")
    first = wait_for(lambda: picture(driver), "the picture of the browser")
    wait_for(
        lambda: "image 0 (1 of 3)" in output_text(driver) and "red thing at place 0" in output_text(driver),
        "the words that belong to it",
    )
    find(driver, ".jp-OutputArea button[title='next image']")[0].click()
    second = new_picture(driver, first)
    wait_for(lambda: "image 1 (2 of 3)" in output_text(driver), "the title of the second image")
    find(driver, ".jp-OutputArea button[title='previous image']")[0].click()
    assert new_picture(driver, second) == first
    Select(find(driver, ".jp-OutputArea select")[0]).select_by_visible_text("short")
    wait_for(lambda: "the <red thing>" not in output_text(driver), "the expressions of one style")
    wait_for(lambda: "red thing at place 0" in output_text(driver), "the words that belong to it")


def test_ask_takes_a_typed_phrase(driver: Any, lab: str) -> None:
    from selenium.webdriver.common.keys import Keys

    open_and_run(driver, lab, "ask")
    first = wait_for(lambda: picture(driver), "the picture of the asker")
    wait_for(lambda: "candidate 0, IoU 1.00, right" in output_text(driver), "the words that belong to it")
    find(driver, PHRASE)[0].send_keys("my green thing" + Keys.ENTER)
    new_picture(driver, first)
    wait_for(lambda: "wrapper: candidate 1" in output_text(driver), "the wrapper's new choice")
    wait_for(lambda: "“my green thing”" in output_text(driver), "the words that belong to it")


def test_draw_measures_a_box_dragged_with_the_mouse(driver: Any, lab: str) -> None:
    from selenium.webdriver import ActionChains

    open_and_run(driver, lab, "draw")
    wait_for(lambda: "drag a box over it" in output_text(driver), "the phrase to draw for")
    canvas = wait_for(lambda: find(driver, ".jp-OutputArea .image svg"), "the canvas")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    scale = canvas.size["width"] / 120  # the picture is 120 wide; the first region is 5, 10, 35, 50
    left, top = 6 * scale - canvas.size["width"] / 2, 11 * scale - canvas.size["height"] / 2
    drag = ActionChains(driver).move_to_element_with_offset(canvas, round(left), round(top)).click_and_hold()
    drag.move_by_offset(round(14 * scale), round(19 * scale)).move_by_offset(round(14 * scale), round(19 * scale))
    drag.release().perform()
    wait_for(lambda: "a hit" in output_text(driver), "the IoU of the box that was drawn")


def at(driver: Any, x: float, y: float) -> tuple[Any, int, int]:
    """The pixel widget's picture, and the offset from its middle of a place given as shares of width and height."""
    stage = wait_for(lambda: find(driver, ".seewhere-pointing img"), "the picture to point at")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    return stage, round((x - 0.5) * stage.size["width"]), round((y - 0.5) * stage.size["height"])


def test_pixels_are_told_under_the_pointer_and_in_a_dragged_rectangle(driver: Any, lab: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_and_run(driver, lab, "pixels")
    wait_for(lambda: "Hover over the picture" in output_text(driver), "the pixel widget")
    wait_for(lambda: find(driver, ".seewhere-pointing img")[0].size["width"] > 300, "its picture")
    ActionChains(driver).move_to_element_with_offset(*at(driver, 0.25, 0.5)).perform()
    wait_for(lambda: "cell 1" in output_text(driver) and "[200, 0, 0]" in output_text(driver), "the colour on the left")
    wait_for(
        lambda: "no usable answer" in output_text(driver) and "90 %" in output_text(driver),
        "the words that belong to it",
    )
    hasty = ActionChains(driver, duration=0).move_to_element_with_offset(*at(driver, 0.3, 0.4))
    hasty.move_to_element_with_offset(*at(driver, 0.75, 0.5)).perform()
    wait_for(lambda: "[0, 0, 100]" in output_text(driver), "the colour where the pointer came to rest")
    ActionChains(driver).move_to_element_with_offset(*at(driver, 0.25, 0.75)).click().perform()
    wait_for(lambda: "[200, 0, 0]" in output_text(driver), "the colour of a click")
    before = wait_for(lambda: picture(driver), "what was asked so far")
    drag = ActionChains(driver).move_to_element_with_offset(*at(driver, 0.3, 0.3)).click_and_hold()
    drag.move_by_offset(60, 40).move_by_offset(40, 40).release().perform()
    new_picture(driver, before)
    find(driver, ".jp-OutputArea input[type='text']")[0].send_keys("nowhere.png" + Keys.ENTER)
    wait_for(lambda: "no such file" in output_text(driver), "what is wrong with the path")
    field = find(driver, ".jp-OutputArea input[type='text']")[0]
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("grey.png" + Keys.ENTER)
    wait_for(lambda: "grey.png, 300 x 200 pixels" in output_text(driver), "a picture of one's own")


def test_a_mask_follows_the_phrase(driver: Any, lab: str) -> None:
    from selenium.webdriver.common.keys import Keys

    open_and_run(driver, lab, "masks")
    first = wait_for(lambda: picture(driver), "the picture with its mask")
    wait_for(lambda: "cells in the box are above 0.50" in output_text(driver), "the words that belong to it")
    find(driver, PHRASE)[0].send_keys("the green one" + Keys.ENTER)
    second = new_picture(driver, first)
    wait_for(lambda: "“the green one”" in output_text(driver), "the words below the new picture")
    handle = find(driver, ".jp-OutputArea .noUi-handle")[-1]
    handle.send_keys(Keys.END)
    wait_for(lambda: "0 of" in output_text(driver) and "above 1.00" in output_text(driver), "a higher threshold")
    third = new_picture(driver, second)
    find(driver, OWN_FILE)[0].send_keys("grey.png" + Keys.ENTER)
    fourth = new_picture(driver, third)
    wait_for(lambda: "grey.png, 120 x 80 pixels" in output_text(driver), "a picture of one's own")
    find(driver, PHRASE)[0].send_keys("the red one" + Keys.ENTER)
    wait_for(lambda: "“the red one”" in output_text(driver), "an answer about it")
    assert new_picture(driver, fourth)


def test_the_slider_moves_through_a_training(driver: Any, lab: str) -> None:
    from selenium.webdriver.common.keys import Keys

    open_and_run(driver, lab, "growing")
    last = wait_for(lambda: picture(driver), "the last snapshot")
    wait_for(
        lambda: "30 questions" in output_text(driver) and "RE 7.5" in output_text(driver), "the words that belong to it"
    )
    find(driver, ".jp-OutputArea .noUi-handle")[0].send_keys(Keys.HOME)
    first = new_picture(driver, last)
    wait_for(lambda: "10 questions" in output_text(driver) and "RE 90.0" in output_text(driver), "the first snapshot")
    find(driver, ".jp-OutputArea .noUi-handle")[0].send_keys(Keys.ARROW_RIGHT)
    assert new_picture(driver, first)
    wait_for(lambda: "RE 40.0" in output_text(driver), "the snapshot after it")


def test_cells_are_annotated_from_the_keyboard_and_jupyter_keeps_its_hands_off(driver: Any, lab: str) -> None:
    from selenium.webdriver.common.keys import Keys

    open_and_run(driver, lab, "annotate")
    first = wait_for(lambda: picture(driver), "the picture of the page")
    cells = len(find(driver, ".jp-Notebook .jp-CodeCell"))
    keyboard = wait_for(lambda: find(driver, ".seewhere-keys"), "the field for the keyboard")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", keyboard)
    keyboard.send_keys("dd", "x", Keys.BACKSPACE)  # in Jupyter: delete the cell, cut it
    wait_for(lambda: "middle right" in output_text(driver) and "1. middle right" in output_text(driver), "a first cell")
    keyboard.send_keys("9", Keys.ENTER)
    wait_for(lambda: "1 of" in output_text(driver) and "answered by anna" in output_text(driver), "the next item")
    assert len(find(driver, ".jp-Notebook .jp-CodeCell")) == cells
    find(driver, ".jp-OutputArea button.mod-primary")[0].click()  # without an answer it does nothing
    keyboard.send_keys("f", Keys.ENTER)
    wait_for(lambda: "2 of" in output_text(driver), "the second answer")
    assert first
