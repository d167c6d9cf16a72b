"""What schemathesis has to be told about the interface."""
import json
import os
import urllib.request

import schemathesis
from schemathesis.core.parameters import ParameterLocation


def new_session():
    with open(os.environ["APPLICATION_KEY_FILE"]) as file:
        headers = {"Authorization": f"Bearer {file.read().strip()}", "Content-Type": "application/json"}
    request = urllib.request.Request(os.environ["COUNTERFOIL_URL"] + "/v1/sessions", b"{}", headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["id"]


calls = 0


@schemathesis.hook
def before_call(context, case, kwargs):
    global calls
    # Every second well-formed session id is that of a new session: a random one is answered 404, and never by what the document
    # says of success.
    well_formed = case.meta is None or not case.meta.is_negative_at(ParameterLocation.PATH)
    if "/sessions/{id}" in case.path and "id" in (case.path_parameters or {}) and well_formed:
        calls += 1
        if calls % 2 == 0:
            case.path_parameters["id"] = new_session()
    # A Counterfoil-Min-Index above 0 is left out where it is well-formed: an index that the log has not reached is answered 503 by
    # contract, which would be taken for a fault, and hides all that comes after. Malformed ones stay.
    # A 0 is left out only beside a header that schemathesis made up: it is sent as text, which schemathesis holds against the
    # document's integer, and so does not see that the header it made up, which HTTP has servers ignore, is all that is odd.
    headers = case.headers or {}
    made_up = any(name.lower().startswith("x-schemathesis-") for name in headers)
    for name in list(headers):
        value = str(headers[name])
        if name.lower() == "counterfoil-min-index" and value.isascii() and value.isdigit():
            if 0 < int(value) < 2**63 or (value == "0" and made_up):
                del headers[name]
