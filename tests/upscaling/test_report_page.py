"""The page of a cohort, in a browser where there is one."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from medsr_monai.upscaling.report_page import PICTURE_WIDTH, PageRow, check_index, write_index

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<b>x</b> & \"quoted\" 'single' {{ 7 * 7 }} </td><script>document.title = 'stolen'</script>"
CHECK = """<script>
window.addEventListener("error", event => { window.failed = event.message; });
window.addEventListener("load", async () => {
  const images = [...document.querySelectorAll("tbody img")];
  await Promise.all(images.map(image => image.decode().catch(() => 0)));
  const names = () => [...document.querySelector("tbody").rows].filter(row => !row.hidden)
    .map(row => row.cells[0].textContent);
  const cells = row => [...row.cells].map(cell => cell.textContent.trim());
  const found = {title: document.title, widths: images.map(image => image.naturalWidth), failed: window.failed || null,
    bold: document.querySelectorAll("b").length, cells: [...document.querySelector("tbody").rows].map(cells)};
  const press = number => { document.querySelectorAll("th button")[number].click(); return names(); };
  found.by_case = press(0); found.by_seconds = press(6); found.by_seconds_down = press(6);
  const search = document.querySelector("#search");
  search.value = "NaN"; search.dispatchEvent(new Event("input")); found.searched = names();
  search.value = ""; search.dispatchEvent(new Event("input"));
  const status = document.querySelector("#status");
  status.value = "failed"; status.dispatchEvent(new Event("change")); found.failures = names();
  found.count = document.querySelector("#count").textContent;
  images[0].click(); found.enlarged = document.querySelector("dialog").open;
  const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>"""


@pytest.fixture
def page(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 1400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.quality.png")
    Image.fromarray(pixels[:, :200]).save(tmp_path / "b.quality.png")
    rows = [
        PageRow(NASTY, "done", "", 12.345, 0.0123, 0.5, tmp_path / "a.quality.png", NASTY),
        PageRow("sub-10", "failed", "sub-10.nii.gz: 3 voxels are NaN", 0.5),
        PageRow("sub-9", "done", "", 100.0, 0.5, None, tmp_path / "b.quality.png"),
        PageRow("sub-11 \udce9", "kept"),
    ]
    write_index(tmp_path / "index.html", rows, "Cohort <i>1</i>", "2 of 4 cases done.")
    return tmp_path / "index.html"


def test_nothing_is_fetched_and_texts_are_escaped(page):
    text = page.read_text()
    assert html.escape(NASTY, quote=False).split(" ")[0] in text and "<b>" not in text and "{{ 7 * 7 }}" in text
    sources = re.findall(r"(?:src|href)=\"([^\"]*)", text)
    assert len(sources) == 3 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<link rel=.stylesheet", text)
    assert "default-src 'none'" in text
    assert [p.name for p in page.parent.iterdir() if "partial" in p.name] == []


def test_pictures_are_reduced(page):
    assert page.stat().st_size < 1.4 * (300 * 1400 * 3)  # of noise, which does not compress


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
def test_in_a_browser(page, tmp_path):
    copy = tmp_path / "checked.html"
    copy.write_text(page.read_text().replace("<head>", "<head>" + CHECK))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *options, "--dump-dom", copy.as_uri()]
    for _ in range(3):  # on a busy machine the virtual time may pass before the pictures are decoded
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr, done.stderr
        match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
        if match:
            break
    assert match, (done.stdout[-500:], done.stderr[-2000:])
    found = json.loads(html.unescape(match.group(1)))
    assert found["title"] == "Cohort <i>1</i>" and found["failed"] is None
    assert found["widths"] == [PICTURE_WIDTH, 200] and found["bold"] == 0
    assert found["cells"][0] == [NASTY, "done", "", NASTY, "1.23", "0.5", "12.3", ""]
    assert found["cells"][1] == ["sub-10", "failed", "sub-10.nii.gz: 3 voxels are NaN", "", "", "", "0.5", ""]
    # numbers in names sort as numbers, and what is unknown stays last either way
    assert found["by_case"] == [NASTY, "sub-9", "sub-10", "sub-11 ?"]
    assert found["by_seconds"] == ["sub-10", NASTY, "sub-9", "sub-11 ?"]
    assert found["by_seconds_down"] == ["sub-9", NASTY, "sub-10", "sub-11 ?"]
    assert found["searched"] == found["failures"] == ["sub-10"] and found["count"] == "1 of 4 cases"
    assert found["enlarged"] is True


def test_a_missing_picture_leaves_no_page(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such picture"):
        write_index(tmp_path / "index.html", [PageRow("a", "done", picture=tmp_path / "a.png")], "Cohort")
    assert not list(tmp_path.iterdir())


def test_another_page_is_not_replaced_unasked(page, tmp_path):
    check_index(page)
    check_index(tmp_path / "none.html")
    other = tmp_path / "other.html"
    other.write_text("<!DOCTYPE html><title>mine</title>")
    check_index(other, overwrite=True)
    for path in (other, tmp_path):
        with pytest.raises(FileExistsError, match="move it away"):
            check_index(path)
