"""The built site in a real browser, from file:// and from a web server, light and dark, wide and narrow.

Without a browser or a built site these tests are skipped and say what is missing. `PAPERWALK_SITE` names another folder
than `_build/html`, and then any state of it is tested.
"""

import functools
import http.server
import os
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import browser as browsers
import build
import pdf
import reading
from chapters import ROOT

GIVEN = os.environ.get("PAPERWALK_SITE")
SITE = Path(GIVEN).resolve() if GIVEN else build.HTML
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts and 'http-equiv="Refresh"' not in path.read_text(encoding="utf-8")[:200]
)
CHAPTERS = [page for page in PAGES if "/chapters/" in page]
PATIENCE = 240_000  # milliseconds; a busy machine takes minutes for what takes a second
# What the theme does and we cannot mend: rule of axe, selector, where it is reported.
OF_THE_THEME = [
    # axe takes the title of the icon, which nobody sees, for the button's text.
    ("label-content-name-mismatch", ".theme-switch-button", "https://github.com/pydata/pydata-sphinx-theme/pull/1924"),
    # The text is "Search Ctrl+K", the name "Search".
    (
        "label-content-name-mismatch",
        ".search-button__button",
        "https://github.com/pydata/pydata-sphinx-theme/issues/1428",
    ),
]
LOOK = """async () => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), raw = [];
  for (let node; (node = texts.nextNode()); ) {
    if (node.parentElement.closest('script, style, pre, code, textarea, mjx-container')) continue;
    const found = node.data.match(/\\\\[a-zA-Z]+|\\\\[()[\\]]|\\$\\$|\\{[a-z:]+\\}`|\\{(run-time|source:|reading-map)/);
    if (found) raw.push(node.data.slice(Math.max(0, found.index - 20), found.index + 40));
  }
  return {
    raw,
    broken: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent),
    unset: [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length,
    silent: [...document.images].filter(e => !e.alt.trim()).map(e => e.outerHTML.slice(0, 100)),
    blank: [...document.images].filter(e => e.loading != 'lazy' && !e.naturalWidth).map(e => e.src.slice(0, 100)),
  };
}"""
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth, wide = document.documentElement.scrollWidth - width;
  const box = e => e.getBoundingClientRect();
  const hidden = e => { for (e = e.parentElement; e; e = e.parentElement)
    if (getComputedStyle(e).overflowX != 'visible' && e.tagName != 'BODY' && e.tagName != 'HTML') return true; };
  return wide <= 0 ? [] : [...document.querySelectorAll('main *')].filter(e => box(e).right > width + 1 && !hidden(e))
    .map(e => `${wide} px: ${e.outerHTML.slice(0, 120)}`).concat(`${wide} px`).slice(0, 4);
}"""
AXE = """async theirs => {
  const found = await axe.run({exclude: ['mjx-container']}, {resultTypes: ['violations'], preload: false});
  const known = (rule, target) => theirs.some(([name, selector]) =>
    name == rule && document.querySelector(target)?.closest(selector));
  return found.violations.filter(v => ['serious', 'critical'].includes(v.impact)).flatMap(v => v.nodes
    .filter(n => !known(v.id, n.target[0]))
    .map(n => `${v.id} at ${n.target[0]}: ${n.html.slice(0, 160)} ${n.failureSummary}`));
}"""
REACHED = """() => [...document.querySelectorAll('pre, .pst-scrollable-table-container')]
  .every(e => e.scrollWidth <= e.clientWidth || e.tabIndex == 0)"""
THEMES = """() => {
  const seen = new Set(), button = document.querySelector('.theme-switch-button');
  for (let i = 0; i < 3; i++) { button.click(); seen.add(document.documentElement.dataset.theme); }
  return [...seen].sort();
}"""
COPIES = """async () => {
  const wait = () => new Promise(done => setTimeout(done, 0)), wrong = [];
  for (const button of document.querySelectorAll('button.copybtn')) {
    button.click(); await wait();
    if (!button.classList.contains('success')) wrong.push(button.dataset.clipboardTarget);
  }
  return wrong;
}"""
SLIDERS = """() => [...document.querySelectorAll('.paperwalk-slider')].map(figure => {
  const shown = [...figure.querySelectorAll('img')].filter(e => !e.hidden);
  return {n: figure.querySelectorAll('img').length, shown: shown.map(e => e.dataset.label),
          says: figure.querySelector('output').value, named: figure.querySelector('input').ariaValueText};
})"""


@functools.cache
def missing() -> str:
    """Why the site cannot be tested here; empty when it can."""
    if not (SITE / "index.html").exists():
        return "no built site: run `make book`"
    if not GIVEN and (not build.BUILT.exists() or build.BUILT.read_text() != build.sources()):
        return "the built site is older than its sources: run `make book`"
    if not browsers.find():
        return "no browser here: install Chromium, or run `python tools/browser.py`"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    program = browsers.find()
    with sync_playwright() as playwright:
        # Any other host is a name that does not resolve, so that a request to one fails as it does offline.
        arguments = ["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe():
    return (build.fetch_npm(build.AXE) / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def addresses():
    """Where the site is read from: a folder, and a server that is nothing but one, the site below its root."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            return super().translate_path(path.removeprefix("/book-of-papers"))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"file": SITE.as_uri(), "http": f"http://127.0.0.1:{server.server_port}/book-of-papers"}
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(chromium, addresses):
    """Opens a page and collects what goes wrong on it, from the first request to the end of the test."""
    contexts, wrong = [], []

    def noted(kind, text):
        wrong.append(f"{kind}: {text[:300]}")

    def open_page(address, page, scheme="light"):
        context = chromium.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        view, base = context.new_page(), addresses[address]
        view.on("request", lambda r: r.url.startswith((base, "data:")) or noted("request to elsewhere", r.url))
        view.on("requestfailed", lambda r: noted("request failed", f"{r.url} {r.failure}"))
        view.on("response", lambda r: r.status < 400 or noted(f"status {r.status}", r.url))
        view.on("console", lambda m: m.type in ("error", "warning") and noted(f"console {m.type}", m.text))
        view.on("pageerror", lambda e: noted("script error", str(e)))
        view.goto(f"{base}/{page}")
        view.evaluate("window.MathJax?.startup?.promise.then(() => null)")
        return view

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def press(view, page):
    """What can be pressed on a page answers."""
    assert view.evaluate(THEMES) == ["dark", "light"]
    assert view.evaluate(COPIES) == []
    if page in CHAPTERS:
        first = view.locator("button.copybtn:visible").first
        code = view.locator(first.get_attribute("data-clipboard-target")).text_content()
        assert view.evaluate("navigator.clipboard.readText()") != code
        first.click()
        assert view.evaluate("navigator.clipboard.readText()").strip() == code.strip()
    for i, slider in enumerate(view.locator(".paperwalk-slider input").all()):
        positions = {}
        for key in ("Home", "ArrowRight", "End"):
            slider.press(key)
            positions[key] = view.evaluate(SLIDERS)[i]
        assert len({position["says"] for position in positions.values()}) == min(3, positions["End"]["n"])
        for position in positions.values():
            assert position["shown"] == [position["says"]] == [position["named"]]
    # What is folded unfolds.
    folded = view.locator("details summary")
    if folded.count():
        folded.first.click()
        assert view.locator("details").first.evaluate("e => e.open")


