//! What is refused at once, and what is told.

use cluster::Transport;
use cluster_postgres::{PostgresTransport, PostgresTransportError};

use crate::support::{config, life, open};

#[tokio::test]
async fn what_can_never_work_is_refused() {
    let refused = |url, namespace| PostgresTransport::open(config(url, namespace), life(1)).unwrap_err();
    for url in ["", "postgres://h:port/d", "postgres://h/d?sslmode=perhaps"] {
        assert!(matches!(refused(url, "ns"), PostgresTransportError::Url(_)), "{url}");
    }
    for namespace in ["", "a:b", "{a}", "ä", &"n".repeat(65)] {
        assert!(matches!(refused("postgres://h/d", namespace), PostgresTransportError::Namespace), "{namespace}");
    }
}

#[tokio::test]
async fn passwords_are_not_told_and_tls_is() {
    let url = "postgres://user:secret@127.0.0.1:1/sessions";
    let transport = open(url, "ns", life(1));
    let told = format!("{:?} {transport:?} {:?}", transport.describe(), config(url, "ns"));
    assert!(told.contains("127.0.0.1:1") && told.contains("sessions") && !told.contains("secret"), "{told}");
    let encrypted = |mode: &str| open(&format!("{url}?sslmode={mode}"), "ns", life(1)).capabilities().encrypted_link;
    assert!(!encrypted("disable") && !encrypted("prefer") && encrypted("require") && encrypted("verify-full"));
}
