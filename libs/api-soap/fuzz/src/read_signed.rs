//! Whatever is done to a signed message: either its signature is no longer good, or it asks for the same. And what is hashed is what
//! is read. Run by `run` beside it; the seeds are those of the tests, which all sign one request.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(found) = api_soap::read_signed(bytes) {
        let texts: String = found.iter().filter_map(|element| element.split_once("] ")).map(|(_, text)| text).collect();
        assert_eq!(texts, "alice & \"bob\"\nweb", "a good signature of something else");
    }
});
