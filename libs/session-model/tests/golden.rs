//! The bytes of every entry ever written stay readable: these are never changed, only added to.

use session_model::{Attributes, Event, Leaf, Limits, MergePatch, SealedPart, Session, Timestamp, apply, decide};

/// One leaf of each shape that format 1 has, byte for byte.
const LEAVES: &[&str] = &[
    r#"{"action":"session.created","actor":{"id":"key-1","role":"application"},"commitment":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749","data_key":"88c50c66-0ffb-4fed-8cc2-a37435d4f777","detail":{"kind":"web"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92cb","format":1,"node":"node","outcome":"success","protocol":"rest","realm":"default","session_id":"01a1fca1-4541-73ec-9436-4c6bac6a9c2e","time":"2026-11-21T05:43:10.364321Z","trace_id":"2514347149e07105ae2ed1b5e11ade40","version":1}"#,
    r#"{"action":"session.ended","actor":{"id":"key-1","role":"application"},"commitment":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749","data_key":"88c50c66-0ffb-4fed-8cc2-a37435d4f777","detail":{"reason":"logout"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92cb","format":1,"node":"node","outcome":"success","previous":{"hash":"7cf035b2f6efb7699757a6cded73ac3cc5a8d20937951bfa32e4cb678d6e6267","index":6},"protocol":"soap","realm":"default","request_id":"r-1","session_id":"01a1fca1-4541-73ec-9436-4c6bac6a9c2e","time":"2026-11-21T05:43:10.364321Z","version":4}"#,
    r#"{"action":"service.started","actor":{"id":"node","role":"node"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92cb","format":1,"node":"node","outcome":"refused","protocol":"internal","realm":"default","time":"2026-11-21T05:43:10.000000Z"}"#,
    r#"{"action":"key.rotated","actor":{"id":"command-line","role":"operator"},"detail":{"wrapping_key":"52806d7caffb6baf"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92cb","format":1,"node":"node","outcome":"success","protocol":"cli","realm":"default","time":"2026-11-21T11:43:10.000000Z"}"#,
    r#"{"action":"key.rewrapped","actor":{"id":"command-line","role":"operator"},"detail":{"data_keys":"9","wrapping_key":"52806d7caffb6baf"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92cb","format":1,"node":"node","outcome":"success","protocol":"cli","realm":"default","time":"2026-11-21T11:43:10.000000Z"}"#,
    r#"{"action":"retention.pruned","actor":{"id":"node","role":"node"},"detail":{"before":"2025-11-21T00:00:00.000000Z","bundle":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749","end":"4711","first":"0","parts":"4000"},"entry_id":"01a1fca1-471c-7a3c-8466-325d96bb92cb","format":1,"node":"node","outcome":"success","protocol":"internal","realm":"default","time":"2026-11-21T11:43:10.000000Z"}"#,
];

/// One sealed part of each event.
const SEALED: &[&str] = &[
    r#"{"event":{"created":{"subject":"alice","kind":"web","attributes":{"a":[1,{"b":null}],"n":1.5},"authentication":[["pwd","otp"],"aal2"],"client":{"address":"192.0.2.1","user_agent":"x"},"idle_timeout":1800,"absolute_timeout":43200,"token":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749"}},"origin":"192.0.2.7"}"#,
    r#"{"event":{"created":{"kind":"api","attributes":{},"idle_timeout":1800,"absolute_timeout":43200,"token":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749"}}}"#,
    r#"{"event":{"updated":{"patch":{"a":null,"b":{"c":"d"}}}}}"#,
    r#"{"event":{"authenticated":{"subject":"bob","methods":["pwd"],"level":"aal1","token":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749","overlap":30}}}"#,
    r#"{"event":{"renewed":{"token":"1138ea8736cf5bc11796776ec64c32a940f5875a1e726df5c882689325f96749","overlap":30}}}"#,
    r#"{"event":"token_reused"}"#,
    r#"{"event":{"ended":{"reason":"expired_idle","at":"2026-11-21T05:43:10.364321Z"}}}"#,
    r#"{"facts":{"label":"x"}}"#,
];

#[test]
fn every_leaf_reads_and_is_written_again_byte_for_byte() {
    for bytes in LEAVES {
        let leaf = Leaf::decode(bytes.as_bytes()).unwrap_or_else(|failure| panic!("{failure:?}: {bytes}"));
        assert_eq!(String::from_utf8(leaf.encode().unwrap()).unwrap(), *bytes);
    }
}

#[test]
fn every_leaf_is_canonical_json() {
    for bytes in LEAVES {
        let value: serde_json::Value = serde_json::from_str(bytes).unwrap();
        assert_eq!(serde_json_canonicalizer::to_string(&value).unwrap(), *bytes);
    }
}

#[test]
fn every_sealed_part_reads_and_is_written_again_byte_for_byte() {
    for bytes in SEALED {
        let part = SealedPart::decode(bytes.as_bytes()).unwrap_or_else(|failure| panic!("{failure:?}: {bytes}"));
        assert_eq!(String::from_utf8(part.encode().unwrap()).unwrap(), *bytes);
    }
}

