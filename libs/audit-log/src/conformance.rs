//! What every log must do, as one suite: a named test for each rule, on a fresh log each time.
//!
//! An adapter runs it from its `tests/` with [`conformance_tests!`](crate::conformance_tests). The helpers are public because
//! other tests need them too: [`Draft`] makes entries, [`next_batch`] sequences them, [`check_log`] proves a whole log again.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use merkle_log::{
    Checkpoint, Frontier, HashRange, Plan, Verifier, check_consistency, check_inclusion, leaf_hash, open_checkpoint,
    sign_checkpoint,
};
use session_model::{
    Action, Actor, Digest, EntryId, Format, KeyId, Kind, Leaf, LeafIndex, Outcome, PreviousLeaf, Protocol, RealmName,
    Role, SessionId, Timestamp, TreeSize, Version,
};
use signed_note::{StandardSigner, StandardVerifier};
use uuid::Uuid;

use crate::{
    AppendError, Appended, Batch, Claims, Credential, CredentialChange, DataKeyClaim, DataKeyRow, IdempotencyClaim,
    LogIdentity, LogReader, LogStore, MemoryLog, Posting, Projected, Projection, Proposed, Prune, ReadError, Refusal,
    Refused, Rewrap, SealedEntry, Seat, Sequencer, SessionChange, SessionFilter, StoredBatch, StoredEntry,
    SubjectChange, Term, Turn,
};

/// Makes the module `$name` with one `#[tokio::test]` for each rule.
///
/// `$build` is an async function `() -> (Arc<dyn LogStore>, Guard)` that makes an empty log; the guard is kept until the test
/// has ended. `$again`, if given, is an async function `(&Guard) -> Arc<dyn LogStore>` that opens the same log once more, as
/// another process would; without it the rules about parallel writers share one handle. The calling crate needs tokio with
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, $build:expr) => {
        $crate::conformance_tests!(@module $name, $build, alone, (), [
            parallel_appenders_lose_nothing
            parallel_appenders_never_exceed_a_cap
            parallel_writers_of_one_session_take_turns
            nobody_appends_in_anothers_turn
            writers_that_take_turns_are_never_beaten
        ]);
    };
    ($name:ident, $build:expr, $again:expr) => {
        $crate::conformance_tests!(@module $name, $build, again, $again, [
            parallel_appenders_lose_nothing
            parallel_appenders_never_exceed_a_cap
            parallel_writers_of_one_session_take_turns
            nobody_appends_in_anothers_turn
            writers_that_take_turns_are_never_beaten
        ]);
    };
    (@module $name:ident, $build:expr, $how:ident, $again:expr, [$($parallel:ident)*]) => {
        mod $name {
            #[allow(unused_imports, reason = "the expressions may need them")]
            use super::*;

            $crate::conformance_tests!(@alone $build, [
                an_empty_log_answers_as_one
                what_is_appended_reads_back_byte_for_byte
                batches_are_read_from_any_entry
                hashes_read_back_at_every_stored_level
                a_log_of_many_batches_proves_itself
                an_append_to_another_size_is_moved
                times_never_go_back
                a_taken_version_is_refused
                a_gap_in_versions_is_refused
                one_batch_may_make_two_versions_of_a_session
                a_version_claimed_twice_in_a_batch_goes_to_the_first
                an_existing_data_key_must_exist
                a_new_data_key_must_be_new
                a_data_key_is_claimed_once_in_a_batch
                a_cap_holds_across_batches
                a_cap_holds_within_a_batch
                seats_are_freed_before_they_are_taken
                binding_moves_the_session_and_its_own_key
                sessions_are_listed_by_every_filter
                an_answer_is_kept_once
                an_answer_is_kept_once_in_a_batch
                expired_answers_are_forgotten
                marks_of_use_never_go_back
                marks_of_closed_sessions_are_forgotten
                credentials_are_added_and_revoked
                an_erased_key_is_gone_with_those_it_owns
                a_held_key_is_not_erased
                a_key_in_use_is_not_erased
                data_keys_are_gone_through_in_order
                a_data_key_is_wrapped_anew_only_as_it_was_read
                sealed_parts_are_dropped_and_the_log_still_proves_itself
                sealed_parts_of_held_keys_stay
                batches_with_sealed_parts_are_found_from_any_entry
                postings_read_back_by_term_and_segment
                postings_are_changed_by_one_at_a_time
                segments_in_which_terms_stand_are_known
                places_of_sessions_are_found_together
                resolve_tells_whether_a_batch_is_there
                a_turn_goes_on_after_a_refusal
                a_turn_given_back_leaves_no_trace
                a_refused_batch_leaves_no_trace
                every_refusal_of_a_batch_is_reported
                random_batches_end_as_in_memory
            ]);

            $(
                #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $parallel() {
                    let (log, guard) = ($build)().await;
                    let logs = $crate::conformance_tests!(@handles $how, log, guard, $again);
                    $crate::conformance::$parallel(logs).await;
                    drop(guard);
                }
            )*
        }
    };
    (@handles alone, $log:ident, $guard:ident, $again:expr) => {
        vec![$log.clone(), $log.clone(), $log.clone(), $log]
    };
    (@handles again, $log:ident, $guard:ident, $again:expr) => {
        vec![$log, ($again)(&$guard).await, ($again)(&$guard).await, ($again)(&$guard).await]
    };
    (@alone $build:expr, [$($rule:ident)*]) => {
        $(
            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let (log, guard) = ($build)().await;
                $crate::conformance::$rule(log).await;
                drop(guard);
            }
        )*
    };
}

// ---- Helpers ------------------------------------------------------------------------------------------------------------

/// The key pair of Go's x/mod/sumdb/note documentation: public, and for tests only.
const SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

/// The log that tests write: a fixed origin, and a key that everybody knows.
pub fn identity() -> LogIdentity {
    let signer = StandardSigner::new(SKEY).expect("the key is well-formed");
    LogIdentity { origin: "conformance.example/log".to_owned(), signers: vec![Arc::new(signer)] }
}

/// What verifies the checkpoints of [`identity`].
pub fn verifiers() -> Vec<Box<dyn Verifier>> {
    vec![Box::new(StandardVerifier::new(VKEY).expect("the key is well-formed"))]
}

/// The sequencer of [`identity`].
pub fn sequencer() -> Sequencer {
    Sequencer::new(identity())
}

/// The realm of a [`Draft`].
pub fn realm() -> RealmName {
    "default".parse().expect("a realm name")
}

/// A session id made of a number; a later number is a newer session.
pub fn session(number: u128) -> SessionId {
    SessionId::new(uuid(number))
}

/// A data key id made of a number, distinct from the ids of [`session`].
pub fn key(number: u128) -> KeyId {
    KeyId::new(uuid((1 << 40) + number))
}

/// A digest made of a number.
pub fn digest(number: u128) -> Digest {
    leaf_hash(&number.to_be_bytes())
}

/// A time a number of seconds after a fixed one.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
}

/// A data key whose id and lookup are made of one number.
pub fn key_row(number: u128) -> DataKeyRow {
    DataKeyRow { id: key(number), lookup: Some(digest(number)), wrapped: vec![7; 60], owner: None, held: false }
}

fn uuid(number: u128) -> Uuid {
    // Version 7 and variant bits where they belong, so that the ids are well-formed.
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | number)
}

/// An entry to propose, built step by step.
#[derive(Debug, Clone)]
pub struct Draft {
    leaf: Leaf,
    sealed: Option<SealedEntry>,
    claims: Claims,
}

impl Draft {
    /// An entry that claims nothing. Its id is made of `number`.
    pub fn new(number: u128) -> Self {
        let leaf = Leaf {
            action: Action::AuditRead,
            actor: Actor { id: "tester".to_owned(), role: Role::Application },
            commitment: Some(digest(number)),
            data_key: None,
            detail: BTreeMap::new(),
            entry_id: EntryId::new(uuid(number)),
            format: Format::V1,
            node: "node-1".to_owned(),
            outcome: Outcome::Success,
            previous: None,
            protocol: Protocol::Internal,
            realm: realm(),
            request_id: None,
            session_id: None,
            time: at(0),
            trace_id: None,
            version: None,
        };
        Self { leaf, sealed: None, claims: Claims::default() }
    }

    /// At this time.
    #[must_use]
    pub fn at(mut self, time: Timestamp) -> Self {
        self.leaf.time = time;
        self
    }

    /// In this realm instead of [`realm`].
    #[must_use]
    pub fn of(mut self, realm: RealmName) -> Self {
        self.leaf.realm = realm;
        self
    }

    /// Makes this version of this session. [`next_batch`] adds the link to the version before it.
    #[must_use]
    pub fn version(mut self, id: SessionId, version: u64) -> Self {
        self.leaf.action = if version == 1 { Action::SessionCreated } else { Action::SessionUpdated };
        (self.leaf.session_id, self.leaf.version) = (Some(id), Some(Version(version)));
        self.claims.session = Some((id, Version(version)));
        self
    }

    /// With a sealed part.
    #[must_use]
    pub fn sealed(mut self, key: KeyId, bytes: impl Into<Vec<u8>>) -> Self {
        self.leaf.data_key = Some(key);
        self.sealed = Some(SealedEntry { key, bytes: bytes.into() });
        self
    }

    /// Claims that a data key exists.
    #[must_use]
    pub fn existing_key(mut self, key: KeyId) -> Self {
        self.claims.data_key = Some(DataKeyClaim::Existing(key));
        self
    }

    /// Claims that a data key is new.
    #[must_use]
    pub fn new_key(mut self, row: DataKeyRow) -> Self {
        self.claims.data_key = Some(DataKeyClaim::New(row));
        self
    }

    /// Takes a seat.
    #[must_use]
    pub fn take_seat(mut self, key: KeyId, cap: u32) -> Self {
        self.claims.take_seat = Some(Seat { key, cap });
        self
    }

    /// Frees a seat.
    #[must_use]
    pub fn free_seat(mut self, key: KeyId) -> Self {
        self.claims.free_seat = Some(key);
        self
    }

    /// Changes the index of sessions.
    #[must_use]
    pub fn index(mut self, change: SessionChange) -> Self {
        self.claims.index = Some(change);
        self
    }

    /// Opens the session in the index, in [`realm`], as [`Kind::Web`].
    #[must_use]
    pub fn opens(self, key: KeyId) -> Self {
        self.index(SessionChange::Opened { realm: realm(), key, kind: Kind::Web })
    }

    /// Keeps an answer.
    #[must_use]
    pub fn answer(mut self, claim: IdempotencyClaim) -> Self {
        self.claims.idempotency = Some(claim);
        self
    }

    /// Changes a credential.
    #[must_use]
    pub fn credential(mut self, change: CredentialChange) -> Self {
        self.claims.credential = Some(change);
        self
    }

    /// Erases a subject, or puts it under legal hold.
    #[must_use]
    pub fn subject(mut self, change: SubjectChange) -> Self {
        self.claims.subject = Some(change);
        self
    }

    /// With filler in clear, so that the leaf has about `bytes` bytes more.
    #[must_use]
    pub fn padded(mut self, bytes: usize) -> Self {
        self.leaf.detail.insert("filler".to_owned(), "x".repeat(bytes));
        self
    }

