//! One group of a bundle: 256 entries, the hash tile over them, and what lies beside. Groups do not depend on each other, so that
//! several can be verified at once.

use std::collections::BTreeMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::{Frontier, leaf_hash};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use session_model::{Digest, KeyId, Leaf, LeafHash, SealedPart, TreeSize};

use crate::keys::Keys;
use crate::opening::open;
use crate::report::Finding;
use crate::source::{GROUP, Source, number, tile};

/// What is known before any group is looked at.
pub(crate) struct Before {
    pub(crate) keys: Keys,
    pub(crate) origin: String,
    pub(crate) size: u64,
    /// The right edge of the tree in front of a group, as hashes; of those groups that are looked at.
    pub(crate) edges: BTreeMap<u64, Vec<u8>>,
    /// The hash over a full group, where the tiles have it.
    pub(crate) roots: Vec<Option<Digest>>,
    /// Which entries must be there.
    pub(crate) complete: Option<std::ops::Range<u64>>,
}

/// An entry that was hashed again.
pub(crate) struct Entry {
    pub(crate) index: u64,
    pub(crate) hash: LeafHash,
    pub(crate) leaf: Leaf,
    pub(crate) part: Part,
}

/// What there is of an entry's sealed part.
pub(crate) enum Part {
    /// It never had one.
    None,
    /// It had one, which is gone.
    Gone,
    /// It is there, without keys.
    Closed,
    /// It was opened and is what the leaf commits to.
    Open(Box<SealedPart>),
    /// It is there and wrong; a finding says how.
    Wrong,
}

/// What came of a group.
pub(crate) struct Group {
    pub(crate) entries: Vec<Entry>,
    pub(crate) hashed: u64,
    /// Sizes of the checkpoints in it, and whether each was good.
    pub(crate) checkpoints: Vec<(u64, Result<(), String>)>,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct LeafLine<'a> {
    index: u64,
    #[serde(borrow, default)]
    leaf: Option<&'a RawValue>,
    #[serde(default)]
    leaf_base64: Option<String>,
}

#[derive(Deserialize)]
struct SealedLine {
    index: u64,
    data_key: KeyId,
    sealed: String,
}

#[derive(Deserialize)]
struct KeyLine {
    index: u64,
    encryption: Digest,
    commitment: Digest,
}

#[derive(Deserialize)]
struct CheckpointLine {
    size: u64,
    checkpoint: String,
}

/// How wide the hash tile of a group is.
pub(crate) fn width(group: u64, size: u64) -> u64 {
    GROUP.min(size.saturating_sub(group.saturating_mul(GROUP)))
}

/// The hashes of a tile, if it is there and whole.
pub(crate) fn hashes(source: &mut Source, level: u8, index: u64, width: u64) -> io::Result<Option<Vec<Digest>>> {
    let bytes = source.read(&format!("tile/{level}/{}", tile(index, width)))?;
    Ok(bytes.and_then(|bytes| {
        let (hashes, rest) = bytes.as_chunks::<32>();
        (rest.is_empty() && hashes.len() as u64 == width).then(|| hashes.iter().copied().map(Digest).collect())
    }))
}

/// Root of a full tile.
pub(crate) fn root_of(hashes: &[Digest]) -> Digest {
    let mut edge = Frontier::empty();
    hashes.iter().for_each(|hash| edge.push(*hash, |_| {}));
    edge.root()
}

fn lines<T: DeserializeOwned>(bytes: Option<Vec<u8>>) -> Result<Vec<T>, String> {
    let bytes = bytes.unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|failure| failure.to_string())).collect()
}

/// Lines by the entry that each is for: one of the leaves, and each but once.
fn by_index<T: DeserializeOwned>(
    bytes: Option<Vec<u8>>,
    leaves: &BTreeMap<u64, Vec<u8>>,
    index: impl Fn(&T) -> u64,
) -> Result<BTreeMap<u64, T>, String> {
    let mut found = BTreeMap::new();
    for line in lines::<T>(bytes)? {
        let at = index(&line);
        if !leaves.contains_key(&at) || found.insert(at, line).is_some() {
            return Err(format!("there is a line too many for entry {at}"));
        }
    }
    Ok(found)
}

