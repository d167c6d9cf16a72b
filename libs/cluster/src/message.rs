//! What nodes tell each other, and its bytes.
//!
//! `kind (1) ‖ body`; numbers are big-endian. A kind that is not known is passed over, so that old and new programs can be in
//! one cluster; what is behind the last field that is known of a beat is passed over too.

use session_model::{LeafIndex, SessionId, TreeSize};

use crate::reader::{Reader, Undecodable};
use crate::{Incarnation, LineId};

/// A session as one entry left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose state.
    pub session: SessionId,
    /// The entry that made it.
    pub index: LeafIndex,
    /// The state, in the form that the service writes; empty in an [`Answer`] where it was too large.
    pub value: Vec<u8>,
}

/// Tells shared views apart: whoever has the same one need not be sent what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewIdentity(pub [u8; 16]);

/// A run of entries that was committed, and everything that they changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The first entry.
    pub first: LeafIndex,
    /// Size of the log behind the last.
    pub end: TreeSize,
    /// The shared view that reflects them already; then there are no records.
    pub view: Option<ViewIdentity>,
    /// Every session that they changed, in the order of their entries.
    pub records: Vec<Record>,
}

/// A sign of life, and what the sender knows of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The sender's name in entries.
    pub node: String,
    /// Version of its program.
    pub program: String,
    /// Number of the beat.
    pub number: u64,
    /// Size of the log when the sender last asked it.
    pub size: TreeSize,
    /// How much of it the sender's view reflects.
    pub reflects: TreeSize,
    /// Milliseconds since the sender asked the log; `u32::MAX` if it never could.
    pub log_age_ms: u32,
    /// It is going: nothing more will come.
    pub leaving: bool,
    /// The newest beat that the sender has had of each other node: to that node the proof that it is heard, and that this beat was made
    /// after that one.
    pub heard: Vec<(Incarnation, u64)>,
    /// The sender holds sessions by [`Placement`](crate::Placement): the digest of the one it goes by. Never 0.
    pub placement: Option<u64>,
}

/// Something that one node asks another, and the other answers: bytes of those who keep sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Names it in the reply.
    pub number: u64,
    /// Who is to answer it.
    pub topic: u8,
    /// What is asked.
    pub body: Vec<u8>,
}

/// What a node asks of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Names the question in its answers.
    pub question: u64,
    /// Asks for a page of what the view holds, from this position on; 0 is the beginning.
    pub from: u64,
    /// About so many bytes of it.
    pub bytes: u32,
    /// Parts of the answer that were lost, and are asked for again; empty for the whole.
    pub missing: Vec<u16>,
}

/// Part of the answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which question.
    pub question: u64,
    /// Which part of its answer, from 0.
    pub part: u16,
    /// How many parts it has.
    pub parts: u16,
    /// How much of the log the sender's view reflected before it read the first of them.
    pub reflects: TreeSize,
    /// Where the next page begins; `None` after the last.
    pub next: Option<u64>,
    /// States, in any order.
    pub records: Vec<Record>,
}

/// Anything that a frame can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Something was committed.
    Commit(Commit),
    /// Something was committed, and is not sent: the log has this size now.
    Grown(TreeSize),
    /// Somebody is there.
    Beat(Beat),
    /// Somebody asks.
    Ask(Ask),
    /// Somebody answers.
    Answer(Answer),
    /// What is said beside the log, between those who keep something that no entry tells of: bytes of theirs.
    Aside(Vec<u8>),
    /// Somebody asks for something that is answered in one message.
    Question(Question),
    /// The answer to the question of this number.
    Reply(u64, Vec<u8>),
    /// Something was committed, and of the sessions that it changed those are here that whom it is sent to holds. The number is the
    /// [share](crate::Placement::share) that its sender takes it to hold: whoever holds another share has not been told all it needs.
    Share(u64, Commit),
    /// A frame of another cluster, on this line.
    Line(LineId, Vec<u8>),
    /// Of a kind that this program does not know.
    Unknown(u8),
}