    /// The entry.
    pub fn proposed(self) -> Proposed {
        let bytes = self.leaf.encode().expect("a leaf that is not too long");
        let hash = leaf_hash(&bytes);
        Proposed { leaf: self.leaf, bytes, hash, sealed: self.sealed, claims: self.claims }
    }
}

/// Sequences entries behind the log's end, with each entry of a session linked to the one before it where there is one.
pub async fn next_batch(log: &dyn LogReader, drafts: Vec<Draft>) -> Batch {
    let head = log.head().await.expect("the head reads");
    let mut newest: HashMap<(SessionId, u64), PreviousLeaf> = HashMap::new();
    let mut entries = Vec::new();
    let mut drafts = drafts;
    // What the sequencer would do, done before: a leaf must have its time before the next one can name its hash.
    drafts.sort_by_key(|draft| draft.leaf.time);
    for (place, mut draft) in drafts.into_iter().enumerate() {
        draft.leaf.time = draft.leaf.time.max(head.time);
        if let Some((id, version)) = draft.claims.session
            && version.0 > 1
        {
            let before = (id, version.0 - 1);
            draft.leaf.previous = match newest.get(&before) {
                Some(previous) => Some(*previous),
                None => stored_version(log, id, Version(version.0 - 1)).await,
            };
        }
        let proposed = draft.proposed();
        if let Some((id, version)) = proposed.claims.session {
            let index = LeafIndex(head.size().0 + place as u64);
            newest.entry((id, version.0)).or_insert(PreviousLeaf { hash: proposed.hash, index });
        }
        entries.push(proposed);
    }
    sequencer().ordered(&head, entries).expect("the batch can be signed")
}

async fn stored_version(log: &dyn LogReader, id: SessionId, version: Version) -> Option<PreviousLeaf> {
    let after = Version(version.0 - 1);
    let found = log.session_entries(id, after, 1).await.expect("the versions of a session read");
    let (_, index) = found.into_iter().find(|(found, _)| *found == version)?;
    let hash = log.hashes(0, index.0, 1).await.expect("a leaf hash reads")[0];
    Some(PreviousLeaf { hash, index })
}

/// Appends entries that must be accepted; answers the batch they made.
pub async fn commit(log: &dyn LogStore, drafts: Vec<Draft>) -> Batch {
    let batch = next_batch(log, drafts).await;
    assert_eq!(log.append(&batch).await.expect("the append is answered"), Appended::Committed);
    batch
}

/// Appends entries of which these must be refused; proves that nothing was done.
pub async fn refuse(log: &dyn LogStore, drafts: Vec<Draft>, refused: &[(usize, Refusal)]) {
    let batch = next_batch(log, drafts).await;
    let before = log.head().await.expect("the head reads");
    let expected = refused.iter().map(|(at, why)| Refused { at: *at, why: *why }).collect();
    assert_eq!(log.append(&batch).await.expect("the append is answered"), Appended::Refused(expected));
    assert_eq!(log.head().await.expect("the head reads"), before, "a refused batch moved the head");
}

/// Proves a whole log again, from the leaves up: indices gapless from 0, times never decreasing, versions of each session dense
/// and linked by hash, every leaf hash and tree node, every checkpoint's root, and consistency proofs between neighbouring
/// checkpoints. Checks no signatures: see [`check_signatures`]. Answers the entries.
///
/// Panics with what does not hold.
pub async fn check_log(log: &dyn LogReader) -> Vec<StoredEntry> {
    let head = log.head().await.expect("the head reads");
    let batches = all_batches(log).await;
    let mut frontier = Frontier::empty();
    let mut nodes = Vec::new();
    let mut leaves = Vec::new();
    let mut entries: Vec<StoredEntry> = Vec::new();
    let mut time = Timestamp::default();
    let mut sessions: HashMap<SessionId, Vec<PreviousLeaf>> = HashMap::new();
    let mut checkpoints: Vec<(TreeSize, Digest)> = Vec::new();
    for batch in &batches {
        assert_eq!(batch.first.0, frontier.size().0, "the batches have a gap");
        assert!(!batch.leaves.is_empty(), "the batch at {} is empty", batch.first);
        assert_eq!(batch.leaves.len(), batch.sealed.len(), "the batch at {} lacks sealed parts", batch.first);
        for (bytes, sealed) in batch.leaves.iter().zip(&batch.sealed) {
            let index = LeafIndex(frontier.size().0);
            let hash = leaf_hash(bytes);
            let leaf = Leaf::decode(bytes).unwrap_or_else(|error| panic!("entry {index} does not decode: {error}"));
            assert!(leaf.time >= time, "the time of entry {index} goes back");
            time = leaf.time;
            if let (Some(id), Some(version)) = (leaf.session_id, leaf.version) {
                let versions = sessions.entry(id).or_default();
                assert_eq!(version.0, versions.len() as u64 + 1, "entry {index} makes the wrong version of {id}");
                assert_eq!(leaf.previous, versions.last().copied(), "entry {index} does not follow its session's last");
                versions.push(PreviousLeaf { hash, index });
            }
            frontier.push(hash, |node| nodes.push(node));
            leaves.push(hash);
            let (leaf, sealed) = (bytes.clone(), sealed.clone());
            entries.push(StoredEntry { index, leaf, sealed, tree_size: batch.tree_size() });
        }
        let root = frontier.root();
        assert_eq!(frontier.size(), batch.tree_size());
        let origin = batch.checkpoint.lines().next().unwrap_or_default().to_owned();
        let unsigned = sign_checkpoint(&Checkpoint { origin, size: frontier.size(), root }, &[]).expect("a checkpoint");
        assert!(
            batch.checkpoint.starts_with(&unsigned),
            "the checkpoint of {} is not that of its tree",
            frontier.size()
        );
        checkpoints.push((frontier.size(), root));
    }
    assert_eq!(head.frontier, frontier, "the head is not that of the leaves");
    assert_eq!(head.time, time, "the head's time is not that of the newest leaf");
    assert_eq!(head.checkpoint.as_ref(), batches.last().map(|batch| &batch.checkpoint), "the head's checkpoint");

    for (start, run) in (0_u64..).step_by(128).zip(leaves.chunks(128)) {
        assert_eq!(
            log.hashes(0, start, run.len() as u64).await.expect("leaf hashes read"),
            run,
            "leaf hashes at {start}"
        );
    }
    for node in nodes {
        let stored = log.hashes(node.level, node.index, 1).await.expect("a node reads");
        assert_eq!(stored, [node.hash], "the node {} of level {}", node.index, node.level);
    }
    for (id, versions) in sessions {
        let stored = log.session_entries(id, Version::NONE, usize::MAX).await.expect("versions read");
        let expected: Vec<_> = (1_u64..).map(Version).zip(versions.iter().map(|version| version.index)).collect();
        assert_eq!(stored, expected, "the versions of {id}");
    }
    for pair in checkpoints.windows(2) {
        prove_consistency(log, pair[0], pair[1]).await;
    }
    if let (Some(first), Some(last)) = (checkpoints.first(), checkpoints.last()) {
        prove_consistency(log, *first, *last).await;
        let step = (leaves.len() / 16).max(1);
        for (index, leaf) in leaves.iter().enumerate().step_by(step) {
            prove_inclusion(log, LeafIndex(index as u64), *leaf, *last).await;
        }
    }
    entries
}

/// Verifies the signature of every checkpoint with the key of [`identity`].
pub async fn check_signatures(log: &dyn LogReader) {
    for batch in all_batches(log).await {
        let checkpoint = open_checkpoint(&batch.checkpoint, verifiers()).expect("the checkpoint verifies");
        assert_eq!(checkpoint.size, batch.tree_size());
    }
}

/// Every batch of a log, read as a rebuild reads them.
pub async fn all_batches(log: &dyn LogReader) -> Vec<StoredBatch> {
    let mut batches: Vec<StoredBatch> = Vec::new();
    loop {
        let from = batches.last().map_or(0, |batch| batch.tree_size().0);
        let next = log.batches(LeafIndex(from), 500).await.expect("batches read");
        if next.is_empty() {
            return batches;
        }
        batches.extend(next);
    }
}

async fn prove_consistency(log: &dyn LogReader, from: (TreeSize, Digest), to: (TreeSize, Digest)) {
    let plan = Plan::consistency(from.0, to.0).expect("there is such a proof");
    let proof = plan.finish(&fetch(log, plan.ranges()).await).expect("the hashes answer the plan");
    check_consistency(&proof, from, to).unwrap_or_else(|error| panic!("{} to {}: {error}", from.0, to.0));
}

async fn prove_inclusion(log: &dyn LogReader, index: LeafIndex, leaf: Digest, tree: (TreeSize, Digest)) {
    let plan = Plan::inclusion(index, tree.0).expect("there is such a proof");
    let proof = plan.finish(&fetch(log, plan.ranges()).await).expect("the hashes answer the plan");
    check_inclusion(&proof, tree.0, tree.1, index, leaf).unwrap_or_else(|error| panic!("entry {index}: {error}"));
}

async fn fetch(log: &dyn LogReader, ranges: impl Iterator<Item = HashRange>) -> Vec<Vec<Digest>> {
    let mut runs = Vec::new();
    for range in ranges {
        runs.push(log.hashes(range.level, range.start, range.count).await.expect("hashes read"));
    }
    runs
}

fn filter() -> SessionFilter {
    SessionFilter { realm: realm(), key: None, open: None, kind: None }
}

async fn open_sessions_of(log: &dyn LogStore, key: KeyId) -> usize {
    let filter = SessionFilter { key: Some(key), open: Some(true), ..filter() };
    log.sessions(&filter, None, usize::MAX).await.expect("sessions read").len()
}

fn kept(number: u128) -> IdempotencyClaim {
    let answer = number.to_be_bytes().repeat(20);
    IdempotencyClaim { key: digest(number), request: digest(number + 1_000), answer, expires: at(100) }
}

fn credential(number: u128) -> Credential {
    Credential {
        id: format!("key-{number}"),
        digest: digest(number),
        realm: realm(),
        roles: vec![Role::Application, Role::Auditor],
        label: "für Tests".to_owned(),
        created_at: at(1),
        revoked_at: None,
    }
}

/// Small numbers without end, the same for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

// ---- The log itself -----------------------------------------------------------------------------------------------------

/// Nothing is there, and asking is no error.
pub async fn an_empty_log_answers_as_one(log: Arc<dyn LogStore>) {
    let head = log.head().await.unwrap();
    assert_eq!((head.size(), head.time, head.checkpoint), (TreeSize(0), Timestamp::default(), None));
    assert_eq!(log.batches(LeafIndex(0), 10).await.unwrap(), []);
    assert_eq!(log.entries(&[LeafIndex(0)]).await.unwrap(), [None]);
    assert_eq!(log.entries(&[]).await.unwrap(), []);
    assert_eq!(log.session_entries(session(1), Version::NONE, 10).await.unwrap(), []);
    assert_eq!(log.hashes(0, 0, 0).await.unwrap(), []);
    assert!(matches!(log.hashes(0, 0, 1).await, Err(ReadError::Corrupt(_))));
    assert!(matches!(log.hashes(8, 0, 1).await, Err(ReadError::Corrupt(_))));
    assert_eq!(log.data_keys(&[key(1), key(2)]).await.unwrap(), [None, None]);
    assert_eq!(log.data_keys(&[]).await.unwrap(), []);
    assert_eq!(log.data_keys_by_lookup(&[digest(1)]).await.unwrap(), [None]);
    assert_eq!(log.sessions(&filter(), None, 10).await.unwrap(), []);
    assert_eq!(log.uses(&[session(1)]).await.unwrap(), [None]);
    assert_eq!(log.answer(&digest(1)).await.unwrap(), None);
    assert_eq!(log.credentials().await.unwrap(), []);
    assert_eq!(log.forget_expired(at(0), 10).await.unwrap(), 0);
    log.mark_uses(&[]).await.unwrap();
    log.prepare(TreeSize(0), at(0)).await.unwrap();
    assert_eq!(check_log(&*log).await, []);
}

