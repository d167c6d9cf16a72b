// The one thing that needs a script: an entry's proof, recomputed from what the page shows. Everything is taken from the page's own
// text, nothing is fetched, so what is checked is what is seen.
"use strict";

(() => {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof Element && event.target.closest("input, select, textarea")) return;
    const field = document.querySelector("form[role=search] input[type=text]");
    if (field) {
      event.preventDefault();
      field.focus();
      field.select();
    }
  });

  const shown = (id) => document.getElementById(id).textContent;
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const same = (a, b) => a.length === b.length && a.every((byte, at) => byte === b[at]);

  function base64(text) {
    const raw = atob(text.trim());
    const bytes = Uint8Array.from(raw, (character) => character.charCodeAt(0));
    // One text for one value: what atob forgives is not what was written.
    if (btoa(raw) !== text.trim()) throw new Error("not canonical base64");
    return bytes;
  }

  async function sha256(...parts) {
    const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
    let at = 0;
    for (const part of parts) {
      whole.set(part, at);
      at += part.length;
    }
    return new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
  }

  // RFC 9162 section 2.1.3.2. Sizes are 64 bits wide: more than a number of JavaScript holds exactly.
  async function rootOf(index, size, leaf, hashes) {
    if (index >= size) throw new Error("the index is outside the tree");
    let fn = index;
    let sn = size - 1n;
    let root = leaf;
    for (const hash of hashes) {
      if (hash.length !== 32) throw new Error("a hash of the proof is not 32 bytes");
      if (sn === 0n) throw new Error("the proof is too long");
      if (fn % 2n === 1n || fn === sn) {
        root = await sha256(Uint8Array.of(1), hash, root);
        while (fn % 2n === 0n && fn !== 0n) {
          fn /= 2n;
          sn /= 2n;
        }
      } else {
        root = await sha256(Uint8Array.of(1), root, hash);
      }
      fn /= 2n;
      sn /= 2n;
    }
    if (sn !== 0n) throw new Error("the proof is too short");
    return root;
  }

  // C2SP tlog-checkpoint in a signed note: origin, size, root, a blank line, signatures.
  function readCheckpoint(note) {
    const end = note.lastIndexOf("\n\n");
    if (end < 0) throw new Error("no signature");
    const text = note.slice(0, end + 1);
    const [origin, size, root] = text.split("\n");
    if (!/^(0|[1-9][0-9]*)$/.test(size || "")) throw new Error("no tree size");
    const signatures = [];
    for (const line of note.slice(end + 2).split("\n")) {
      const parts = /^\u2014 (\S+) (\S+)$/.exec(line);
      if (parts) signatures.push({ name: parts[1], bytes: base64(parts[2]) });
    }
    return { text, origin, size: BigInt(size), root: base64(root), signatures };
  }

  // C2SP signed-note verifier key: name+hash+base64(algorithm, key).
  async function readKey(vkey) {
    const [name, id, ...rest] = vkey.trim().split("+");
    const bytes = base64(rest.join("+"));
    const [kind, key] = [bytes[0], bytes.slice(1)];
    if (kind !== ED25519 && kind !== ECDSA) return null;
    // For ECDSA the id is of the key alone.
    const full = kind === ECDSA ? await sha256(key) : await sha256(new TextEncoder().encode(name + "\n"), bytes);
    if (hex(full.slice(0, 4)) !== id) throw new Error("no: a verifier key is damaged");
    return { name, id: full.slice(0, 4), kind, key };
  }

  const ED25519 = 1;
  const ECDSA = 2;

  // An ECDSA signature as the note has it (DER: a sequence of two numbers) as browsers want it: both numbers, 32 bytes each.
  function plain(der) {
    const malformed = new Error("no: a signature is malformed");
    if (der[0] !== 0x30 || der[1] !== der.length - 2) throw malformed;
    const both = new Uint8Array(64);
    let at = 2;
    for (const end of [32, 64]) {
      if (der[at] !== 2) throw malformed;
      const number = der.slice(at + 2, at + 2 + der[at + 1]);
      at += 2 + der[at + 1];
      const digits = number[0] === 0 ? number.slice(1) : number;
      if (digits.length > 32) throw malformed;
      both.set(digits, end - digits.length);
    }
    if (at !== der.length) throw malformed;
    return both;
  }

  function flat(value, at, all) {
    if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length > 0) {
      for (const [name, member] of Object.entries(value)) flat(member, at === "" ? name : at + "." + name, all);
    } else {
      all.set(at, typeof value === "string" ? value : JSON.stringify(value));
    }
    return all;
  }

  function step(name, outcome, why) {
    const line = document.querySelector("#steps [data-step=" + name + "]");
    line.classList.add(outcome);
    if (why) line.append(" — " + why);
    return outcome;
  }

  async function attempt(name, work) {
    try {
      const why = await work();
      return why ? step(name, "failed", why) : step(name, "passed");
    } catch (failure) {
      return step(name, failure instanceof Unable ? "open" : "failed", failure.message);
    }
  }

  function conclude(section, state, verdict) {
    section.classList.add(state);
    document.getElementById("verdict").textContent = verdict;
  }

  async function check(section) {
    if (!globalThis.isSecureContext || !globalThis.crypto || !crypto.subtle) {
      conclude(section, "partly", "Not checked: browsers compute hashes only over HTTPS or on this machine (no secure context)");
      return;
    }
    const leaf = base64(shown("leaf-bytes"));
    const hash = await sha256(Uint8Array.of(0), leaf);
    const outcomes = [];
    outcomes.push(await attempt("leaf", () => (hex(hash) === shown("leaf-hash").trim() ? "" : "no, they hash to " + hex(hash))));
    outcomes.push(await attempt("fields", () => {
      const said = flat(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(leaf)), "", new Map());
      const cells = document.querySelectorAll("#fields [data-field]");
      for (const cell of cells) {
        if (said.get(cell.dataset.field) !== cell.textContent) return "no: " + cell.dataset.field + " is another";
      }
      return cells.length === said.size ? "" : "no: a field is missing";
    }));
    const note = shown("checkpoint");
    outcomes.push(await attempt("root", async () => {
      const checkpoint = readCheckpoint(note);
      const hashes = Array.from(document.querySelectorAll("#hashes code"), (code) => base64(code.textContent));
      const root = await rootOf(BigInt(shown("leaf-index")), checkpoint.size, hash, hashes);
      document.getElementById("recomputed").textContent = btoa(String.fromCharCode(...root));
      return same(root, checkpoint.root) ? "" : "no, they lead to another root";
    }));
    outcomes.push(await attempt("signature", () => signed(note)));
    if (outcomes.includes("failed")) conclude(section, "failed", "NOT VERIFIED");
    else if (outcomes.includes("open")) conclude(section, "partly", "Partly verified: the signature was not checked");
    else conclude(section, "verified", "VERIFIED");
  }

  class Unable extends Error {}

  async function signed(note) {
    const checkpoint = readCheckpoint(note);
    const vkeys = Array.from(document.querySelectorAll("#vkeys .vkey"), (code) => readKey(code.textContent));
    const keys = (await Promise.all(vkeys)).filter((key) => key && key.name === checkpoint.origin);
    let good = 0;
    for (const signature of checkpoint.signatures) {
      const key = keys.find((key) => key.name === signature.name && same(key.id, signature.bytes.slice(0, 4)));
      if (!key) continue;
      const ecdsa = key.kind === ECDSA;
      const kind = ecdsa ? { name: "ECDSA", namedCurve: "P-256" } : { name: "Ed25519" };
      let imported;
      try {
        imported = await crypto.subtle.importKey(ecdsa ? "spki" : "raw", key.key, kind, false, ["verify"]);
      } catch (failure) {
        throw new Unable("this browser has no " + kind.name);
      }
      const made = ecdsa ? plain(signature.bytes.slice(4)) : signature.bytes.slice(4);
      const how = ecdsa ? { name: "ECDSA", hash: "SHA-256" } : kind;
      const right = await crypto.subtle.verify(how, imported, made, new TextEncoder().encode(checkpoint.text));
      if (!right) return "no: the " + kind.name + " signature is wrong";
      good += 1;
    }
    return good > 0 ? "" : "no: there is no signature by a key of the log";
  }

  const proof = document.getElementById("proof");
  if (proof) check(proof).catch((failure) => conclude(proof, "failed", "NOT VERIFIED: " + failure.message));
})();
