//! Verifying an evidence bundle: every leaf is hashed again, the tree is rebuilt from them, every checkpoint, the auditor's own
//! included, must have been signed over exactly this tree, and every session must follow from its entries.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use merkle_log::{Checkpoint, Frontier};
use serde::Deserialize;
use session_model::{Digest, TreeSize};
use time_stamp::Roots;

use crate::fold::Fold;
use crate::group::{Before, Group, hashes, root_of, verify_group, width};
use crate::keys::{self, Keys};
use crate::receipt::{bytes, text};
use crate::report::{Finding, Report, Saved};
use crate::source::{GROUP, Source, number, tile};
use crate::stamps::Stamps;
use crate::{VerifyArgs, VerifyError};

/// What the server says about the bundle. It decides what is expected, never what is believed.
#[derive(Deserialize)]
struct Manifest {
    format: u8,
    selection: Selected,
    #[serde(default)]
    revealed_for: Option<String>,
    #[serde(default)]
    unreadable: Vec<Unreadable>,
    #[serde(default)]
    time_stamps: Vec<u64>,
}

/// What the server itself could not read.
#[derive(Deserialize)]
struct Unreadable {
    index: u64,
    why: String,
}

#[derive(Deserialize)]
struct Selected {
    complete: bool,
    first: u64,
    end: u64,
    #[serde(default)]
    realm: Option<String>,
}

/// Verifies a bundle.
///
/// # Errors
/// [`VerifyError`] if the question cannot be put: no bundle, no keys. What is wrong with a bundle is in the report.
pub(crate) fn verify_bundle(args: &VerifyArgs, mut source: Source, path: &Path) -> Result<Report, VerifyError> {
    let failed = |failure: io::Error| VerifyError::Read { path: path.to_owned(), source: failure };
    let keys = keys::given(args)?;
    let saved = saved(args, &keys)?;
    let authorities = args.tsa_ca.as_deref().map(authorities).transpose()?;
    let none =
        |what: &str| failed(io::Error::new(io::ErrorKind::InvalidData, format!("not an evidence bundle: no {what}")));
    let manifest = source.read("manifest.json").map_err(failed)?.ok_or_else(|| none("manifest.json"))?;
    let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|failure| failed(failure.into()))?;
    if manifest.format != 1 {
        return Err(failed(io::Error::other(format!(
            "a bundle of format {}, which this program does not know",
            manifest.format
        ))));
    }
    let note = source.read("checkpoint").map_err(failed)?.ok_or_else(|| none("checkpoint"))?;
    let note = String::from_utf8_lossy(&note).into_owned();
    let mut early = Vec::new();
    let head = match keys.open(&note) {
        Ok(head) => head,
        // Go on with what it says, to tell from where on things are wrong.
        Err(failure) => match unsigned(&note) {
            Some(head) => {
                let what = format!("the newest checkpoint was not signed by the key that was given: {failure}");
                early.push(Finding::within(0, head.size.0, what));
                head
            }
            None => return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "its checkpoint is none"))),
        },
    };
    let size = head.size.0;
    let groups: Vec<u64> = (0..size.div_ceil(GROUP)).filter(|group| is_there(&source, *group, size)).collect();
    let (first, end) = (manifest.selection.first.min(size), manifest.selection.end.min(size));
    let complete = manifest.selection.complete.then_some(first..end);
    if complete.is_some() {
        let there: BTreeSet<u64> = groups.iter().copied().collect();
        for group in (first / GROUP..end.div_ceil(GROUP)).filter(|group| !there.contains(group)) {
            let start = group * GROUP;
            early.push(Finding::within(start, start + width(group, size), "these entries are missing"));
        }
    }
    let roots = roots(&mut source, size, &mut early).map_err(failed)?;
    let wanted: BTreeSet<u64> =
        groups.iter().copied().chain(saved.iter().map(|(_, head)| head.size.0 / GROUP)).chain([size / GROUP]).collect();
    let wanted = wanted.into_iter().chain(manifest.time_stamps.iter().map(|stamped| stamped / GROUP)).collect();
    let edges = edges(&roots, &wanted);
    let before = Before { keys, origin: head.origin.clone(), size, edges, roots, complete };
    let report = Report {
        origin: head.origin.clone(),
        size,
        root: head.root,
        first,
        end,
        complete: manifest.selection.complete,
        ..Report::default()
    };
    let stamps = Stamps::verify(&before, &mut source, &manifest.time_stamps, authorities.as_ref()).map_err(failed)?;
    early.extend(stamps.findings.iter().cloned());
    let mut fold = Fold::new(report, manifest.revealed_for.is_some(), stamps);
    let unreadable = manifest.unreadable.into_iter();
    early.extend(
        unreadable.map(|entry| Finding::at(entry.index, format!("it could not be read from the log: {}", entry.why))),
    );
    early.into_iter().for_each(|finding| fold.push(finding));
    each_group(&before, &source, &groups, args.threads, |group| fold.take(group)).map_err(failed)?;
    match root_at(&before, &mut source, size).map_err(failed)? {
        Some(root) if root == head.root => {}
        Some(_) => {
            let what = "the entries do not hash to what the newest checkpoint was signed over";
            fold.push(Finding::within(fold.good().min(size - 1), size, what));
        }
        None => fold.push(Finding::within(0, size, "the tree cannot be rebuilt: hash tiles are missing")),
    }
    let saved = check_saved(&before, &mut source, &saved, &mut fold).map_err(failed)?;
    let without_saved = saved.is_empty();
    let mut report = fold.end();
    report.saved = saved;
    if let Some(realm) = manifest.selection.realm.as_ref().filter(|_| !manifest.selection.complete) {
        let what = format!("what the entries of other realms than {realm} say: of them only the hashes are here");
        report.not_proved.push(what);
    }
    if !manifest.selection.complete {
        report
            .not_proved
            .push("that no entry was left out, except within a session, where versions follow on each other".into());
    }
    if without_saved {
        report.not_proved.push("that the newest entries were not cut off, or another history shown to others: keep this checkpoint, and give it with --saved next time".into());
    }
    Ok(report)
}