/// Leaves, sealed parts (none, empty and long ones), checkpoint and head.
pub async fn what_is_appended_reads_back_byte_for_byte(log: Arc<dyn LogStore>) {
    let long: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let batch = commit(
        &*log,
        vec![
            Draft::new(1).version(session(1), 1).sealed(key(1), [0, 255, 1]),
            Draft::new(2),
            Draft::new(3).sealed(key(2), []),
            Draft::new(4).sealed(key(1), long).padded(60_000),
            Draft::new(5).version(session(1), 2),
        ],
    )
    .await;
    let second = commit(&*log, vec![Draft::new(6).version(session(1), 3)]).await;
    assert_eq!(log.head().await.unwrap(), second.head);

    let stored = |batch: &Batch| StoredBatch {
        first: LeafIndex(batch.expected.0),
        leaves: batch.entries.iter().map(|entry| entry.bytes.clone()).collect(),
        sealed: batch.entries.iter().map(|entry| entry.sealed.clone()).collect(),
        checkpoint: batch.checkpoint.clone(),
    };
    assert_eq!(log.batches(LeafIndex(0), 100).await.unwrap(), [stored(&batch), stored(&second)]);

    let entry = |index: u64| {
        let (batch, place) = if index < 5 { (&batch, index as usize) } else { (&second, index as usize - 5) };
        let proposed = &batch.entries[place];
        Some(StoredEntry {
            index: LeafIndex(index),
            leaf: proposed.bytes.clone(),
            sealed: proposed.sealed.clone(),
            tree_size: batch.head.size(),
        })
    };
    let asked = [5, 0, 77, 3, 3, 6, u64::MAX, 1].map(LeafIndex);
    let expected = [entry(5), entry(0), None, entry(3), entry(3), None, None, entry(1)];
    assert_eq!(log.entries(&asked).await.unwrap(), expected);

    let versions = [(Version(1), LeafIndex(0)), (Version(2), LeafIndex(4)), (Version(3), LeafIndex(5))];
    assert_eq!(log.session_entries(session(1), Version::NONE, 10).await.unwrap(), versions);
    assert_eq!(log.session_entries(session(1), Version(1), 1).await.unwrap(), versions[1..2]);
    assert_eq!(log.session_entries(session(1), Version(3), 10).await.unwrap(), []);
    assert_eq!(log.session_entries(session(2), Version::NONE, 10).await.unwrap(), []);
    assert_eq!(check_log(&*log).await.len(), 6);
    check_signatures(&*log).await;
}

/// The batch that holds the entry comes first, whole; at least one comes, and not many more than asked for.
pub async fn batches_are_read_from_any_entry(log: Arc<dyn LogStore>) {
    let mut number = 0;
    for size in [3_usize, 1, 4, 2] {
        let drafts = (0..size).map(|_| {
            number += 1;
            Draft::new(number)
        });
        let drafts = drafts.collect();
        commit(&*log, drafts).await;
    }
    let firsts = async |from: u64, entries: usize| -> Vec<u64> {
        log.batches(LeafIndex(from), entries).await.unwrap().iter().map(|batch| batch.first.0).collect()
    };
    assert_eq!(firsts(0, 100).await, [0, 3, 4, 8]);
    assert_eq!(firsts(2, 100).await, [0, 3, 4, 8]);
    assert_eq!(firsts(3, 100).await, [3, 4, 8]);
    assert_eq!(firsts(9, 100).await, [8]);
    assert!(firsts(10, 100).await.is_empty());
    assert!(firsts(u64::MAX, 100).await.is_empty());
    for entries in [0, 1, 3] {
        assert_eq!(firsts(1, entries).await, [0]);
    }
    assert_eq!(firsts(0, 4).await, [0, 3]);
    assert_eq!(firsts(0, 5).await, [0, 3, 4]);
    assert_eq!(all_batches(&*log).await.len(), 4);
}

/// Past 256 and 600 entries, in batches that do not end where nodes do.
pub async fn hashes_read_back_at_every_stored_level(log: Arc<dyn LogStore>) {
    let (mut leaves, mut nodes) = (Vec::new(), Vec::new());
    for size in [1, 100, 154, 2, 300, 7, 60] {
        let first = leaves.len() as u128;
        let batch = commit(&*log, (first..first + size).map(Draft::new).collect()).await;
        leaves.extend(batch.entries.iter().map(|entry| entry.hash));
        nodes.extend(batch.nodes.iter().filter(|node| node.level == 8).map(|node| node.hash));
    }
    assert_eq!((leaves.len(), nodes.len()), (624, 2));
    for (start, count) in [(0, 1), (0, 128), (100, 2), (200, 128), (254, 4), (496, 128), (623, 1), (0, 624), (300, 0)] {
        let expected = &leaves[start as usize..(start + count) as usize];
        assert_eq!(log.hashes(0, start, count).await.unwrap(), expected, "{count} from {start}");
    }
    assert_eq!(log.hashes(8, 0, 2).await.unwrap(), nodes);
    assert_eq!(log.hashes(8, 1, 1).await.unwrap(), nodes[1..]);
    for (level, start, count) in [(0, 620, 5), (0, 624, 1), (8, 1, 2), (16, 0, 1)] {
        assert!(
            matches!(log.hashes(level, start, count).await, Err(ReadError::Corrupt(_))),
            "level {level} at {start}"
        );
    }
    check_log(&*log).await;
}

/// Many small batches and a few large ones.
pub async fn a_log_of_many_batches_proves_itself(log: Arc<dyn LogStore>) {
    let mut dice = Dice(17);
    let mut versions: HashMap<u128, u64> = HashMap::new();
    let mut number = 0;
    for _ in 0..60 {
        let mut drafts = Vec::new();
        let size = if dice.roll(10) == 0 { 90 } else { 1 + dice.roll(8) };
        for _ in 0..size {
            number += 1;
            let id = u128::from(dice.roll(40));
            let version = versions.entry(id).or_default();
            *version += 1;
            drafts.push(Draft::new(number).version(session(id), *version).sealed(key(id), [1; 90]));
        }
        commit(&*log, drafts).await;
    }
    assert_eq!(check_log(&*log).await.len() as u128, number);
}

/// The expected size is compared; what is there is told; nothing is done.
pub async fn an_append_to_another_size_is_moved(log: Arc<dyn LogStore>) {
    let stale = next_batch(&*log, vec![Draft::new(1)]).await;
    let first = commit(&*log, vec![Draft::new(2), Draft::new(3).at(at(5))]).await;
    assert_eq!(log.append(&stale).await.unwrap(), Appended::Moved(first.head.clone()));

    // Neither does a batch from the future fit, and to a batch that does not fit claims do not matter.
    let mut ahead = next_batch(&*log, vec![Draft::new(4).existing_key(key(1))]).await;
    ahead.expected = TreeSize(3);
    assert_eq!(log.append(&ahead).await.unwrap(), Appended::Moved(first.head.clone()));
    assert_eq!(log.append(&first).await.unwrap(), Appended::Moved(first.head), "the same batch again");
    assert_eq!(check_log(&*log).await.len(), 2);
}

/// The head says the time of the newest leaf, and what is sequenced behind it is not earlier.
pub async fn times_never_go_back(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).at(at(1000))]).await;
    commit(&*log, vec![Draft::new(2).at(at(10))]).await;
    assert_eq!(log.head().await.unwrap().time, at(1000));
    commit(&*log, vec![Draft::new(3).at(at(1001)), Draft::new(4).at(at(900))]).await;
    assert_eq!(log.head().await.unwrap().time, at(1001));
    check_log(&*log).await;
}

// ---- Versions -----------------------------------------------------------------------------------------------------------

/// One entry makes a version; the second is told so.
pub async fn a_taken_version_is_refused(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).version(session(1), 1)]).await;
    commit(&*log, vec![Draft::new(2).version(session(1), 2)]).await;
    refuse(&*log, vec![Draft::new(3).version(session(1), 1)], &[(0, Refusal::Version)]).await;
    let drafts = vec![
        Draft::new(4),
        Draft::new(5).version(session(1), 2),
        Draft::new(6).version(session(2), 1),
        Draft::new(7).version(session(1), 1),
    ];
    refuse(&*log, drafts, &[(1, Refusal::Version), (3, Refusal::Version)]).await;
    assert_eq!(log.session_entries(session(2), Version::NONE, 9).await.unwrap(), []);
    commit(&*log, vec![Draft::new(8).version(session(1), 3)]).await;
    check_log(&*log).await;
}

/// A version follows directly on the newest.
pub async fn a_gap_in_versions_is_refused(log: Arc<dyn LogStore>) {
    refuse(&*log, vec![Draft::new(1).version(session(1), 2)], &[(0, Refusal::Version)]).await;
    refuse(&*log, vec![Draft::new(1).version(session(1), 0)], &[(0, Refusal::Version)]).await;
    commit(&*log, vec![Draft::new(2).version(session(1), 1)]).await;
    refuse(&*log, vec![Draft::new(3).version(session(1), 3)], &[(0, Refusal::Version)]).await;
    let drafts = vec![Draft::new(4).version(session(1), 2), Draft::new(5).version(session(1), 4)];
    refuse(&*log, drafts, &[(1, Refusal::Version)]).await;
    check_log(&*log).await;
}

/// In order, of a new session and of one that is there.
pub async fn one_batch_may_make_two_versions_of_a_session(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).version(session(1), 1), Draft::new(2).version(session(1), 2)]).await;
    let drafts = vec![
        Draft::new(3).version(session(1), 3),
        Draft::new(4).version(session(2), 1),
        Draft::new(5).version(session(1), 4),
    ];
    commit(&*log, drafts).await;
    let drafts = vec![Draft::new(6).version(session(3), 2), Draft::new(7).version(session(3), 1)];
    refuse(&*log, drafts, &[(0, Refusal::Version)]).await;
    assert_eq!(check_log(&*log).await.len(), 5);
}

/// The later entry is refused, and what it would have made possible with it.
pub async fn a_version_claimed_twice_in_a_batch_goes_to_the_first(log: Arc<dyn LogStore>) {
    let drafts = vec![
        Draft::new(1).version(session(1), 1),
        Draft::new(2).version(session(1), 1),
        Draft::new(3).version(session(1), 2),
        Draft::new(4).version(session(1), 2),
    ];
    refuse(&*log, drafts, &[(1, Refusal::Version), (3, Refusal::Version)]).await;
}

// ---- Data keys ----------------------------------------------------------------------------------------------------------

