"""What an auditor does at the console, in a real browser, and what a lying server would show.

check.py URL KEYS CHROMIUM [PICTURES]: KEYS holds key-application, key-auditor and key-operator.
"""

import base64
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import urllib.request

from playwright.sync_api import expect, sync_playwright

URL, KEYS, CHROMIUM = sys.argv[1:4]
PICTURES = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 and sys.argv[4] else None
KEY = {role: pathlib.Path(KEYS, f"key-{role}").read_text().strip() for role in ("application", "auditor", "operator")}
SMALL = 200_000  # bytes a picture may have


def ask(method, path, body=None, role="application"):
    media_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
    request = urllib.request.Request(
        URL + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + KEY[role], "Content-Type": media_type},
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def fill():
    """A morning's work of an application, and an attack on the pages that show it."""
    subjects = ["alice.archer", "bob.brewer", "carol.cooper", "dave.dyer"]
    ids = []
    for at in range(24):
        subject = subjects[at % len(subjects)]
        session = ask("POST", "/v1/sessions", {
            "subject": subject,
            "kind": ["web", "api", "desktop"][at % 3],
            "attributes": {"theme": "dark", "desk": at, "roles": ["clerk"]},
            "client": {"address": f"198.51.100.{at + 1}", "user_agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0"},
        })
        ids.append(session["id"])
        if at % 2:
            ask("PATCH", f"/v1/sessions/{session['id']}", {"theme": "light", "roles": ["clerk", "teller"]})
        if at != 0:
            ask("DELETE", f"/v1/sessions/{session['id']}?reason=logout")
    first = ids[0]
    ask("PATCH", f"/v1/sessions/{first}", {"theme": "light", "desk": None})
    ask("POST", f"/v1/sessions/{first}/authenticate", {"subject": "alice.archer", "methods": ["pwd", "otp"], "level": "aal2"})
    ask("PATCH", f"/v1/sessions/{first}", {"roles": ["clerk", "approver"], "note": "<script>document.title='owned'</script>"})
    ask("POST", f"/v1/sessions/{first}/renew")
    ask("DELETE", f"/v1/sessions/{first}?reason=logout")
    return first


class Watch:
    """Everything a page must not do: speak to another place, or complain."""

    def __init__(self, context):
        self.faults = []
        context.on("request", self.request)
        context.on("console", lambda message: self.faults.append(f"console: {message.text}") if message.type == "error" else None)
        context.on("weberror", lambda failure: self.faults.append(f"error: {failure.error}"))

    def request(self, request):
        if not request.url.startswith((URL + "/console", "data:")):
            self.faults.append(f"request to {request.url}")

    def quiet(self):
        assert not self.faults, self.faults


def sign_in(page, role):
    page.goto(URL + "/console")
    page.get_by_label("API key").fill(KEY[role])
    page.get_by_role("button", name="Sign in").click()


def picture(page, name, **options):
    if PICTURES is None:
        return
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path, **options)
    size = path.stat().st_size
    assert size < SMALL, f"{path} has {size} bytes"


def search(page, session):
    expect(page.get_by_role("heading", name="Entries")).to_be_visible()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "subject", "/ goes to the first field"
    page.keyboard.type("alice.archer")
    page.get_by_label("Action").select_option("session.ended")
    page.get_by_role("button", name="Search").click()
    rows = page.locator("table.entries tbody tr")
    assert rows.count() == 6, rows.count()
    assert set(page.locator("table.entries tbody td:nth-child(3)").all_inner_texts()) == {"session.ended"}
    assert page.get_by_role("textbox", name="Subject").input_value() == "alice.archer", "filters are kept"
    assert "alice" not in page.locator("table.entries").inner_text(), "no personal data without a purpose"
    page.get_by_label("Show it").check()
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("purpose")
    page.goto(f"{URL}/console/entries?session={session}&action=session.updated")
    page.get_by_label("Show it").check()
    page.get_by_label("Purpose").fill("case 2026-117")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("table.entries")).to_contain_text("approver")
    picture(page, "reveal")
    page.goto(URL + "/console/entries")
    first = page.locator("table.entries tbody td:first-child").all_inner_texts()
    page.get_by_role("link", name="Older").click()
    older = page.locator("table.entries tbody td:first-child").all_inner_texts()
    assert max(map(int, older)) < min(map(int, first)), "older entries follow"
    page.goto(URL + "/console/entries?from=soon")
    expect(page.get_by_role("alert")).to_contain_text("RFC 3339")
    assert page.get_by_label("From").input_value() == "soon", "what was wrong stays to be mended"


