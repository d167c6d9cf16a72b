//! What a log store must do, and the values it is asked with.

use std::fmt;

use async_trait::async_trait;
use merkle_log::Frontier;
use session_model::{
    Digest, KeyId, Kind, Leaf, LeafHash, LeafIndex, RealmName, Role, SessionId, Timestamp, TreeSize, Version,
};

use crate::{Batch, LogPostings};

/// Where the log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// Right edge of the tree; its size is the log's.
    pub frontier: Frontier,
    /// Time in the newest leaf; the epoch if there is none.
    pub time: Timestamp,
    /// The signed checkpoint of exactly this size; `None` while the log is empty.
    pub checkpoint: Option<String>,
}

impl LogHead {
    /// How many entries the log has.
    pub fn size(&self) -> TreeSize {
        self.frontier.size()
    }
}

/// An entry as it is offered to the log: everything but its place.
#[derive(Debug, Clone)]
pub struct Proposed {
    /// The leaf. Its time may be moved forward when it is sequenced, so that no time in the log goes back.
    pub leaf: Leaf,
    /// `leaf`, encoded.
    pub bytes: Vec<u8>,
    /// Hash of `bytes`.
    pub hash: LeafHash,
    /// The sealed part, if there is one.
    pub sealed: Option<SealedEntry>,
    /// What must hold for it to be appended, and what changes with it.
    pub claims: Claims,
}

/// A sealed part beside its leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedEntry {
    /// Which data key seals it.
    pub key: KeyId,
    /// nonce ‖ ciphertext ‖ tag.
    pub bytes: Vec<u8>,
}

/// What must hold for an entry to be appended, and what else changes in the same transaction.
///
/// The claims of one batch are weighed together: two entries of one batch that claim the same thing are a conflict of the
/// later one. Within a batch seats are freed before they are taken.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// This entry makes this version of this session: version 1 must not exist yet, any other must follow directly on the
    /// newest. Refused with [`Refusal::Version`].
    pub session: Option<(SessionId, Version)>,
    /// The data key that seals the entry must exist, or must not exist yet and is stored.
    pub data_key: Option<DataKeyClaim>,
    /// Takes a seat of a subject: its number of open sessions rises by one and must not exceed the cap. Refused with
    /// [`Refusal::CapReached`].
    pub take_seat: Option<Seat>,
    /// Gives a seat of this data key back.
    pub free_seat: Option<KeyId>,
    /// What the index of sessions shall say from now on.
    pub index: Option<SessionChange>,
    /// The answer to keep under an idempotency key, which must be unused. Refused with [`Refusal::IdempotencyKeyUsed`].
    pub idempotency: Option<IdempotencyClaim>,
    /// A change to the credentials.
    pub credential: Option<CredentialChange>,
    /// A change to what is kept on a subject.
    pub subject: Option<SubjectChange>,
}

/// A change to what is kept on a subject as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectChange {
    /// The data key is destroyed, and every key that it owns: what they sealed cannot be read any more. Refused with
    /// [`Refusal::DataKeyMissing`] if there is no such key, with [`Refusal::LegalHold`] if it is held, and with
    /// [`Refusal::SubjectBusy`] while it has open sessions or anything else in the same batch touches it.
    Erased(KeyId),
    /// The data key is put under legal hold (`true`), or released. It must exist, or be made by this entry.
    Held(KeyId, bool),
}

impl SubjectChange {
    /// Which key it is about.
    pub const fn key(self) -> KeyId {
        match self {
            Self::Erased(key) | Self::Held(key, _) => key,
        }
    }
}

/// A claim on the data key that seals an entry.
#[derive(Debug, Clone)]
pub enum DataKeyClaim {
    /// It exists (and so was not erased). Refused with [`Refusal::DataKeyMissing`].
    Existing(KeyId),
    /// It is new. Refused with [`Refusal::DataKeyTaken`] if its id, or its lookup, is in use.
    New(DataKeyRow),
}

impl DataKeyClaim {
    /// Which key it is about.
    pub const fn id(&self) -> KeyId {
        match self {
            Self::Existing(id) => *id,
            Self::New(row) => row.id,
        }
    }
}

/// A stored data key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataKeyRow {
    /// Its id, which stands in leaves.
    pub id: KeyId,
    /// Under what it is found: HMAC of realm and subject; `None` for the key of a session without a subject.
    pub lookup: Option<Digest>,
    /// The key, wrapped.
    pub wrapped: Vec<u8>,
    /// The subject's data key, for the key of a session that was without a subject at first: to be destroyed with it.
    pub owner: Option<KeyId>,
    /// Whether a legal hold keeps it from being destroyed.
    pub held: bool,
}