const COMMIT: u8 = 1;
const BEAT: u8 = 2;
const ASK: u8 = 3;
const ANSWER: u8 = 4;
const GROWN: u8 = 5;
const ASIDE: u8 = 6;
const QUESTION: u8 = 7;
const REPLY: u8 = 8;
const SHARE: u8 = 9;
const LINE: u8 = 10;

/// Bytes of a commit's frame without records.
const COMMIT_HEAD: usize = 1 + 8 + 8 + 17 + 4;
/// Bytes that the share of whom it is sent to takes before a commit.
pub(crate) const SHARE_HEAD: usize = 8;
/// Bytes of a question without its body; those of a reply are fewer.
pub(crate) const QUESTION_HEAD: usize = 1 + 8 + 1;
/// Bytes of a record without its value.
const RECORD_HEAD: usize = 16 + 8 + 4;
/// Bytes of a question without parts.
pub(crate) const ASK_HEAD: usize = 1 + 8 + 8 + 4 + 2;
/// Bytes of an answer without records.
const ANSWER_HEAD: usize = 1 + 8 + 2 + 2 + 8 + 8 + 4;
/// Longest name that a beat takes.
const NAME: usize = 255;

impl Record {
    fn bytes(&self) -> usize {
        RECORD_HEAD + self.value.len()
    }
}

impl Commit {
    /// Cuts a commit into commits whose messages have at most `max` bytes each. What holds a record that is larger by itself is left
    /// out: the others see a gap there and read the log.
    pub fn cut(self, max: usize) -> Vec<Self> {
        let (whole, view) = (self.end, self.view);
        let mut parts = Vec::new();
        let mut part = Self { first: self.first, end: self.first.into_size(), view, records: Vec::new() };
        let mut bytes = COMMIT_HEAD;
        for record in self.records {
            let more = record.bytes();
            if COMMIT_HEAD + more > max {
                // Up to the entry before it, and on behind it.
                part.end = record.index.into_size();
                let after = LeafIndex(record.index.0 + 1);
                let next = Self { first: after, end: after.into_size(), view, records: Vec::new() };
                parts.push(std::mem::replace(&mut part, next));
                bytes = COMMIT_HEAD;
                continue;
            }
            if bytes + more > max {
                part.end = record.index.into_size();
                let next = Self { first: record.index, end: record.index.into_size(), view, records: Vec::new() };
                parts.push(std::mem::replace(&mut part, next));
                bytes = COMMIT_HEAD;
            }
            bytes += more;
            part.records.push(record);
        }
        part.end = whole;
        parts.push(part);
        parts.retain(|part| part.first.0 < part.end.0);
        parts
    }
}

/// The size of the log that ends before this entry.
trait IntoSize {
    fn into_size(self) -> TreeSize;
}

impl IntoSize for LeafIndex {
    fn into_size(self) -> TreeSize {
        TreeSize(self.0)
    }
}