#[test]
fn a_leaf_of_an_unknown_format_or_with_unknown_fields_is_refused() {
    let leaf = LEAVES[2];
    assert!(Leaf::decode(leaf.replace("\"format\":1", "\"format\":2").as_bytes()).is_err());
    assert!(Leaf::decode(leaf.replace("{\"action\"", "{\"aaa\":1,\"action\"").as_bytes()).is_err());
}

#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]
mod folding {
    use proptest::prelude::*;
    use session_model::{
        Command, Created, Digest, EndReason, Head, KeyId, Kind, LeafIndex, Policy, Profile, RealmName, Recorded,
        Seconds, SessionId, TokenDigest, TreeSize, Version,
    };

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u32),
        Update(u8),
        Authenticate(u8),
        Renew,
        Reuse,
        End,
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u32..3_000).prop_map(Step::Wait),
            any::<u8>().prop_map(Step::Update),
            any::<u8>().prop_map(Step::Authenticate),
            Just(Step::Renew),
            Just(Step::Reuse),
            Just(Step::End),
            Just(Step::Expire),
        ]
    }

    fn digest(number: u8) -> TokenDigest {
        TokenDigest::new(Digest([number; 32]))
    }

    fn recorded(version: Version, time: Timestamp) -> Recorded {
        Recorded {
            session: SessionId::new(uuid::Uuid::from_u128(1)),
            realm: "default".parse::<RealmName>().unwrap(),
            version,
            time,
            head: Head { index: LeafIndex(version.0), hash: Digest([0; 32]), tree_size: TreeSize(version.0 + 1) },
            data_key: KeyId::new(uuid::Uuid::from_u128(2)),
        }
    }

    proptest! {
        /// Whatever is asked for in whatever order: an ended session stays ended, deadlines are kept, versions are dense, and
        /// folding the events through their stored bytes gives the very state that was answered.
        #[test]
        fn an_ended_session_stays_ended_and_bytes_fold_to_what_was_answered(
            steps in proptest::collection::vec(step(), 0..40),
            regulated: bool,
        ) {
            let policy: Policy = if regulated { Profile::Hipaa } else { Profile::Default }.policy();
            let mut now = Timestamp::from_micros(1_700_000_000_000_000);
            let create = Command::Create(Box::new(Created {
                subject: None, kind: Kind::Web, attributes: Attributes::empty(), authentication: None, client: None,
                idle_timeout: None, absolute_timeout: None, token: digest(0),
            }));
            let event = decide(None, create, now, &policy).unwrap();
            let mut log = vec![(event.clone(), recorded(Version(1), now))];
            let mut session = apply(None, &event, &recorded(Version(1), now)).unwrap();
            for (nth, step) in steps.into_iter().enumerate() {
                let token = digest(nth as u8 + 1);
                let command = match step {
                    Step::Wait(seconds) => { now = now.plus(Seconds(seconds)); continue }
                    Step::Update(n) => Command::Update {
                        patch: MergePatch::parse(&format!("{{\"k{}\":{n}}}", n % 5), &Limits::default()).unwrap(), expected: None },
                    Step::Authenticate(n) => Command::Authenticate {
                        subject: format!("s{n}").into(), methods: vec!["pwd".into()], level: None, token },
                    Step::Renew => Command::Renew { token },
                    Step::Reuse => Command::ReportReuse,
                    Step::End => Command::End { reason: EndReason::requested("logout").unwrap() },
                    Step::Expire => Command::Expire,
                };
                let was_over = session.ended().is_some();
                let expired = session.idle_expires_at() <= now;
                match decide(Some(&session), command.clone(), now, &policy) {
                    Err(_) => continue,
                    Ok(event) => {
                        prop_assert!(!was_over, "{command:?} on an ended session");
                        prop_assert!(!expired || matches!(command, Command::Expire), "{command:?} after the deadline");
                        let next = recorded(session.version.next(), now);
                        session = apply(Some(session), &event, &next).unwrap();
                        log.push((event, next));
                    }
                }
                prop_assert!(session.idle_expires_at() <= session.created_at.plus(policy.absolute_timeout));
            }
            let mut folded: Option<Session> = None;
            for (event, recorded) in &log {
                let bytes = SealedPart { event: Some(event.clone()), ..SealedPart::default() }.encode().unwrap();
                let event: Event = SealedPart::decode(&bytes).unwrap().event.unwrap();
                folded = apply(folded, &event, recorded);
            }
            let (ours, theirs) = (serde_json::to_string(&session).unwrap(), serde_json::to_string(&folded.unwrap()).unwrap());
            prop_assert_eq!(&ours, &theirs);
            let read: Session = serde_json::from_str(&ours).unwrap();
            prop_assert_eq!(serde_json::to_string(&read).unwrap(), ours);
        }
    }
}