/// From before, or from an earlier entry of the batch.
pub async fn an_existing_data_key_must_exist(log: Arc<dyn LogStore>) {
    refuse(&*log, vec![Draft::new(1).existing_key(key(1))], &[(0, Refusal::DataKeyMissing)]).await;
    let drafts = vec![Draft::new(1).existing_key(key(1)), Draft::new(2).new_key(key_row(1))];
    refuse(&*log, drafts, &[(0, Refusal::DataKeyMissing)]).await;
    commit(&*log, vec![Draft::new(2).new_key(key_row(1)), Draft::new(1).existing_key(key(1))]).await;
    commit(&*log, vec![Draft::new(3).existing_key(key(1)), Draft::new(4).existing_key(key(1))]).await;
    let mut anonymous = key_row(2);
    (anonymous.lookup, anonymous.owner) = (None, Some(key(1)));
    commit(&*log, vec![Draft::new(5).new_key(anonymous.clone())]).await;

    let found = log.data_keys(&[key(2), key(9), key(1), key(2)]).await.unwrap();
    assert_eq!(found, [Some(anonymous.clone()), None, Some(key_row(1)), Some(anonymous)]);
    assert_eq!(log.data_keys_by_lookup(&[digest(2), digest(1)]).await.unwrap(), [None, Some(key_row(1))]);
}

/// Neither its id nor its lookup is in use; many keys have no lookup.
pub async fn a_new_data_key_must_be_new(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1))]).await;
    let same_id = DataKeyRow { lookup: Some(digest(8)), ..key_row(1) };
    let same_lookup = DataKeyRow { id: key(8), ..key_row(1) };
    for row in [key_row(1), same_id, DataKeyRow { lookup: None, ..key_row(1) }, same_lookup] {
        refuse(&*log, vec![Draft::new(2), Draft::new(3).new_key(row)], &[(1, Refusal::DataKeyTaken)]).await;
    }
    let without = |number| DataKeyRow { lookup: None, ..key_row(number) };
    commit(&*log, vec![Draft::new(4).new_key(without(2)), Draft::new(5).new_key(without(3))]).await;
    commit(&*log, vec![Draft::new(6).new_key(without(4))]).await;
    assert_eq!(log.data_keys_by_lookup(&[digest(8), digest(1)]).await.unwrap(), [None, Some(key_row(1))]);
}

/// The later entry is refused, by id and by lookup.
pub async fn a_data_key_is_claimed_once_in_a_batch(log: Arc<dyn LogStore>) {
    let same_id = DataKeyRow { lookup: None, ..key_row(1) };
    let same_lookup = DataKeyRow { id: key(8), ..key_row(1) };
    let drafts = vec![
        Draft::new(1).new_key(key_row(1)),
        Draft::new(2).new_key(same_id),
        Draft::new(3).new_key(same_lookup),
        Draft::new(4).new_key(key_row(2)),
    ];
    refuse(&*log, drafts, &[(1, Refusal::DataKeyTaken), (2, Refusal::DataKeyTaken)]).await;
    assert_eq!(log.data_keys(&[key(1), key(2)]).await.unwrap(), [None, None]);
}

// ---- Seats --------------------------------------------------------------------------------------------------------------

fn creates(number: u128, subject: KeyId, cap: u32) -> Draft {
    Draft::new(number).version(session(number), 1).existing_key(subject).take_seat(subject, cap).opens(subject)
}

fn ends(number: u128, id: u128, version: u64, subject: KeyId) -> Draft {
    Draft::new(number).version(session(id), version).free_seat(subject).index(SessionChange::Closed)
}

/// One subject's seats are not another's, and a freed seat can be taken.
pub async fn a_cap_holds_across_batches(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)), Draft::new(2).new_key(key_row(2))]).await;
    commit(&*log, vec![creates(11, key(1), 2)]).await;
    commit(&*log, vec![creates(12, key(1), 2), creates(21, key(2), 1)]).await;
    refuse(&*log, vec![creates(13, key(1), 2)], &[(0, Refusal::CapReached)]).await;
    refuse(&*log, vec![creates(22, key(2), 1)], &[(0, Refusal::CapReached)]).await;
    refuse(&*log, vec![creates(22, key(2), 0)], &[(0, Refusal::CapReached)]).await;
    // The cap is the claim's, not the store's.
    commit(&*log, vec![creates(13, key(1), 3)]).await;
    commit(&*log, vec![ends(3, 11, 2, key(1))]).await;
    commit(&*log, vec![ends(4, 12, 2, key(1))]).await;
    commit(&*log, vec![creates(14, key(1), 2)]).await;
    refuse(&*log, vec![creates(15, key(1), 2)], &[(0, Refusal::CapReached)]).await;
    assert_eq!(open_sessions_of(&*log, key(1)).await, 2);
}

/// Those that come later in the batch are refused; a key new in the batch counts from 0.
pub async fn a_cap_holds_within_a_batch(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1))]).await;
    commit(&*log, vec![creates(11, key(1), 3)]).await;
    let drafts = vec![
        creates(12, key(1), 3),
        Draft::new(2),
        creates(13, key(1), 3),
        creates(14, key(1), 3),
        creates(15, key(1), 3),
    ];
    refuse(&*log, drafts, &[(3, Refusal::CapReached), (4, Refusal::CapReached)]).await;
    commit(&*log, vec![creates(12, key(1), 3), creates(13, key(1), 3)]).await;

    let first = |number| {
        let draft = Draft::new(number).version(session(number), 1).new_key(key_row(2));
        draft.take_seat(key(2), 2).opens(key(2))
    };
    refuse(&*log, vec![first(21), creates(22, key(2), 2), creates(23, key(2), 2)], &[(2, Refusal::CapReached)]).await;
    commit(&*log, vec![first(21), creates(22, key(2), 2)]).await;
    refuse(&*log, vec![creates(23, key(2), 2)], &[(0, Refusal::CapReached)]).await;
    assert_eq!(open_sessions_of(&*log, key(2)).await, 2);
}

/// Wherever in the batch the freeing entry stands; and a session may begin and end in one batch.
pub async fn seats_are_freed_before_they_are_taken(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)), creates(11, key(1), 1)]).await;
    commit(&*log, vec![creates(12, key(1), 1), ends(2, 11, 2, key(1))]).await;
    assert_eq!(open_sessions_of(&*log, key(1)).await, 1);
    commit(&*log, vec![ends(3, 12, 2, key(1)), creates(13, key(1), 1)]).await;
    refuse(&*log, vec![creates(14, key(1), 1)], &[(0, Refusal::CapReached)]).await;
    commit(&*log, vec![ends(4, 13, 2, key(1)), creates(15, key(1), 1), ends(5, 15, 2, key(1)), creates(16, key(1), 1)])
        .await;
    assert_eq!(open_sessions_of(&*log, key(1)).await, 1);
    commit(&*log, vec![ends(6, 16, 2, key(1))]).await;
    assert_eq!(open_sessions_of(&*log, key(1)).await, 0);
    commit(&*log, vec![creates(17, key(1), 1)]).await;
    check_log(&*log).await;
}

// ---- The index of sessions ----------------------------------------------------------------------------------------------

/// From before, and all in one batch; a session that had no key of its own is moved just so.
pub async fn binding_moves_the_session_and_its_own_key(log: Arc<dyn LogStore>) {
    let own = |id: u128| KeyId::new(session(id).uuid());
    let anonymous = |id: u128| DataKeyRow { id: own(id), lookup: None, wrapped: vec![1; 60], owner: None, held: false };
    let opened = |id: u128| Draft::new(id).version(session(id), 1).new_key(anonymous(id)).opens(own(id));
    let bound = |number: u128, id: u128| {
        Draft::new(number).version(session(id), 2).existing_key(key(1)).index(SessionChange::Bound { key: key(1) })
    };
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)), Draft::new(2).new_key(key_row(2)), opened(10), opened(11)])
        .await;
    commit(&*log, vec![bound(3, 10)]).await;
    commit(&*log, vec![opened(12), bound(4, 12)]).await;
    let other = Draft::new(13).version(session(13), 1).existing_key(key(2)).opens(key(2));
    commit(&*log, vec![other, bound(5, 13)]).await;

    let owned = |id: u128| Some(DataKeyRow { owner: Some(key(1)), ..anonymous(id) });
    let found = log.data_keys(&[own(10), own(11), own(12), own(13), key(1), key(2)]).await.unwrap();
    assert_eq!(found, [owned(10), Some(anonymous(11)), owned(12), None, Some(key_row(1)), Some(key_row(2))]);
    let of = async |key| {
        let filter = SessionFilter { key: Some(key), ..filter() };
        log.sessions(&filter, None, 10).await.unwrap()
    };
    assert_eq!(of(key(1)).await, [session(13), session(12), session(10)]);
    assert_eq!(of(own(10)).await, []);
    assert_eq!(of(own(11)).await, [], "its own key is no subject's");
    assert_eq!(of(key(2)).await, []);
}

/// Newest first, page by page, in every combination.
pub async fn sessions_are_listed_by_every_filter(log: Arc<dyn LogStore>) {
    struct Row {
        id: SessionId,
        realm: RealmName,
        key: KeyId,
        kind: Kind,
        open: bool,
    }
    let realms: [RealmName; 2] = [realm(), "other".parse().unwrap()];
    let kinds = [Kind::Web, Kind::Api, Kind::Browser];
    let mut dice = Dice(5);
    let mut rows = Vec::new();
    // Not in the order of their ids.
    for number in (0..40_u128).map(|i| i * 7 % 40) {
        let pick = |dice: &mut Dice, sides: u64| dice.roll(sides) as usize;
        let realm = realms[pick(&mut dice, 2)].clone();
        let kind = kinds[pick(&mut dice, 3)];
        let row = Row { id: session(number), realm, key: key(dice.roll(3).into()), kind, open: dice.roll(3) > 0 };
        let change = SessionChange::Opened { realm: row.realm.clone(), key: row.key, kind };
        let mut drafts = vec![Draft::new(number).version(row.id, 1).index(change)];
        let end = Draft::new(100 + number).version(row.id, 2).index(SessionChange::Closed);
        if !row.open && dice.roll(2) == 0 {
            drafts.push(end);
            commit(&*log, drafts).await;
        } else {
            commit(&*log, drafts).await;
            if !row.open {
                commit(&*log, vec![end]).await;
            }
        }
        rows.push(row);
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));

    let some = |values: &[Option<KeyId>]| values.to_vec();
    for realm in &realms {
        for key in some(&[None, Some(key(0)), Some(key(1)), Some(key(9))]) {
            for open in [None, Some(true), Some(false)] {
                for kind in [None, Some(Kind::Web), Some(Kind::Browser), Some(Kind::Sms)] {
                    let filter = SessionFilter { realm: realm.clone(), key, open, kind };
                    let fits = |row: &&Row| {
                        row.realm == *realm
                            && key.is_none_or(|key| key == row.key)
                            && open.is_none_or(|open| open == row.open)
                            && kind.is_none_or(|kind| kind == row.kind)
                    };
                    let expected: Vec<_> = rows.iter().filter(fits).map(|row| row.id).collect();
                    assert_eq!(log.sessions(&filter, None, 1000).await.unwrap(), expected, "{filter:?}");
                    let mut paged: Vec<SessionId> = Vec::new();
                    loop {
                        let page = log.sessions(&filter, paged.last().copied(), 3).await.unwrap();
                        assert!(page.len() <= 3);
                        if page.is_empty() {
                            break;
                        }
                        paged.extend(page);
                    }
                    assert_eq!(paged, expected, "{filter:?}, page by page");
                }
            }
        }
    }
    let nowhere = SessionFilter { realm: "nowhere".parse().unwrap(), ..filter() };
    assert_eq!(log.sessions(&nowhere, None, 10).await.unwrap(), []);
}

