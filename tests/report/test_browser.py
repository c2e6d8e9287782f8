"""The page in a real browser, opened from disk without a network."""

from __future__ import annotations

import shutil

import pytest

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def tab():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    with playwright.sync_playwright() as context:
        browser = context.chromium.launch(executable_path=program, args=ARGUMENTS)
        # One tab for all: the browser compiles the figures' library once.
        yield browser.new_context(offline=True).new_page()
        browser.close()


@pytest.fixture
def visit(tab):
    """Open a page; at the end, nothing may have been logged as an error or fetched."""
    complaints, listeners = [], []

    def listen(event, listener):
        tab.on(event, listener)
        listeners.append((event, listener))

    def open_page(path, width=1440, scheme="light"):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        listen("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        listen("pageerror", lambda error: complaints.append(str(error)))
        listen("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        own = ("data:", "blob:", path.as_uri())
        listen("request", lambda r: None if r.url.startswith(own) else complaints.append(r.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
        return tab

    yield open_page
    # The next test must not find the mouse over something, nor the requests of a page that is not its own.
    tab.mouse.move(0, 0)
    tab.goto("about:blank")
    for event, listener in listeners:
        tab.remove_listener(event, listener)
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_it_renders_without_overflow(visit, typical_page, width, scheme):
    page = visit(typical_page, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#bars figure").count() == 2
    assert page.locator("#bars .bars .point").count() > 10
    assert page.locator("#curves figure").count() == 6
    assert page.locator("#curves .lines path.js-line").count() >= 6
    for side in ("first", "second"):
        assert page.locator(f"#matrix-{side} tbody tr").count() == 4
        assert page.locator(f"#map-{side} .points path").count() == 120
    inside = "e => e.getBoundingClientRect().right <= e.closest('figure, .panel').getBoundingClientRect().right + 1"
    assert all(svg.evaluate(inside) for svg in page.locator(".main-svg").all())


def column(page, number):
    rows = page.locator("#leaderboard .scroll >> nth=0 >> tbody >> nth=0 >> tr")
    return [row.locator("th, td").nth(number).inner_text() for row in rows.all()]


def test_headings_sort_by_mouse_and_keyboard(visit, typical_page):
    page = visit(typical_page)
    heading = page.locator("#leaderboard .scroll >> nth=0 >> thead th >> nth=2")
    before = [float(text) for text in column(page, 2)]
    heading.locator("button").click()
    assert [float(text) for text in column(page, 2)] == sorted(before, reverse=True) != before
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in column(page, 2)] == sorted(before)
    assert heading.get_attribute("aria-sort") == "ascending"
    page.locator("#leaderboard .scroll >> nth=0 >> thead th >> nth=0 >> button").click()
    names = [text.split()[0] for text in column(page, 0)]
    assert names == sorted(names)
    assert heading.get_attribute("aria-sort") == "none"


def test_a_gap_stays_last_however_it_is_sorted(visit, typical_page):
    page = visit(typical_page)
    table = page.locator("#leaderboard table:visible").nth(1)
    assert table.locator("tr.gap").count() == 1
    for _ in range(2):
        table.locator("thead th").nth(2).locator("button").click()
        assert "gap" in (table.locator("tbody tr").last.get_attribute("class") or "")


def test_the_metric_is_switched(visit, typical_page):
    page = visit(typical_page)
    first = column(page, 2)
    assert "Balanced accuracy" in page.locator("#bars figure div[role=img]").first.get_attribute("aria-label")
    page.select_option("#metric", "auroc")
    assert "AUROC" in page.locator("#leaderboard table:visible").first.inner_text()
    assert column(page, 2) != first
    assert "AUROC" in page.locator("#bars figure div[role=img]").first.get_attribute("aria-label")


def test_differences_follow_the_reference(visit, typical_page):
    page = visit(typical_page)
    rows = page.locator("#difference-tables tbody tr")
    assert {row.locator("td").first.inner_text() for row in rows.all()} == {"mocov2"}
    page.select_option("#reference", "color")
    rows = page.locator("#difference-tables tbody tr")
    assert {row.locator("td").first.inner_text() for row in rows.all()} == {"color"}
    assert {row.locator("th").inner_text() for row in rows.all()} == {"mocov2", "random"}


def test_many_differences_open_on_one_protocol(visit, grand_page):
    page = visit(grand_page)
    assert page.locator("#difference-task").input_value() == "task-0"
    assert page.locator("#difference-condition").input_value() == "knn"
    cells = page.locator("#difference-tables tbody tr td:nth-child(3)")
    assert set(cells.all_inner_texts()) == {"knn"}


def test_confusion_is_selectable(visit, typical_page):
    page = visit(typical_page)
    page.select_option("#confusion-task", "osteosarcoma")
    assert "necrotic tumor" in page.locator("#matrix-first").inner_text()
    page.select_option("#confusion-condition", "logistic")
    page.select_option("#confusion-second", "random")
    assert "No predictions of random" in page.locator("#matrix-second").inner_text()
    page.select_option("#confusion-second", "color")
    shares = page.locator("#matrix-second tbody tr").first.locator("td").all_inner_texts()
    assert 98 <= sum(int(text.split()[0]) for text in shares) <= 102


def test_pointing_at_a_tile_shows_it(visit, typical_page):
    page = visit(typical_page)
    page.locator("#map-first").scroll_into_view_if_needed()
    page.locator("#map-first .points path").nth(30).hover(force=True)
    card = page.locator("#maps .panel").first.locator(".tile-card")
    card.wait_for(state="visible")
    assert "tile_" in card.inner_text()
    assert "recognized" in card.inner_text() or "taken for" in card.inner_text()
    picture = card.locator(".picture").evaluate("e => getComputedStyle(e).backgroundImage")
    assert picture.startswith('url("data:image/jpeg')
    # The other map circles the same tile.
    assert page.locator("#maps .ring").count() == 2
    page.mouse.move(5, 5)
    card.wait_for(state="hidden")


def test_the_map_is_walked_with_arrow_keys(visit, typical_page):
    page = visit(typical_page)
    page.locator("#map-second").focus()
    card = page.locator("#maps .panel").nth(1).locator(".tile-card")
    seen = set()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        seen.add(card.inner_text())
    assert len(seen) == 3
    page.keyboard.press("Escape")
    assert card.is_hidden()


def test_a_class_is_hidden_and_shown_again(visit, typical_page):
    page = visit(typical_page)
    toggle = page.locator("#map-legend button").first
    toggle.press("Enter")
    assert toggle.get_attribute("aria-pressed") == "false"
    assert page.locator("#map-first .points path").count() < 120
    toggle.press("Enter")
    assert page.locator("#map-first .points path").count() == 120


def test_a_command_is_copied_or_selected(visit, typical_page):
    page = visit(typical_page)
    button = page.locator(".copy").first
    button.click()
    page.wait_for_function("['Copied', 'Selected'].includes(document.querySelector('.copy').textContent)")


def test_hostile_names_do_nothing(visit, builder):
    from eosin.report import write_report

    evil = ("</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "javascript:alert(3)")
    for name in evil:
        record = builder.cell(name, evil[1], "knn", skill=0.8, classes=evil, images=60)
        builder.map(record, 40)
        builder.run(record, 3)
    page = visit(write_report(builder.write()))
    page.locator("#map-first .points path").first.hover(force=True)
    page.locator(".tile-card >> visible=true").wait_for()
    page.locator("#bars .bars .point").first.hover(force=True)
    assert page.locator("img").count() == 0
    assert page.locator("#matrix-first thead").inner_text().count("alert(1)") == 1


def test_a_page_with_nothing_but_scores_works(visit, tmp_path):
    import json

    from eosin.report import write_report

    record = {
        "encoder": "a", "task": "t", "protocol": "knn", "seed": 0, "n_test": 9,
        "metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    page = visit(write_report(tmp_path), 1024)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1024
    assert page.locator("#map .empty").is_visible()
    assert page.locator("#leaderboard tbody tr").count() == 1


@pytest.mark.parametrize("width", [1440, 390])
def test_every_view_of_a_rich_page_is_drawn(visit, rich_page, width):
    page = visit(rich_page, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#efficiency figure .main-svg").count() >= 2
    assert page.locator("#shift figure .scatterlayer .points path").count() == 2 * 4 * 6
    assert page.locator("#ranks .clique").count() == 2
    assert page.locator("#ranks .arm").count() == 4
    assert page.locator("#ranks .critical").count() == 3
    assert page.locator("#roc-legend li").count() == 4
    assert page.locator("#neighbors ul").count() == 6
    assert page.locator("#neighbors .tile.other").count() == 12
    assert page.locator("#errors .tile").count() == 8
    assert page.locator("#significance table").count() == 4


def test_filters_and_search_choose_lines_by_keyboard(visit, rich_page):
    page = visit(rich_page)
    lines = page.locator("#boards tbody:not(.published) tr")
    # Opened on the main protocols and all labels: 2 tasks, 3 protocols, 4 encoders.
    assert lines.count() == 24
    page.keyboard.press("/")
    page.keyboard.type("vit crc")
    assert lines.count() == 3
    assert "3 of" in page.locator("#filter-count").inner_text()
    page.locator("#filter-text").fill("")
    page.select_option("#filter-protocol", "logistic")
    page.select_option("#filter-fraction", "0.1")
    assert lines.count() == 8
    page.locator("#filter-clear").press("Enter")
    assert lines.count() == page.evaluate(
        "data_rows => data_rows.length", page.evaluate("JSON.parse(document.getElementById('data').textContent).rows")
    )
    page.locator("#filter-text").fill("nobody")
    assert page.locator("#boards .empty").is_visible()


def test_published_figures_are_marked_and_never_sorted_among_ours(visit, rich_page):
    page = visit(rich_page)
    board = page.locator("#boards .scroll").first
    foreign = board.locator("tbody.published tr:has(.badge)")
    assert foreign.count() == 15
    before = foreign.all_inner_texts()
    assert all("published" in text and "eva" in text for text in before)
    board.locator("thead .sort").nth(2).click()
    assert foreign.all_inner_texts() == before
    assert board.locator("tbody").first.locator(".badge.foreign").count() == 0
    page.select_option("#metric", "accuracy")
    assert "MoCo v2 ResNet-50" in board.inner_text()
    assert "not available" in page.locator("#boards .scroll").nth(1).inner_text()
    page.select_option("#filter-protocol", "knn")
    assert page.locator(".badge.foreign").count() == 0


def test_the_map_is_colored_by_patient_and_stain(visit, rich_page):
    page = visit(rich_page)
    page.select_option("#map-task", "crc")
    page.select_option("#map-color", "group")
    assert page.locator("#map-legend button").count() == 12
    page.select_option("#map-color", "density")
    assert page.locator("#map-legend button").count() == 0
    assert page.locator("#map-first .colorbar, #map-first .cbfill").count() >= 1
    assert page.locator("#map-first .points path").count() == 120
    page.select_option("#map-color", "red_share")
    assert page.locator("#map-first .points path").count() == 119
    place = "e => e.getAttribute('transform')"
    before = page.locator("#map-first .points path").nth(3).evaluate(place)
    page.select_option("#map-layout", "pca")
    assert page.locator("#map-first .points path").nth(3).evaluate(place) != before
    assert "principal components" in page.locator("#map-note").inner_text()


def test_roc_ranks_and_tiles_follow_their_choices(visit, rich_page):
    page = visit(rich_page)
    page.select_option("#roc-task", "crc")
    page.select_option("#roc-show", "color")
    assert page.locator("#roc-legend li").count() == 9
    page.select_option("#rank-line", "1")
    assert "Two tasks are too few for a test." in page.locator("#rank-note").inner_text()
    assert page.locator("#ranks .critical").count() == 0
    page.select_option("#tiles-encoder", "color")
    page.select_option("#tiles-protocol", "logistic")
    assert "8 most certain of 41 errors" in page.locator("#errors-note").inner_text()
    picture = page.locator("#errors .picture").first.evaluate("e => getComputedStyle(e).backgroundImage")
    assert picture.startswith('url("data:image/jpeg')
    page.select_option("#shift-metric", "accuracy_lost")
    assert "Accuracy lost" in page.locator("#shift figcaption").first.inner_text()


def test_the_tab_key_reaches_every_control_with_a_visible_focus(visit, rich_page):
    page = visit(rich_page)
    page.locator("body").press("Tab")
    seen = set()
    for _ in range(300):
        focus = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.id || e.className || e.tagName, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0]; })()"
        )
        if focus[0] == "BODY":
            break
        seen.add(focus[0])
        assert focus[1], focus
        page.keyboard.press("Tab")
    assert {
        "metric",
        "filter-text",
        "filter-clear",
        "sort",
        "reference",
        "roc-show",
        "map-first",
        "tiles-encoder",
        "copy",
    } <= {name.split()[0] for name in seen}


def test_a_thousand_lines_open_sort_and_search_at_once(visit, grand_page):
    import time

    assert grand_page.stat().st_size < 15e6
    started = time.perf_counter()
    page = visit(grand_page)
    opened = time.perf_counter() - started
    page.locator("#filter-clear").click()
    assert page.locator("#boards tbody tr").count() == 1000
    sort = "(() => { const b = document.querySelectorAll('#boards .sort')[2]; const t = performance.now(); b.click(); document.body.offsetHeight; return performance.now() - t; })()"
    took = sorted(page.evaluate(sort) for _ in range(3))[0]
    print(
        f"opened in {opened:.2f} s, 200 of 1,000 lines sorted in {took:.0f} ms, {grand_page.stat().st_size / 1e6:.1f} MB"
    )
    # Bounds for a machine that does other things too.
    assert opened < 60
    assert took < 2000
    page.locator("#filter-text").fill("encoder-07")
    assert page.locator("#boards tbody tr").count() == 20
