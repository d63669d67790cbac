"""The page in a browser, opened from disk: a mesh is seen, nothing is asked for.

Needs Chromium, which launch/test.sh installs.
"""

import base64
import gzip
import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from ar3d_jax.evaluation import embedded, report
from tests.evaluation import small_report as small

BROWSERS = ("google-chrome", "chromium", "chromium-browser")
DRAWN_IN_SOFTWARE = (
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' & co </script>"


def installed_browser() -> str | None:
    """The first that starts. A snap sees no files in /tmp, a stub only asks for one."""
    for name in BROWSERS:
        path = shutil.which(name)
        if path and Path(path).resolve().name != "snap":
            command = [path, "--version", "--no-sandbox"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return path
    return None


@pytest.fixture(scope="module")
def browser():
    path = installed_browser()
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path, args=DRAWN_IN_SOFTWARE
        )
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """Opens a page and returns it with all that it asked for and complained of."""
    context = browser.new_context(viewport={"width": 720, "height": 480})
    context.set_default_timeout(120_000)  # drawing in software, on a busy machine

    def open_page(path: Path):
        page, asked, errors = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda x: errors.append(x.text) if x.type == "error" else 0)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append("dialog") or dialog.dismiss())
        page.goto(path.as_uri())
        return page, asked, errors

    yield open_page
    context.close()