def timeline(page, session):
    page.goto(f"{URL}/console/sessions/{session}")
    steps = page.locator("ol.timeline > li")
    assert steps.count() == 6, steps.count()
    expect(steps.nth(2)).to_contain_text("aal2")
    assert steps.nth(5).locator("ins").filter(has_text="ended").count() > 0
    assert "clerk" not in page.content(), "attributes only for a purpose"
    page.get_by_label("Show it").check()
    page.get_by_label("Purpose").fill("case 2026-117")
    page.get_by_role("button", name="Show").click()
    expect(steps.nth(1).locator("table.changes")).to_contain_text("attributes.theme")
    expect(steps.nth(1).locator("table.changes del").filter(has_text="dark")).to_have_count(1)
    assert page.title().startswith("Session"), "what a client wrote stays text"
    picture(page, "timeline")


def entry_of(session):
    found = ask("GET", f"/v1/audit/entries?session={session}&action=session.created", role="auditor")
    return found["items"][0]["index"]


def proof(page, index):
    page.goto(f"{URL}/console/entries/{index}")
    expect(page.locator("#verdict")).to_have_text("VERIFIED")
    assert page.locator("#steps .passed").count() == 4
    assert page.locator("#checkpoint").inner_text().count("\u2014 ") == 3, "each key of the overlap signs"
    picture(page, "entry", clip={"x": 0, "y": 0, "width": 1200, "height": 760})


# What a server could alter on its way, the step that must notice, and how the page is altered.
def in_leaf(html):
    leaf = re.search(r'id="leaf-bytes">([^<]*)', html).group(1)
    raw = bytearray(base64.b64decode(leaf))
    raw[raw.index(b'"outcome":"success"') + 12] ^= 1
    return html.replace(leaf, base64.b64encode(bytes(raw)).decode())


def in_hash(html):
    hashes = re.search(r'<ol id="hashes"><li><code>([^<]*)', html).group(1)
    raw = bytearray(base64.b64decode(hashes))
    raw[7] ^= 0x20
    return html.replace(f"<code>{hashes}", f"<code>{base64.b64encode(bytes(raw)).decode()}", 1)


def in_root(html):
    note = re.search(r'id="checkpoint">([^<]*)', html).group(1)
    lines = note.split("\n")
    raw = bytearray(base64.b64decode(lines[2]))
    raw[0] ^= 1
    return html.replace(note, note.replace(lines[2], base64.b64encode(bytes(raw)).decode()))


def in_signature(which):
    def alter(html):
        note = re.search(r'id="checkpoint">([^<]*)', html).group(1)
        line = [line for line in note.split("\n") if line.startswith("\u2014 ")][which].split(" ")[-1]
        raw = bytearray(base64.b64decode(line))
        raw[30] ^= 1
        return html.replace(note, note.replace(line, base64.b64encode(bytes(raw)).decode()))

    return alter


def unsigned(html):
    return re.sub(r'(id="checkpoint">[^<]*?\n\n)[^<]*', r"\1", html)


ALTERED = [
    ("a byte of the leaf", ["leaf", "root"], in_leaf),
    ("a byte of a hash of the proof", ["root"], in_hash),
    ("a hash left out", ["root"], lambda html: re.sub(r'(<ol id="hashes">)<li>.*?</li>', r"\1", html, count=1)),
    ("the root in the checkpoint", ["root", "signature"], in_root),
    ("the first signature", ["signature"], in_signature(0)),
    ("the second signature", ["signature"], in_signature(1)),
    ("the third signature", ["signature"], in_signature(2)),
    ("every signature left out", ["signature"], unsigned),
    ("another log's keys", ["signature"], lambda html: re.sub(r'(class="vkey">)[^+<]*', r"\1elsewhere.example", html)),
    ("the leaf hash", ["leaf"], lambda html: re.sub(r'(id="leaf-hash">)(.)', lambda m: m[1] + ("1" if m[2] == "0" else "0"), html)),
    ("what is decoded", ["fields"], lambda html: html.replace('data-field="outcome">success', 'data-field="outcome">refused')),
    ("the index", ["root"], lambda html: re.sub(r'(id="leaf-index">)\d+', r"\g<1>3", html)),
]


