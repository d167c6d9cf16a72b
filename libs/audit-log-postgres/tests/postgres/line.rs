//! A line to the server that can be made bad, in the middle of an append if need be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use audit_log_postgres::PostgresConfig;
use sqlx::ConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::Database;

pub(crate) const PASS: u8 = 0;
/// Whatever a client sends: the connection breaks, and the server gets none of it.
pub(crate) const LOSE_REQUESTS: u8 = 1;
/// The server gets it and answers; the connection breaks before the client hears of it.
pub(crate) const LOSE_ANSWERS: u8 = 2;
/// The server gets it only when the line is released, whether the client still waits or not.
pub(crate) const DELAY_REQUESTS: u8 = 3;
/// Nothing comes through either way, and neither side is told.
pub(crate) const SILENT: u8 = 4;
/// The server gets it a second later.
pub(crate) const LATE: u8 = 5;

/// A bad line to the server.
#[derive(Default)]
pub(crate) struct Line {
    mode: AtomicU8,
    /// The mode that begins with the next COMMIT that is sent; `PASS`: none does.
    at_commit: AtomicU8,
    pub(crate) release: Notify,
    /// Answers to delayed requests that have come back.
    pub(crate) late: AtomicUsize,
    /// Whatever the client has sent in one go, on all connections.
    pub(crate) requests: AtomicUsize,
}

impl Line {
    /// Starts it, and answers a configuration that goes through it.
    pub(crate) async fn to(database: &Database) -> (Arc<Self>, PostgresConfig) {
        let config = database.config();
        let options: sqlx::postgres::PgConnectOptions = config.url.parse().unwrap();
        let server = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = Arc::new(Self::default());
        let url = options.host("127.0.0.1").port(port).to_url_lossy().to_string();
        let accepting = Arc::clone(&line);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(Arc::clone(&accepting).carry(client, server));
            }
        });
        (line, PostgresConfig { url, ..config })
    }

    pub(crate) fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    pub(crate) fn set_at_commit(&self, mode: u8) {
        self.at_commit.store(mode, Ordering::SeqCst);
    }

    async fn carry(self: Arc<Self>, mut client: TcpStream, mut server: TcpStream) {
        let (mut request, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                read = client.read(&mut request) => {
                    let Ok(read @ 1..) = read else { return };
                    self.requests.fetch_add(1, Ordering::SeqCst);
                    if request[..read].windows(7).any(|bytes| bytes == b"COMMIT\0") {
                        let mode = self.at_commit.swap(PASS, Ordering::SeqCst);
                        if mode != PASS {
                            self.set(mode);
                        }
                    }
                    match self.mode.load(Ordering::SeqCst) {
                        LOSE_REQUESTS => return,
                        SILENT => {}
                        LATE => {
                            tokio::time::sleep(Duration::from_secs(1)).await;
                            // The server may be gone: what it said last is what we wait for.
                            let _sent = server.write_all(&request[..read]).await;
                        }
                        DELAY_REQUESTS => {
                            self.release.notified().await;
                            server.write_all(&request[..read]).await.unwrap();
                            // The client may be gone: the server's answer is what we wait for.
                            let _answered = server.read(&mut answer).await;
                            self.late.fetch_add(1, Ordering::SeqCst);
                            return;
                        }
                        _ => server.write_all(&request[..read]).await.unwrap(),
                    }
                }
                read = server.read(&mut answer) => {
                    let Ok(read @ 1..) = read else { return };
                    if self.mode.load(Ordering::SeqCst) == SILENT {
                        continue;
                    }
                    if self.mode.load(Ordering::SeqCst) == LOSE_ANSWERS || client.write_all(&answer[..read]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
