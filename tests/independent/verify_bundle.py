"""Reads an evidence bundle as what it is, a C2SP tlog-tiles log in a folder, with tlog-scales: rebuilds the root hash from the tiles,
and compares every entry of the entry bundles with them."""
import hashlib
import os
import sys

from tlog_scales import reader, signing
from tlog_scales.backend import make_backend

folder, vkey_file = sys.argv[1:]
key = signing.Vkey.from_string(open(vkey_file).read().split()[0])
log = reader.TilesReader(make_backend(folder))
checkpoint = log.get_checkpoint()
checkpoint.verify(key)
assert log.calculate_root_hash() == checkpoint.root_hash, "the tiles do not make the root that was signed"
for index in range(checkpoint.size):
    leaf = hashlib.sha256(b"\0" + log.get_entry(index)).digest()
    log.get_inclusion_proof(index, checkpoint.size).check(leaf, checkpoint.root_hash)
log.get_consistency_proof(max(checkpoint.size // 2, 1), checkpoint.size)

# One altered byte of an entry bundle, and of a tile.
for path, what in (("tile/entries/000", "entry"), ("tile/0/000", "hash")):
    name = os.path.join(folder, path)
    whole = open(name, "rb").read()
    with open(name, "wb") as file:
        file.write(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    altered = reader.TilesReader(make_backend(folder))
    altered.get_checkpoint()
    leaf = hashlib.sha256(b"\0" + altered.get_entry(0)).digest()
    try:
        altered.get_inclusion_proof(0, checkpoint.size).check(leaf, checkpoint.root_hash)
        accepted = altered.calculate_root_hash() == checkpoint.root_hash
    except Exception:
        accepted = False
    if accepted:
        sys.exit(f"FAILED: accepted although altered: {what}")
    with open(name, "wb") as file:
        file.write(whole)
print(f"tlog-scales: an evidence bundle of {checkpoint.size} entries read as tiles, every entry proved; altered ones refused")