/// The leaves of a group, by index.
fn leaves(source: &mut Source, group: u64, size: u64) -> io::Result<Result<BTreeMap<u64, Vec<u8>>, String>> {
    let start = group * GROUP;
    if let Some(bytes) = source.read(&format!("tile/entries/{}", tile(group, width(group, size))))? {
        let mut rest = bytes.as_slice();
        let mut leaves = BTreeMap::new();
        while let Some((length, behind)) = rest.split_first_chunk::<2>() {
            let Some((leaf, behind)) = behind.split_at_checked(u16::from_be_bytes(*length).into()) else {
                return Ok(Err("the entry bundle is cut short".into()));
            };
            leaves.insert(start + leaves.len() as u64, leaf.to_vec());
            rest = behind;
        }
        let whole = rest.is_empty() && leaves.len() as u64 == width(group, size);
        return Ok(if whole {
            Ok(leaves)
        } else {
            Err("the entry bundle has another number of entries than the tree".into())
        });
    }
    let bytes = source.read(&format!("leaves/{}.jsonl", number(group)))?.unwrap_or_default();
    let mut leaves = BTreeMap::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let parsed: LeafLine<'_> = match serde_json::from_slice(line) {
            Ok(parsed) => parsed,
            Err(failure) => return Ok(Err(failure.to_string())),
        };
        let leaf = match (parsed.leaf, parsed.leaf_base64) {
            (Some(leaf), None) => Some(leaf.get().as_bytes().to_vec()),
            (None, Some(text)) => STANDARD.decode(text).ok(),
            (Some(_), Some(_)) | (None, None) => None,
        };
        let inside = parsed.index / GROUP == group && parsed.index < size;
        let new = leaf.filter(|_| inside).map(|leaf| leaves.insert(parsed.index, leaf).is_none());
        if new != Some(true) {
            return Ok(Err(format!("the line of entry {} is malformed", parsed.index)));
        }
    }
    Ok(Ok(leaves))
}

/// Verifies a group.
pub(crate) fn verify_group(before: &Before, source: &mut Source, group: u64) -> io::Result<Group> {
    let start = group * GROUP;
    let width = width(group, before.size);
    let end = start + width;
    let mut found = Group { entries: Vec::new(), hashed: 0, checkpoints: Vec::new(), findings: Vec::new() };
    let leaves = match leaves(source, group, before.size)? {
        Ok(leaves) => leaves,
        Err(why) => {
            found.findings.push(Finding::within(start, end, why));
            BTreeMap::new()
        }
    };
    if let Some(complete) = &before.complete {
        for index in start.max(complete.start)..end.min(complete.end) {
            if !leaves.contains_key(&index) {
                found.findings.push(Finding::at(index, "the entry is missing: it could not be read from the log"));
            }
        }
    }
    let given = hashes(source, 0, group, width)?;
    if given.is_none() {
        found.findings.push(Finding::within(start, end, "the hash tile over these entries is missing or malformed"));
    }
    let rehashed: BTreeMap<u64, LeafHash> = leaves.iter().map(|(index, leaf)| (*index, leaf_hash(leaf))).collect();
    found.hashed = rehashed.len() as u64;
    let tile: Option<Vec<Digest>> =
        given.or_else(|| (rehashed.len() as u64 == width).then(|| rehashed.values().copied().collect()));
    if let Some(tile) = &tile {
        for ((index, hash), stored) in rehashed.iter().filter_map(|(index, hash)| {
            let place = usize::try_from(index - start).ok()?;
            Some(((index, hash), tile.get(place)?))
        }) {
            if hash != stored {
                let what = "the leaf does not hash to what the tree has for it: it was altered";
                found.findings.push(Finding::at(*index, what));
            }
        }
        let over = usize::try_from(group).ok().and_then(|at| before.roots.get(at)).copied().flatten();
        if width == GROUP && over.is_some_and(|over| over != root_of(tile)) {
            let what = "the hash tile over these entries does not hash to the tile above it: the tree was altered";
            found.findings.push(Finding::within(start, end, what));
        }
    }
    check_checkpoints(before, source, group, tile.as_deref(), &mut found)?;
    read_entries(source, group, leaves, &rehashed, &mut found)?;
    Ok(found)
}