# Addresses, themes and widths in two loads, as a fault of one pair alone is hard to imagine.
@pytest.mark.parametrize(("address", "scheme", "width"), [("file", "light", 1280), ("http", "dark", 390)])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_and_answers(page, address, scheme, width, visit, axe):
    view = visit(address, page, scheme)
    assert view.evaluate("document.documentElement.dataset.theme") == scheme
    assert view.evaluate(LOOK) == {"raw": [], "broken": [], "unset": 0, "silent": [], "blank": []}
    assert view.evaluate(OVERFLOW) == []
    view.set_viewport_size({"width": width, "height": 800})
    assert view.evaluate(OVERFLOW) == []
    # The theme notices a little later what scrolls now, and lets the keyboard reach it.
    view.wait_for_function(REACHED)
    # Through the debugger, not as a <script>, so that nothing of it counts as the page's own.
    view.evaluate(axe)
    assert view.evaluate(AXE, OF_THE_THEME) == []
    # Last, since it leaves another page than it found; in one of the loads, since a load takes the time.
    if address == "file" and page not in ("genindex.html", "search.html"):
        press(view, page)


@pytest.mark.parametrize("address", ["file", "http"])
def test_search_finds_a_term_and_leads_to_it(address, visit):
    view = visit(address, "search.html?q=patches")
    results = view.locator("ul.search a")
    results.first.wait_for()
    view.wait_for_function("!document.querySelector('#search-progress')?.textContent")
    found = results.evaluate_all("links => links.map(link => link.href)")
    assert any("chapters/vit.html" in link for link in found)
    assert not view.evaluate(OVERFLOW)


