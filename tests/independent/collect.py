"""Makes some sessions, and keeps what an auditor and a client would: receipts, leaves, checkpoints, keys and proofs."""
import base64
import json
import os
import sys
import urllib.request

base, application, auditor, out = sys.argv[1:]
keys = {name: open(path).read().strip() for name, path in (("application", application), ("auditor", auditor))}
os.makedirs(out)


def ask(role, method, path, body=None, content_type="application/json", accept="*/*"):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {keys[role]}", "Accept": accept}
    if data is not None:
        headers["Content-Type"] = content_type
    with urllib.request.urlopen(urllib.request.Request(base + path, data, headers, method=method)) as answer:
        return answer.read()


def keep(name, content):
    with open(os.path.join(out, name), "wb") as file:
        file.write(content)


receipts = []
for number in range(130):
    created = json.loads(ask("application", "POST", "/v1/sessions", {"subject": f"subject-{number}", "attributes": {"n": number}}))
    path = f"/v1/sessions/{created['id']}"
    changed = json.loads(ask("application", "PATCH", path, {"more": "x" * number}, "application/merge-patch+json"))
    receipts += [created["receipt"], changed["receipt"]]
    if number == 40:
        keep("checkpoint.old", ask("auditor", "GET", "/v1/audit/checkpoint"))
    if number % 3 == 0:
        receipts.append(json.loads(ask("application", "DELETE", path))["receipt"])

vkeys = ask("auditor", "GET", "/v1/audit/keys", accept="text/plain")
keep("vkeys", vkeys)
# The first byte of what stands behind the last plus sign tells the kinds apart: 1 is Ed25519, which everybody knows.
keep("vkey", b"".join(line + b"\n" for line in vkeys.split() if base64.b64decode(line.split(b"+", 2)[2])[0] == 1))
for receipt in receipts:
    number = receipt["index"]
    entry = json.loads(ask("auditor", "GET", f"/v1/audit/entries/{number}"))
    assert entry["index"] == number, "the log shows another entry than was asked for"
    assert entry["leaf_hash"] == receipt["leaf_hash"], "the log shows another leaf than the client was promised"
    keep(f"{number}.leaf", base64.b64decode(entry["leaf"]))
    keep(f"{number}.hash", receipt["leaf_hash"].encode())
    keep(f"{number}.tlog-proof", ask("application", "GET", f"/v1/receipts/{number}"))
keep("checkpoint", ask("auditor", "GET", "/v1/audit/checkpoint"))
sizes = [int(open(os.path.join(out, name)).read().split("\n")[1]) for name in ("checkpoint.old", "checkpoint")]
proof = json.loads(ask("auditor", "GET", f"/v1/audit/proofs/consistency?from={sizes[0]}&to={sizes[1]}"))
keep("consistency", "\n".join(proof["hashes"]).encode())
for receipt in receipts:
    number = receipt["index"]
    proof = json.loads(ask("auditor", "GET", f"/v1/audit/proofs/inclusion?index={number}&size={sizes[1]}"))
    keep(f"{number}.inclusion", "\n".join(proof["hashes"]).encode())
keep("indices", "\n".join(str(receipt["index"]) for receipt in receipts).encode())
print(f"kept {len(receipts)} receipts of a log of {sizes[1]} entries")
