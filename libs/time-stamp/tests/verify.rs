//! Against `openssl ts` as the authority: what is good, and everything that must not be taken for it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use session_model::Timestamp;
use time_stamp::testing::{Authority, POLICY};
use time_stamp::{Request, Roots, RootsError, StampError};

fn roots(authority: &Authority) -> Roots {
    Roots::from_pem(&std::fs::read(authority.root()).unwrap()).unwrap()
}

#[test]
fn a_stamp_is_of_these_bytes_for_this_request_by_a_trusted_authority() {
    let authority = Authority::new("critical,timeStamping");
    let roots = roots(&authority);
    let request = Request::new(b"checkpoint", [7; 16], None).unwrap();
    let response = authority.reply(request.der());
    let stamp = roots.verify_answer(&response, &request, b"checkpoint").unwrap();
    assert_eq!((stamp.policy.as_str(), stamp.authority.as_str()), (POLICY, "CN=stamps,O=test"));
    assert!(stamp.time > Timestamp::parse("2020-01-01T00:00:00Z").unwrap());
    assert_eq!(roots.verify(&response, b"checkpoint").unwrap(), stamp);

    assert!(matches!(roots.verify(&response, b"another"), Err(StampError::OtherImprint)));
    let again = Request::new(b"checkpoint", [8; 16], None).unwrap();
    assert!(matches!(roots.verify_answer(&response, &again, b"checkpoint"), Err(StampError::OtherNonce)), "replayed");
    let asked = Request::new(b"checkpoint", [7; 16], Some("1.2.3.4.2")).unwrap();
    assert!(matches!(roots.verify_answer(&response, &asked, b"checkpoint"), Err(StampError::OtherPolicy(_))));
    assert_eq!(roots.verify(&authority.reply(asked.der()), b"checkpoint").unwrap().policy, "1.2.3.4.2");

    let stranger = Authority::new("critical,timeStamping");
    let foreign = Roots::from_pem(&std::fs::read(stranger.root()).unwrap()).unwrap();
    assert!(matches!(foreign.verify(&response, b"checkpoint"), Err(StampError::Signature(_))));
}

#[test]
fn no_byte_of_a_response_can_be_changed() {
    let authority = Authority::new("critical,timeStamping");
    let roots = roots(&authority);
    let request = Request::new(b"checkpoint", [7; 16], None).unwrap();
    let response = authority.reply(request.der());
    let stamp = roots.verify_answer(&response, &request, b"checkpoint").unwrap();
    for at in 0..response.len() {
        let mut altered = response.clone();
        altered[at] ^= 1;
        // What is not signed (a status of 1 for 0, an unsigned part of the certificate's wrapping) may differ; what is told may not.
        if let Ok(told) = roots.verify_answer(&altered, &request, b"checkpoint") {
            assert_eq!(told, stamp, "byte {at}");
        }
        assert!(roots.verify_answer(&response[..at], &request, b"checkpoint").is_err(), "cut at {at}");
    }
}

#[test]
fn a_certificate_for_anything_else_stamps_nothing() {
    let authority = Authority::new("critical,timeStamping");
    let roots = roots(&authority);
    let request = Request::new(b"checkpoint", [7; 16], None).unwrap();
    let verified =
        |usage: &str| roots.verify_answer(&authority.reply_as(request.der(), usage), &request, b"checkpoint");
    assert!(verified("critical,timeStamping").is_ok(), "{:?}", verified("critical,timeStamping"));
    for usage in ["critical,codeSigning", "timeStamping", "critical,timeStamping,codeSigning"] {
        assert!(matches!(verified(usage), Err(StampError::Signature(_))), "{usage}");
    }
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let authority = Authority::new("critical,timeStamping");
    let request = Request::new(b"checkpoint", [7; 16], Some("1.2.3.99")).unwrap();
    let response = authority.reply(request.der());
    let refused = roots(&authority).verify_answer(&response, &request, b"checkpoint");
    assert!(matches!(&refused, Err(StampError::Refused { status: 2, said }) if !said.is_empty()), "{refused:?}");
}

#[test]
fn roots_are_certificates() {
    assert!(matches!(Roots::from_pem(b""), Err(RootsError::Empty)));
    assert!(matches!(Roots::from_pem(b"x"), Err(RootsError::Empty)));
}
