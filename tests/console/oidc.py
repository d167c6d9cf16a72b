"""Signing in to the console with an identity provider of another author, in a real browser.

oidc.py register PROVIDER CALLBACK FOLDER: makes us a client of the provider; FOLDER then holds client-id and client-secret.
oidc.py check URL PROVIDER CHROMIUM [PICTURES]: what people do. PROVIDER is another site than URL, as providers are.
"""

import json
import pathlib
import sys
import time
import urllib.error
import urllib.request


def register(provider, callback, folder):
    body = json.dumps({"redirect_uris": [callback], "token_endpoint_auth_method": "client_secret_basic"}).encode()
    request = urllib.request.Request(provider + "/oauth2/clients", data=body, headers={"Content-Type": "application/json"})
    for _ in range(100):
        try:
            with urllib.request.urlopen(request) as response:
                client = json.load(response)
            break
        except urllib.error.URLError as failure:
            if isinstance(failure, urllib.error.HTTPError):
                raise
            time.sleep(0.1)
    else:
        sys.exit("the provider does not answer")
    pathlib.Path(folder, "client-id").write_text(client["client_id"])
    pathlib.Path(folder, "client-secret").write_text(client["client_secret"])


class Watch:
    """The console's pages load nothing from elsewhere and do not complain; what the provider's do is its own business."""

    def __init__(self, context, url):
        self.url, self.faults, self.answers = url, [], []
        context.on("request", self.request)
        context.on("console", self.message)
        context.on("weberror", lambda failure: self.faults.append(str(failure.error)))

    def request(self, request):
        if "/console/oidc/callback?" in request.url:
            self.answers.append(request.url)
        ours = request.frame.url.startswith(self.url) and not request.is_navigation_request()
        if ours and not request.url.startswith((self.url + "/console", "data:")):
            self.faults.append(f"request to {request.url}")

    def message(self, message):
        # An answer of 403 is one, and the browser notes it.
        ours = message.location["url"].startswith(self.url) and "status of 403" not in message.text
        if ours and message.type == "error":
            self.faults.append(message.text)

    def quiet(self):
        assert not self.faults, self.faults


def check(url, provider, chromium, pictures=""):
    from playwright.sync_api import expect, sync_playwright

    def to_the_provider(page, path="/console"):
        page.goto(url + path)
        expect(page.get_by_label("API key")).to_be_visible()
        page.get_by_role("link", name="Sign in with Example Login").click()
        page.wait_for_url(provider + "/**")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1200, "height": 700})
        watch = Watch(context, url)
        page = context.new_page()
        page.goto(url + "/console")
        if pictures:
            page.screenshot(path=pathlib.Path(pictures, "sign-in-oidc.png"), clip={"x": 0, "y": 0, "width": 1200, "height": 500})
        to_the_provider(page, "/console/entries?action=session.created")
        page.get_by_role("button", name="248289761001").click()
        # The browser came from another site, and the visit's cookie is Strict: the page goes on by itself.
        page.wait_for_url(url + "/console/entries?action=session.created")
        expect(page.get_by_role("heading", name="Entries")).to_be_visible()
        expect(page.locator(".visitor")).to_contain_text("jane.roe")
        page.get_by_role("row").nth(1).get_by_role("link").first.click()
        expect(page.locator("#verdict")).to_have_text("VERIFIED")
        expect(page.locator("main")).to_contain_text("subject:")
        assert "248289761001" not in page.locator("main").inner_text(), "no personal data in the leaf"
        cookies = {cookie["name"]: cookie["sameSite"] for cookie in context.cookies()}
        assert cookies["counterfoil-console"] == "Strict" and "counterfoil-away" not in cookies, cookies
        page.goto(watch.answers[-1])
        expect(page.get_by_role("alert")).to_contain_text("was used before")
        page.goto(url + "/console/entries")
        expect(page.locator(".visitor")).to_contain_text("jane.roe")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.goto(url + "/console/entries")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()

        to_the_provider(page)
        page.get_by_role("button", name="Deny").click()
        # This provider leaves the state out of a refusal, which RFC 6749 section 4.1.2.1 wants there: so it could be anybody's.
        expect(page.get_by_role("alert")).to_contain_text("was not begun here")
        to_the_provider(page)
        page.get_by_placeholder("sub").fill("somebody else")
        page.get_by_role("button", name="Authorize").click()
        expect(page.get_by_role("heading", name="You have no role here")).to_be_visible()
        watch.quiet()
        context.close()

        plain = browser.new_context(java_script_enabled=False)
        page = plain.new_page()
        to_the_provider(page)
        page.get_by_role("button", name="248289761001").click()
        page.wait_for_url(url + "/console/entries")
        expect(page.locator(".visitor")).to_contain_text("jane.roe")
        browser.close()
    print("an identity provider: signing in and out, refused, unknown, replayed, without script: as they must be")


{"register": register, "check": check}[sys.argv[1]](*sys.argv[2:])
