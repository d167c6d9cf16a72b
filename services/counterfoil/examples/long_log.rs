//! Fills the log of a data folder with sessions, faster than the service would, so that bundles and the verifier can be measured on
//! a long one: `cargo run --release --all-features --example long_log -- DATA_DIR ENTRIES [ENTRIES_A_COMMIT]`.
//!
//! The folder must have its keys: `counterfoil --set data_dir=DATA_DIR key list` makes them. Leaves and sealed parts are what the
//! service writes for a session that is created with a subject, changed twice and ended; they open, and they replay.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "an experiment, not the service"
)]
#![allow(clippy::disallowed_methods, reason = "the time it takes is of interest")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use audit_log::{
    Appended, Claims, DataKeyClaim, DataKeyRow, LogIdentity, LogReader as _, LogWriter as _, Proposed, SealedEntry,
    Sequencer, SessionChange,
};
use audit_log_sqlite::{SqliteLog, SqliteLogOptions};
use merkle_log::leaf_hash;
use sealing::{DataKey, Ids, Keyring, LogKey, token_digest};
use session_model::{
    Action, Actor, Attributes, Beginning, EndReason, Ended, Event, Format, Kind, Leaf, LeafIndex, Limits, MergePatch,
    Outcome, PreviousLeaf, Protocol, Role, SealedPart, Seconds, Timestamp, Token, Version,
};

/// Entries of a session.
const LIFE: u64 = 4;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("a data folder"));
    let count: u64 = arguments.next().expect("how many entries").parse().unwrap();
    let commit: usize = arguments.next().map_or(64, |text| text.parse().unwrap());
    let keys = folder.join("keys");
    let origin = std::fs::read_to_string(keys.join("origin")).unwrap().trim().to_owned();
    let key = LogKey::from_pem(&origin, &std::fs::read(keys.join("log.pem")).unwrap()).unwrap();
    let keyring = Keyring::new(&std::fs::read(keys.join("kek")).unwrap().try_into().unwrap()).unwrap();
    let log = SqliteLog::open(SqliteLogOptions::new(folder.join("log.db"))).await.unwrap();
    let sequencer = Sequencer::new(LogIdentity { origin, signers: vec![Arc::new(key)] });
    let mut head = log.head().await.unwrap();
    let mut clock = head.time.as_micros().max(1_760_000_000_000_000);
    let (began, mut made) = (Instant::now(), 0);
    // Sessions that are open at a time; each commit has entries of many.
    let mut open: Vec<Life> = Vec::new();
    let mut turn = 0_usize;
    while made < count {
        let mut entries = Vec::with_capacity(commit);
        for place in 0..commit.min(usize::try_from(count - made).unwrap()) {
            clock += 250;
            if open.len() < 1_000 {
                open.push(Life::new(&keyring, clock));
                turn = open.len() - 1;
            } else {
                turn = (turn + 1) % open.len();
            }
            let index = LeafIndex(head.size().0 + place as u64);
            entries.push(open[turn].next(index, Timestamp::from_micros(clock)));
            if open[turn].version == LIFE {
                open.swap_remove(turn);
            }
        }
        made += entries.len() as u64;
        let batch = sequencer.ordered(&head, entries).unwrap();
        assert!(matches!(log.append(&batch).await.unwrap(), Appended::Committed));
        head = batch.head;
    }
    println!("{made} entries in {:.1} s; the log has {}", began.elapsed().as_secs_f64(), head.size());
}

struct Life {
    id: session_model::SessionId,
    key: DataKey,
    row: DataKeyRow,
    version: u64,
    previous: Option<PreviousLeaf>,
}

impl Life {
    fn new(keyring: &Keyring, clock: i64) -> Self {
        let key = DataKey::generate().unwrap();
        let id = Ids.data_key().unwrap();
        let subject = format!("subject-{clock}@example.org");
        let lookup = keyring.lookup(&"default".parse().unwrap(), &subject).unwrap();
        let row =
            DataKeyRow { id, lookup: Some(lookup), wrapped: keyring.wrap(id, &key).unwrap(), owner: None, held: false };
        let id = Ids.session(Timestamp::from_micros(clock)).unwrap();
        Self { id, key, row, version: 0, previous: None }
    }

    fn next(&mut self, index: LeafIndex, time: Timestamp) -> Proposed {
        self.version += 1;
        let limits = Limits::default();
        let json = format!("{{\"cart\":[{}],\"theme\":\"dark\",\"locale\":\"de-CH\"}}", index.0);
        let event = match self.version {
            1 => Event::Created(Box::new(Beginning {
                subject: Some(format!("subject-{}@example.org", time.as_micros()).into()),
                kind: Kind::Web,
                attributes: Attributes::parse(&json, &limits).unwrap(),
                authentication: Some((vec!["pwd".into(), "otp".into()], Some("aal2".into()))),
                client: None,
                idle_timeout: Seconds(1_800),
                absolute_timeout: Seconds(43_200),
                token: token_digest(&Token::new(self.id, Ids.secret().unwrap())),
            })),
            LIFE => Event::Ended(Ended { reason: EndReason::Requested("logout".into()), at: time }),
            _ => Event::Updated { patch: MergePatch::parse(&json, &limits).unwrap() },
        };
        let part =
            SealedPart { event: Some(event.clone()), origin: Some([192, 0, 2, 7].into()), facts: Default::default() };
        let entry_id = Ids.entry(time).unwrap();
        let sealed = self.key.seal(entry_id, &part.encode().unwrap()).unwrap();
        let leaf = Leaf {
            action: Action::of(&event),
            actor: Actor { id: "key-0190a5c2-7c1e-7000-8000-00000000000a".into(), role: Role::Application },
            commitment: Some(sealed.commitment),
            data_key: Some(self.row.id),
            detail: [("kind".to_owned(), "web".to_owned())].into(),
            entry_id,
            format: Format::V1,
            node: "node".into(),
            outcome: Outcome::Success,
            previous: self.previous,
            protocol: Protocol::Rest,
            realm: "default".parse().unwrap(),
            request_id: None,
            session_id: Some(self.id),
            time,
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            version: Some(Version(self.version)),
        };
        let bytes = leaf.encode().unwrap();
        let hash = leaf_hash(&bytes);
        self.previous = Some(PreviousLeaf { hash, index });
        let claims = Claims {
            session: Some((self.id, Version(self.version))),
            data_key: (self.version == 1).then(|| DataKeyClaim::New(self.row.clone())),
            index: match self.version {
                1 => Some(SessionChange::Opened { realm: leaf.realm.clone(), key: self.row.id, kind: Kind::Web }),
                LIFE => Some(SessionChange::Closed),
                _ => None,
            },
            ..Claims::default()
        };
        let sealed = Some(SealedEntry { key: self.row.id, bytes: sealed.bytes });
        Proposed { leaf, bytes, hash, sealed, claims }
    }
}
