//! What people read of a bundle.

use std::fmt::Write as _;

use serde::Serialize;
use session_model::{Leaf, LeafHash};

use crate::write::Manifest;

pub(crate) const README: &str = "\
This is an evidence bundle of a Counterfoil log: entries of an append-only log, and what proves that
none of them was altered, removed, inserted or dated back since the log's checkpoints were signed.

  index.html      a summary to read and print
  entries.csv     the entries, one a line, for a spreadsheet
  checkpoint      the newest checkpoint: size and root hash of the log, signed (C2SP signed note)
  vkeys           the verifier keys as the server names them. Do not believe these: get the log's
                  key from somebody you trust, and compare
  manifest.json   what was asked for, when and by whom; what could not be read
  tile/           the hashes of the tree, and the entries, as C2SP tlog-tiles
  leaves/         the entries, where not every one of a tile is in this bundle
  checkpoints/    older checkpoints, each stored with the entries that it signed for
  time-stamps/    checkpoints that a time-stamping authority has signed the time of (RFC 3161)
  sealed/         personal data of the entries, encrypted
  keys/           what opens it, if that was asked for. KEEP SUCH A BUNDLE AS YOU WOULD THE DATA: what
                  is erased from the log later can still be opened with it

To verify, offline:

  counterfoil-verify FOLDER-OR-ZIP --key VKEY [--saved EARLIER-CHECKPOINT] [--tsa-ca ROOTS-OF-THE-TIME-STAMPS]

Exit status 0 is proved, 1 is not proved (the report says from which entry on), 2 is that the question
could not be put. Without a checkpoint of your own from earlier, nobody can tell you that the newest
entries were not cut off: keep the file 'checkpoint' of this bundle, away from the log, and give it as
--saved next time. The format, and how to verify with other people's programs: docs/evidence-bundle.md
and docs/verify-independently.md of Counterfoil.
";

pub(crate) const CSV_HEAD: &str = "index,time,action,outcome,realm,actor,role,protocol,node,session_id,version,data_key,\
                                   request_id,trace_id,detail,leaf_hash\r\n";

/// The word that stands for a value in JSON.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// One entry as a line of RFC 4180 CSV. A spreadsheet takes what begins with certain signs for a formula, so such a field gets a
/// quote mark in front.
pub(crate) fn csv_row(index: u64, leaf: &Leaf, hash: LeafHash) -> String {
    let detail: Vec<String> = leaf.detail.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let plain = |value: Option<String>| value.unwrap_or_default();
    let fields = [
        index.to_string(),
        leaf.time.to_string(),
        word(&leaf.action),
        word(&leaf.outcome),
        leaf.realm.to_string(),
        leaf.actor.id.clone(),
        word(&leaf.actor.role),
        word(&leaf.protocol),
        leaf.node.clone(),
        plain(leaf.session_id.map(|id| id.to_string())),
        plain(leaf.version.map(|version| version.to_string())),
        plain(leaf.data_key.map(|key| key.to_string())),
        plain(leaf.request_id.clone()),
        plain(leaf.trace_id.clone()),
        detail.join("; "),
        hash.to_string(),
    ];
    let fields: Vec<String> = fields.iter().map(|field| csv_field(field)).collect();
    fields.join(",") + "\r\n"
}

fn csv_field(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if guard.is_empty() && !text.contains([',', '"', '\n', '\r']) {
        text.to_owned()
    } else {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    }
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The summary page: no script, nothing from elsewhere, readable on paper.
pub(crate) fn summary(manifest: &Manifest, checkpoint: &str, vkeys: &[String]) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Evidence bundle</title><style>\
         body{font:1rem/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\
         th{text-align:left;font-weight:600;padding-right:1.5rem;vertical-align:top}\
         td{font-variant-numeric:tabular-nums}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f4f4;padding:.5rem}\
         .wrong{border-left:.3rem solid #b00;padding-left:1rem}</style></head><body><h1>Evidence bundle</h1><table>",
    );
    let selected = &manifest.selection;
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            let _never_fails = write!(page, "<tr><th>{}</th><td>{}</td></tr>", html(name), html(value));
        }
    };
    let text = |value: Option<String>| value.unwrap_or_default();
    row("Entries", &manifest.entries.to_string());
    row("First", &text(manifest.first_time.map(|time| time.to_string())));
    row("Last", &text(manifest.last_time.map(|time| time.to_string())));
    row("Entries of the log", &manifest.size.to_string());
    row("Asked for: from", &text(selected.from.map(|time| time.to_string())));
    row("Asked for: to (not included)", &text(selected.to.map(|time| time.to_string())));
    row("Asked for: session", &text(selected.session.map(|id| id.to_string())));
    row("Asked for: sessions of", if selected.of_one_subject { "one subject" } else { "" });
    row("As seen by auditors of realm", &text(selected.realm.as_ref().map(ToString::to_string)));
    row("Personal data opened for", &text(manifest.revealed_for.as_ref().map(ToString::to_string)));
    row("Made", &manifest.made_at.to_string());
    row("Made by", &manifest.made_by);
    page.push_str("</table>");
    if manifest.unreadable_count > 0 {
        let _never_fails = write!(
            page,
            "<div class=\"wrong\"><h2>Could not be read</h2><p>{} entries could not be read from the log. The log was damaged or \
             altered.</p><ul>",
            manifest.unreadable_count
        );
        for unreadable in manifest.unreadable.iter().take(50) {
            let _never_fails = write!(page, "<li>{}: {}</li>", unreadable.index, html(&unreadable.why));
        }
        page.push_str("</ul></div>");
    }
    page.push_str("<h2>What happened how often</h2><table>");
    for (action, count) in &manifest.actions {
        let _never_fails = write!(page, "<tr><th>{}</th><td>{count}</td></tr>", html(action));
    }
    let _never_fails = writeln!(
        page,
        "</table><p>The entries one by one: <a href=\"entries.csv\">entries.csv</a>.</p>\
         <h2>Newest checkpoint</h2><pre>{}</pre>\
         <p>Keep it away from the log: with it, you can prove later that nothing up to here was cut off or rewritten.</p>\
         <h2>Verifier keys, as the server names them</h2><pre>{}</pre>\
         <p>Compare them with what somebody you trust has told you.</p>\
         <h2>This page proves nothing</h2>\
         <p>It was written by the server. What proves is the verifier, run on this bundle: see <a href=\"README.txt\">README.txt</a>.</p>\
         </body></html>",
        html(checkpoint),
        html(&vkeys.join("\n"))
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_becomes_a_formula_or_another_line() {
        assert_eq!(csv_field("plain"), "plain");
        assert_eq!(csv_field("a,b\"c\nd"), "\"a,b\"\"c\nd\"");
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"] {
            assert!(csv_field(formula).starts_with("\"'"), "{formula}");
        }
    }
}
