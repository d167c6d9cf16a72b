//! The keys that lie outside the database: what wraps data keys, and what is kept beside.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use session_model::{Digest, KeyId, RealmName, Timestamp};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{DataKey, SealError, decrypt, encrypt, expand, hmac};

/// What tells wrapping keys apart, in the key file and in front of what they have wrapped. Derived from the key, and tells nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WrappingKeyId([u8; 8]);

impl WrappingKeyId {
    fn of(key: &[u8; 32]) -> Result<Self, SealError> {
        let [derived, _] = expand(key, &[b"counterfoil wrapping key id v1"])?;
        let (id, _) = derived.0.split_first_chunk().ok_or(SealError::Malformed("a wrapping key's id"))?;
        Ok(Self(*id))
    }
}

impl fmt::Display for WrappingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WrappingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappingKeyId({self})")
    }
}

#[derive(Clone, Zeroize)]
struct WrappingKey {
    key: [u8; 32],
    #[zeroize(skip)]
    id: WrappingKeyId,
    /// The one that the log began with: what it wraps has no id in front, as programs from before there were others expect.
    first: bool,
}

/// Wrapping keys, the current one first; never empty.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Wrapping(Vec<WrappingKey>);

/// A key that seals answers kept for repeated requests.
#[derive(Clone, Zeroize)]
struct AnswersKey {
    key: [u8; 32],
    /// When another took its place; `None` for the current one, and for one that has been added and seals nothing yet.
    #[zeroize(skip)]
    replaced_at: Option<Timestamp>,
}

/// Keys of answers, the current one first; never empty.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Answers {
    keys: Vec<AnswersKey>,
    /// How often they, the view's key or the console's were changed: tells an older file from a newer one.
    revision: u32,
}

/// What may be told of a key that seals answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswersKeyInfo {
    /// Derived from the key, and tells nothing of it.
    pub id: String,
    /// When another took its place; `None` for the current one, which is the first, and for one that was added.
    pub replaced_at: Option<Timestamp>,
}

/// The keys of a log that are shared by every node that appends to it. They live outside the database: whoever has only the database
/// opens nothing.
///
/// A log begins with one key-encryption key, from which all are derived. The key that wraps data keys may be replaced, and so may the one that
/// seals answers: there are then several, of which one is current. Clones of a keyring share both, so that all of a process takes up new ones at
/// once ([`Keyring::take_up`]). The keys of the view and of the console have no predecessors: what they sealed is thrown away with them. Those of
/// look-ups and of the cluster stay for as long as the log.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keyring {
    /// Locked for the time of one wrapping or unwrapping.
    #[zeroize(skip)]
    wrapping: Arc<RwLock<Wrapping>>,
    /// Locked for the time of one sealing or opening.
    #[zeroize(skip)]
    answers: Arc<RwLock<Answers>>,
    lookup: [u8; 32],
    view: [u8; 32],
    /// How often the view's key was replaced.
    view_generation: u32,
    console: [u8; 32],
    cluster: [u8; 32],
}

