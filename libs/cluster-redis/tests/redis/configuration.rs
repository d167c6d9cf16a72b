//! What is refused at once, and what is told.

use cluster::Transport;
use cluster_redis::{RedisTransport, RedisTransportConfig, RedisTransportError};

use crate::support::{life, open};

fn config(url: &str, namespace: &str) -> RedisTransportConfig {
    RedisTransportConfig { url: url.to_owned(), namespace: namespace.to_owned() }
}

#[tokio::test]
async fn what_can_never_work_is_refused() {
    let refused = |url, namespace| RedisTransport::open(config(url, namespace), life(1)).unwrap_err();
    for url in ["", "http://127.0.0.1", "redis://127.0.0.1:port"] {
        assert!(matches!(refused(url, "ns"), RedisTransportError::Url(_)), "{url}");
    }
    for namespace in ["", "a:b", "{a}", "ä", &"n".repeat(65)] {
        assert!(matches!(refused("redis://127.0.0.1:1", namespace), RedisTransportError::Namespace), "{namespace}");
    }
}

#[tokio::test]
async fn passwords_are_not_told_and_tls_is() {
    let transport = open("redis://user:secret@127.0.0.1:1/3", "ns", life(1));
    let told = format!("{:?} {transport:?} {:?}", transport.describe(), config("redis://:secret@h", "ns"));
    assert!(told.contains("127.0.0.1:1") && !told.contains("secret"), "{told}");
    assert!(!transport.capabilities().encrypted_link);
    assert!(open("rediss://127.0.0.1:1", "ns", life(1)).capabilities().encrypted_link);
    assert!(!open("rediss://127.0.0.1:1/#insecure", "ns", life(1)).capabilities().encrypted_link, "TLS with anybody");
}
