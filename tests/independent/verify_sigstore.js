// Verifies what collect.py kept with sigstore-js: its own RFC 6962 inclusion proofs and its own signed notes, signatures by Node's crypto.
// verify_sigstore.js FOLDER, with @sigstore/verify where node finds it. This is not its public interface, so its version is pinned.
'use strict';
const fs = require('fs');
const path = require('path');
const crypto = require('crypto');
const { createRequire } = require('module');
const installed = createRequire(path.join(process.cwd(), 'x.js'));
const { verifyTLogInclusion } = installed('@sigstore/verify/dist/tlog');
const { VerificationError } = installed('@sigstore/verify/dist/error');

const folder = process.argv[2];
const read = (name) => fs.readFileSync(path.join(folder, name));

// A vkey line as sigstore knows a log: by key id, name and key.
function known(vkey) {
  const at = vkey.indexOf('+');
  const [name, id, key] = [vkey.slice(0, at), vkey.slice(at + 1, at + 9), Buffer.from(vkey.slice(at + 10), 'base64')];
  const kind = key[0];
  if (kind !== 1 && kind !== 2) throw new Error('Ed25519 or ECDSA');
  // RFC 8410 section 4: the SubjectPublicKeyInfo of an Ed25519 key is a fixed head and the key.
  const head = kind === 1 ? Buffer.from('302a300506032b6570032100', 'hex') : Buffer.alloc(0);
  const der = Buffer.concat([head, key.subarray(1)]);
  const publicKey = crypto.createPublicKey({ key: der, format: 'der', type: 'spki' });
  return { logID: Buffer.from(id, 'hex'), baseURL: name, publicKey };
}

const logs = read('vkeys').toString().split(/\s+/).filter(Boolean).map(known);
if (logs.length !== 2) throw new Error('an Ed25519 key and an ECDSA key sign');

// A receipt as sigstore keeps an entry of a transparency log; both signatures must be good, each by itself.
function verify(text, leaf) {
  const end = text.indexOf('\n\n');
  const [first, index, ...hashes] = text.slice(0, end).split('\n');
  if (first !== 'c2sp.org/tlog-proof@v1') throw new Error('not a receipt');
  const entry = {
    canonicalizedBody: leaf,
    inclusionProof: {
      logIndex: index.replace('index ', ''),
      hashes: hashes.map((line) => Buffer.from(line, 'base64')),
      checkpoint: { envelope: text.slice(end + 2) },
    },
  };
  for (const log of logs) verifyTLogInclusion(entry, [log]);
}

function refused(what, text, leaf) {
  try {
    verify(text, leaf);
  } catch (failure) {
    if (failure instanceof VerificationError) return;
    throw failure;
  }
  console.error(`FAILED: accepted although altered: ${what}`);
  process.exit(1);
}

const indices = read('indices').toString().split(/\s+/).filter(Boolean);
if (indices.length === 0) throw new Error('nothing to verify');
for (const index of indices) {
  const [text, leaf] = [read(`${index}.tlog-proof`).toString(), read(`${index}.leaf`)];
  verify(text, leaf);
  const altered = Buffer.from(leaf);
  altered[20] ^= 1;
  refused(`leaf ${index}`, text, altered);
  refused(`index ${index}`, text.replace(`index ${index}\n`, `index ${Number(index) + 1}\n`), leaf);
  const first = text.split('\n')[2];
  const hash = Buffer.from(first, 'base64');
  hash[0] ^= 1;
  refused(`proof ${index}`, text.replace(first, hash.toString('base64')), leaf);
  const size = text.slice(text.indexOf('\n\n') + 2).split('\n')[1];
  refused(`signature ${index}`, text.replace(`\n${size}\n`, `\n${Number(size) + 1}\n`), leaf);
}
console.log(`sigstore-js: ${indices.length} receipts with both signatures of their checkpoints verified; every altered one refused`);