// ---- Kept answers -------------------------------------------------------------------------------------------------------

/// The first keeps it, with the index of its entry; the second is refused.
pub async fn an_answer_is_kept_once(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1), Draft::new(2).answer(kept(1)), Draft::new(3)]).await;
    let answer = log.answer(&digest(1)).await.unwrap().unwrap();
    assert_eq!((answer.request, answer.answer, answer.index), (kept(1).request, kept(1).answer, LeafIndex(1)));
    assert_eq!(answer.expires, kept(1).expires);
    let other = IdempotencyClaim { request: digest(5), answer: vec![], ..kept(1) };
    refuse(
        &*log,
        vec![Draft::new(4).answer(kept(2)), Draft::new(5).answer(other)],
        &[(1, Refusal::IdempotencyKeyUsed)],
    )
    .await;
    assert_eq!(log.answer(&digest(2)).await.unwrap(), None);
    commit(&*log, vec![Draft::new(6).answer(IdempotencyClaim { answer: vec![], ..kept(2) })]).await;
    let empty = log.answer(&digest(2)).await.unwrap().unwrap();
    assert_eq!((empty.answer, empty.index), (vec![], LeafIndex(3)));
}

/// The later entry is refused.
pub async fn an_answer_is_kept_once_in_a_batch(log: Arc<dyn LogStore>) {
    let drafts = vec![Draft::new(1).answer(kept(1)), Draft::new(2).answer(kept(2)), Draft::new(3).answer(kept(1))];
    refuse(&*log, drafts, &[(2, Refusal::IdempotencyKeyUsed)]).await;
    assert_eq!(log.answer(&digest(1)).await.unwrap(), None);
}

/// Only those that expired before the given time, only so many at once; then the key is free.
pub async fn expired_answers_are_forgotten(log: Arc<dyn LogStore>) {
    let expiring =
        |number: u128, seconds| Draft::new(number).answer(IdempotencyClaim { expires: at(seconds), ..kept(number) });
    let drafts = vec![expiring(1, 10), expiring(2, 20), expiring(3, 10), expiring(4, 30), expiring(5, 10)];
    commit(&*log, drafts).await;
    assert_eq!(log.forget_expired(at(10), 100).await.unwrap(), 0, "an answer is kept until after its last moment");
    assert_eq!(log.forget_expired(at(11), 2).await.unwrap(), 2);
    assert_eq!(log.forget_expired(at(11), 100).await.unwrap(), 1);
    assert_eq!(log.forget_expired(at(11), 100).await.unwrap(), 0);
    for (number, there) in [(1, false), (2, true), (3, false), (4, true), (5, false)] {
        assert_eq!(log.answer(&digest(number)).await.unwrap().is_some(), there, "answer {number}");
    }
    commit(&*log, vec![expiring(1, 50)]).await;
    assert_eq!(log.answer(&digest(1)).await.unwrap().unwrap().index, LeafIndex(5));
}

// ---- Marks of use -------------------------------------------------------------------------------------------------------

/// Neither within a call nor from one to the next.
pub async fn marks_of_use_never_go_back(log: Arc<dyn LogStore>) {
    log.mark_uses(&[(session(1), at(5)), (session(2), at(7))]).await.unwrap();
    log.mark_uses(&[
        (session(1), at(4)),
        (session(2), at(9)),
        (session(3), at(1)),
        (session(3), at(3)),
        (session(3), at(2)),
    ])
    .await
    .unwrap();
    let ids = [session(3), session(9), session(1), session(2), session(1)];
    assert_eq!(log.uses(&ids).await.unwrap(), [Some(at(3)), None, Some(at(5)), Some(at(9)), Some(at(5))]);
    let many: Vec<_> = (0..3_000).map(|number| (session(100 + number), at(1))).collect();
    log.mark_uses(&many).await.unwrap();
    let ids: Vec<_> = many.iter().map(|(id, _)| *id).collect();
    assert_eq!(log.uses(&ids).await.unwrap(), vec![Some(at(1)); 3_000]);
    assert_eq!(log.head().await.unwrap().size(), TreeSize(0), "a mark is not an entry");
}

/// Whether they ended before or after they were marked; those of open and unknown sessions stay.
pub async fn marks_of_closed_sessions_are_forgotten(log: Arc<dyn LogStore>) {
    let opened = |id: u128| Draft::new(id).version(session(id), 1).opens(key(1));
    commit(&*log, vec![opened(1), opened(2), opened(3)]).await;
    log.mark_uses(&[(session(1), at(1)), (session(2), at(1)), (session(4), at(1))]).await.unwrap();
    let closed = |number, id: u128| Draft::new(number).version(session(id), 2).index(SessionChange::Closed);
    commit(&*log, vec![closed(10, 1), closed(11, 3)]).await;
    log.mark_uses(&[(session(3), at(2))]).await.unwrap();
    assert_eq!(log.forget_expired(at(0), 100).await.unwrap(), 0, "marks are not counted");
    let ids = [session(1), session(2), session(3), session(4)];
    assert_eq!(log.uses(&ids).await.unwrap(), [None, Some(at(1)), None, Some(at(1))]);
}

// ---- Credentials --------------------------------------------------------------------------------------------------------

/// In the order they came; a known digest is left as it is; the first revocation counts.
pub async fn credentials_are_added_and_revoked(log: Arc<dyn LogStore>) {
    let added = |number| CredentialChange::Added(credential(number));
    commit(&*log, vec![Draft::new(1).credential(added(3)), Draft::new(2).credential(added(1))]).await;
    let again = Credential { id: "key-9".to_owned(), label: "again".to_owned(), roles: vec![], ..credential(3) };
    commit(&*log, vec![Draft::new(3).credential(CredentialChange::Added(again)), Draft::new(4).credential(added(2))])
        .await;
    assert_eq!(log.credentials().await.unwrap(), [credential(3), credential(1), credential(2)]);

    let revoked = |id: &str, seconds| CredentialChange::Revoked(id.to_owned(), at(seconds));
    commit(&*log, vec![Draft::new(5).credential(revoked("key-1", 50))]).await;
    let drafts = vec![Draft::new(6).credential(revoked("key-1", 60)), Draft::new(7).credential(revoked("key-0", 60))];
    commit(&*log, drafts).await;
    commit(&*log, vec![Draft::new(8).credential(added(4)), Draft::new(9).credential(revoked("key-4", 70))]).await;
    let gone = |number, seconds| Credential { revoked_at: Some(at(seconds)), ..credential(number) };
    assert_eq!(log.credentials().await.unwrap(), [credential(3), gone(1, 50), credential(2), gone(4, 70)]);
}

// ---- Whole batches ------------------------------------------------------------------------------------------------------

/// By its bytes: another batch at the same place is not this one.
pub async fn resolve_tells_whether_a_batch_is_there(log: Arc<dyn LogStore>) {
    let lost = next_batch(&*log, vec![Draft::new(1), Draft::new(2)]).await;
    assert!(!log.resolve(&lost).await.unwrap());
    let first = commit(&*log, vec![Draft::new(3), Draft::new(4)]).await;
    assert!(log.resolve(&first).await.unwrap());
    assert!(!log.resolve(&lost).await.unwrap());
    let second = commit(&*log, vec![Draft::new(5)]).await;
    assert!(log.resolve(&first).await.unwrap());
    assert!(log.resolve(&second).await.unwrap());
    let mut cut = first.clone();
    cut.entries.pop();
    assert!(!log.resolve(&cut).await.unwrap());
    let mut shifted = second;
    shifted.expected = TreeSize(1);
    assert!(!log.resolve(&shifted).await.unwrap());
    assert_eq!(check_log(&*log).await.len(), 3, "asking changes nothing");
}

/// What is refused was refused before anybody else could append; what is left is appended before anybody else can.
pub async fn a_turn_goes_on_after_a_refusal(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(0).version(session(1), 1)]).await;
    let mut turn = take_turn(&*log).await;
    let batch = batch_in(&*turn, vec![Draft::new(1).version(session(1), 1), Draft::new(2).version(session(2), 1)]);
    let refused = Appended::Refused(vec![Refused { at: 0, why: Refusal::Version }]);
    assert_eq!(turn.append(&batch).await.unwrap(), refused);
    assert_eq!(turn.append(&batch).await.unwrap(), refused, "and it stays refused");
    let rest = batch_in(&*turn, vec![Draft::new(2).version(session(2), 1)]);
    assert_eq!(turn.append(&rest).await.unwrap(), Appended::Committed);
    drop(turn);
    commit(&*log, vec![Draft::new(3)]).await;
    assert_eq!(check_log(&*log).await.len(), 3);
}

/// Whether it was given back, or dropped, with something refused in it or nothing asked.
pub async fn a_turn_given_back_leaves_no_trace(log: Arc<dyn LogStore>) {
    let batch = commit(&*log, vec![Draft::new(0).version(session(1), 1)]).await;
    for (number, refuse, dropped) in [(1, false, false), (2, false, true), (3, true, false), (4, true, true)] {
        let mut turn = take_turn(&*log).await;
        if refuse {
            let refused = batch_in(&*turn, vec![Draft::new(9).version(session(1), 1)]);
            assert!(matches!(turn.append(&refused).await.unwrap(), Appended::Refused(_)));
        }
        if dropped {
            drop(turn);
        } else {
            turn.end().await;
        }
        assert_eq!(log.head().await.unwrap().size(), TreeSize(number), "something was done");
        assert!(log.resolve(&batch).await.unwrap());
        commit(&*log, vec![Draft::new(u128::from(number))]).await;
    }
    assert_eq!(check_log(&*log).await.len(), 5);
}

/// Not in the log, and not beside it: the same claims are good once the one that was not is gone.
pub async fn a_refused_batch_leaves_no_trace(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)), Draft::new(2).version(session(1), 1).opens(key(1))]).await;
    let before = log.head().await.unwrap();
    let good = || {
        vec![
            Draft::new(10)
                .version(session(2), 1)
                .new_key(key_row(2))
                .take_seat(key(2), 1)
                .opens(key(2))
                .answer(kept(1)),
            Draft::new(11).version(session(3), 1).existing_key(key(1)).take_seat(key(1), 1).opens(key(1)),
            Draft::new(12).version(session(1), 2).index(SessionChange::Closed),
            Draft::new(13).credential(CredentialChange::Added(credential(1))),
            Draft::new(14).version(session(2), 2).index(SessionChange::Bound { key: key(1) }),
        ]
    };
    let mut drafts = good();
    drafts.push(Draft::new(15).version(session(1), 9));
    refuse(&*log, drafts, &[(5, Refusal::Version)]).await;

    assert_eq!(log.head().await.unwrap(), before);
    assert_eq!(log.batches(LeafIndex(2), 10).await.unwrap(), []);
    assert_eq!(log.entries(&[LeafIndex(2)]).await.unwrap(), [None]);
    assert!(log.hashes(0, 2, 1).await.is_err());
    assert_eq!(log.session_entries(session(2), Version::NONE, 9).await.unwrap(), []);
    assert_eq!(log.session_entries(session(1), Version(1), 9).await.unwrap(), []);
    assert_eq!(log.data_keys(&[key(2)]).await.unwrap(), [None]);
    assert_eq!(log.data_keys_by_lookup(&[digest(2)]).await.unwrap(), [None]);
    assert_eq!(log.sessions(&SessionFilter { open: Some(true), ..filter() }, None, 9).await.unwrap(), [session(1)]);
    assert_eq!(log.answer(&digest(1)).await.unwrap(), None);
    assert_eq!(log.credentials().await.unwrap(), []);

    // Caps of 1: a seat left over from the refused batch would be noticed.
    commit(&*log, good()).await;
    assert_eq!(check_log(&*log).await.len(), 7);
}

