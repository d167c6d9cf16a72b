//! Checkpoints with time stamps, against `openssl ts` as the authority.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use std::path::Path;
use std::time::Duration;

use anchors::{Anchor, TsaAnchor, TsaConfig, stamps_in};
use session_model::TreeSize;
use time_stamp::testing::{Authority, Server};

fn anchor(server: &Server, root: &Path, folder: &Path) -> TsaAnchor {
    TsaAnchor::new(TsaConfig {
        url: server.url.clone(),
        policy: None,
        ca_file: root.to_owned(),
        tls_ca_file: None,
        folder: folder.join("time-stamps"),
        timeout: Duration::from_secs(10),
    })
    .unwrap()
}

#[test]
fn a_checkpoint_is_kept_with_its_stamp_and_the_newest_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Authority::new("critical,timeStamping").serve();
    let anchor = anchor(&server, &server.root, folder.path());
    assert_eq!(anchor.newest().unwrap(), None);
    for size in [9, 10, 100] {
        anchor.keep(TreeSize(size), &format!("log\n{size}\nroot\n")).unwrap();
    }
    assert_eq!(anchor.newest().unwrap().as_deref(), Some("log\n100\nroot\n"));
    let stamps = stamps_in(&folder.path().join("time-stamps")).unwrap();
    assert_eq!(stamps.iter().map(|stamp| stamp.size.0).collect::<Vec<_>>(), [9, 10, 100]);
    for stamp in stamps {
        let said = server.authority.verify(&stamp.response, &stamp.checkpoint);
        assert!(said.contains("Verification: OK"), "{said}");
    }
}

#[test]
fn what_is_not_a_good_stamp_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (server, stranger) = (Authority::new("critical,timeStamping").serve(), Authority::new("critical,timeStamping"));
    let anchor = anchor(&server, &stranger.root(), folder.path());
    let refused = anchor.keep(TreeSize(9), "log\n9\nroot\n").unwrap_err();
    assert!(refused.to_string().contains("no good time stamp"), "{refused}");
    assert_eq!(anchor.newest().unwrap(), None);
    // Nobody there.
    let url = server.url.clone();
    drop(server);
    assert!(anchor.keep(TreeSize(9), "log\n9\nroot\n").is_err(), "{url}");
}
