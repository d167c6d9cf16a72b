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


[vkey] = read("vkey").decode().split()  # one: a new log has not changed its key
key = signing.Vkey.from_string(vkey)
old, new = (opened(read(name).decode(), key) for name in ("checkpoint.old", "checkpoint"))
consistency = tlog.ConsistencyProof(old.size, new.size, hashes(read("consistency").decode()))
consistency.check(old.root_hash, new.root_hash)
refused("old root", consistency.check, bytes(32), new.root_hash)
note = read("checkpoint").decode()
refused("old root by a bit", consistency.check, flipped(old.root_hash, 0), new.root_hash)
for at in range(len(consistency.node_hashes)):
    path = [flipped(step, 0) if number == at else step for number, step in enumerate(consistency.node_hashes)]
    refused(f"consistency proof, step {at}", tlog.ConsistencyProof(old.size, new.size, path).check, old.root_hash, new.root_hash)
refused("checkpoint size", opened, note.replace(f"\n{new.size}\n", f"\n{new.size + 1}\n", 1), key)
# Of the first signature: those of keys that are not known here are passed over.
signature = note.encode().index(b"\n", note.encode().index(b"\n\n") + 2) - 10
refused("checkpoint signature", opened, flipped(note.encode(), signature).decode(), key)
indices = read("indices").decode().split()
assert indices, "nothing to verify"
for index in indices:
    text, leaf = read(f"{index}.tlog-proof").decode(), read(f"{index}.leaf")
    receipt(text, leaf, key)
    refused(f"leaf {index}", receipt, text, flipped(leaf, 20), key)
    if os.path.exists(os.path.join(folder, f"{index}.inclusion")):
        path = hashes(read(f"{index}.inclusion").decode())
        inclusion(int(index), new.size, path, leaf, new.root_hash)
        refused(f"proof {index}", inclusion, int(index), new.size, [flipped(path[0], 0), *path[1:]], leaf, new.root_hash)
    refused(f"index {index}", receipt, text.replace(f"index {index}", f"index {int(index) + 1}", 1), leaf, key)
print(f"tlog-scales: {len(indices)} receipts, 2 checkpoints and their consistency verified; every altered one refused")