/// Each with its own reason; an entry that fails in two ways is told the first: version, data key, cap, idempotency key.
pub async fn every_refusal_of_a_batch_is_reported(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)), creates(11, key(1), 1), Draft::new(2).answer(kept(1))]).await;
    let drafts = vec![
        Draft::new(20).answer(kept(1)),
        Draft::new(21),
        Draft::new(22).existing_key(key(5)),
        Draft::new(23).new_key(key_row(1)),
        creates(12, key(1), 1),
        Draft::new(24).version(session(11), 1),
        Draft::new(25).version(session(11), 1).existing_key(key(5)).take_seat(key(1), 1).answer(kept(1)),
        Draft::new(26).existing_key(key(5)).take_seat(key(1), 1).answer(kept(1)),
        Draft::new(27).take_seat(key(1), 1).answer(kept(1)),
    ];
    let refused = [
        (0, Refusal::IdempotencyKeyUsed),
        (2, Refusal::DataKeyMissing),
        (3, Refusal::DataKeyTaken),
        (4, Refusal::CapReached),
        (5, Refusal::Version),
        (6, Refusal::Version),
        (7, Refusal::DataKeyMissing),
        (8, Refusal::CapReached),
    ];
    refuse(&*log, drafts, &refused).await;

    // What a refused entry would have changed does not count for those after it.
    let drafts = vec![
        Draft::new(30).version(session(50), 2).new_key(key_row(3)).answer(kept(3)),
        Draft::new(31).existing_key(key(3)),
        Draft::new(32).answer(kept(3)),
    ];
    refuse(&*log, drafts, &[(0, Refusal::Version), (1, Refusal::DataKeyMissing)]).await;
}

/// The key, its lookup and what it owns; other keys stay. What is gone cannot be erased again, and its lookup is free.
pub async fn an_erased_key_is_gone_with_those_it_owns(log: Arc<dyn LogStore>) {
    let owned = DataKeyRow { lookup: None, owner: Some(key(1)), ..key_row(2) };
    let drafts = [key_row(1), owned.clone(), key_row(3)].map(|row| Draft::new(row.id.uuid().as_u128()).new_key(row));
    commit(&*log, drafts.to_vec()).await;
    assert_eq!(log.data_keys_owned_by(key(1)).await.unwrap(), [key(2)]);
    commit(&*log, vec![Draft::new(4).answer(kept(1)).subject(SubjectChange::Erased(key(1)))]).await;
    assert_eq!(log.answer(&digest(1)).await.unwrap().unwrap().index, LeafIndex(3));
    assert_eq!(log.data_keys(&[key(1), key(2), key(3)]).await.unwrap(), [None, None, Some(key_row(3))]);
    assert_eq!(log.data_keys_by_lookup(&[digest(1)]).await.unwrap(), [None]);
    assert!(log.data_keys_owned_by(key(1)).await.unwrap().is_empty());
    let again = vec![Draft::new(5).subject(SubjectChange::Erased(key(1)))];
    refuse(&*log, again, &[(0, Refusal::DataKeyMissing)]).await;
    refuse(&*log, vec![Draft::new(6).existing_key(key(2))], &[(0, Refusal::DataKeyMissing)]).await;
    commit(&*log, vec![Draft::new(7).new_key(DataKeyRow { id: key(9), ..key_row(1) })]).await;
}

/// Until it is released.
pub async fn a_held_key_is_not_erased(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)).subject(SubjectChange::Held(key(1), true))]).await;
    let held = log.data_keys(&[key(1)]).await.unwrap();
    assert_eq!(held, [Some(DataKeyRow { held: true, ..key_row(1) })]);
    let erase = || vec![Draft::new(2).subject(SubjectChange::Erased(key(1)))];
    refuse(&*log, erase(), &[(0, Refusal::LegalHold)]).await;
    let release = Draft::new(3).existing_key(key(1)).subject(SubjectChange::Held(key(1), false));
    commit(&*log, vec![release]).await;
    commit(&*log, erase()).await;
}