impl Answer {
    /// Cuts the records of a page into answers whose messages have at most `max` bytes. A record that is larger by itself loses its
    /// value: who gets it knows what to read from the log.
    pub fn cut(question: u64, reflects: TreeSize, next: Option<u64>, records: Vec<Record>, max: usize) -> Vec<Self> {
        let mut pages = vec![Vec::new()];
        let mut bytes = ANSWER_HEAD;
        for mut record in records {
            if ANSWER_HEAD + record.bytes() > max {
                record.value.clear();
            }
            let more = record.bytes();
            if bytes + more > max {
                pages.push(Vec::new());
                bytes = ANSWER_HEAD;
            }
            bytes += more;
            if let Some(page) = pages.last_mut() {
                page.push(record);
            }
        }
        let parts = u16::try_from(pages.len()).unwrap_or(u16::MAX);
        let pages = pages.into_iter().take(usize::from(parts)).zip(0..);
        pages.map(|(records, part)| Self { question, part, parts, reflects, next, records }).collect()
    }
}

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Commit(commit) => {
                out.push(COMMIT);
                put_commit(&mut out, commit);
            }
            Self::Share(share, commit) => {
                out.push(SHARE);
                put_u64(&mut out, *share);
                put_commit(&mut out, commit);
            }
            Self::Grown(size) => {
                out.push(GROWN);
                put_u64(&mut out, size.0);
            }
            Self::Beat(beat) => {
                out.push(BEAT);
                put_text(&mut out, &beat.node);
                put_text(&mut out, &beat.program);
                put_u64(&mut out, beat.number);
                put_u64(&mut out, beat.size.0);
                put_u64(&mut out, beat.reflects.0);
                out.extend_from_slice(&beat.log_age_ms.to_be_bytes());
                out.push(u8::from(beat.leaving));
                let heard = u16::try_from(beat.heard.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&heard.to_be_bytes());
                for (who, number) in beat.heard.iter().take(usize::from(heard)) {
                    out.extend_from_slice(&who.0);
                    put_u64(&mut out, *number);
                }
                if let Some(placement) = beat.placement {
                    put_u64(&mut out, placement);
                }
            }
            Self::Ask(ask) => {
                out.push(ASK);
                put_u64(&mut out, ask.question);
                put_u64(&mut out, ask.from);
                out.extend_from_slice(&ask.bytes.to_be_bytes());
                let missing = u16::try_from(ask.missing.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&missing.to_be_bytes());
                for part in ask.missing.iter().take(usize::from(missing)) {
                    out.extend_from_slice(&part.to_be_bytes());
                }
            }
            Self::Answer(answer) => {
                out.reserve(ANSWER_HEAD + answer.records.iter().map(Record::bytes).sum::<usize>());
                out.push(ANSWER);
                put_u64(&mut out, answer.question);
                out.extend_from_slice(&answer.part.to_be_bytes());
                out.extend_from_slice(&answer.parts.to_be_bytes());
                put_u64(&mut out, answer.reflects.0);
                put_u64(&mut out, answer.next.unwrap_or(0));
                put_records(&mut out, &answer.records);
            }
            Self::Aside(bytes) => {
                out.reserve(1 + bytes.len());
                out.push(ASIDE);
                out.extend_from_slice(bytes);
            }
            Self::Question(Question { number, topic, body }) => {
                out.reserve(QUESTION_HEAD + body.len());
                out.push(QUESTION);
                put_u64(&mut out, *number);
                out.push(*topic);
                out.extend_from_slice(body);
            }
            Self::Reply(number, body) => {
                out.reserve(QUESTION_HEAD + body.len());
                out.push(REPLY);
                put_u64(&mut out, *number);
                out.extend_from_slice(body);
            }
            Self::Line(id, frame) => {
                out.reserve(1 + id.0.len() + frame.len());
                out.push(LINE);
                out.extend_from_slice(&id.0);
                out.extend_from_slice(frame);
            }
            Self::Unknown(kind) => out.push(*kind),
        }
        out
    }

    /// Reads a message. Takes no more memory than a small multiple of the bytes it is given.
    ///
    /// # Errors
    /// [`Undecodable`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let mut from = Reader::new(bytes);
        let message = match from.u8()? {
            COMMIT => Self::Commit(commit(&mut from)?),
            SHARE => Self::Share(from.u64()?, commit(&mut from)?),
            GROWN => Self::Grown(TreeSize(from.u64()?)),
            BEAT => {
                let (node, program) = (text(&mut from)?, text(&mut from)?);
                let (number, size, reflects) = (from.u64()?, TreeSize(from.u64()?), TreeSize(from.u64()?));
                let log_age_ms = from.u32()?;
                let leaving = from.u8()? != 0;
                let heard = from.u16()?;
                let heard = (0..heard).map(|_| Ok((Incarnation(from.array()?), from.u64()?)));
                let heard = heard.collect::<Result<_, Undecodable>>()?;
                // A program from before placements ends here.
                let placement = from.u64().ok().filter(|placement| *placement > 0);
                Self::Beat(Beat { node, program, number, size, reflects, log_age_ms, leaving, heard, placement })
            }
            ASK => {
                let (question, position) = (from.u64()?, from.u64()?);
                let bytes = from.u32()?;
                let missing = from.u16()?;
                let missing = (0..missing).map(|_| from.u16());
                let missing = missing.collect::<Result<_, _>>()?;
                Self::Ask(Ask { question, from: position, bytes, missing })
            }
            ANSWER => {
                let question = from.u64()?;
                let (part, parts) = (from.u16()?, from.u16()?);
                // No page begins where the first does.
                let (reflects, next) = (TreeSize(from.u64()?), Some(from.u64()?).filter(|next| *next > 0));
                let records = records(&mut from)?;
                if part >= parts || !from.is_at_end() {
                    return Err(Undecodable);
                }
                Self::Answer(Answer { question, part, parts, reflects, next, records })
            }
            ASIDE => Self::Aside(from.rest().to_vec()),
            QUESTION => {
                let (number, topic) = (from.u64()?, from.u8()?);
                Self::Question(Question { number, topic, body: from.rest().to_vec() })
            }
            REPLY => Self::Reply(from.u64()?, from.rest().to_vec()),
            LINE => {
                let id = LineId(from.array()?);
                Self::Line(id, from.rest().to_vec())
            }
            kind => Self::Unknown(kind),
        };
        Ok(message)
    }
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let end = (0..=text.len().min(NAME)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default();
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
}

