//! Any bytes are read, or refused with an envelope that can be read. Run by `run` beside it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(fault) = api_soap::read_only(bytes, None) {
        let readable = roxmltree::Document::parse(&fault).is_ok_and(|document| {
            document.descendants().any(|node| node.tag_name().name() == "Fault")
        });
        assert!(readable, "a fault that cannot be read: {fault}");
    }
});