/// From the first, and from behind any.
pub async fn data_keys_are_gone_through_in_order(log: Arc<dyn LogStore>) {
    assert!(log.data_keys_after(None, 9).await.unwrap().is_empty());
    let keys: Vec<Draft> = [5, 1, 4, 2, 3].map(|number| Draft::new(number).new_key(key_row(number))).to_vec();
    commit(&*log, keys).await;
    let after = async |after: Option<u128>, limit| {
        let found = log.data_keys_after(after.map(key), limit).await.unwrap();
        found.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(after(None, 2).await, [key(1), key(2)]);
    assert_eq!(after(Some(2), 9).await, [key(3), key(4), key(5)]);
    assert!(after(Some(5), 9).await.is_empty());
    assert_eq!(log.data_keys_after(Some(key(1)), 1).await.unwrap(), [key_row(2)]);
}

/// And nothing else of it changes: lookup, owner, hold, open sessions.
pub async fn a_data_key_is_wrapped_anew_only_as_it_was_read(log: Arc<dyn LogStore>) {
    let held = Draft::new(1).new_key(key_row(1)).take_seat(key(1), 1).subject(SubjectChange::Held(key(1), true));
    let owned = DataKeyRow { lookup: None, owner: Some(key(1)), ..key_row(2) };
    commit(&*log, vec![held, Draft::new(2).new_key(owned.clone()), Draft::new(3).new_key(key_row(3))]).await;
    let to =
        |number: u128, from: u8, to: u8| Rewrap { id: key(number), wrapped: vec![from; 60], rewrapped: vec![to; 69] };
    // One that is there, one that is wrapped otherwise, one that does not exist.
    assert_eq!(log.rewrap(&[to(1, 7, 8), to(2, 7, 9), to(3, 6, 9), to(4, 7, 9)]).await.unwrap(), 2);
    assert_eq!(log.rewrap(&[to(1, 7, 9)]).await.unwrap(), 0, "it is not as it was any more");
    assert_eq!(log.rewrap(&[]).await.unwrap(), 0);
    let now = log.data_keys(&[key(1), key(2), key(3), key(4)]).await.unwrap();
    let first = DataKeyRow { wrapped: vec![8; 69], held: true, ..key_row(1) };
    assert_eq!(now, [Some(first), Some(DataKeyRow { wrapped: vec![9; 69], ..owned }), Some(key_row(3)), None]);
    assert!(log.data_keys_by_lookup(&[digest(1)]).await.unwrap()[0].is_some());
    refuse(&*log, vec![creates(5, key(1), 1)], &[(0, Refusal::CapReached)]).await;
}

/// All of a batch or some; nothing else, and nothing that is not as it was read.
pub async fn sealed_parts_are_dropped_and_the_log_still_proves_itself(log: Arc<dyn LogStore>) {
    let sealed = |number: u128| Draft::new(number).sealed(key(number), vec![u8::try_from(number).unwrap_or(0); 40]);
    commit(&*log, vec![sealed(1), Draft::new(2), sealed(3)]).await;
    commit(&*log, vec![sealed(4), sealed(5)]).await;
    let before = check_log(&*log).await;
    let [one, two] = log.sealed_batches(LeafIndex(0), 100).await.unwrap().try_into().unwrap();
    let part = Prune { first: one.first, was: one.sealed.clone(), kept: vec![None, None, one.sealed[2].clone()] };
    let forged = vec![None, None, Some(SealedEntry { key: key(3), bytes: vec![9; 40] })];
    assert!(!log.prune(&Prune { kept: forged, ..part.clone() }).await.unwrap(), "something else in its place");
    assert!(!log.prune(&Prune { kept: part.was.clone(), ..part.clone() }).await.unwrap(), "nothing to do");
    assert!(!log.prune(&Prune { first: LeafIndex(1), ..part.clone() }).await.unwrap_or(false), "no batch begins there");
    assert!(log.prune(&part).await.unwrap());
    assert!(!log.prune(&part).await.unwrap(), "it is not as it was any more");
    assert!(log.prune(&Prune { first: two.first, was: two.sealed.clone(), kept: vec![None, None] }).await.unwrap());

    let after = check_log(&*log).await;
    assert_eq!(
        after.iter().map(|entry| &entry.leaf).collect::<Vec<_>>(),
        before.iter().map(|entry| &entry.leaf).collect::<Vec<_>>()
    );
    let left: Vec<bool> = after.iter().map(|entry| entry.sealed.is_some()).collect();
    assert_eq!(left, [false, false, true, false, false]);
    assert_eq!(log.sealed_batches(LeafIndex(0), 100).await.unwrap().len(), 1);
    let rest = Prune { first: one.first, was: part.kept, kept: vec![None; 3] };
    assert!(log.prune(&rest).await.unwrap());
    assert!(log.sealed_batches(LeafIndex(0), 100).await.unwrap().is_empty());
    commit(&*log, vec![sealed(6)]).await;
    assert_eq!(check_log(&*log).await.len(), 6);
}

/// And those of keys that a held one owns.
pub async fn sealed_parts_of_held_keys_stay(log: Arc<dyn LogStore>) {
    let owned = DataKeyRow { lookup: None, owner: Some(key(1)), ..key_row(2) };
    let sealed = |number: u128, row| Draft::new(number).sealed(key(number), vec![1; 40]).new_key(row);
    commit(&*log, vec![sealed(1, key_row(1)), sealed(2, owned), sealed(3, key_row(3))]).await;
    commit(&*log, vec![Draft::new(4).subject(SubjectChange::Held(key(1), true))]).await;
    let batch = log.sealed_batches(LeafIndex(0), 1).await.unwrap().remove(0);
    let without = |gone: usize| {
        let mut kept = batch.sealed.clone();
        kept[gone] = None;
        Prune { first: batch.first, was: batch.sealed.clone(), kept }
    };
    assert!(!log.prune(&without(0)).await.unwrap() && !log.prune(&without(1)).await.unwrap());
    assert!(log.prune(&without(2)).await.unwrap(), "another's");
    commit(&*log, vec![Draft::new(5).subject(SubjectChange::Held(key(1), false))]).await;
    let all = Prune { first: batch.first, was: without(2).kept, kept: vec![None; 3] };
    assert!(log.prune(&all).await.unwrap(), "released");
}

/// Those without are passed over, however many they are.
pub async fn batches_with_sealed_parts_are_found_from_any_entry(log: Arc<dyn LogStore>) {
    for number in 0..80_u128 {
        let draft = Draft::new(number);
        commit(&*log, vec![if number % 70 == 5 { draft.sealed(key(1), vec![1; 40]) } else { draft }]).await;
    }
    let from = async |from, entries| {
        let found = log.sealed_batches(LeafIndex(from), entries).await.unwrap();
        found.into_iter().map(|batch| batch.first.0).collect::<Vec<_>>()
    };
    assert_eq!(from(0, 100).await, [5, 75]);
    assert_eq!(from(0, 1).await, [5]);
    assert_eq!((from(5, 100).await, from(6, 100).await), (vec![5, 75], vec![75]));
    assert!(from(76, 100).await.is_empty());
}

/// Not while it has open sessions, and not beside anything that touches it in the same batch, before or after.
pub async fn a_key_in_use_is_not_erased(log: Arc<dyn LogStore>) {
    commit(&*log, vec![Draft::new(1).new_key(key_row(1)).take_seat(key(1), 5)]).await;
    let erase = || Draft::new(2).subject(SubjectChange::Erased(key(1)));
    refuse(&*log, vec![erase()], &[(0, Refusal::SubjectBusy)]).await;
    refuse(&*log, vec![Draft::new(3).free_seat(key(1)), erase()], &[(1, Refusal::SubjectBusy)]).await;
    commit(&*log, vec![Draft::new(3).free_seat(key(1))]).await;
    let hold = Draft::new(5).subject(SubjectChange::Held(key(1), true));
    for other in [Draft::new(4).existing_key(key(1)), hold, erase()] {
        let batch = next_batch(&*log, vec![erase(), other]).await;
        let Appended::Refused(refused) = log.append(&batch).await.unwrap() else { panic!("it was appended") };
        assert_eq!(refused.first(), Some(&Refused { at: 0, why: Refusal::SubjectBusy }));
    }
    commit(&*log, vec![erase()]).await;
}

fn posting(term: u8, segment: u32, offsets: &[u8]) -> Posting {
    Posting { term: Term([term; 16]), segment, offsets: offsets.to_vec() }
}

async fn found(log: &dyn LogStore, terms: &[u8], segments: std::ops::RangeInclusive<u32>) -> Vec<Posting> {
    let terms: Vec<Term> = terms.iter().map(|term| Term([*term; 16])).collect();
    let mut found = log.postings(&terms, segments).await.unwrap();
    found.sort_by_key(|posting| (posting.term, posting.segment));
    found
}

/// What is put replaces what was there; no offsets remove it.
pub async fn postings_read_back_by_term_and_segment(log: Arc<dyn LogStore>) {
    assert_eq!(log.projection().await.unwrap(), Projection::default());
    let all = [
        posting(1, 0, b"a"),
        posting(1, 1, b"b"),
        posting(1, 7, b"c"),
        posting(2, 1, &[9; 9_000]),
        posting(3, 1, b"x"),
    ];
    assert_eq!(log.project(Projection::default(), TreeSize(400_000), &all).await.unwrap(), Projected::Yes);
    assert_eq!(found(&*log, &[1, 2, 4], 0..=1).await, [all[0].clone(), all[1].clone(), all[3].clone()]);
    assert_eq!(found(&*log, &[1], 2..=u32::MAX).await, [all[2].clone()]);
    assert!(found(&*log, &[], 0..=9).await.is_empty());
    let now = log.projection().await.unwrap();
    assert_eq!(now, Projection { size: TreeSize(400_000), revision: 1 });
    let changes = [posting(1, 0, b"new"), posting(1, 1, b""), posting(5, 0, b"")];
    assert_eq!(log.project(now, TreeSize(400_001), &changes).await.unwrap(), Projected::Yes);
    assert_eq!(found(&*log, &[1, 5], 0..=7).await, [posting(1, 0, b"new"), all[2].clone()]);
}

/// Who has seen an older projection changes nothing.
pub async fn postings_are_changed_by_one_at_a_time(log: Arc<dyn LogStore>) {
    let start = Projection::default();
    assert_eq!(log.project(start, TreeSize(1), &[posting(1, 0, b"a")]).await.unwrap(), Projected::Yes);
    assert_eq!(log.project(start, TreeSize(1), &[posting(1, 0, b"b")]).await.unwrap(), Projected::Moved);
    let now = log.projection().await.unwrap();
    // The size may stay, the revision moves.
    assert_eq!(log.project(now, TreeSize(1), &[]).await.unwrap(), Projected::Yes);
    assert_eq!(log.project(now, TreeSize(2), &[posting(1, 0, b"c")]).await.unwrap(), Projected::Moved);
    assert_eq!(found(&*log, &[1], 0..=0).await, [posting(1, 0, b"a")]);
    assert_eq!(log.projection().await.unwrap(), Projection { size: TreeSize(1), revision: 2 });
}

/// Those that have every term; and postings of segments that do not follow one another.
pub async fn segments_in_which_terms_stand_are_known(log: Arc<dyn LogStore>) {
    let all = [
        posting(1, 0, b"a"),
        posting(1, 3, b"b"),
        posting(1, 4, &[7; 9_000]),
        posting(1, 90, b"d"),
        posting(2, 3, b"e"),
        posting(2, 4, &[8; 9_000]),
        posting(2, 5, b"f"),
        posting(2, 90, b"g"),
        posting(3, 90, b"h"),
    ];
    assert_eq!(log.project(Projection::default(), TreeSize(1), &all).await.unwrap(), Projected::Yes);
    let with = async |terms: &[u8], segments| {
        let terms: Vec<Term> = terms.iter().map(|term| Term([*term; 16])).collect();
        log.segments_with(&terms, segments).await.unwrap()
    };
    assert_eq!(with(&[1], 0..=u32::MAX).await, [0, 3, 4, 90]);
    assert_eq!(with(&[1, 2], 0..=u32::MAX).await, [3, 4, 90]);
    assert_eq!(with(&[2, 1], 4..=89).await, [4]);
    assert_eq!(with(&[3, 1, 2], 0..=90).await, [90]);
    assert!(with(&[1, 4], 0..=90).await.is_empty());
    assert!(with(&[], 0..=90).await.is_empty());
    let listed = async |terms: &[u8], segments: &[u32]| {
        let terms: Vec<Term> = terms.iter().map(|term| Term([*term; 16])).collect();
        let mut found = log.postings_in(&terms, segments).await.unwrap();
        found.sort_by_key(|posting| (posting.term, posting.segment));
        found
    };
    assert_eq!(listed(&[1, 2], &[90, 4]).await, [2, 3, 5, 7].map(|at| all[at].clone()));
    assert_eq!(listed(&[2], &[0, 5, 6]).await, [all[6].clone()]);
    assert!(listed(&[1], &[]).await.is_empty());
    assert!(listed(&[], &[0, 3]).await.is_empty());
}

/// Every version of each, whichever comes first.
pub async fn places_of_sessions_are_found_together(log: Arc<dyn LogStore>) {
    let versions = [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2)];
    for (number, (id, version)) in (1..).zip(versions) {
        commit(&*log, vec![Draft::new(number).version(session(id), version)]).await;
    }
    let mut places = log.session_places(&[session(2), session(9), session(1)]).await.unwrap();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2, 4].map(LeafIndex));
    assert!(log.session_places(&[]).await.unwrap().is_empty());
}

/// A thousand entries that claim what they like from a small world: the same outcome as of [`MemoryLog`], batch by batch, and the
/// same log and index in the end.
pub async fn random_batches_end_as_in_memory(log: Arc<dyn LogStore>) {
    let memory: Arc<dyn LogStore> = Arc::new(MemoryLog::new());
    let mut dice = Dice(20_261_121);
    let mut world = World::default();
    for round in 0..150 {
        let size = 1 + dice.roll(9);
        let mut drafts: Vec<Draft> = (0..size).map(|_| world.draft(&mut dice)).collect();
        // The group commit drops what was refused and tries again: so do we.
        loop {
            let mut batch = next_batch(&*memory, drafts.clone()).await;
            if dice.roll(12) == 0 {
                batch.expected = TreeSize(batch.expected.0.saturating_sub(dice.roll(3)));
            }
            let expected = memory.append(&batch).await.unwrap();
            assert_eq!(log.append(&batch).await.unwrap(), expected, "round {round}");
            assert_eq!(log.resolve(&batch).await.unwrap(), memory.resolve(&batch).await.unwrap(), "round {round}");
            match expected {
                Appended::Committed => {
                    drafts.iter().for_each(|draft| world.committed(draft));
                    break;
                }
                Appended::Moved(_) => {}
                Appended::Refused(refused) => {
                    let refused: HashSet<usize> = refused.iter().map(|refused| refused.at).collect();
                    let kept = drafts.drain(..).enumerate().filter(|(at, _)| !refused.contains(at));
                    drafts = kept.map(|(_, draft)| draft).collect();
                    if drafts.is_empty() {
                        break;
                    }
                }
            }
        }
        world.begin_batch();
        if dice.roll(5) == 0 {
            let marks: Vec<_> =
                (0..5).map(|_| (session(dice.roll(World::SESSIONS).into()), at(dice.roll(50) as i64))).collect();
            log.mark_uses(&marks).await.unwrap();
            memory.mark_uses(&marks).await.unwrap();
        }
        if dice.roll(20) == 0 {
            let now = at(dice.roll(120) as i64);
            assert_eq!(
                log.forget_expired(now, 1_000).await.unwrap(),
                memory.forget_expired(now, 1_000).await.unwrap(),
                "round {round}"
            );
        }
        if round % 10 == 9 {
            same(&*log, &*memory).await;
        }
    }
    same(&*log, &*memory).await;
    assert_eq!(check_log(&*log).await, check_log(&*memory).await);
}

/// What the random batches are about. Entries keep to what the service does: a seat is taken with a claim on its key, and
/// only a seat that is held is freed.
#[derive(Default)]
struct World {
    number: u128,
    versions: HashMap<u128, u64>,
    held: HashMap<KeyId, u64>,
    freed: HashMap<KeyId, u64>,
}

impl World {
    const SESSIONS: u64 = 30;
    const KEYS: u64 = 6;

