//! Sessions to test with.

use session_model::{
    Attributes, Digest, EndReason, Ended, Head, KeyId, Kind, LeafIndex, RealmName, Seconds, Session, SessionId, State,
    Timestamp, TokenDigest, TreeSize, Version,
};
use uuid::Uuid;

/// The `n`th session: the form of a UUIDv7, spread like one.
pub fn id(n: u64) -> SessionId {
    let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    SessionId::new(Uuid::from_u128(
        u128::from(n) << 80 | 0x7000_8000_0000_0000_0000 | u128::from(random & 0x3fff_ffff_ffff_ffff),
    ))
}

/// `seconds` after the sessions made here begin, in the year 2100: a time that no clock of a server under test has passed.
pub const fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((4_102_444_800 + seconds) * 1_000_000)
}

/// The `n`th session as of leaf `index`: begun at [`at`]`(0)`, idle after 1,800 seconds, over after 43,200.
///
/// # Panics
/// Never: the realm's name is well-formed.
#[expect(clippy::expect_used, reason = "the literal is a realm's name")]
pub fn session(n: u64, index: u64) -> Session {
    Session {
        id: id(n),
        realm: "default".parse::<RealmName>().expect("a realm's name"),
        version: Version(index + 1),
        head: Head { index: LeafIndex(index), hash: Digest([index as u8; 32]), tree_size: TreeSize(index + 1) },
        state: State::Active,
        subject: Some(format!("subject {n}").into()),
        data_key: KeyId::new(id(n).uuid()),
        kind: Kind::Web,
        attributes: Attributes::empty(),
        authentication: None,
        client: None,
        created_at: at(0),
        last_seen_at: at(0),
        idle_timeout: Seconds(1_800),
        expires_at: at(43_200),
        token: TokenDigest::new(Digest([n as u8; 32])),
        token_issued_at: at(0),
        previous: None,
        retired: Vec::new(),
        reuse_recorded: false,
    }
}

/// The `n`th session, ended by leaf `index`.
pub fn ended(n: u64, index: u64) -> Session {
    let reason = EndReason::requested("logout").unwrap_or(EndReason::Evicted);
    Session { state: State::Ended(Ended { reason, at: at(60) }), ..session(n, index) }
}

/// The `n`th session as of leaf `index`, used last at `seconds`.
pub fn seen(n: u64, index: u64, seconds: i64) -> Session {
    Session { last_seen_at: at(seconds), ..session(n, index) }
}
