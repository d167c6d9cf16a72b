//! Writing a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use async_trait::async_trait;
use audit_log::{LogReader, ReadError, encode_leaves};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::leaf_hash;
use serde::Serialize;
use serde_json::value::RawValue;
use session_model::{
    Action, Digest, EntryId, KeyId, Leaf, LeafIndex, RealmName, SessionId, Timestamp, TreeSize, Version,
};

use crate::pages;
use crate::paths::{GROUP, number, tile};
use crate::sink::Sink;
use crate::walk::{Stored, Walk};

/// Why a bundle could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The log is out of reach.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bundle cannot be written where it should go.
    #[error("the bundle cannot be written")]
    Write(#[from] io::Error),
    /// The log has no entries, so there is nothing to prove.
    #[error("the log is empty")]
    Empty,
    /// Something of ours cannot be encoded.
    #[error("the bundle cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

/// A word for why personal data is opened: a case number, say. 1 to 64 of letters, digits and `._/-`, so that it can stand in a
/// leaf without being personal data itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Purpose(String);

/// Not a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a purpose is 1 to 64 of letters, digits and . _ / -")]
pub struct PurposeError;

impl FromStr for Purpose {
    type Err = PurposeError;
    fn from_str(text: &str) -> Result<Self, PurposeError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte));
        if plain && (1..=64).contains(&text.len()) { Ok(Self(text.to_owned())) } else { Err(PurposeError) }
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The two keys of one entry, derived from its subject's data key: they open this sealed part and no other.
#[derive(Clone)]
pub struct EntryKeys {
    /// AES-256-GCM key of the sealed part.
    pub encryption: Digest,
    /// HMAC key of the commitment in the leaf.
    pub commitment: Digest,
}

impl std::fmt::Debug for EntryKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EntryKeys(…)")
    }
}

/// What knows subjects and their keys.
#[async_trait]
pub trait KeySource: Send + Sync + 'static {
    /// The sessions of a subject, the anonymous beginnings of those that it was bound to included.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn sessions_of(&self, realm: &RealmName, subject: &str) -> Result<Vec<SessionId>, ReadError>;

    /// The keys of these entries, in order; `None` where the data key does not exist any more.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn entry_keys(&self, entries: &[(KeyId, EntryId)]) -> Result<Vec<Option<EntryKeys>>, ReadError>;
}

/// Which entries a bundle holds. The default is all of them.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only what an auditor of this realm may see.
    pub realm: Option<RealmName>,
    /// Not earlier.
    pub from: Option<Timestamp>,
    /// Earlier than this.
    pub to: Option<Timestamp>,
    /// Only those of these indices.
    pub within: Option<Range<u64>>,
    /// Of this session.
    pub session: Option<SessionId>,
    /// Of the sessions of this subject of these realms.
    pub subject: Option<(Vec<RealmName>, String)>,
}

/// A checkpoint with an RFC 3161 time stamp over its bytes, in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampFile {
    /// Size of the tree that the checkpoint is of.
    pub size: TreeSize,
    /// The checkpoint, a signed note.
    pub checkpoint: PathBuf,
    /// The authority's response.
    pub response: PathBuf,
}

/// What bundle to write.
#[derive(Debug, Clone)]
pub struct Order {
    /// Of which entries.
    pub selection: Selection,
    /// With what opens the sealed parts, and why.
    pub reveal: Option<Purpose>,
    /// Sizes of checkpoints that somebody keeps: what proves these consistent is put in, whatever the selection.
    pub keep: Vec<TreeSize>,
    /// The time stamps there are, the smallest tree first: those that cover entries of the bundle are put in.
    pub stamps: Vec<StampFile>,
    /// Now.
    pub made_at: Timestamp,
    /// Who asks: id of a credential.
    pub made_by: String,
    /// The log's verifier keys, the current one first.
    pub vkeys: Vec<String>,
}

/// Whether an auditor of a realm may see a leaf: it is of the realm, or only says that the service started or stopped.
pub fn visible(leaf: &Leaf, realm: &RealmName) -> bool {
    leaf.realm == *realm || matches!(leaf.action, Action::ServiceStarted | Action::ServiceStopped)
}