def bundle(page, session):
    """What the page hands out verifies without the page, and without the server."""
    page.goto(f"{URL}/console/sessions/{session}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Evidence bundle").click()
    path = pathlib.Path(KEYS, "bundle.zip")
    download.value.save_as(path)
    page.goto(f"{URL}/console/checkpoints")
    key = page.locator(".vkey").first.inner_text()
    outcome = subprocess.run([os.environ["COUNTERFOIL"], "verify", path, "--key", key], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def lying(alter):
    def answer(route):
        response = route.fetch()
        before = response.text()
        after = alter(before)
        assert before != after, "nothing was altered"
        route.fulfill(response=response, body=after)

    return answer


def tampered(page, index):
    address = f"{URL}/console/entries/{index}"
    for what, steps, alter in ALTERED:
        page.route(address, lying(alter))
        page.goto(address)
        expect(page.locator("#verdict")).to_have_text("NOT VERIFIED")
        for step in steps:
            assert "failed" in (page.locator(f"#steps [data-step={step}]").get_attribute("class") or ""), (what, step)
        if what == "a byte of the leaf":
            picture(page, "tampered", clip={"x": 0, "y": 0, "width": 1200, "height": 420})
        page.unroute(address)
        print(f"NOT VERIFIED, as it must be: {what}")


def unable(browser, index):
    """A browser without Ed25519 says what it has not checked, and does not call it verified."""
    context = browser.new_context()
    context.add_init_script("""crypto.subtle.importKey = () => Promise.reject(new DOMException("no", "NotSupportedError"));""")
    page = context.new_page()
    sign_in(page, "auditor")
    page.goto(f"{URL}/console/entries/{index}")
    expect(page.locator("#verdict")).to_contain_text("the signature was not checked")
    assert page.locator("#steps .passed").count() == 3 and page.locator("#steps .open").count() == 1
    context.close()


def insecure(playwright, index):
    """By plain HTTP from another machine browsers compute no hashes: the page says so."""
    host = "console.example"
    rule = f"--host-resolver-rules=MAP {host} 127.0.0.1"
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rule])
    page = browser.new_page()
    watch = []
    page.on("console", lambda message: watch.append(message.text) if message.type == "error" else None)
    base = URL.replace("127.0.0.1", host)
    page.goto(base + "/console")
    page.get_by_label("API key").fill(KEY["auditor"])
    page.get_by_role("button", name="Sign in").click()
    page.goto(f"{base}/console/entries/{index}")
    expect(page.locator("#verdict")).to_contain_text("no secure context")
    assert page.locator("#steps .passed").count() == 0
    assert not watch, watch
    browser.close()


def on_paper(page, index):
    page.goto(f"{URL}/console/entries/{index}")
    expect(page.locator("#verdict")).to_have_text("VERIFIED")
    visible = "(id) => document.querySelector(id).checkVisibility()"
    assert not page.evaluate(visible, "#leaf-bytes") and page.evaluate(visible, "nav")
    page.emulate_media(media="print")
    assert page.evaluate(visible, "#leaf-bytes"), "paper has no triangle to open"
    assert not page.evaluate(visible, "nav")
    page.emulate_media(media="screen")


def subjects(page):
    page.goto(URL + "/console/subjects")
    find = lambda: (page.get_by_role("textbox", name="Subject").fill("dave.dyer"), page.get_by_role("button", name="Find").click())
    find()
    page.get_by_label("Reason").fill("case 2026-117")
    page.get_by_role("button", name="Hold").click()
    expect(page.get_by_role("status")).to_contain_text("under legal hold")
    assert page.get_by_role("button", name="Erase").is_disabled()
    picture(page, "subject")
    with page.expect_download() as download:
        page.get_by_label("Purpose").fill("access request")
        page.get_by_role("button", name="Download").click()
    lines = pathlib.Path(download.value.path()).read_text().splitlines()
    assert len(lines) >= 12 and any("dave.dyer" in line for line in lines), len(lines)
    page.get_by_label("Reason").fill("case closed")
    page.get_by_role("button", name="Release").click()
    expect(page.get_by_role("status")).to_contain_text("released")
    page.get_by_role("button", name="Erase …").click()
    page.get_by_label("Type the subject").fill("dave.dier")
    page.get_by_role("button", name="Erase for ever").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was erased")
    picture(page, "erase", clip={"x": 0, "y": 0, "width": 1200, "height": 420})
    page.get_by_label("Type the subject").fill("dave.dyer")
    page.get_by_role("button", name="Erase for ever").click()
    expect(page.get_by_role("heading", name="Erased")).to_be_visible()
    page.goto(URL + "/console/subjects")
    find()
    expect(page.get_by_text("holds nothing on this subject")).to_be_visible()