/// The time-stamping authorities that the auditor trusts.
fn authorities(path: &Path) -> Result<Roots, VerifyError> {
    Roots::from_pem(&bytes(path)?).map_err(|source| VerifyError::Roots { path: path.to_owned(), source })
}

/// The auditor's own checkpoints. One that his own key did not sign is a mistake of his, not of the log.
fn saved(args: &VerifyArgs, keys: &Keys) -> Result<Vec<(String, Checkpoint)>, VerifyError> {
    let open = |path: &std::path::PathBuf| {
        let head =
            keys.open(&text(path)?).map_err(|failure| VerifyError::Saved { path: path.clone(), source: failure })?;
        Ok((path.display().to_string(), head))
    };
    args.saved.iter().map(open).collect()
}

/// Entries that a log may claim to have in a checkpoint that nobody known has signed: each 256 of them are looked for.
const MOST_UNSIGNED: u64 = 1 << 28;

/// What a checkpoint says, whoever signed it: C2SP tlog-checkpoint, three lines.
fn unsigned(note: &str) -> Option<Checkpoint> {
    use base64::Engine;
    let mut lines = note.lines();
    let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
    let root = base64::engine::general_purpose::STANDARD.decode(root).ok()?;
    let size = size.parse().ok().filter(|size| (1..=MOST_UNSIGNED).contains(size))?;
    Some(Checkpoint { origin: origin.to_owned(), size: TreeSize(size), root: Digest(root.try_into().ok()?) })
}

fn is_there(source: &Source, group: u64, size: u64) -> bool {
    source.has(&format!("tile/0/{}", tile(group, width(group, size))))
        || source.has(&format!("tile/entries/{}", tile(group, width(group, size))))
        || source.has(&format!("leaves/{}.jsonl", number(group)))
}

/// The hashes of a level of tiles.
fn level_hashes(source: &mut Source, level: u8, size: u64) -> io::Result<Vec<Option<Digest>>> {
    let count = size >> (8 * level);
    let mut found = Vec::new();
    for index in 0..count.div_ceil(GROUP) {
        let width = width(index, count);
        match hashes(source, level, index, width)? {
            Some(hashes) => found.extend(hashes.into_iter().map(Some)),
            None => found.extend((0..width).map(|_| None)),
        }
    }
    Ok(found)
}

/// The hash over each full group, from the tiles above the leaves; made again from the leaves' hashes where such a tile is missing.
/// Compares the levels above each other on the way.
fn roots(source: &mut Source, size: u64, early: &mut Vec<Finding>) -> io::Result<Vec<Option<Digest>>> {
    let mut roots = level_hashes(source, 1, size)?;
    for (group, missing) in (0_u64..).zip(roots.iter_mut()).filter(|(_, root)| root.is_none()) {
        let start = group * GROUP;
        early.push(Finding::within(start, start + GROUP, "the hash over these entries is missing from the tree"));
        *missing = hashes(source, 0, group, GROUP)?.map(|hashes| root_of(&hashes));
    }
    let mut below = roots.clone();
    for level in 2..8_u8 {
        let here = level_hashes(source, level, size)?;
        let span = 1_u64 << (8 * level);
        for (index, (hash, tile)) in (0_u64..).zip(here.iter().zip(below.chunks(256))) {
            let known: Vec<Digest> = tile.iter().copied().flatten().collect();
            if known.len() != 256 || *hash != Some(root_of(&known)) {
                let what = format!(
                    "the hash of level {level} over these entries is missing, or not that of the level below it"
                );
                early.push(Finding::within(index * span, (index + 1) * span, what));
            }
        }
        below = here;
    }
    Ok(roots)
}