/// What the verifier is told about the bundle. Nothing of it is believed without proof.
#[derive(Debug, Serialize)]
pub(crate) struct Manifest {
    pub(crate) format: u8,
    pub(crate) made_at: Timestamp,
    pub(crate) made_by: String,
    pub(crate) size: u64,
    pub(crate) selection: Selected,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revealed_for: Option<Purpose>,
    pub(crate) entries: u64,
    pub(crate) actions: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) time_stamps: Vec<u64>,
    pub(crate) unreadable: Vec<Unreadable>,
    pub(crate) unreadable_count: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Selected {
    /// Every entry from `first` to before `end` is there, or named as unreadable.
    pub(crate) complete: bool,
    pub(crate) first: u64,
    pub(crate) end: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) realm: Option<RealmName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<SessionId>,
    pub(crate) of_one_subject: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Unreadable {
    pub(crate) index: u64,
    pub(crate) why: String,
}

/// Unreadable entries that are named one by one; the rest is counted.
const NAMED: usize = 1_000;

#[derive(Serialize)]
struct LeafLine<'a> {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf_base64: Option<String>,
}

#[derive(Serialize)]
struct SealedLine {
    index: u64,
    data_key: KeyId,
    sealed: String,
}

#[derive(Serialize)]
struct KeyLine {
    index: u64,
    encryption: Digest,
    commitment: Digest,
}

#[derive(Serialize)]
struct CheckpointLine<'a> {
    size: u64,
    checkpoint: &'a str,
}

/// The entries that may be in the bundle.
enum Candidates {
    Range { first: u64, end: u64 },
    List(Vec<u64>),
}

impl Candidates {
    fn iter(&self) -> Box<dyn Iterator<Item = u64> + Send + '_> {
        match self {
            Self::Range { first, end } => Box::new(*first..*end),
            Self::List(list) => Box::new(list.iter().copied()),
        }
    }

    /// For each entry the first time stamp that covers it, as far as there are any; each once.
    fn stamps<'a>(&self, stamps: &'a [StampFile], size: u64) -> Vec<&'a StampFile> {
        let covering = |index: u64| stamps.partition_point(|stamp| stamp.size.0 <= index);
        let chosen: BTreeSet<usize> = match self {
            Self::Range { first, end } if first < end => (covering(*first)..=covering(end - 1)).collect(),
            Self::Range { .. } => BTreeSet::new(),
            Self::List(list) => list.iter().map(|index| covering(*index)).collect(),
        };
        // A stamp over more than the log has is for the outside comparison at start to refuse, not for a bundle.
        chosen.into_iter().filter_map(|at| stamps.get(at)).filter(|stamp| stamp.size.0 <= size).collect()
    }
}

