"""The dashboard's files: complete, self-contained, and written so that foreign text cannot become markup."""

import re
import shutil
import subprocess

import pytest
from web_kit import make

from crusades.web_assets import FOLDER, load_assets

ASSETS = load_assets()
SCRIPTS = sorted(name for name in ASSETS if name.endswith(".js"))


def text(name):
    return ASSETS[name].content.decode()


async def test_everything_the_page_names_is_served():
    app, _, _ = make()
    named = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', text("index.html")))
    named |= {f"/static/{name}" for script in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', text(script))}
    assert len(named) >= 8
    for path in named:
        answer = await app.test_client().get(path)
        assert answer.status_code == 200, path
        assert answer.headers["ETag"]


async def test_an_unchanged_file_is_a_304():
    app, _, _ = make()
    answer = await app.test_client().get("/static/app.css", headers={"If-None-Match": ASSETS["app.css"].etag})
    assert answer.status_code == 304


def test_no_file_is_forgotten():
    assert {path.name for path in FOLDER.iterdir()} == set(ASSETS)


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_nothing_is_loaded_from_elsewhere(name):
    urls = re.findall(r"https?://[^\s\"'`)]+", text(name))
    assert [url for url in urls if not url.startswith("http://www.w3.org/2000/svg")] == []
    assert "@import" not in text(name)


def test_the_page_keeps_its_own_policy():
    page = text("index.html")
    assert not re.search(r"<script(?![^>]*src=)", page)
    assert "<style" not in page
    assert not re.search(r"\s(style|on[a-z]+)=", page)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("door", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "new Function", "setAttribute(\"style\"", "srcdoc"])
def test_no_door_through_which_text_becomes_markup(name, door):
    assert door not in text(name)


def test_every_foreign_link_goes_through_the_check_of_its_scheme():
    """`href` is set in three ways only: to a checked address, to our own hash routes, and nowhere else."""
    for name in SCRIPTS:
        for value in re.findall(r"href[:=] ?([^,\n}]+)", text(name)):
            assert value.startswith("`#/submission/") or name == "format.js", (name, value)
    assert "const href = webAddress(x.url)" in text("detail.js")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's own functions")
def test_the_pages_functions_make_foreign_text_harmless():
    program = f"""
    import {{ clean, webAddress, short, span, opening, now }} from "{(FOLDER / 'format.js').as_uri()}";
    import {{ ticks }} from "{(FOLDER / 'chart.js').as_uri()}";
    const same = (a, b) => {{ if (JSON.stringify(a) !== JSON.stringify(b)) {{ console.error(a, b); process.exit(1); }} }};
    same(clean("a\\u202eb\\u200bc\\u0007\\nd"), "a\\ufffdb\\ufffdc\\ufffd d");
    same(clean(null), ""); same(clean("x".repeat(50), 10), "xxxxxxxxxx…");
    for (const bad of ["javascript:alert(1)", "data:text/html,x", " JaVaScript:alert(1)", "https://user:pass@host/", "//host", "file:///etc/passwd", ""]) same(webAddress(bad), null);
    same(webAddress("https://example.org/train.py"), "https://example.org/train.py");
    same(span(0.4), "400 ms"); same(span(4000), "67 min");
    const seal = {{ status: "sealed", reveal_round: 12345, reveal_expected_at: now() + 241 }};
    same(opening(seal), "opens in about 4 min (drand round 12345)"); same(opening({{ ...seal, reveal_expected_at: null }}), "opens soon (drand round 12345)");
    same(opening({{ ...seal, status: "queued" }}), "");
    same(ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]); same(ticks(41.2, 41.31, 4), [41.2, 41.25, 41.3]);
    """
    done = subprocess.run(["node", "--input-type=module", "-e", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_route_is_documented_and_every_documented_route_exists():
    app, _, _ = make()
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    page = (FOLDER.parent.parent / "docs" / "api.md").read_text()
    documented = set(re.findall(r"`(/[^`?\s]*)`", page)) - {"/api/v1"}
    assert documented == routes


def test_every_error_is_documented():
    from crusades import web, web_views

    sources = "".join((FOLDER.parent / f"{module.__name__.rpartition('.')[2]}.py").read_text() for module in (web, web_views))
    named = set(re.findall(r'(?:Refused|_refusal)\(\d+, "([a-z_]+)"', sources)) | {"internal", "unavailable", "not_found", "bad_request", "method_not_allowed"}
    page = (FOLDER.parent.parent / "docs" / "api.md").read_text()
    assert {name for name in named if f"`{name}`" not in page} == set()