    fn draft(&mut self, dice: &mut Dice) -> Draft {
        self.number += 1;
        let mut draft = Draft::new(self.number);
        let subject = u128::from(dice.roll(Self::KEYS));
        if dice.roll(10) < 8 {
            let id = u128::from(dice.roll(Self::SESSIONS));
            let newest = self.versions.get(&id).copied().unwrap_or(0);
            let version = match dice.roll(10) {
                0 => newest,
                1 => newest + 2,
                _ => newest + 1,
            };
            draft = draft.version(session(id), version).sealed(key(subject), vec![9; dice.roll(90) as usize]);
            draft = match dice.roll(5) {
                0 if version > 1 => draft.index(SessionChange::Closed),
                1 if version > 1 => draft.index(SessionChange::Bound { key: key(subject) }),
                _ if version == 1 => {
                    let kind = Kind::ALL[dice.roll(9) as usize];
                    draft.index(SessionChange::Opened { realm: realm(), key: key(subject), kind })
                }
                _ => draft,
            };
        }
        if dice.roll(8) == 0 {
            let key = key(dice.roll(Self::KEYS).into());
            draft = draft.subject(match dice.roll(4) {
                0 => SubjectChange::Held(key, true),
                1 => SubjectChange::Held(key, false),
                _ => SubjectChange::Erased(key),
            });
        }
        let mut claimed = true;
        draft = match dice.roll(6) {
            0 => draft.new_key(key_row(subject)),
            1 => draft.new_key(DataKeyRow { id: key(dice.roll(Self::KEYS).into()), ..key_row(subject) }),
            2 => {
                // The key of an anonymous session.
                let own = KeyId::new(session(dice.roll(Self::SESSIONS).into()).uuid());
                claimed = false;
                draft.new_key(DataKeyRow { id: own, lookup: None, ..key_row(subject) })
            }
            3 | 4 => draft.existing_key(key(subject)),
            _ => {
                claimed = false;
                draft
            }
        };
        if claimed && dice.roll(2) == 0 {
            let sealing = match &draft.claims.data_key {
                Some(DataKeyClaim::Existing(id)) => *id,
                Some(DataKeyClaim::New(row)) => row.id,
                None => key(subject),
            };
            draft = draft.take_seat(sealing, 1 + dice.roll(4) as u32);
        }
        let free = key(dice.roll(Self::KEYS).into());
        let freed = self.freed.entry(free).or_default();
        if self.held.get(&free).is_some_and(|held| *held > *freed) && dice.roll(2) == 0 {
            *freed += 1;
            draft = draft.free_seat(free);
        }
        if dice.roll(4) == 0 {
            let number = u128::from(dice.roll(60));
            draft = draft.answer(IdempotencyClaim { expires: at(dice.roll(120) as i64), ..kept(number) });
        }
        match dice.roll(15) {
            0 => draft.credential(CredentialChange::Added(credential(dice.roll(8).into()))),
            1 => draft.credential(CredentialChange::Revoked(format!("key-{}", dice.roll(8)), at(dice.roll(50) as i64))),
            _ => draft,
        }
    }

    fn committed(&mut self, draft: &Draft) {
        if let Some((id, version)) = draft.claims.session {
            let number = (0..u128::from(Self::SESSIONS)).find(|number| session(*number) == id).unwrap();
            self.versions.insert(number, version.0);
        }
        if let Some(seat) = draft.claims.take_seat {
            *self.held.entry(seat.key).or_default() += 1;
        }
        if let Some(key) = draft.claims.free_seat {
            *self.held.get_mut(&key).unwrap() -= 1;
        }
    }

    fn begin_batch(&mut self) {
        self.freed.clear();
    }
}

/// Everything the two logs answer is the same.
async fn same(log: &dyn LogStore, memory: &dyn LogStore) {
    assert_eq!(log.head().await.unwrap(), memory.head().await.unwrap());
    assert_eq!(all_batches(log).await, all_batches(memory).await);
    let size = memory.head().await.unwrap().size().0;
    let indices: Vec<_> = (0..size + 2).rev().step_by(3).map(LeafIndex).collect();
    assert_eq!(log.entries(&indices).await.unwrap(), memory.entries(&indices).await.unwrap());
    let sessions: Vec<SessionId> = (0..u128::from(World::SESSIONS)).map(session).collect();
    for id in &sessions {
        let (ours, theirs) = (log.session_entries(*id, Version(1), 5), memory.session_entries(*id, Version(1), 5));
        assert_eq!(ours.await.unwrap(), theirs.await.unwrap());
    }
    assert_eq!(log.uses(&sessions).await.unwrap(), memory.uses(&sessions).await.unwrap());
    let mut keys: Vec<_> = (0..u128::from(World::KEYS)).map(key).collect();
    keys.extend(sessions.iter().map(|id| KeyId::new(id.uuid())));
    assert_eq!(log.data_keys(&keys).await.unwrap(), memory.data_keys(&keys).await.unwrap());
    let lookups: Vec<_> = (0..u128::from(World::KEYS)).map(digest).collect();
    assert_eq!(log.data_keys_by_lookup(&lookups).await.unwrap(), memory.data_keys_by_lookup(&lookups).await.unwrap());
    let keys = keys.into_iter().map(Some).chain([None]);
    for (key, open) in keys.flat_map(|key| [None, Some(true), Some(false)].map(|open| (key, open))) {
        let filter = SessionFilter { key, open, ..filter() };
        let (ours, theirs) = (log.sessions(&filter, None, 20), memory.sessions(&filter, None, 20));
        assert_eq!(ours.await.unwrap(), theirs.await.unwrap(), "{filter:?}");
    }
    for number in 0..60 {
        assert_eq!(log.answer(&digest(number)).await.unwrap(), memory.answer(&digest(number)).await.unwrap());
    }
    assert_eq!(log.credentials().await.unwrap(), memory.credentials().await.unwrap());
}

// ---- Several writers ----------------------------------------------------------------------------------------------------

/// Appends what of these entries can be appended, as the group commit does: retries when the log moved, drops what is refused.
/// Answers what was appended.
async fn persist(log: &dyn LogStore, mut drafts: Vec<Draft>) -> Vec<Draft> {
    while !drafts.is_empty() {
        let batch = next_batch(log, drafts.clone()).await;
        match log.append(&batch).await.expect("the append is answered") {
            Appended::Committed => break,
            Appended::Moved(head) => assert_ne!(head.size(), batch.expected, "moved to where it was"),
            Appended::Refused(refused) => {
                for refused in refused.iter().rev() {
                    drafts.remove(refused.at);
                }
            }
        }
    }
    drafts
}

async fn in_parallel<F>(logs: Vec<Arc<dyn LogStore>>, work: impl Fn(u128, Arc<dyn LogStore>) -> F) -> Vec<Vec<Draft>>
where
    F: Future<Output = Vec<Draft>> + Send + 'static,
{
    let tasks: Vec<_> = logs.into_iter().zip(0..).map(|(log, number)| tokio::spawn(work(number, log))).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.expect("no task panics"));
    }
    done
}

/// Whatever was answered `Committed` is there, once; the log proves itself.
pub async fn parallel_appenders_lose_nothing(logs: Vec<Arc<dyn LogStore>>) {
    let log = Arc::clone(&logs[0]);
    let done = in_parallel(logs, |task, log| async move {
        let mut done = Vec::new();
        for round in 0..20_u128 {
            let number = |i: u128| (task * 1_000) + round * 10 + i;
            let drafts = (0..1 + round % 3).map(|i| Draft::new(number(i)).version(session(number(i)), 1)).collect();
            done.extend(persist(&*log, drafts).await);
        }
        done
    })
    .await;
    let mut expected: Vec<EntryId> = done.iter().flatten().map(|draft| draft.leaf.entry_id).collect();
    assert_eq!(expected.len(), 4 * 39, "nobody stands in anybody's way here");
    let entries = check_log(&*log).await;
    let mut found: Vec<EntryId> = entries.iter().map(|entry| Leaf::decode(&entry.leaf).unwrap().entry_id).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// Nor do they leave a seat empty.
pub async fn parallel_appenders_never_exceed_a_cap(logs: Vec<Arc<dyn LogStore>>) {
    const CAP: u32 = 5;
    let log = Arc::clone(&logs[0]);
    commit(&*log, vec![Draft::new(0).new_key(key_row(1))]).await;
    let done = in_parallel(logs, |task, log| async move {
        let mut done = Vec::new();
        for round in 0..15_u128 {
            let number = |i: u128| (1 + task) * 1_000 + round * 10 + i;
            let drafts = (0..2).map(|i| creates(number(i), key(1), CAP)).chain([Draft::new(number(9))]).collect();
            done.extend(persist(&*log, drafts).await);
            assert!(open_sessions_of(&*log, key(1)).await <= CAP as usize);
        }
        done
    })
    .await;
    let created = done.iter().flatten().filter(|draft| draft.claims.take_seat.is_some()).count();
    assert_eq!(created, CAP as usize);
    assert_eq!(open_sessions_of(&*log, key(1)).await, CAP as usize);
    assert_eq!(check_log(&*log).await.len(), 1 + 4 * 15 + CAP as usize);
}

/// Sequences entries behind the head that a turn holds.
fn batch_in(turn: &dyn Turn, drafts: Vec<Draft>) -> Batch {
    let entries = drafts.into_iter().map(Draft::proposed).collect();
    sequencer().batch(turn.head(), entries).expect("the batch can be signed")
}

async fn take_turn(log: &dyn LogStore) -> Box<dyn Turn + '_> {
    log.turn().await.expect("a turn is had").expect("the store has turns")
}

/// Others wait meanwhile, and are told of what was done in it.
pub async fn nobody_appends_in_anothers_turn(logs: Vec<Arc<dyn LogStore>>) {
    let (log, other) = (Arc::clone(&logs[0]), Arc::clone(&logs[1]));
    commit(&*log, vec![Draft::new(0)]).await;
    let stale = next_batch(&*other, vec![Draft::new(1)]).await;
    let head = log.head().await.unwrap();
    let mut turn = take_turn(&*log).await;
    assert_eq!(turn.head(), &head);
    let waiting = tokio::spawn(async move { other.append(&stale).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished(), "the head was not held");
    let batch = batch_in(&*turn, vec![Draft::new(2), Draft::new(3)]);
    assert_eq!(turn.append(&batch).await.unwrap(), Appended::Committed);
    let again = turn.append(&batch).await;
    assert!(matches!(again, Err(AppendError::NotDone(_))), "the turn is over: {again:?}");
    turn.end().await;
    assert_eq!(waiting.await.unwrap(), Appended::Moved(batch.head.clone()));
    assert!(log.resolve(&batch).await.unwrap());
    assert_eq!(check_log(&*log).await.len(), 3);
}

/// However many they are.
pub async fn writers_that_take_turns_are_never_beaten(logs: Vec<Arc<dyn LogStore>>) {
    let log = Arc::clone(&logs[0]);
    in_parallel(logs, |task, log| async move {
        for round in 0..20_u128 {
            let mut turn = take_turn(&*log).await;
            let batch = batch_in(&*turn, vec![Draft::new(task * 1_000 + round)]);
            assert_eq!(turn.append(&batch).await.unwrap(), Appended::Committed);
        }
        Vec::new()
    })
    .await;
    assert_eq!(check_log(&*log).await.len(), 80);
}

/// Every version is made once, and by whom it was acknowledged to.
pub async fn parallel_writers_of_one_session_take_turns(logs: Vec<Arc<dyn LogStore>>) {
    let log = Arc::clone(&logs[0]);
    commit(&*log, vec![Draft::new(0).version(session(1), 1)]).await;
    let done = in_parallel(logs, |task, log| async move {
        let mut done = Vec::new();
        let mut number = (1 + task) * 1_000;
        while done.len() < 8 {
            number += 1;
            let newest = log.session_entries(session(1), Version::NONE, usize::MAX).await.unwrap().len() as u64;
            done.extend(persist(&*log, vec![Draft::new(number).version(session(1), newest + 1)]).await);
        }
        done
    })
    .await;
    let entries = check_log(&*log).await;
    assert_eq!(entries.len(), 33);
    for draft in done.iter().flatten() {
        let version = draft.claims.session.unwrap().1;
        let (_, index) = log.session_entries(session(1), Version(version.0 - 1), 1).await.unwrap()[0];
        let leaf = Leaf::decode(&entries[index.0 as usize].leaf).unwrap();
        assert_eq!(leaf.entry_id, draft.leaf.entry_id, "version {version} was acknowledged to another");
    }
}
