import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from bookext import _check_images
from paperwalk.plot import slider


def frames(n: int = 3, side: int = 8) -> list[np.ndarray]:
    return [np.full((side, side, 3), i / n) for i in range(n)]


def tags(html: str) -> list[tuple[str, dict]]:
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(html)
    return found


def test_one_frame_shows_and_the_control_names_it():
    html = slider(frames(), ["a", "b & c", "d"], alt="Grey squares.", name="shade")._repr_html_()
    images = [attributes for tag, attributes in tags(html) if tag == "img"]
    assert [("hidden" in image) for image in images] == [True, False, True]
    assert [image["alt"] for image in images] == [f"Grey squares. shade: {label}." for label in ("a", "b & c", "d")]
    (control,) = [attributes for tag, attributes in tags(html) if tag == "input"]
    assert (control["type"], control["min"], control["max"], control["value"]) == ("range", "0", "2", "1")
    assert control["aria-valuetext"] == "b & c"
    assert re.search(r"<label>shade .*<output>b &amp; c</output></label>", html)


def test_it_needs_no_network_and_no_ids():
    html = slider(frames(), "abc", alt="Grey squares.", name="shade")._repr_html_()
    assert "http" not in html
    assert not [attributes for _, attributes in tags(html) if "id" in attributes]
    assert all(attributes["src"].startswith("data:") for tag, attributes in tags(html) if tag == "img")


def test_the_book_finds_alt_text_on_each_frame(monkeypatch):
    warnings = []
    monkeypatch.setattr("bookext.LOGGER.warning", lambda *args, **options: warnings.append(args))
    _check_images(slider(frames(), "abc", alt='A "square".', name="shade")._repr_html_(), "page")
    assert warnings == []


def test_figures_are_closed_and_images_keep_their_values():
    figure, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1])
    shown = slider([figure], ["only"], alt="A line.", name="step")
    assert not plt.get_fignums()
    assert shown.pngs[0].startswith(b"\x89PNG")
    for image in (torch.full((4, 4), 0.5), np.full((4, 4), 128, dtype=np.uint8), np.full((4, 4, 3), 0.5)):
        png = slider([image], ["only"], alt="Grey.", name="step").pngs[0]
        assert plt.imread(io.BytesIO(png))[..., :3].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": [], "labels": []}, "0 frames and 0 labels"),
        ({"labels": ["a"]}, "3 frames and 1 labels"),
        ({"frames": [*frames(2), np.zeros((9, 8, 3))]}, r"2 sizes, \[\(8, 8\), \(8, 9\)\] in pixels"),
        ({"alt": " "}, "expected text in both"),
        ({"name": ""}, "expected text in both"),
    ],
)
def test_bad_frames_are_named(changes, message):
    options = {"frames": frames(), "labels": list("abc"), "alt": "Grey squares.", "name": "shade"} | changes
    with pytest.raises(ValueError, match=message):
        slider(options.pop("frames"), options.pop("labels"), **options)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_moving_one_slider_leaves_the_other(tmp_path):
    one, two = (slider(frames(), ["a", "b", "c"], alt="Grey.", name=n)._repr_html_() for n in ("first", "second"))
    move = """<script>const s=document.querySelector('input');s.value=2;s.dispatchEvent(new Event('input'));
    document.title=[...document.querySelectorAll('figure')].map(f=>f.querySelector('output').value
    +[...f.querySelectorAll('img')].map(e=>+!e.hidden).join('')
    +f.querySelector('input').ariaValueText).join(' ')</script>"""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{one}{two}{move}", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--user-data-dir={tmp_path}"]
    dom = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60).stdout
    assert "<title>c001c b010b</title>" in dom