/// The key file once there was more than one wrapping key: JSON, keys in hexadecimal. A file of 32 bytes is the key-encryption key itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u8,
    /// The current one first.
    wrapping: Vec<KeyFileKey>,
    lookup: Digest,
    /// The current one.
    answers: Digest,
    /// One that was added, or replaced. Programs from before there was one refuse the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    answers_others: Vec<AnswersFileKey>,
    #[serde(default, skip_serializing_if = "is_zero")]
    revision: u32,
    view: Digest,
    #[serde(default, skip_serializing_if = "is_zero")]
    view_generation: u32,
    console: Digest,
    cluster: Digest,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswersFileKey {
    key: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFileKey {
    /// For people; must be that of the key.
    id: String,
    key: Digest,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    first: bool,
}

/// A wrapped key without an id: nonce ‖ ciphertext ‖ tag.
const WRAPPED: usize = 12 + 32 + 16;
/// In front of the id of a wrapping key.
const WITH_ID: u8 = 2;

impl Keyring {
    /// Derives everything from the key-encryption key.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn new(key_encryption_key: &[u8; 32]) -> Result<Self, SealError> {
        let [wrapping, lookup] = expand(key_encryption_key, &[b"counterfoil keyring v1: data keys"])?;
        let [answers, view] = expand(key_encryption_key, &[b"counterfoil keyring v1: stored state"])?;
        let [console, cluster] = expand(key_encryption_key, &[b"counterfoil keyring v1: console"])?;
        let first = WrappingKey { key: wrapping.0, id: WrappingKeyId::of(&wrapping.0)?, first: true };
        Ok(Self {
            wrapping: shared(vec![first]),
            answers: with_revision(0, vec![AnswersKey { key: answers.0, replaced_at: None }]),
            lookup: lookup.0,
            view: view.0,
            view_generation: 0,
            console: console.0,
            cluster: cluster.0,
        })
    }

    /// Reads a key file of either form.
    ///
    /// # Errors
    /// [`SealError::Malformed`] if it is neither.
    pub fn from_file(bytes: &[u8]) -> Result<Self, SealError> {
        if let Ok(key_encryption_key) = bytes.try_into() {
            return Self::new(key_encryption_key);
        }
        let file: KeyFile = serde_json::from_slice(bytes).map_err(|_| SealError::Malformed("the key file"))?;
        let wrapping = file.wrapping.iter().map(|kept| {
            let id = WrappingKeyId::of(&kept.key.0)?;
            let is_its = kept.id == id.to_string();
            is_its
                .then_some(WrappingKey { key: kept.key.0, id, first: kept.first })
                .ok_or(SealError::Malformed("the key file"))
        });
        let wrapping: Vec<WrappingKey> = wrapping.collect::<Result<_, _>>()?;
        if file.version != 2 || wrapping.is_empty() {
            return Err(SealError::Malformed("the key file"));
        }
        let KeyFile { lookup, answers, answers_others, revision, view, view_generation, console, cluster, .. } = file;
        let others = answers_others.iter().map(|kept| AnswersKey { key: kept.key.0, replaced_at: kept.replaced_at });
        let current = AnswersKey { key: answers.0, replaced_at: None };
        Ok(Self {
            wrapping: shared(wrapping),
            answers: with_revision(revision, std::iter::once(current).chain(others).collect()),
            lookup: lookup.0,
            view: view.0,
            view_generation,
            console: console.0,
            cluster: cluster.0,
        })
    }

    /// A key file of the form that holds several wrapping keys. Secret.
    ///
    /// # Errors
    /// [`SealError::Malformed`] if it cannot be written.
    pub fn to_file(&self) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let kept = |key: &WrappingKey| KeyFileKey { id: key.id.to_string(), key: Digest(key.key), first: key.first };
        let answers = self.answers.read();
        let (current, others) = answers.keys.split_first().ok_or(SealError::Malformed("the key file"))?;
        let other = |key: &AnswersKey| AnswersFileKey { key: Digest(key.key), replaced_at: key.replaced_at };
        let file = KeyFile {
            version: 2,
            wrapping: self.wrapping.read().0.iter().map(kept).collect(),
            lookup: Digest(self.lookup),
            answers: Digest(current.key),
            answers_others: others.iter().map(other).collect(),
            revision: answers.revision,
            view: Digest(self.view),
            view_generation: self.view_generation,
            console: Digest(self.console),
            cluster: Digest(self.cluster),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|_| SealError::Malformed("the key file"))?;
        Ok(Zeroizing::new(text))
    }

    /// The wrapping keys, the current one first.
    pub fn wrapping_keys(&self) -> Vec<WrappingKeyId> {
        self.wrapping.read().0.iter().map(|key| key.id).collect()
    }

    /// The keys that seal answers, the current one first.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn answers_keys(&self) -> Result<Vec<AnswersKeyInfo>, SealError> {
        let info = |key: &AnswersKey| {
            let [derived, _] = expand(&key.key, &[b"counterfoil answers key id v1"])?;
            let id = derived.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            Ok(AnswersKeyInfo { id, replaced_at: key.replaced_at })
        };
        self.answers.read().keys.iter().map(info).collect()
    }

    /// Whether both are of the same revision and have the same wrapping keys.
    pub fn is_as_new_as(&self, other: &Self) -> bool {
        let revision = |keyring: &Self| keyring.answers.read().revision;
        revision(self) == revision(other) && self.wrapping_keys() == other.wrapping_keys()
    }

    /// Takes up the keys of a newer key file of the same log that wrap data keys and seal answers, in this keyring and all its clones; answers
    /// whether anything changed. Keys that the newer file does not have are forgotten. The view's key and the console's stay what they were when
    /// the process began.
    ///
    /// # Errors
    /// [`SealError::Malformed`] if the file is another log's (the keys that never change are not the same), or older than what is in use.
    pub fn take_up(&self, newer: &Self) -> Result<bool, SealError> {
        if !self.is_of_one_log_with(newer) {
            return Err(SealError::Malformed("the key file is another log's"));
        }
        if self.is_as_new_as(newer) {
            return Ok(false);
        }
        let answers = newer.answers.read().clone();
        if answers.revision < self.answers.read().revision {
            return Err(SealError::Malformed("the key file is older than the keys in use"));
        }
        let keys = newer.wrapping.read().clone();
        *self.wrapping.write() = keys;
        *self.answers.write() = answers;
        Ok(true)
    }

    /// Whether both have the keys that never change.
    pub fn is_of_one_log_with(&self, other: &Self) -> bool {
        let lasting = |keyring: &Self| Zeroizing::new([keyring.lookup, keyring.cluster].concat());
        openssl::memcmp::eq(&lasting(self), &lasting(other))
    }

    /// The same keyring with wrapping keys of its own, changed.
    fn changed(&self, change: impl FnOnce(&mut Vec<WrappingKey>)) -> Self {
        let mut keys = self.wrapping.read().clone();
        change(&mut keys.0);
        Self { wrapping: Arc::new(RwLock::new(keys)), answers: Arc::clone(&self.answers), ..self.clone() }
    }

    /// The same keys and a new wrapping key, which unwraps, and does not wrap before it is made current.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn with_another(&self) -> Result<(Self, WrappingKeyId), SealError> {
        let key = random()?;
        let id = WrappingKeyId::of(&key)?;
        Ok((self.changed(|keys| keys.push(WrappingKey { key, id, first: false })), id))
    }

    /// The same keys, this one of them current; `None` if it is not among them.
    pub fn with_current(&self, id: WrappingKeyId) -> Option<Self> {
        let at = self.wrapping_keys().iter().position(|known| *known == id)?;
        Some(self.changed(|keys| {
            let current = keys.remove(at);
            keys.insert(0, current);
        }))
    }

    /// The same keys without this one; `None` if it is the current one, or not among them.
    pub fn without(&self, id: WrappingKeyId) -> Option<Self> {
        let at = self.wrapping_keys().iter().position(|known| *known == id).filter(|at| *at > 0)?;
        Some(self.changed(|keys| keys.remove(at).zeroize()))
    }

    /// The same keyring, of the next revision, with keys of answers of its own, changed.
    fn answers_changed(&self, change: impl FnOnce(&mut Vec<AnswersKey>)) -> Self {
        let mut answers = self.answers.read().clone();
        change(&mut answers.keys);
        answers.revision = answers.revision.saturating_add(1);
        Self { answers: Arc::new(RwLock::new(answers)), wrapping: Arc::clone(&self.wrapping), ..self.clone() }
    }

    /// The same keys and a new one of answers, which opens, and does not seal before it is made current.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn with_another_answers_key(&self) -> Result<Self, SealError> {
        let key = random()?;
        Ok(self.answers_changed(|keys| keys.push(AnswersKey { key, replaced_at: None })))
    }

    /// The same keys, the one of answers that was added current from `now` on; `None` if none was added.
    pub fn with_answers_turned(&self, now: Timestamp) -> Option<Self> {
        let added = |key: &AnswersKey| key.replaced_at.is_none();
        let at = self.answers.read().keys.iter().skip(1).position(added)? + 1;
        Some(self.answers_changed(|keys| {
            if let Some(replaced) = keys.first_mut() {
                replaced.replaced_at = Some(now);
            }
            let current = keys.remove(at);
            keys.insert(0, current);
        }))
    }

    /// The same keys without those of answers that were replaced; `None` if there is none.
    pub fn without_replaced_answers_keys(&self) -> Option<Self> {
        let replaced = |key: &AnswersKey| key.replaced_at.is_some();
        if !self.answers.read().keys.iter().any(replaced) {
            return None;
        }
        Some(self.answers_changed(|keys| {
            keys.iter_mut().filter(|key| replaced(key)).for_each(|key| key.key.zeroize());
            keys.retain(|key| !replaced(key));
        }))
    }

    /// The same keys, but for a new one of the view: what the old one sealed is opened by nobody any more.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn with_new_view_key(&self) -> Result<Self, SealError> {
        let mut renewed = self.answers_changed(|_| ());
        renewed.view = random()?;
        renewed.view_generation = renewed.view_generation.saturating_add(1);
        Ok(renewed)
    }

    /// The same keys, but for a new one of the console: what the old one tagged is refused.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn with_new_console_key(&self) -> Result<Self, SealError> {
        let mut renewed = self.answers_changed(|_| ());
        renewed.console = random()?;
        Ok(renewed)
    }

    /// Encrypts a data key for storage under the current wrapping key, bound to its id.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn wrap(&self, id: KeyId, key: &DataKey) -> Result<Vec<u8>, SealError> {
        let keys = self.wrapping.read();
        let current = keys.0.first().ok_or(SealError::Malformed("the key file"))?;
        let wrapped = encrypt(&current.key, id.uuid().as_bytes(), key.bytes())?;
        Ok(if current.first { wrapped } else { [&[WITH_ID], &current.id.0[..], &wrapped].concat() })
    }

    /// Decrypts a stored data key.
    ///
    /// # Errors
    /// [`SealError::UnknownWrappingKey`] if the wrapping key is not among ours, [`SealError::NotAuthentic`] if it was wrapped by another
    /// keyring or for another id.
    pub fn unwrap(&self, id: KeyId, wrapped: &[u8]) -> Result<DataKey, SealError> {
        let keys = self.wrapping.read();
        let (by, wrapped) = wrapper(&keys, wrapped)?;
        let mut bytes = decrypt(&by.key, id.uuid().as_bytes(), wrapped)?;
        let key = bytes.as_slice().try_into().map(DataKey::from_bytes);
        bytes.zeroize();
        key.map_err(|_| SealError::NotAuthentic)
    }

    /// Which wrapping key a stored data key is wrapped by.
    ///
    /// # Errors
    /// [`SealError::UnknownWrappingKey`] if it is not among ours, [`SealError::NotAuthentic`] if it is no wrapped key.
    pub fn wrapped_by(&self, wrapped: &[u8]) -> Result<WrappingKeyId, SealError> {
        wrapper(&self.wrapping.read(), wrapped).map(|(by, _)| by.id)
    }

    /// A stored data key, wrapped by the current wrapping key; `None` if it is already.
    ///
    /// # Errors
    /// See [`Keyring::unwrap`].
    pub fn rewrap(&self, id: KeyId, wrapped: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
        let by = self.wrapped_by(wrapped)?;
        if self.wrapping.read().0.first().is_some_and(|current| current.id == by) {
            return Ok(None);
        }
        self.wrap(id, &self.unwrap(id, wrapped)?).map(Some)
    }

    /// Under what a subject's data key is found: `HMAC(lookup key, realm ‖ 0 ‖ subject)`. Deleted with the key row, so that
    /// afterwards nothing ties the key's id, which stands in leaves, to the subject.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn lookup(&self, realm: &RealmName, subject: &str) -> Result<Digest, SealError> {
        Ok(hmac(&self.lookup, &[realm.as_str().as_bytes(), &[0], subject.as_bytes()])?)
    }

    /// Under what entries that name an address are found: a keyed digest, so that whoever has only the database cannot try all
    /// addresses. No subject has such a lookup: the characters are not XML.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn address(&self, realm: &RealmName, address: IpAddr) -> Result<Digest, SealError> {
        let text = address.to_canonical().to_string();
        Ok(hmac(&self.lookup, &[realm.as_str().as_bytes(), b"\0\0address\0", text.as_bytes()])?)
    }

    /// Seals an answer kept for replay under an idempotency key.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn seal_answer(&self, key: &Digest, answer: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.answers.read();
        let current = keys.keys.first().ok_or(SealError::Malformed("the key file"))?;
        Ok(encrypt(&current.key, &key.0, answer)?)
    }

    /// Opens a kept answer, by whichever key of answers it was sealed.
    ///
    /// # Errors
    /// [`SealError::NotAuthentic`].
    pub fn open_answer(&self, key: &Digest, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.answers.read();
        let opened = keys.keys.iter().find_map(|by| decrypt(&by.key, &key.0, sealed).ok());
        opened.ok_or(SealError::NotAuthentic)
    }

    /// What a request is told by that must not be guessed at, because it names somebody: a keyed digest of its digest.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn request_digest(&self, request: &Digest) -> Result<Digest, SealError> {
        let keys = self.answers.read();
        let current = keys.keys.first().ok_or(SealError::Malformed("the key file"))?;
        digest_of(&current.key, request)
    }

    /// Whether what was kept is the keyed digest of a request, by whichever key of answers it was made.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn is_request_digest(&self, kept: &Digest, request: &Digest) -> Result<bool, SealError> {
        for key in &self.answers.read().keys {
            if digest_of(&key.key, request)? == *kept {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the console gives a browser to show again, so that it can tell its own from what somebody else made:
    /// `HMAC(console key, purpose ‖ each part behind its length)`. The same on every node.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn console_tag(&self, purpose: &[u8; 4], parts: &[&[u8]]) -> Result<Digest, SealError> {
        let lengths: Vec<[u8; 8]> = parts.iter().map(|part| (part.len() as u64).to_be_bytes()).collect();
        let mut framed: Vec<&[u8]> = vec![purpose];
        for (length, part) in lengths.iter().zip(parts) {
            framed.push(length);
            framed.push(part);
        }
        Ok(hmac(&self.console, &framed)?)
    }

    /// Whether a text is such a tag in hexadecimal; in constant time.
    ///
    /// # Errors
    /// [`SealError::OpenSsl`].
    pub fn is_console_tag(&self, shown: &str, purpose: &[u8; 4], parts: &[&[u8]]) -> Result<bool, SealError> {
        let tag = self.console_tag(purpose, parts)?;
        Ok(shown.parse::<Digest>().is_ok_and(|shown| openssl::memcmp::eq(&shown.0, &tag.0)))
    }

    /// The key that seals the values of a shared view.
    pub const fn view_key(&self) -> &[u8; 32] {
        &self.view
    }

    /// How often the view's key was replaced: views of different keys are kept apart.
    pub const fn view_generation(&self) -> u32 {
        self.view_generation
    }

    /// What the cluster's key is made of, where it has none of its own.
    pub const fn cluster_secret(&self) -> &[u8; 32] {
        &self.cluster
    }
}