/// Writes a bundle of the log as it is now.
///
/// # Errors
/// [`EvidenceError`]; what was written by then is not a bundle.
pub async fn write_bundle(
    log: &dyn LogReader,
    keys: &dyn KeySource,
    mut order: Order,
    sink: &mut dyn Sink,
) -> Result<u64, EvidenceError> {
    let head = log.head().await?;
    let size = head.size().0;
    let Some(checkpoint) = head.checkpoint.clone().filter(|_| size > 0) else { return Err(EvidenceError::Empty) };
    let selection = &order.selection;
    let first = match selection.from {
        None => 0,
        Some(from) => first_not_before(log, from, size).await?,
    };
    let end = match selection.to {
        None => size,
        Some(to) => first_not_before(log, to, size).await?.max(first),
    };
    let within = selection.within.clone().unwrap_or(0..size);
    let first = first.max(within.start).min(size);
    let end = end.min(within.end).max(first);
    let sessions = match (&selection.session, &selection.subject) {
        (None, None) => None,
        (Some(session), None) => Some(vec![*session]),
        (session, Some((realms, subject))) => {
            let mut found = Vec::new();
            for realm in realms {
                found.extend(keys.sessions_of(realm, subject).await?);
            }
            Some(found.into_iter().filter(|id| session.is_none_or(|wanted| wanted == *id)).collect())
        }
    };
    let candidates = match &sessions {
        None => Candidates::Range { first, end },
        Some(sessions) => Candidates::List(places(log, sessions, first, end).await?),
    };
    let mut manifest = Manifest {
        format: 1,
        made_at: order.made_at,
        made_by: order.made_by.clone(),
        size,
        selection: Selected {
            complete: sessions.is_none(),
            first,
            end,
            realm: selection.realm.clone(),
            from: selection.from,
            to: selection.to,
            session: selection.session,
            of_one_subject: selection.subject.is_some(),
        },
        revealed_for: order.reveal.clone(),
        entries: 0,
        actions: BTreeMap::new(),
        first_time: None,
        last_time: None,
        time_stamps: Vec::new(),
        unreadable: Vec::new(),
        unreadable_count: 0,
    };
    sink.begin("checkpoint")?;
    sink.write(checkpoint.as_bytes())?;
    sink.begin("vkeys")?;
    sink.write(order.vkeys.iter().map(|vkey| format!("{vkey}\n")).collect::<String>().as_bytes())?;
    write_table(log, &candidates, selection, sink, &mut manifest).await?;
    for stamp in candidates.stamps(&order.stamps, size) {
        // One that cannot be read is none.
        if let (Ok(checkpoint), Ok(response)) = (fs::read(&stamp.checkpoint), fs::read(&stamp.response)) {
            sink.begin(&format!("time-stamps/{}.checkpoint", stamp.size))?;
            sink.write(&checkpoint)?;
            sink.begin(&format!("time-stamps/{}.tsr", stamp.size))?;
            sink.write(&response)?;
            manifest.time_stamps.push(stamp.size.0);
        }
    }
    order.keep.extend(manifest.time_stamps.iter().copied().map(TreeSize));
    write_groups(log, keys, &candidates, &order, size, sink).await?;
    write_upper_tiles(log, size, sink).await?;
    sink.begin("manifest.json")?;
    sink.write(&serde_json::to_vec_pretty(&manifest)?)?;
    sink.begin("README.txt")?;
    sink.write(pages::README.as_bytes())?;
    sink.begin("index.html")?;
    sink.write(pages::summary(&manifest, &checkpoint, &order.vkeys).as_bytes())?;
    sink.finish().await?;
    Ok(manifest.entries)
}