/// The right edge of the tree in front of each wanted group. The roots of the perfect subtrees over n full groups are those over
/// 256 n leaves.
fn edges(roots: &[Option<Digest>], wanted: &BTreeSet<u64>) -> BTreeMap<u64, Vec<u8>> {
    let mut edge = Frontier::empty();
    let mut edges = BTreeMap::new();
    for (group, root) in (0_u64..).zip(roots.iter().map(Some).chain([None])) {
        if wanted.contains(&group) {
            edges.insert(group, edge.to_bytes());
        }
        match root {
            Some(Some(root)) => edge.push(*root, |_| {}),
            // Nothing behind a hash that is missing can be compared with anything.
            Some(None) | None => break,
        }
    }
    edges
}

/// Root of the first `size` entries, if the bundle has what it takes.
pub(crate) fn root_at(before: &Before, source: &mut Source, size: u64) -> io::Result<Option<Digest>> {
    let group = size / GROUP;
    let Some(edge) = before.edges.get(&group) else { return Ok(None) };
    let Ok(mut edge) = Frontier::from_bytes(TreeSize(group * GROUP), edge) else { return Ok(None) };
    let rest = usize::try_from(size % GROUP).unwrap_or_default();
    if rest > 0 {
        let Some(tile) = hashes(source, 0, group, width(group, before.size))? else { return Ok(None) };
        tile.iter().take(rest).for_each(|hash| edge.push(*hash, |_| {}));
    }
    Ok((edge.size().0 == size).then(|| edge.root()))
}

/// Compares the log with what the auditor kept of it.
fn check_saved(
    before: &Before,
    source: &mut Source,
    saved: &[(String, Checkpoint)],
    fold: &mut Fold,
) -> io::Result<Vec<Saved>> {
    let mut told = Vec::new();
    // Up to where an earlier one of them shows that nothing was changed.
    let mut fine = 0;
    let mut in_order: Vec<&(String, Checkpoint)> = saved.iter().collect();
    in_order.sort_by_key(|(_, head)| head.size);
    for (file, head) in in_order {
        let size = head.size.0;
        let mut consistent = false;
        if head.origin != before.origin {
            fold.push(Finding::within(
                0,
                before.size,
                format!("{file} is a checkpoint of another log, {}", head.origin),
            ));
        } else if size > before.size {
            let what =
                format!("the log has {} entries, but {file} proves that it had {size}: it was cut off", before.size);
            fold.push(Finding::within(before.size, size, what));
        } else {
            match root_at(before, source, size)? {
                Some(root) if root == head.root => {
                    consistent = true;
                    fine = size;
                }
                Some(_) => {
                    let what = format!(
                        "the first {size} entries are not those that {file} was signed over: the log was rewritten"
                    );
                    fold.push(Finding::within(fine.min(size.saturating_sub(1)), size, what));
                }
                None => {
                    let what =
                        format!("the bundle has not the hashes to compare with {file}: make it with --saved {file}");
                    fold.push(Finding::within(fine.min(size.saturating_sub(1)), size, what));
                }
            }
        }
        told.push(Saved { file: file.clone(), size, consistent });
    }
    Ok(told)
}

/// Verifies groups on several threads, and hands them on in order.
fn each_group(
    before: &Before,
    source: &Source,
    groups: &[u64],
    threads: Option<usize>,
    mut take: impl FnMut(Group),
) -> io::Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or(processors).clamp(1, 64);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel::<(usize, io::Result<Group>)>(threads * 4);
        for _ in 0..threads {
            let (sender, next, mut source) = (sender.clone(), &next, source.clone());
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(group) = groups.get(at) else { break };
                    // Nobody listens any more once something could not be read.
                    if sender.send((at, verify_group(before, &mut source, *group))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut turn = 0;
        for (at, group) in receiver {
            early.insert(at, group?);
            while let Some(group) = early.remove(&turn) {
                take(group);
                turn += 1;
            }
        }
        Ok(())
    })
}