/// A data key to be wrapped anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrap {
    /// Which.
    pub id: KeyId,
    /// As it is wrapped now.
    pub wrapped: Vec<u8>,
    /// As it shall be wrapped.
    pub rewrapped: Vec<u8>,
}

/// Sealed parts of a batch to be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prune {
    /// Index of its first entry.
    pub first: LeafIndex,
    /// Its sealed parts as they were read.
    pub was: Vec<Option<SealedEntry>>,
    /// What shall be left of them: each as it was, or none.
    pub kept: Vec<Option<SealedEntry>>,
}

impl Prune {
    /// The data keys of the parts that go, each once; `None` if what shall be left is not what was, less something.
    pub fn keys(&self) -> Option<Vec<KeyId>> {
        let pairs = || self.was.iter().zip(&self.kept);
        let less = self.was.len() == self.kept.len() && pairs().all(|(was, kept)| kept.is_none() || kept == was);
        let mut keys: Vec<KeyId> =
            pairs().filter(|(_, kept)| kept.is_none()).filter_map(|(was, _)| Some(was.as_ref()?.key)).collect();
        keys.sort_unstable();
        keys.dedup();
        (less && !keys.is_empty()).then_some(keys)
    }

    /// Whether nothing shall be left.
    pub fn all(&self) -> bool {
        self.kept.iter().all(Option::is_none)
    }
}

/// A seat to take: one open session of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// The subject's data key.
    pub key: KeyId,
    /// How many open sessions it may have, this one included.
    pub cap: u32,
}

/// What the index of sessions is told. It answers "which sessions", never "in what state".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionChange {
    /// A session began.
    Opened {
        /// In which realm.
        realm: RealmName,
        /// Sealed by which data key.
        key: KeyId,
        /// Of which kind.
        kind: Kind,
    },
    /// A session is now its subject's: from here on this data key seals it. The key of its anonymous time, if it had one of
    /// its own, becomes the subject's too, so that erasing the subject reaches back to it.
    Bound {
        /// The subject's data key.
        key: KeyId,
    },
    /// A session ended.
    Closed,
}

/// An answer to keep, so that a repeated request gets it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyClaim {
    /// SHA-256 over credential and idempotency key.
    pub key: Digest,
    /// Digest of method, path and body, keyed: a request may name a subject and little else.
    pub request: Digest,
    /// The answer, sealed; what only the log can add (the receipt) is added at replay.
    pub answer: Vec<u8>,
    /// When it may be forgotten.
    pub expires: Timestamp,
}

/// A kept answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Digest of method, path and body of the first request, keyed; of a version before, without a key.
    pub request: Digest,
    /// The answer, sealed.
    pub answer: Vec<u8>,
    /// The entry that the first request appended.
    pub index: LeafIndex,
    /// When it may be forgotten.
    pub expires: Timestamp,
}

/// An API key as the store keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its id, which stands in leaves as the actor.
    pub id: String,
    /// SHA-256 of the key.
    pub digest: Digest,
    /// Realm it belongs to.
    pub realm: RealmName,
    /// What it may do.
    pub roles: Vec<Role>,
    /// A name for people.
    pub label: String,
    /// Since when.
    pub created_at: Timestamp,
    /// Since when not any more.
    pub revoked_at: Option<Timestamp>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({} {} {:?})", self.id, self.realm, self.roles)
    }
}

/// A change to the credentials. A credential whose digest is known already is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialChange {
    /// A new one.
    Added(Credential),
    /// One is not valid any more from this time.
    Revoked(String, Timestamp),
}

/// Why an entry cannot be appended as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another entry made this version of the session first, or the version before it does not exist.
    Version,
    /// The data key does not exist (any more).
    DataKeyMissing,
    /// A data key with this id or lookup exists already.
    DataKeyTaken,
    /// The subject has as many open sessions as it may.
    CapReached,
    /// Another entry was appended under this idempotency key.
    IdempotencyKeyUsed,
    /// The subject is under legal hold.
    LegalHold,
    /// The subject has open sessions, or something else is being appended under its data key: try again.
    SubjectBusy,
}

/// An entry of a batch that cannot be appended as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Position in the batch.
    pub at: usize,
    /// Why.
    pub why: Refusal,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Appended {
    /// It is durable, whole.
    Committed,
    /// Nothing was done: the log has another size than the batch expects. Here is where it ends now.
    Moved(LogHead),
    /// Nothing was done: these entries cannot be appended as they are.
    Refused(Vec<Refused>),
}