/// The first entry that is not earlier than a time: times in a log never go back. An entry whose time cannot be read is passed
/// over.
async fn first_not_before(log: &dyn LogReader, time: Timestamp, size: u64) -> Result<u64, ReadError> {
    let (mut low, mut high) = (0, size);
    while low < high {
        let middle = low + (high - low) / 2;
        let mut at = middle;
        let found = loop {
            if at == high {
                break None;
            }
            match log.entries(&[LeafIndex(at)]).await {
                Ok(entries) => {
                    let leaf = entries.into_iter().flatten().next().and_then(|entry| Leaf::decode(&entry.leaf).ok());
                    if let Some(leaf) = leaf {
                        break Some(leaf.time);
                    }
                }
                Err(ReadError::Corrupt(_)) => {}
                Err(failure @ ReadError::Unavailable(_)) => return Err(failure),
            }
            at += 1;
        };
        match found {
            Some(found) if found < time => low = at + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

/// Where the entries of sessions stand, in order.
async fn places(log: &dyn LogReader, sessions: &[SessionId], first: u64, end: u64) -> Result<Vec<u64>, ReadError> {
    const PAGE: usize = 4_096;
    let mut places = Vec::new();
    for session in sessions {
        let mut after = Version::NONE;
        loop {
            let page = log.session_entries(*session, after, PAGE).await?;
            places.extend(page.iter().map(|(_, index)| index.0).filter(|index| (first..end).contains(index)));
            match page.last() {
                Some((version, _)) if page.len() == PAGE => after = *version,
                Some(_) | None => break,
            }
        }
    }
    places.sort_unstable();
    places.dedup();
    Ok(places)
}

/// Why an entry is not in the bundle.
enum Kept {
    /// It is another realm's.
    Back,
    /// It cannot be decoded, and so may be another realm's.
    BackForSafety,
}

/// The leaf, if the selection takes it; `None` for one that cannot be decoded but is taken all the same.
fn admitted(stored: &Stored, selection: &Selection) -> Result<Option<Leaf>, Kept> {
    match (Leaf::decode(&stored.leaf), &selection.realm) {
        (Ok(leaf), Some(realm)) if !visible(&leaf, realm) => Err(Kept::Back),
        (Ok(leaf), _) => Ok(Some(leaf)),
        (Err(_), Some(_)) => Err(Kept::BackForSafety),
        (Err(_), None) => Ok(None),
    }
}

async fn write_table(
    log: &dyn LogReader,
    candidates: &Candidates,
    selection: &Selection,
    sink: &mut dyn Sink,
    manifest: &mut Manifest,
) -> Result<(), EvidenceError> {
    sink.begin("entries.csv")?;
    sink.write(pages::CSV_HEAD.as_bytes())?;
    let mut walk = Walk::new(log, matches!(candidates, Candidates::Range { .. }));
    for index in candidates.iter() {
        let unreadable = match walk.at(index).await? {
            Ok(stored) => match admitted(&stored, selection) {
                Ok(Some(leaf)) => {
                    sink.write(pages::csv_row(index, &leaf, leaf_hash(&stored.leaf)).as_bytes())?;
                    manifest.entries += 1;
                    *manifest.actions.entry(pages::word(&leaf.action)).or_default() += 1;
                    manifest.first_time.get_or_insert(leaf.time);
                    manifest.last_time = Some(leaf.time);
                    None
                }
                Ok(None) => {
                    manifest.entries += 1;
                    Some("what is stored is not a leaf".to_owned())
                }
                Err(Kept::Back) => {
                    manifest.selection.complete = false;
                    None
                }
                Err(Kept::BackForSafety) => Some("what is stored is not a leaf".to_owned()),
            },
            Err(why) => Some(why),
        };
        if let Some(why) = unreadable {
            manifest.unreadable_count += 1;
            if manifest.unreadable.len() < NAMED {
                manifest.unreadable.push(Unreadable { index, why });
            }
        }
        if index % GROUP == 0 {
            sink.flush().await?;
        }
    }
    Ok(())
}

async fn write_groups(
    log: &dyn LogReader,
    keys: &dyn KeySource,
    candidates: &Candidates,
    order: &Order,
    size: u64,
    sink: &mut dyn Sink,
) -> Result<(), EvidenceError> {
    let mut walk = Walk::new(log, matches!(candidates, Candidates::Range { .. }));
    // Groups of which only the hashes are needed: the right edge, and what saved checkpoints end in.
    let mut bare: Vec<u64> =
        order.keep.iter().map(|kept| kept.0).chain([size]).filter(|end| end % GROUP != 0).collect();
    bare.retain(|end| *end <= size);
    bare.iter_mut().for_each(|end| *end /= GROUP);
    bare.sort_unstable();
    bare.dedup();
    let mut bare = bare.into_iter().peekable();
    let mut indices = candidates.iter().peekable();
    while let Some(group) = indices.peek().map(|index| index / GROUP).into_iter().chain(bare.peek().copied()).min() {
        bare.next_if_eq(&group);
        let mut stored = Vec::new();
        while let Some(index) = indices.next_if(|index| index / GROUP == group) {
            if let Ok(found) = walk.at(index).await? {
                stored.push((index, found));
            }
        }
        write_group(log, keys, group, stored, order, size, sink).await?;
        sink.flush().await?;
    }
    Ok(())
}

async fn write_group(
    log: &dyn LogReader,
    keys: &dyn KeySource,
    group: u64,
    stored: Vec<(u64, Stored)>,
    order: &Order,
    size: u64,
    sink: &mut dyn Sink,
) -> Result<(), EvidenceError> {
    let width = GROUP.min(size - group * GROUP);
    let hashes = match log.hashes(0, group * GROUP, width).await {
        Ok(hashes) => Some(hashes),
        // What is lost can be made again if every leaf is there.
        Err(ReadError::Corrupt(_)) => {
            (stored.len() as u64 == width).then(|| stored.iter().map(|(_, stored)| leaf_hash(&stored.leaf)).collect())
        }
        Err(failure @ ReadError::Unavailable(_)) => return Err(failure.into()),
    };
    if let Some(hashes) = hashes {
        write_hashes(sink, 0, group, &hashes)?;
    }
    let mut lines = String::new();
    for (index, stored) in &stored {
        if let Some(checkpoint) = &stored.checkpoint {
            let line = CheckpointLine { size: index + 1, checkpoint };
            lines.push_str(&serde_json::to_string(&line)?);
            lines.push('\n');
        }
    }
    write_lines(sink, "checkpoints", group, &lines)?;
    let admitted: Vec<(u64, &Stored, Option<Leaf>)> = stored
        .iter()
        .filter_map(|(index, stored)| admitted(stored, &order.selection).ok().map(|leaf| (*index, stored, leaf)))
        .collect();
    if admitted.len() as u64 == width {
        sink.begin(&format!("tile/entries/{}", tile(group, width)))?;
        sink.write(&encode_leaves(admitted.iter().map(|(_, stored, _)| stored.leaf.as_slice())))?;
    } else {
        let mut lines = String::new();
        for (index, stored, _) in &admitted {
            lines.push_str(&leaf_line(*index, &stored.leaf)?);
            lines.push('\n');
        }
        write_lines(sink, "leaves", group, &lines)?;
    }
    let mut lines = String::new();
    for (index, stored, _) in &admitted {
        if let Some(sealed) = &stored.sealed {
            let line = SealedLine { index: *index, data_key: sealed.key, sealed: STANDARD.encode(&sealed.bytes) };
            lines.push_str(&serde_json::to_string(&line)?);
            lines.push('\n');
        }
    }
    write_lines(sink, "sealed", group, &lines)?;
    if order.reveal.is_some() {
        let wanted: Vec<(u64, KeyId, EntryId)> = admitted
            .iter()
            .filter_map(|(index, stored, leaf)| Some((*index, stored.sealed.as_ref()?.key, leaf.as_ref()?.entry_id)))
            .collect();
        let asked: Vec<(KeyId, EntryId)> = wanted.iter().map(|(_, key, entry)| (*key, *entry)).collect();
        let mut lines = String::new();
        for ((index, ..), found) in wanted.iter().zip(keys.entry_keys(&asked).await?) {
            if let Some(EntryKeys { encryption, commitment }) = found {
                lines.push_str(&serde_json::to_string(&KeyLine { index: *index, encryption, commitment })?);
                lines.push('\n');
            }
        }
        write_lines(sink, "keys", group, &lines)?;
    }
    Ok(())
}

/// A leaf as a line: itself, if it is JSON on one line and so can be found again byte for byte; base64 otherwise.
fn leaf_line(index: u64, leaf: &[u8]) -> Result<String, serde_json::Error> {
    let plain = serde_json::from_slice::<&RawValue>(leaf)
        .ok()
        .filter(|raw| raw.get().as_bytes() == leaf && !leaf.contains(&b'\n') && !leaf.contains(&b'\r'));
    let leaf_base64 = plain.is_none().then(|| STANDARD.encode(leaf));
    serde_json::to_string(&LeafLine { index, leaf: plain, leaf_base64 })
}

fn write_lines(sink: &mut dyn Sink, what: &str, group: u64, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    sink.begin(&format!("{what}/{}.jsonl", number(group)))?;
    sink.write(lines.as_bytes())
}

fn write_hashes(sink: &mut dyn Sink, level: u8, index: u64, hashes: &[Digest]) -> io::Result<()> {
    sink.begin(&format!("tile/{level}/{}", tile(index, hashes.len() as u64)))?;
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    sink.write(&bytes)
}

/// Every tile above the leaves': one hash for each 256 entries, so that any entry can be proved with its own tile and these.
async fn write_upper_tiles(log: &dyn LogReader, size: u64, sink: &mut dyn Sink) -> Result<(), EvidenceError> {
    for level in 1..8_u8 {
        let count = size >> (8 * level);
        for index in 0..count.div_ceil(GROUP) {
            let width = GROUP.min(count - index * GROUP);
            match log.hashes(level * 8, index * GROUP, width).await {
                Ok(hashes) => write_hashes(sink, level, index, &hashes)?,
                // It is missing then, and the verifier says so.
                Err(ReadError::Corrupt(_)) => {}
                Err(failure @ ReadError::Unavailable(_)) => return Err(failure.into()),
            }
            sink.flush().await?;
        }
    }
    Ok(())
}