fn digest_of(key: &[u8; 32], request: &Digest) -> Result<Digest, SealError> {
    Ok(hmac(key, &[b"request\0", &request.0])?)
}

fn with_revision(revision: u32, keys: Vec<AnswersKey>) -> Arc<RwLock<Answers>> {
    Arc::new(RwLock::new(Answers { keys, revision }))
}

fn random() -> Result<[u8; 32], SealError> {
    let mut key = [0; 32];
    openssl::rand::rand_bytes(&mut key)?;
    Ok(key)
}

fn shared(keys: Vec<WrappingKey>) -> Arc<RwLock<Wrapping>> {
    Arc::new(RwLock::new(Wrapping(keys)))
}

/// The key that wrapped something, and what it wrapped.
fn wrapper<'a, 'b>(keys: &'a Wrapping, wrapped: &'b [u8]) -> Result<(&'a WrappingKey, &'b [u8]), SealError> {
    if wrapped.len() == WRAPPED {
        let first = keys.0.iter().find(|key| key.first);
        return first.map(|first| (first, wrapped)).ok_or(SealError::UnknownWrappingKey("the log's first".to_owned()));
    }
    let behind = wrapped.strip_prefix(&[WITH_ID]).and_then(|rest| rest.split_first_chunk::<8>());
    let (id, rest) = behind.ok_or(SealError::NotAuthentic)?;
    let id = WrappingKeyId(*id);
    let by = keys.0.iter().find(|key| key.id == id && !key.first);
    by.map(|by| (by, rest)).ok_or_else(|| SealError::UnknownWrappingKey(id.to_string()))
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(…)")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_console_tag_is_for_one_purpose_and_its_parts_as_they_are_divided() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let tag = keyring.console_tag(b"visi", &[b"ab", b"c"]).unwrap().to_string();
        let is = |keyring: &Keyring, purpose, parts: &[&[u8]]| keyring.is_console_tag(&tag, purpose, parts).unwrap();
        assert!(is(&keyring, b"visi", &[b"ab", b"c"]));
        assert!(!is(&keyring, b"form", &[b"ab", b"c"]));
        assert!(!is(&keyring, b"visi", &[b"a", b"bc"]));
        assert!(!is(&Keyring::new(&[2; 32]).unwrap(), b"visi", &[b"ab", b"c"]));
        assert!(!keyring.is_console_tag("", b"visi", &[]).unwrap());
    }

    #[test]
    fn a_wrapped_key_opens_only_for_its_id_and_keyring() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let (a, b) = (KeyId::new(Uuid::from_u128(1)), KeyId::new(Uuid::from_u128(2)));
        let key = DataKey::generate().unwrap();
        let wrapped = keyring.wrap(a, &key).unwrap();
        assert_eq!(keyring.unwrap(a, &wrapped).unwrap().bytes(), key.bytes());
        assert!(keyring.unwrap(b, &wrapped).is_err());
        assert!(Keyring::new(&[2; 32]).unwrap().unwrap(a, &wrapped).is_err());
    }

    /// What a key file of either form, and what was wrapped under it, once was: read for ever. Bytes as this program's first form wrote them.
    #[test]
    fn key_files_and_wrapped_keys_of_old_are_read() {
        let id = KeyId::new(Uuid::from_u128(1));
        let wrapped = decode(include_str!("../tests/golden/wrapped-by-first.hex"));
        let key = decode(include_str!("../tests/golden/data-key.hex"));
        let one = Keyring::from_file(&[9; 32]).unwrap();
        assert_eq!(one.unwrap(id, &wrapped).unwrap().bytes().as_slice(), key);
        let several = Keyring::from_file(include_bytes!("../tests/golden/kek-2.json")).unwrap();
        assert_eq!(several.unwrap(id, &wrapped).unwrap().bytes().as_slice(), key);
        let wrapped = decode(include_str!("../tests/golden/wrapped-by-second.hex"));
        assert_eq!(several.unwrap(id, &wrapped).unwrap().bytes().as_slice(), key);
        assert_eq!(several.view_key(), one.view_key());
        assert_eq!(several.cluster_secret(), one.cluster_secret());
        assert_eq!(&several.to_file().unwrap()[..], include_bytes!("../tests/golden/kek-2.json").trim_ascii_end());
    }

    fn decode(hex: &str) -> Vec<u8> {
        let hex = hex.trim();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_wrapping_key_is_added_made_current_and_taken_away() {
        let before = Keyring::new(&[1; 32]).unwrap();
        let (id, key) = (KeyId::new(Uuid::from_u128(1)), DataKey::generate().unwrap());
        let old = before.wrap(id, &key).unwrap();
        assert_eq!(old.len(), WRAPPED, "as programs from before write and read it");
        let (both, added) = before.with_another().unwrap();
        assert_eq!(both.wrap(id, &key).unwrap().len(), WRAPPED, "not before it is current");
        assert_eq!(both.rewrap(id, &old).unwrap(), None);

        let turned = both.with_current(added).unwrap();
        let turned = Keyring::from_file(&turned.to_file().unwrap()).unwrap();
        let new = turned.rewrap(id, &old).unwrap().unwrap();
        assert_eq!((turned.wrapped_by(&new).unwrap(), turned.rewrap(id, &new).unwrap()), (added, None));
        for keyring in [&both, &turned] {
            assert_eq!(keyring.unwrap(id, &new).unwrap().bytes(), key.bytes());
            assert_eq!(keyring.unwrap(id, &old).unwrap().bytes(), key.bytes());
        }
        let unknown = before.unwrap(id, &new).unwrap_err();
        assert!(matches!(&unknown, SealError::UnknownWrappingKey(named) if *named == added.to_string()), "{unknown}");

        let first = before.wrapping_keys()[0];
        assert!(turned.without(added).is_none(), "the current one stays");
        let after = turned.without(first).unwrap();
        assert_eq!(after.unwrap(id, &new).unwrap().bytes(), key.bytes());
        assert!(
            matches!(after.unwrap(id, &old), Err(SealError::UnknownWrappingKey(_))),
            "what a backup holds stays shut"
        );
        assert!(
            !after.to_file().unwrap().windows(64).any(|part| part == hex(&before.wrapping.read().0[0].key).as_bytes())
        );
        // What is found under lookups, and in views, stays as it was.
        let realm = "a".parse().unwrap();
        assert_eq!(after.lookup(&realm, "alice").unwrap(), before.lookup(&realm, "alice").unwrap());
        assert_eq!(after.view_key(), before.view_key());
    }

    #[test]
    fn a_newer_file_is_taken_up_by_all_who_share_the_keyring_and_another_logs_by_none() {
        let (id, key) = (KeyId::new(Uuid::from_u128(1)), DataKey::generate().unwrap());
        let node = Keyring::new(&[1; 32]).unwrap();
        let elsewhere = node.clone();
        let old = node.wrap(id, &key).unwrap();
        let (both, added) = node.with_another().unwrap();
        assert_eq!(elsewhere.wrapping_keys().len(), 1, "what is made of a keyring leaves it as it is");
        let turned = both.with_current(added).unwrap();
        let new = turned.wrap(id, &key).unwrap();
        assert!(matches!(elsewhere.unwrap(id, &new), Err(SealError::UnknownWrappingKey(_))));

        let file = Keyring::from_file(&turned.to_file().unwrap()).unwrap();
        assert!(node.take_up(&file).unwrap());
        assert!(!node.take_up(&file).unwrap(), "nothing new");
        assert_eq!(elsewhere.unwrap(id, &new).unwrap().bytes(), key.bytes());
        assert_eq!(elsewhere.wrapped_by(&elsewhere.wrap(id, &key).unwrap()).unwrap(), added);
        let fewer = turned.without(node.wrapping_keys()[1]).unwrap();
        assert!(node.take_up(&fewer).unwrap());
        assert!(matches!(elsewhere.unwrap(id, &old), Err(SealError::UnknownWrappingKey(_))), "retired");

        let stranger = Keyring::new(&[2; 32]).unwrap();
        assert!(matches!(node.take_up(&stranger), Err(SealError::Malformed(_))));
        assert_eq!(elsewhere.unwrap(id, &new).unwrap().bytes(), key.bytes());
    }

    #[test]
    fn a_key_of_answers_is_added_made_current_and_taken_away() {
        let (place, request) = (Digest([3; 32]), Digest([4; 32]));
        let before = Keyring::new(&[1; 32]).unwrap();
        let (old, old_digest) = (before.seal_answer(&place, b"old").unwrap(), before.request_digest(&request).unwrap());
        assert!(before.with_answers_turned(Timestamp::from_micros(1)).is_none(), "none was added");
        assert!(before.without_replaced_answers_keys().is_none());
        let both = before.with_another_answers_key().unwrap();
        assert_eq!(
            before.open_answer(&place, &both.seal_answer(&place, b"x").unwrap()).unwrap(),
            b"x",
            "not yet current"
        );
        assert!(both.without_replaced_answers_keys().is_none(), "neither was replaced");
        let turned = both.with_answers_turned(Timestamp::from_micros(7)).unwrap();
        let turned = Keyring::from_file(&turned.to_file().unwrap()).unwrap();
        let (new, new_digest) = (turned.seal_answer(&place, b"new").unwrap(), turned.request_digest(&request).unwrap());
        assert!(before.open_answer(&place, &new).is_err() && new_digest != old_digest);
        // A node that has the added key, and one that has turned, open and know what either made.
        for keyring in [&both, &turned] {
            assert_eq!(keyring.open_answer(&place, &new).unwrap(), b"new");
            assert_eq!(keyring.open_answer(&place, &old).unwrap(), b"old");
            assert!(keyring.is_request_digest(&old_digest, &request).unwrap());
            assert!(keyring.is_request_digest(&new_digest, &request).unwrap());
            assert!(!keyring.is_request_digest(&new_digest, &Digest([5; 32])).unwrap());
        }
        let keys = turned.answers_keys().unwrap();
        assert_eq!((keys[0].replaced_at, keys[1].replaced_at), (None, Some(Timestamp::from_micros(7))));
        assert_eq!(keys[1].id, before.answers_keys().unwrap()[0].id);

        let node = before.clone();
        assert!(before.take_up(&turned).unwrap() && !before.take_up(&turned).unwrap());
        assert_eq!(node.open_answer(&place, &new).unwrap(), b"new", "clones have it too");
        let after = turned.without_replaced_answers_keys().unwrap();
        assert!(node.take_up(&after).unwrap());
        for older in [Keyring::new(&[1; 32]).unwrap(), both, turned] {
            assert!(
                matches!(node.take_up(&older), Err(SealError::Malformed(_))),
                "what was taken away does not come back"
            );
        }
        assert!(node.open_answer(&place, &old).is_err() && !node.is_request_digest(&old_digest, &request).unwrap());
        assert_eq!(node.open_answer(&place, &new).unwrap(), b"new");
    }

    #[test]
    fn keys_of_the_view_and_the_console_are_replaced_and_taken_up_by_nobody_who_runs() {
        let before = Keyring::new(&[1; 32]).unwrap();
        let tag = before.console_tag(b"visi", &[b"a"]).unwrap().to_string();
        let after = before.with_new_view_key().unwrap().with_new_console_key().unwrap();
        let after = Keyring::from_file(&after.to_file().unwrap()).unwrap();
        assert!(after.view_key() != before.view_key() && !after.is_console_tag(&tag, b"visi", &[b"a"]).unwrap());
        assert_eq!((before.view_generation(), after.view_generation()), (0, 1));
        assert!(after.is_of_one_log_with(&before) && before.take_up(&after).unwrap());
        assert!(before.is_console_tag(&tag, b"visi", &[b"a"]).unwrap());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_spoilt_key_file_is_refused() {
        let (keyring, _) = Keyring::new(&[1; 32]).unwrap().with_another().unwrap();
        let good = String::from_utf8(keyring.to_file().unwrap().to_vec()).unwrap();
        let first = keyring.wrapping_keys()[0].to_string();
        for bad in
            ["", "x", &good.replace("\"version\": 2", "\"version\": 3"), &good.replace(&first, "0000000000000000")]
        {
            assert!(matches!(Keyring::from_file(bad.as_bytes()), Err(SealError::Malformed(_))), "{bad}");
        }
        assert!(Keyring::from_file(&[1; 31]).is_err());
    }

    #[test]
    fn one_subject_in_two_realms_has_two_lookups() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let realm = |name: &str| name.parse::<RealmName>().unwrap();
        let a = keyring.lookup(&realm("a"), "alice").unwrap();
        assert_eq!(a, keyring.lookup(&realm("a"), "alice").unwrap());
        assert_ne!(a, keyring.lookup(&realm("b"), "alice").unwrap());
    }
}