def pixels(locator) -> np.ndarray:
    """[H, W, 3] of a screenshot of that part of the page."""
    with Image.open(io.BytesIO(locator.screenshot())) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_two_objects_in_3d_without_a_network(tmp_path, opened):
    report.write(tmp_path, small.two_objects(tmp_path))
    page, asked, errors = opened(tmp_path / "index.html")
    assert page.locator(".card").count() == 2
    assert page.locator(".viewer").count() == 4
    viewer = page.locator(".viewer").first
    viewer.scroll_into_view_if_needed()
    page.locator(".viewer[data-state=shown]").first.wait_for()
    page.wait_for_function(
        "document.querySelector('model-viewer').modelIsVisible", timeout=60_000
    )
    seen = pixels(viewer)
    background = np.median(seen[10:20, 10:60].reshape(-1, 3), axis=0)
    middle = seen[100:150, seen.shape[1] // 2 - 25 : seen.shape[1] // 2 + 25]
    assert (np.abs(middle - background).max(-1) > 20).mean() > 0.9
    assert (np.abs(seen[:, :20] - background).max(-1) > 20).mean() < 0.1
    pictures = page.evaluate(
        "[...document.querySelectorAll('.panel img')].map((x) => x.naturalWidth)"
    )
    assert pictures[0] == 8 * 24
    assert errors == []
    files = {(tmp_path / x).as_uri() for x in ("index.html", *small_pictures())}
    assert {
        url for url in asked if not url.startswith(("blob:null/", "data:"))
    } <= files


def small_pictures():
    for name in ("first", "second"):
        for step in ("coarse", "refined"):
            yield f"meshes/{name}-{step}.png"


def test_a_mesh_that_a_browser_cannot_read_is_said(tmp_path, opened):
    made = small.two_objects(tmp_path)
    broken = bytearray((tmp_path / "meshes/first-refined.glb").read_bytes())
    broken[-2000:] = b""  # cut off: the header still reads well
    (tmp_path / "meshes/first-refined.glb").write_bytes(broken)
    report.write(tmp_path, made)
    page, _, _ = opened(tmp_path / "index.html")
    page.locator(".viewer").nth(1).scroll_into_view_if_needed()
    page.locator(".viewer[data-state=failed]").wait_for()
    assert "cannot show" in page.locator(".viewer[data-state=failed]").inner_text()


def test_a_browser_without_3d_says_so(tmp_path, browser):
    report.write(tmp_path, small.two_objects(tmp_path))
    page = browser.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto((tmp_path / "index.html").as_uri())
    page.locator(".viewer").first.scroll_into_view_if_needed()
    page.locator(".viewer[data-state=failed]").first.wait_for()
    assert page.locator("model-viewer").count() == 0
    page.close()


def test_what_users_wrote_does_not_run(tmp_path, opened):
    made = small.two_objects(tmp_path)
    made["benchmark"]["name"] = made["benchmark"]["notes"][0] = EVIL
    made["benchmark"]["ids"] = [EVIL]
    made["benchmark"]["categories"] = {EVIL: 1, "a": 1, "b": 1}
    made["warnings"] = [EVIL]
    system = made["systems"][0]
    system["name"] = system["source"] = EVIL
    system["strangers"] = [EVIL]
    failed = {"id": EVIL, "seed": 0, "reason": EVIL}
    system["coverage"]["refined"]["failed"] = [failed]
    means = system["overall"]["refined"]
    system["categories"]["refined"] = {EVIL: means, "a": means, "b": means}
    for thing in system["objects"]:
        thing.update(caption=EVIL, category=EVIL, plans={"global": EVIL, "local": EVIL})
    system["objects"][0].update(id=EVIL)
    system["objects"][1]["steps"]["refined"].update(mesh="javascript:alert(1)//.glb")
    report.write(tmp_path, made)
    page, _, errors = opened(tmp_path / "index.html")
    assert errors == []
    assert page.locator("img[onerror]").count() == 0
    assert page.locator("h4").first.inner_text() == EVIL
    assert page.locator("a[href^='javascript:']").count() == 0
    assert "<script>alert" not in (tmp_path / "index.html").read_text()
    assert "<script>alert" not in (tmp_path / "radar.svg").read_text()
    page, _, errors = opened(tmp_path / "radar.svg")
    assert errors == []


def test_a_script_that_slipped_through_would_not_run(tmp_path, opened):
    """The page's own policy, apart from escaping."""
    report.write(tmp_path, small.two_objects(tmp_path))
    text = (tmp_path / "index.html").read_text()
    slipped = "<script>document.title = 'ran'</script><img src='https://a.invalid/x'>"
    (tmp_path / "index.html").write_text(text.replace("<header>", slipped, 1))
    page, _, errors = opened(tmp_path / "index.html")
    assert page.title() == "Evaluation: catalog"
    blocked = [error for error in errors if "Content Security Policy" in error]
    assert len(blocked) == 2, errors
    assert any("a.invalid" in error for error in blocked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(tmp_path, browser, scheme):
    """Contrast of 7:1 for text, 4.5:1 for what is said small: WCAG's AAA and AA."""
    report.write(tmp_path, small.two_objects(tmp_path))
    page = browser.new_page(color_scheme=scheme)
    page.goto((tmp_path / "index.html").as_uri())
    for selector, least in (("h1", 7), ("td", 7), (".error", 4.5), (".note", 4.5)):
        colours = page.evaluate(
            """(selector) => [
              getComputedStyle(document.querySelector(selector)).color,
              getComputedStyle(document.body).backgroundColor]""",
            selector,
        )
        light, dark = sorted(map(luminance, colours), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (selector, colours)
    page.close()


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(1, 2, 3)", as WCAG defines it."""
    parts = [int(x) / 255 for x in colour[4:-1].split(",")]
    linear = [
        x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_a_page_is_not_wider_than_its_window(tmp_path, browser):
    report.write(tmp_path, small.large(tmp_path, [tmp_path / "meshes"]))
    for width in (1240, 400):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((tmp_path / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


def glb(path: Path, scene: dict) -> Path:
    """A binary glTF whose JSON is `scene`."""
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    total = 20 + len(text)
    header = b"glTF" + struct.pack("<III", 2, total, len(text))
    path.write_bytes(header + b"JSON" + text)
    return path


@pytest.mark.parametrize(
    ("scene", "taken"),
    [
        ({"asset": {"version": "2.0"}, "buffers": [{"byteLength": 4}]}, True),
        ({"images": [{"uri": "data:image/png;base64,AA"}]}, True),
        ({"images": [{"uri": "wood.png"}]}, False),
        ({"buffers": [{"uri": "https://a.invalid/x.bin"}]}, False),
        ({"extensionsUsed": ["KHR_draco_mesh_compression"]}, False),
        ({"extensionsUsed": ["KHR_texture_basisu"]}, False),
        ({"extensionsUsed": ["KHR_materials_unlit"]}, True),
        ([], False),
    ],
)
def test_meshes_that_need_other_files_are_not_embedded(tmp_path, scene, taken):
    data = embedded.read_glb(glb(tmp_path / "a.glb", scene))
    assert (data is not None) == taken


def test_what_is_no_glb_is_not_embedded(tmp_path):
    small.ball(tmp_path / "a.glb")
    (tmp_path / "a.obj").write_bytes((tmp_path / "a.glb").read_bytes())
    (tmp_path / "broken.glb").write_bytes(b"glTF" + b"\xff" * 40)
    names = ["a.obj", "missing.glb", "broken.glb", "."]
    assert embedded.embed(tmp_path, names) == {}


def test_the_first_meshes_are_embedded_as_far_as_there_is_room(tmp_path, monkeypatch):
    small.ball(tmp_path / "a.glb")
    small.ball(tmp_path / "b.glb", 0.5)
    names = ["a.glb", "b.glb", "a.glb"]
    both = embedded.embed(tmp_path, names)
    packed = base64.b64decode(both["a.glb"])
    assert gzip.decompress(packed) == (tmp_path / "a.glb").read_bytes()
    assert list(both) == ["a.glb", "b.glb"]
    monkeypatch.setattr(embedded, "PAGE_LIMIT", len(packed))
    assert list(embedded.embed(tmp_path, names)) == ["a.glb"]
    monkeypatch.setattr(embedded, "MESH_LIMIT", 100)
    assert embedded.embed(tmp_path, names) == {}
