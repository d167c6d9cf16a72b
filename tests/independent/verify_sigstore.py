"""Verifies what collect.py kept with sigstore-python: its own RFC 6962 inclusion proofs and its own signed notes, signatures by
pyca/cryptography. These are not its public interface, so its version is pinned."""
import base64
import os
import sys
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sigstore._internal import trust
from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import SignedCheckpoint, verify_checkpoint
from sigstore.errors import VerificationError

folder = sys.argv[1]


def read(name):
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def known(vkey):
    """The key id of a vkey line, and a keyring of it alone."""
    _, key_id, key = vkey.split("+", 2)
    kind, key = base64.b64decode(key)[0], base64.b64decode(key)[1:]
    details = trust.common_v1.PublicKeyDetails
    if kind == 1:
        der = Ed25519PublicKey.from_public_bytes(key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        details = details.PKIX_ED25519
    else:
        assert kind == 2, "Ed25519 or ECDSA"
        der, details = key, details.PKIX_ECDSA_P256_SHA_256
    return bytes.fromhex(key_id), trust.Keyring([SimpleNamespace(raw_bytes=der, key_details=details)])


keys = [known(vkey) for vkey in read("vkeys").decode().split()]
assert len(keys) == 2, "an Ed25519 key and an ECDSA key sign"


def entry(text, leaf, key_id):
    """A receipt as sigstore keeps an entry of a transparency log."""
    head, note = text.split("\n\n", 1)
    first, index, *lines = head.split("\n")
    assert first == "c2sp.org/tlog-proof@v1"
    checkpoint = SignedCheckpoint.from_text(note).checkpoint
    proof = SimpleNamespace(
        log_index=int(index.removeprefix("index ")),
        tree_size=checkpoint.log_size,
        root_hash=bytes.fromhex(checkpoint.log_hash),
        hashes=[base64.b64decode(line) for line in lines],
        checkpoint=SimpleNamespace(envelope=note),
    )
    log_id = SimpleNamespace(key_id=key_id)
    return SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=leaf, log_id=log_id))


def verify(text, leaf):
    for key_id, keyring in keys:
        receipt = entry(text, leaf, key_id)
        verify_merkle_inclusion(receipt)
        verify_checkpoint(keyring, receipt)


def refused(what, text, leaf):
    try:
        verify(text, leaf)
    except (VerificationError, ValueError):
        return
    sys.exit(f"FAILED: accepted although altered: {what}")


indices = read("indices").decode().split()
assert indices, "nothing to verify"
for index in indices:
    text, leaf = read(f"{index}.tlog-proof").decode(), read(f"{index}.leaf")
    verify(text, leaf)
    refused(f"leaf {index}", text, leaf[:20] + bytes([leaf[20] ^ 1]) + leaf[21:])
    refused(f"index {index}", text.replace(f"index {index}\n", f"index {int(index) + 1}\n", 1), leaf)
    first = text.split("\n")[2]
    other = base64.b64encode(bytes([base64.b64decode(first)[0] ^ 1]) + base64.b64decode(first)[1:]).decode()
    refused(f"proof {index}", text.replace(first, other, 1), leaf)
    size = text.split("\n\n", 1)[1].split("\n")[1]
    refused(f"signature {index}", text.replace(f"\n{size}\n", f"\n{int(size) + 1}\n", 1), leaf)
print(f"sigstore: {len(indices)} receipts with both signatures of their checkpoints verified; every altered one refused")