/// Why an append was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was done, for certain.
    #[error("the log cannot be written")]
    NotDone(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store cannot tell: the connection broke while it was committing. Ask [`LogWriter::resolve`].
    #[error("the log did not say whether it was written")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store cannot be reached, or failed.
    #[error("the log cannot be read")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What the store holds is not what a log wrote.
    #[error("the log holds something it cannot have written: {0}")]
    Corrupt(String),
}

/// A run of entries that was committed as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    /// Index of its first entry.
    pub first: LeafIndex,
    /// Its leaves, byte for byte.
    pub leaves: Vec<Vec<u8>>,
    /// The sealed part of each, where there is one and it was not pruned.
    pub sealed: Vec<Option<SealedEntry>>,
    /// The signed checkpoint that was stored with it.
    pub checkpoint: String,
}

impl StoredBatch {
    /// Size of the tree that its checkpoint covers.
    pub fn tree_size(&self) -> TreeSize {
        TreeSize(self.first.0 + self.leaves.len() as u64)
    }
}

/// One stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its place.
    pub index: LeafIndex,
    /// Its leaf, byte for byte.
    pub leaf: Vec<u8>,
    /// Its sealed part, where there is one and it was not pruned.
    pub sealed: Option<SealedEntry>,
    /// Size of the tree whose checkpoint was stored with it.
    pub tree_size: TreeSize,
}

/// Which sessions to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFilter {
    /// Of this realm.
    pub realm: RealmName,
    /// Of the subject with this data key. The key that a session without a subject has of its own is no subject's: by it
    /// nothing is found.
    pub key: Option<KeyId>,
    /// Open (`true`) or closed (`false`) ones only.
    pub open: Option<bool>,
    /// Of this kind.
    pub kind: Option<Kind>,
}

/// Reading the log. All an auditor's path is ever given.
#[async_trait]
pub trait LogReader: Send + Sync + 'static {
    /// Where the log ends.
    async fn head(&self) -> Result<LogHead, ReadError>;

    /// The batches from the one that holds entry `from` onwards, in order: at least one if `from` is below the size, and
    /// about `entries` entries at most. Empty if there is nothing at or after `from`.
    async fn batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError>;

    /// The batches at or behind entry `from` of which sealed parts are (still) there, in order, about `entries` entries at most and at least one batch.
    async fn sealed_batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError>;

    /// These entries, in the order asked for; `None` for an index that the log does not have.
    async fn entries(&self, indices: &[LeafIndex]) -> Result<Vec<Option<StoredEntry>>, ReadError>;

    /// Where the versions of a session after `after` stand, in order, at most `limit`. Empty if there are none.
    async fn session_entries(
        &self,
        id: SessionId,
        after: Version,
        limit: usize,
    ) -> Result<Vec<(Version, LeafIndex)>, ReadError>;

    /// Stored hashes: leaf hashes at level 0, inner nodes at levels 8, 16, …. Exactly `count`, or [`ReadError::Corrupt`].
    async fn hashes(&self, level: u8, start: u64, count: u64) -> Result<Vec<Digest>, ReadError>;
}