def test_a_formula_is_copied_as_its_tex(visit):
    view = visit("file", "book/chapters/vit.html")
    view.wait_for_function("document.querySelector('main p mjx-container[data-tex]')")
    view.evaluate("""() => {
      const found = [...document.querySelectorAll('main p')].find(p => p.querySelectorAll('mjx-container').length > 2);
      getSelection().selectAllChildren(found);
    }""")
    selected = view.evaluate("getSelection().toString()")
    view.keyboard.press("Control+c")
    copied = view.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("$H$ and $W$ are the height and width")
    assert selected.strip().startswith("\N{MATHEMATICAL ITALIC CAPITAL H}")
    assert "\\" not in selected


def test_a_chapter_prints_without_the_bars(visit):
    view = visit("file", CHAPTERS[0])
    view.emulate_media(media="print")
    shown = "e => !!e && getComputedStyle(e).display != 'none' && e.getClientRects().length > 0"
    assert not view.evaluate(f"({shown})(document.querySelector('.bd-sidebar-primary'))")
    assert view.evaluate(f"({shown})(document.querySelector('main h1'))")


def test_a_chapter_becomes_a_pdf(chromium, tmp_path):
    (file,) = pdf.write(chromium, [SITE / CHAPTERS[0]], tmp_path)
    content = file.read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") > 5
    assert b"/Outlines" in content
    with pytest.raises(FileNotFoundError, match=r"nothing.html is not built: run `make book`"):
        pdf.write(chromium, [SITE / "nothing.html"], tmp_path)


def test_what_is_read_in_the_dark_is_printed_in_the_light_and_unfolded(visit):
    view = visit("file", CHAPTERS[0], "dark")
    state = "() => [document.documentElement.dataset.theme, document.querySelector('main details').open]"
    for event, expected in (("beforeprint", ["light", True]), ("afterprint", ["dark", False])):
        view.evaluate(f"window.dispatchEvent(new Event('{event}'))")
        assert view.evaluate(state) == expected


def test_the_map_and_the_modules_are_in_their_pages(visit):
    view = visit("file", "book/index.html")
    places = view.locator("svg.reading-map a").evaluate_all("links => links.map(link => link.href.baseVal)")
    assert sorted(places) == sorted(page.removeprefix("book/") for page in CHAPTERS)
    folded = [page for page in CHAPTERS if 'details class="module-source"' in (SITE / page).read_text(encoding="utf-8")]
    assert [page for page in CHAPTERS if page not in folded] == ["book/chapters/einops.html"]


def test_a_chapter_names_what_it_builds_on_and_what_it_leads_to(visit):
    view = visit("file", "book/chapters/vit.html")
    said = [line.split(": ")[0] for line in view.locator("nav.neighbours p").all_inner_texts()]
    assert said == ["Builds on", "Leads to"]
    leads = view.locator("nav.neighbours a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    before, after = reading.needs()["vit"], [stem for stem, first in reading.needs().items() if "vit" in first]
    assert leads == [f"{stem}.html" for stem in (*sorted(before), *sorted(after))]


class Links(HTMLParser):
    """The ids of a page and where it links to."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed((SITE / page).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]


@functools.cache
def links(page):
    return Links(page)


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_site_lead_somewhere(page):
    dead = []
    for link in links(page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
            continue
        target = (SITE / page).parent / unquote(parts.path) if parts.path else SITE / page
        target = target.resolve()
        if not target.exists():
            dead.append(link)
        elif parts.fragment and target.suffix == ".html":
            known = links(target.relative_to(SITE).as_posix()).ids
            if unquote(parts.fragment) not in known:
                dead.append(link)
    assert dead == []


def test_the_site_names_no_path_or_address_of_the_machine_that_built_it():
    named = re.compile(re.escape(str(ROOT)) + r"|/home/\w+|/root/| at 0x[0-9a-f]{6}")
    assert [page for page in PAGES if named.search((SITE / page).read_text(encoding="utf-8"))] == []


def test_the_readme_says_what_the_proofs_measured(monkeypatch):
    monkeypatch.setattr(build, "HTML", SITE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| (\w+) \| (\d+) \| (\S+) \| (\S+) \|$", readme, re.MULTILINE)
    said = {chapter: (int(n), float(outputs), float(gradients)) for chapter, n, outputs, gradients in said}
    measured = build.proofs()
    assert {chapter: n for chapter, (n, *_) in said.items()} == {chapter: n for chapter, (n, *_) in measured.items()}
    for chapter, (_, *errors) in measured.items():
        # Rounding differs from machine to machine, by less than ten times.
        assert all(error < 10 * limit for error, limit in zip(errors, said[chapter][1:], strict=True))


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_download_button_gives_the_notebook_that_colab_opens(page):
    (link,) = {link for link in links(page).links if link.endswith(".ipynb") and not urlsplit(link).netloc}
    assert ((SITE / page).parent / link).read_bytes() == (ROOT / "notebooks" / f"{Path(page).stem}.ipynb").read_bytes()
