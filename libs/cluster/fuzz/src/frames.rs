//! Whatever comes over the wire is read, or refused: no input panics, and nothing opens that was not sealed. Run by `run` beside it.
//!
//! The first byte of an input says what the rest is.

#![no_main]

use std::sync::LazyLock;

use cluster::fuzz::Wire;
use cluster::{Message, Rejected};
use libfuzzer_sys::fuzz_target;

static WIRE: LazyLock<Wire> = LazyLock::new(|| Wire::new().expect("OpenSSL"));

fuzz_target!(|input: &[u8]| {
    let Some((what, bytes)) = input.split_first() else { return };
    match what % 6 {
        // What an insider could send: a message as it comes out of an authentic frame.
        0 => read(bytes),
        // What anybody could: a frame.
        1 => assert!(!matches!(WIRE.open(bytes), Ok(Some(_))), "a frame that nobody sealed"),
        // A message all the way through.
        2 => {
            let frame = WIRE.seal(bytes).expect("OpenSSL");
            let opened = WIRE.open(&frame).expect("an authentic frame").expect("of another node");
            assert_eq!(opened, bytes);
            read(&opened);
            assert_eq!(WIRE.open(&frame), Err(Rejected::Replayed));
        }
        // What an insider could ask as a partner, or answer.
        3 => transient_partner::fuzz(bytes),
        // What an insider could ask of a session that a log stands behind, answer, or tell of one that none does.
        5 => session_service::fuzz(bytes),
        // A frame with some bytes of it altered, shortened or prolonged on the way: pairs of where and how.
        _ => {
            let sealed = WIRE.seal(b"a message of some length, so that there is something to alter").expect("OpenSSL");
            let mut frame = sealed.clone();
            for pair in bytes.chunks_exact(2) {
                match (frame.get_mut(usize::from(pair[0])), pair[0]) {
                    (_, 255) => frame.push(pair[1]),
                    (_, 254) => frame.truncate(usize::from(pair[1])),
                    (Some(byte), _) => *byte ^= pair[1],
                    (None, _) => {}
                }
            }
            let opened = WIRE.open(&frame);
            if frame != sealed {
                assert!(!matches!(opened, Ok(Some(_))), "an altered frame was opened");
            }
        }
    }
});

/// A message that can be read is written again as one that reads alike.
fn read(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        let written = message.encode();
        assert!(written.len() <= bytes.len(), "more came out than went in");
        assert_eq!(Message::decode(&written), Ok(message));
    }
}