fn check_checkpoints(
    before: &Before,
    source: &mut Source,
    group: u64,
    tile: Option<&[Digest]>,
    found: &mut Group,
) -> io::Result<()> {
    let start = group * GROUP;
    let mut checkpoints: Vec<CheckpointLine> =
        match lines(source.read(&format!("checkpoints/{}.jsonl", number(group)))?) {
            Ok(lines) => lines,
            Err(why) => {
                found.findings.push(Finding::within(
                    start,
                    start + GROUP,
                    format!("the checkpoints are malformed: {why}"),
                ));
                return Ok(());
            }
        };
    checkpoints.sort_by_key(|line| line.size);
    let mut edge = before
        .edges
        .get(&group)
        .and_then(|hashes| Frontier::from_bytes(TreeSize(start), hashes).ok())
        .filter(|_| tile.is_some());
    let mut hashes = tile.unwrap_or_default().iter();
    for line in checkpoints {
        let good = match before.keys.open(&line.checkpoint) {
            Err(failure) => Err(failure.to_string()),
            Ok(head) if head.size.0 != line.size || head.origin != before.origin => {
                Err("it is of another size or of another log".to_owned())
            }
            Ok(head) => match &mut edge {
                None => Err("the hashes that it was signed over are missing".to_owned()),
                Some(edge) => {
                    while edge.size() < head.size
                        && let Some(hash) = hashes.next()
                    {
                        edge.push(*hash, |_| {});
                    }
                    if (edge.size(), edge.root()) == (head.size, head.root) {
                        Ok(())
                    } else {
                        Err("the entries do not hash to what it was signed over".to_owned())
                    }
                }
            },
        };
        found.checkpoints.push((line.size, good));
    }
    Ok(())
}

fn read_entries(
    source: &mut Source,
    group: u64,
    leaves: BTreeMap<u64, Vec<u8>>,
    rehashed: &BTreeMap<u64, LeafHash>,
    found: &mut Group,
) -> io::Result<()> {
    let start = group * GROUP;
    let mut malformed = |what: &str, why: String| {
        found.findings.push(Finding::within(start, start + GROUP, format!("the {what} are malformed: {why}")));
    };
    let sealed = source.read(&format!("sealed/{}.jsonl", number(group)))?;
    let sealed = by_index(sealed, &leaves, |line: &SealedLine| line.index).unwrap_or_else(|why| {
        malformed("sealed parts", why);
        BTreeMap::new()
    });
    let keys = source.read(&format!("keys/{}.jsonl", number(group)))?;
    let keys = by_index(keys, &leaves, |line: &KeyLine| line.index).unwrap_or_else(|why| {
        malformed("keys", why);
        BTreeMap::new()
    });
    for (index, bytes) in leaves {
        let Some(hash) = rehashed.get(&index).copied() else { continue };
        let leaf = match Leaf::decode(&bytes) {
            Ok(leaf) => leaf,
            Err(failure) => {
                found.findings.push(Finding::at(index, failure.to_string()));
                continue;
            }
        };
        let part = match (&leaf.commitment, sealed.get(&index)) {
            (None, None) => Part::None,
            (Some(_), None) => Part::Gone,
            (None, Some(_)) => {
                found.findings.push(Finding::at(index, "it has a sealed part that its leaf does not commit to"));
                Part::Wrong
            }
            (Some(_), Some(line)) if Some(line.data_key) != leaf.data_key => {
                found.findings.push(Finding::at(index, "its sealed part is of another data key than its leaf says"));
                Part::Wrong
            }
            (Some(commitment), Some(line)) => match keys.get(&index) {
                None => Part::Closed,
                Some(key) => {
                    let sealed = STANDARD.decode(&line.sealed).unwrap_or_default();
                    match open(&key.encryption, &key.commitment, leaf.entry_id, &sealed, commitment) {
                        Ok(part) => Part::Open(Box::new(part)),
                        Err(failure) => {
                            found.findings.push(Finding::at(index, failure.to_string()));
                            Part::Wrong
                        }
                    }
                }
            },
        };
        found.entries.push(Entry { index, hash, leaf, part });
    }
    Ok(())
}
