"""The page in a real browser, against a real server: by mouse and by key, on a phone and on a desk."""

import csv
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from serving import as_image
from sklearn.datasets import load_digits

import wordsight
from wordsight.backbones import MICRO

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 800}}
NASTY = "<img src=x onerror=document.title='run'>"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One whose answers have reasons: it reads sentences."""
    folder = tmp_path_factory.mktemp("page") / "digits"
    words = {
        "data": "digits",
        "backbone": "micro",
        "sentences": "digits",
        "method": "aape",
        "shots": 4,
        "folds": 2,  # so that it knows what it cannot rule out
    }
    return wordsight.fit(**words, device="cpu", out=str(folder), references=False).folder


@pytest.fixture(scope="module")
def serving(run, digit_files, tmp_path_factory):
    """A server of its own process: address, and the CSV that corrections go to."""
    table = tmp_path_factory.mktemp("corrected") / "labels.csv"
    words = [run, MICRO.parent / "micro_lm", "--search", digit_files[0].parent, "--corrections", table]
    process, address = _server("serve", *map(str, words))
    yield address, table
    _end(process)


def _server(*words):
    command = [sys.executable, "-m", "wordsight", *words, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"at (http://\S+);", line):
            return process, found[1]
    process.stderr.close()
    raise AssertionError(f"no server: exit code {process.wait()}")


def _end(process):
    process.terminate()
    with process.stderr:
        assert process.wait(30) == 0


def _page(browser, address, size="desk", **more):
    """The page, once it has asked for the models; whatever it complains of fails the test."""
    page = browser.new_context(viewport=SIZES[size], **more).new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
    page.goto(address)
    return page


@pytest.fixture(params=SIZES)
def page(browser, serving, request):
    opened = _page(browser, serving[0], request.param)
    opened.wait_for_selector("#tab-images:not([hidden])")
    yield opened
    assert opened.complaints == []
    wider = opened.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wider <= 0, f"the page is {wider} pixels wider than the window"
    opened.context.close()


def _predicted(page):
    return page.locator(".card .guess:first-child > span:first-child").all_inner_texts()


def test_images_get_classes_and_the_sentence_that_tells_them_apart(page, digit_files):
    page.set_input_files("#files", digit_files[:3])
    expect(page.locator(".card .guess")).to_have_count(15)
    assert _predicted(page) == ["zero", "one", "two"]
    assert "tells zero from" in page.inner_text(".card:first-child .why")
    assert page.locator(".card:first-child .bar span").first.bounding_box()["width"] > 100


def test_a_file_that_is_no_image_says_so_and_the_others_are_answered(page, digit_files, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    page.set_input_files("#files", [tmp_path / "broken.png", digit_files[1]])
    page.wait_for_selector(".card .guess")
    assert "decode" in page.inner_text(".card .told") or "image" in page.inner_text(".card .told")
    assert _predicted(page) == ["one"]


def test_answers_that_are_not_decided_are_marked(page, run, digit_files, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    files = [*digit_files[:3], tmp_path / "red.png"]
    page.set_input_files("#files", files)
    expect(page.locator(".card .guess")).to_have_count(20)
    assert page.locator("#rate option").all_inner_texts() == ["– (mark none)", "5 %", "10 %", "20 %"]
    assert "unlike the training images" in page.inner_text(".card:last-child")
    for rate in ("0.05", "0.2"):
        page.select_option("#rate", rate)
        unsure = sum(answer.unsure for answer in wordsight.predict(run, files, error=float(rate)))
        expect(page.locator(".mark", has_text="unsure")).to_have_count(unsure)


def test_new_classes_are_typed_without_a_mouse(page, digit_files):
    page.set_input_files("#files", digit_files[:1])
    page.wait_for_selector(".card .guess")
    if not page.is_visible("#new-class"):
        page.focus("#classes-fold > summary")
        page.keyboard.press("Enter")
    page.focus("#classes-fold > summary")
    page.keyboard.press("Tab")
    page.keyboard.type(f"the letter o, {NASTY}")
    page.keyboard.press("Enter")
    expect(page.locator("#chips li")).to_have_count(12)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # these alone
    expect(page.locator(".card .guess")).to_have_count(2)
    assert set(page.locator(".guess > span:first-child").all_inner_texts()) == {"the letter o", NASTY}
    assert page.title() == "Wordsight"


def test_tabs_are_changed_by_arrow_keys(page):
    page.focus("#tab-images")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#search") and not page.is_visible("#images")
    page.keyboard.press("End")
    assert page.is_visible("#chat")
    page.keyboard.press("Home")
    assert page.is_visible("#images")


def test_every_control_has_a_name(page, digit_files):
    page.set_input_files("#files", digit_files[:1])
    page.wait_for_selector(".card .guess")
    nameless = """controls => controls.filter(one => !(one.getAttribute("aria-label") || one.textContent
        || one.closest("label"))).map(one => one.outerHTML)"""
    assert page.locator("button, input, select, textarea").evaluate_all(nameless) == []


def test_a_label_is_put_right_and_kept(page, serving, digit_files):
    page.set_input_files("#files", digit_files[4])
    page.wait_for_selector(".card .guess")
    page.click("text=Wrong? Put it right")
    page.fill(".card input[list=names]", "nobody")
    page.click("text=Keep")
    assert "no class here" in page.inner_text(".card form [role=status]")
    page.fill(".card input[list=names]", "nine")
    page.click("text=Keep")
    page.wait_for_selector("text=kept as nine")
    with serving[1].open() as file:
        (row,) = csv.DictReader(file)
    assert row["label"] == "nine"
    assert (serving[1].parent / row["path"]).read_bytes() == digit_files[4].read_bytes()
    serving[1].unlink()


def test_search_finds_images_by_words_and_by_an_image(page, digit_files):
    page.click("#tab-search")
    page.fill("#query", "a seven")
    page.keyboard.press("Enter")
    expect(page.locator("#found img")).to_have_count(8)
    page.set_input_files("#like-file", digit_files[3])
    expect(page.locator("#found li span").first).to_have_text("3.png")
    expect(page.locator("#found img").first).to_have_js_property("naturalWidth", 40)


def test_chat_writes(page):
    page.click("#tab-chat")
    page.fill("#message", "A seven has")
    page.keyboard.press("Enter")
    expect(page.locator("#talk li")).to_have_count(2)
    expect(page.locator("#send")).to_be_enabled()
    assert len(page.inner_text("#talk li:last-child")) > 3


def test_a_server_with_keys_asks_for_one(browser, run, tmp_path):
    (tmp_path / "keys").write_text("correct-horse\n")
    process, address = _server("serve", str(run), "--keys", str(tmp_path / "keys"))
    try:
        page = _page(browser, address)
        for key in ("wrong", "correct-horse"):
            page.wait_for_selector("#key-box[open]")
            page.fill("#key", key)
            page.keyboard.press("Enter")
        page.wait_for_selector("#tab-images:not([hidden])")
        assert page.inner_text("#about").startswith("digits")
    finally:
        _end(process)


@pytest.mark.parametrize("size", SIZES)
def test_a_folder_is_labelled_by_click_and_by_key(browser, tmp_path, size):
    digits, folder = load_digits(), tmp_path / "new"
    folder.mkdir()
    for row, image in enumerate(digits.images[:12]):
        as_image(image).save(folder / f"{row}-{digits.target[row]}.png")
    names = [str(number) for number in range(10)]
    words = ["backbone=micro", "flip=false", "method=linear_probe"]
    process, address = _server("label", str(folder), "--classes", ",".join(names[:9]), *words)
    try:
        page = _page(browser, address, size)
        page.fill("#label-new", names[9])
        page.keyboard.press("Enter")
        expect(page.locator("#answers button")).to_have_count(10)
        _label(page, 2)
        page.locator("#label-count").click()  # so that keys are no text
        page.keyboard.press("u")
        expect(page.locator("#label-count")).to_contain_text("1 of 12")
        page.keyboard.press("s")
        expect(page.locator("#label-count")).to_contain_text("1 skipped")
        _label(page, 10)
        expect(page.locator("#label-count")).to_contain_text("11 of 12")
        expect(page.locator("#label-accuracy")).to_contain_text("%")
        page.locator("#label-last button").first.click()
        page.keyboard.press("1")
        expect(page.locator("#label-last button").first).to_be_visible()
        assert page.complaints == []
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    finally:
        _end(process)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 and sum(row["label"] == row["path"][-5] for row in rows) >= 10


def _label(page, count):
    """Each image that is asked for as its file's name says, by clicks."""
    for _ in range(count):
        expect(page.locator("#answers button").first).to_be_enabled()
        image = page.inner_text("#label-name")
        page.locator(f"#answers button[aria-label^='{image[-5]}']").click()
        expect(page.locator("#label-name")).not_to_have_text(image)
