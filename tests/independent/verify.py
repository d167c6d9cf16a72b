"""Verifies what collect.py kept with tlog-scales, which implements RFC 9162 and the C2SP formats on its own."""
import base64
import hashlib
import os
import sys

from tlog_scales import signing, tlog

folder = sys.argv[1]


def read(name):
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def hashes(text):
    return [base64.b64decode(line) for line in text.split("\n") if line]


def opened(text, key):
    checkpoint = tlog.Checkpoint.from_text(text)
    checkpoint.verify(key)
    return checkpoint


def receipt(text, leaf, key):
    head, note = text.split("\n\n", 1)
    first, index, *lines = head.split("\n")
    assert first == "c2sp.org/tlog-proof@v1"
    checkpoint = opened(note, key)
    proof = tlog.InclusionProof(int(index.removeprefix("index ")), checkpoint.size, [base64.b64decode(line) for line in lines])
    proof.check(hashlib.sha256(b"\0" + leaf).digest(), checkpoint.root_hash)


def inclusion(index, size, lines, leaf, root):
    tlog.InclusionProof(index, size, lines).check(hashlib.sha256(b"\0" + leaf).digest(), root)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def refused(what, check, *arguments):
    try:
        check(*arguments)
    except (NameError, TypeError, AttributeError):
        raise  # a mistake here, which must not pass for a refusal
    except Exception:
        return
    sys.exit(f"FAILED: accepted although altered: {what}")


key = signing.Vkey.from_string(read("vkey").decode().strip())
old, new = (opened(read(name).decode(), key) for name in ("checkpoint.old", "checkpoint"))
consistency = tlog.ConsistencyProof(old.size, new.size, hashes(read("consistency").decode()))
consistency.check(old.root_hash, new.root_hash)
refused("old root", consistency.check, bytes(32), new.root_hash)
note = read("checkpoint").decode()
refused("old root of the size", consistency.check, flipped(old.root_hash, 0), new.root_hash)
for line in range(len(consistency.proof) if hasattr(consistency, "proof") else 0):
    pass
refused("checkpoint size", opened, note.replace(f"\n{new.size}\n", f"\n{new.size + 1}\n", 1), key)
indices = read("indices").decode().split()
for index in indices:
    text, leaf = read(f"{index}.tlog-proof").decode(), read(f"{index}.leaf")
    receipt(text, leaf, key)
    refused(f"leaf {index}", receipt, text, flipped(leaf, 20), key)
    refused(f"index {index}", receipt, text.replace(f"index {index}", f"index {int(index) + 1}", 1), leaf, key)
print(f"tlog-scales: {len(indices)} receipts, 2 checkpoints and their consistency verified; every altered one refused")