def narrow(browser):
    """Half the width is 200 % zoom; a phone is narrower still. Nothing of a page may need scrolling sideways but its tables."""
    for width in (640, 360):
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        sign_in(page, "auditor")
        for path in ("entries", "entries/1", "checkpoints", "subjects"):
            page.goto(f"{URL}/console/{path}")
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{path} at {width} is {overflow} too wide"
        context.close()


def labelled(page):
    for path in ("entries", "entries/1", "checkpoints", "subjects"):
        page.goto(f"{URL}/console/{path}")
        bare = page.evaluate("""[...document.querySelectorAll('input:not([type=hidden]), select')]
            .filter((field) => field.labels.length === 0).length""")
        assert bare == 0, f"{path} has {bare} fields without a label"
        assert page.locator("main").count() == 1 and page.locator("h1").count() == 1, path
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip" or path == "subjects", path


def without_script(browser, session, index):
    context = browser.new_context(java_script_enabled=False)
    watch = Watch(context)
    page = context.new_page()
    sign_in(page, "auditor")
    page.get_by_label("Session").fill(session)
    page.get_by_role("button", name="Search").click()
    assert page.locator("table.entries tbody tr").count() >= 6
    page.goto(f"{URL}/console/sessions/{session}")
    assert page.locator("ol.timeline > li").count() == 6
    page.goto(f"{URL}/console/entries/{index}")
    assert page.locator("#verdict").inner_text() == "Not checked"
    assert "JavaScript is off" in page.locator("noscript").inner_text()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    watch.quiet()
    context.close()


def operator(browser):
    context = browser.new_context(viewport={"width": 1200, "height": 700})
    watch = Watch(context)
    page = context.new_page()
    sign_in(page, "operator")
    expect(page.get_by_role("heading", name="Status")).to_be_visible()
    assert page.get_by_role("link", name="Entries").count() == 0
    picture(page, "status")
    watch.quiet()
    context.close()


def first_paint(page):
    """Milliseconds until something of the page is seen, style sheet from the browser's cache as on any but the first visit."""
    for path in ("entries", "entries/1", "checkpoints"):
        times = []
        for _ in range(9):
            page.goto(f"{URL}/console/{path}")
            times.append(page.evaluate("""() => new Promise((done) =>
                new PerformanceObserver((list) => {
                    const paint = list.getEntriesByName("first-contentful-paint")[0];
                    if (paint) done(paint.startTime);
                }).observe({ type: "paint", buffered: true }))"""))
        print(f"first contentful paint of {path}: median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms")
        assert statistics.median(times) < 200, times


def main():
    session = fill()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        watch = Watch(context)
        page = context.new_page()
        page.goto(URL + "/console")
        picture(page, "sign-in", clip={"x": 0, "y": 0, "width": 1200, "height": 500})
        sign_in(page, "auditor")
        index = entry_of(session)
        search_faults = len(watch.faults)
        search(page, session)
        # The two searches that were wrong on purpose answered 400, which the browser notes as an error.
        watch.faults = [fault for fault in watch.faults if "status of 400" not in fault]
        assert len(watch.faults) == search_faults, watch.faults
        page.goto(URL + "/console/entries")
        picture(page, "entries")
        timeline(page, session)
        proof(page, index)
        bundle(page, session)
        tampered(page, index)
        page.goto(URL + "/console/checkpoints")
        assert page.locator("svg.chart polyline").count() == 1
        picture(page, "checkpoints")
        subjects(page)
        labelled(page)
        on_paper(page, index)
        first_paint(page)
        watch.quiet()
        context.close()
        dark = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="dark")
        page = dark.new_page()
        sign_in(page, "auditor")
        page.goto(f"{URL}/console/entries/{index}")
        expect(page.locator("#verdict")).to_have_text("VERIFIED")
        picture(page, "dark", clip={"x": 0, "y": 0, "width": 1200, "height": 760})
        dark.close()
        unable(browser, index)
        insecure(playwright, index)
        narrow(browser)
        without_script(browser, session, index)
        operator(browser)
        browser.close()
    print("the console: search, timeline, proof, alterations, subjects, no script, narrow, operator: as they must be")


main()