fn put_option(out: &mut Vec<u8>, bytes: Option<[u8; 16]>) {
    out.push(u8::from(bytes.is_some()));
    out.extend_from_slice(&bytes.unwrap_or_default());
}

fn put_commit(out: &mut Vec<u8>, commit: &Commit) {
    out.reserve(COMMIT_HEAD + commit.records.iter().map(Record::bytes).sum::<usize>());
    put_u64(out, commit.first.0);
    put_u64(out, commit.end.0);
    put_option(out, commit.view.map(|view| view.0));
    put_records(out, &commit.records);
}

fn put_records(out: &mut Vec<u8>, records: &[Record]) {
    out.extend_from_slice(&u32::try_from(records.len()).unwrap_or(u32::MAX).to_be_bytes());
    for record in records {
        out.extend_from_slice(record.session.uuid().as_bytes());
        put_u64(out, record.index.0);
        out.extend_from_slice(&u32::try_from(record.value.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&record.value);
    }
}

fn text(from: &mut Reader<'_>) -> Result<String, Undecodable> {
    let length = from.u8()?;
    String::from_utf8(from.take(usize::from(length))?.to_vec()).map_err(|_| Undecodable)
}

fn option(from: &mut Reader<'_>) -> Result<Option<[u8; 16]>, Undecodable> {
    let (there, bytes) = (from.flag()?, from.array()?);
    Ok(there.then_some(bytes))
}

fn commit(from: &mut Reader<'_>) -> Result<Commit, Undecodable> {
    let (first, end) = (LeafIndex(from.u64()?), TreeSize(from.u64()?));
    let view = option(from)?.map(ViewIdentity);
    let records = records(from)?;
    let within = |record: &Record| (first.0..end.0).contains(&record.index.0);
    if first.0 >= end.0 || !records.iter().all(within) || !from.is_at_end() {
        return Err(Undecodable);
    }
    Ok(Commit { first, end, view, records })
}

fn records(from: &mut Reader<'_>) -> Result<Vec<Record>, Undecodable> {
    let count = from.u32()? as usize;
    // A count is only believed as far as there are bytes for it.
    if count.checked_mul(RECORD_HEAD).is_none_or(|bytes| bytes > from.left()) {
        return Err(Undecodable);
    }
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let (session, index) = (from.session()?, LeafIndex(from.u64()?));
        records.push(Record { session, index, value: from.bytes()?.to_vec() });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        (any::<u128>(), 0_u64..1_000, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(id, index, value)| {
            Record { session: SessionId::new(Uuid::from_u128(id)), index: LeafIndex(index), value }
        })
    }

    fn commit() -> impl Strategy<Value = Commit> {
        (prop::collection::vec(record(), 0..40), any::<Option<[u8; 16]>>(), 0_u64..50).prop_map(
            |(mut records, view, more)| {
                records.sort_by_key(|record| record.index);
                records.dedup_by_key(|record| record.index);
                let end = records.last().map_or(1_000, |last| last.index.0 + 1) + more;
                let first = records.first().map_or(1_000 - more.min(1_000), |first| first.index.0);
                Commit {
                    first: LeafIndex(first),
                    end: TreeSize(end.max(first + 1)),
                    view: view.map(ViewIdentity),
                    records,
                }
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let beat =
            (any::<(u64, u64, u64, u32, bool)>(), "\\PC{0,20}", prop::collection::vec(any::<([u8; 16], u64)>(), 0..9));
        prop_oneof![
            commit().prop_map(Message::Commit),
            (any::<u64>(), commit()).prop_map(|(share, commit)| Message::Share(share, commit)),
            (any::<(u64, u8)>(), prop::collection::vec(any::<u8>(), 0..50))
                .prop_map(|((number, topic), body)| Message::Question(Question { number, topic, body })),
            (any::<u64>(), prop::collection::vec(any::<u8>(), 0..50))
                .prop_map(|(number, body)| Message::Reply(number, body)),
            beat.prop_map(|((number, size, reflects, log_age_ms, leaving), node, heard)| Message::Beat(Beat {
                program: node.clone(),
                node,
                number,
                size: TreeSize(size),
                reflects: TreeSize(reflects),
                log_age_ms,
                leaving,
                heard: heard.into_iter().map(|(who, number)| (Incarnation(who), number)).collect(),
                placement: Some(size).filter(|size| *size > 0 && leaving),
            })),
            any::<u64>().prop_map(|size| Message::Grown(TreeSize(size))),
            prop::collection::vec(any::<u8>(), 0..50).prop_map(Message::Aside),
            (any::<(u64, u64, u32)>(), prop::collection::vec(any::<u16>(), 0..9))
                .prop_map(|((question, from, bytes), missing)| Message::Ask(Ask { question, from, bytes, missing })),
            (prop::collection::vec(record(), 0..9), any::<(u64, u16, u64)>()).prop_map(
                |(records, (question, part, next))| Message::Answer(Answer {
                    question,
                    part: part / 2,
                    parts: part / 2 + 1,
                    reflects: TreeSize(question),
                    next: Some(next).filter(|next| *next > 0),
                    records,
                })
            ),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _either = Message::decode(&bytes);
        }

        #[test]
        fn what_is_cut_short_is_none(message in message(), cut in any::<prop::sample::Index>()) {
            let bytes = message.encode();
            let read = Message::decode(&bytes[..cut.index(bytes.len())]);
            // What others say to each other is whole to us however long it is, since a frame is sealed whole; a beat may be of an older program.
            let whole_at_any_length =
                matches!(read, Ok(Message::Aside(_) | Message::Question(_) | Message::Reply(..) | Message::Beat(_)));
            prop_assert!(read == Err(Undecodable) || whole_at_any_length);
        }

        /// Every part fits; together they cover every entry once, but for those whose record fits nowhere; and each record is where its
        /// entry is covered.
        #[test]
        fn a_commit_is_cut_without_loss(commit in commit(), max in 80_usize..400) {
            let whole = commit.clone();
            let parts = commit.cut(max);
            let mut covered = Vec::new();
            let mut records = Vec::new();
            for part in parts {
                prop_assert!(Message::Commit(part.clone()).encode().len() <= max);
                prop_assert!(Message::decode(&Message::Commit(part.clone()).encode()).is_ok());
                covered.extend(part.first.0..part.end.0);
                records.extend(part.records);
            }
            let too_large = |record: &&Record| COMMIT_HEAD + record.bytes() > max;
            let lost: Vec<u64> = whole.records.iter().filter(too_large).map(|record| record.index.0).collect();
            let all: Vec<u64> = (whole.first.0..whole.end.0).filter(|index| !lost.contains(index)).collect();
            prop_assert_eq!(covered, all);
            prop_assert_eq!(records, whole.records.into_iter().filter(|r| !too_large(&r)).collect::<Vec<_>>());
        }
    }
}