/// What the service must know before it can append, and what is kept beside the log.
#[async_trait]
pub trait LogIndex: Send + Sync + 'static {
    /// The data keys with these lookups, in order; `None` where there is none.
    async fn data_keys_by_lookup(&self, lookups: &[Digest]) -> Result<Vec<Option<DataKeyRow>>, ReadError>;

    /// The ids of the data keys that this one owns, in any order.
    async fn data_keys_owned_by(&self, owner: KeyId) -> Result<Vec<KeyId>, ReadError>;

    /// The data keys behind this one, or from the first, in the order of their ids, at most `limit`.
    async fn data_keys_after(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<DataKeyRow>, ReadError>;

    /// The data keys with these ids, in order; `None` where there is none (any more).
    async fn data_keys(&self, ids: &[KeyId]) -> Result<Vec<Option<DataKeyRow>>, ReadError>;

    /// Ids of sessions, newest first, older than `before` if given, at most `limit`.
    async fn sessions(
        &self,
        filter: &SessionFilter,
        before: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, ReadError>;

    /// When these sessions were last used, as far as marked, in order.
    async fn uses(&self, ids: &[SessionId]) -> Result<Vec<Option<Timestamp>>, ReadError>;

    /// The answer kept under an idempotency key, expired or not.
    async fn answer(&self, key: &Digest) -> Result<Option<Answer>, ReadError>;

    /// Every credential, revoked ones included.
    async fn credentials(&self) -> Result<Vec<Credential>, ReadError>;
}

/// Writing the log.
#[async_trait]
pub trait LogWriter: Send + Sync + 'static {
    /// Appends a batch, whole or not at all, in one transaction that gives each entry its index, stores leaves, sealed parts,
    /// leaf hashes and tree nodes, settles every claim, and stores the new head with its signed checkpoint.
    ///
    /// *Durability:* `Committed` means the entries survive a crash of every process and of the machine. *Arbitration:* the
    /// head is compared and set; writers in several processes are serialised by it. *Concurrency:* a second append waits or
    /// answers [`Appended::Moved`], and never sees half of a first. *Retry:* the caller's, with the same batch, only after
    /// `NotDone`, or after `Unknown` was resolved to "not done".
    ///
    /// # Errors
    /// [`AppendError`].
    async fn append(&self, batch: &Batch) -> Result<Appended, AppendError>;

    /// Waits for the head and holds it: for a writer whose batch was made for a head that others have moved, and who would be beaten to it again were he to
    /// try again. Who asks first has it first, as far as the store can see to that. `None`: the store has no turns, and whoever loses tries again.
    ///
    /// # Errors
    /// [`ReadError`]: nothing was done, and nothing is held.
    async fn turn(&self) -> Result<Option<Box<dyn Turn + '_>>, ReadError>;

    /// Whether a batch whose append ended in [`AppendError::Unknown`] is in the log. Waits until an attempt that may still be
    /// running on the store's side has ended, so that the answer is final.
    ///
    /// # Errors
    /// [`ReadError`] if that cannot be found out now: ask again.
    async fn resolve(&self, batch: &Batch) -> Result<bool, ReadError>;

    /// Notes when sessions were last used; never moves a time back. Not an entry: loss costs a session part of its idle time.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn mark_uses(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ReadError>;

    /// Forgets kept answers that expired before `now` and marks of closed sessions, at most `limit` of each; answers how many
    /// answers it forgot.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn forget_expired(&self, now: Timestamp, limit: usize) -> Result<usize, ReadError>;

    /// Wraps data keys anew: those that exist and are still wrapped as it says; answers how many. What an append is changing at the moment
    /// may be left as it is. Nothing but the wrapping changes: the key, what it has sealed and what is kept with it stay.
    ///
    /// # Errors
    /// [`ReadError`]; some or all may then be done.
    async fn rewrap(&self, keys: &[Rewrap]) -> Result<usize, ReadError>;

    /// Drops sealed parts of one batch, for good: `false`, and nothing done, if they are not as they were read, if a data key of what shall go, or the
    /// key that owns it, is under legal hold, or (at the store's choice) if an append is changing such a key. Leaves, hashes and tree are not touched. A
    /// store may refuse, as an error, to drop what is younger than 30 days.
    ///
    /// # Errors
    /// [`ReadError`]; whether it was done is then unknown.
    async fn prune(&self, prune: &Prune) -> Result<bool, ReadError>;

    /// Makes room ahead of the log where the store needs that (partitions). Called at start and now and then.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn prepare(&self, size: TreeSize, now: Timestamp) -> Result<(), ReadError>;
}

/// The log's head in the hands of one writer: as long as his turn lasts nobody else appends.
///
/// It is for making a batch and appending it, and for no other wait: the store takes the head away from a holder of whom it hears nothing for a moment
/// (well under a second), so that one who stands still does not hold up all.
#[async_trait]
pub trait Turn: Send {
    /// Where the log ends, for as long as the turn lasts.
    fn head(&self) -> &LogHead;

    /// As [`LogWriter::append`]; a batch that was made for [`Turn::head`] does not find it moved. After [`Appended::Refused`] the turn goes on, so that the
    /// rest can be appended without another wait. After anything else it is over.
    ///
    /// # Errors
    /// [`AppendError`], which says as ever whether [`LogWriter::resolve`] has to be asked. An append behind the end of the turn is `NotDone`.
    async fn append(&mut self, batch: &Batch) -> Result<Appended, AppendError>;

    /// Gives the head back, unless the turn is over. Dropping it does so too, but may cost the store a connection.
    async fn end(self: Box<Self>);
}

/// Everything a store of the log does.
pub trait LogStore: LogReader + LogIndex + LogPostings + LogWriter {}

impl<T: LogReader + LogIndex + LogPostings + LogWriter> LogStore for T {}
