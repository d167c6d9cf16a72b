//! A master with a replica and three sentinels.

use std::sync::Arc;
use std::time::Duration;

use session_model::TreeSize;
use session_view::test_util::{ended, id, session};
use session_view::{SessionView, ViewError, Viewed};
use session_view_redis::{RedisView, RedisViewConfig};
use tokio::time::{Instant, sleep};

use crate::support::{KEY, Server, applied, raw, tracked, within};

const LONG: Duration = Duration::from_secs(40);

struct Watched {
    master: Server,
    replica: Server,
    sentinels: Vec<Server>,
}

impl Watched {
    async fn start() -> Self {
        let master = Server::start_with(&["--repl-diskless-sync-delay", "0"]).await;
        let of = ["--replicaof", "127.0.0.1", &master.port.to_string()];
        let replica = Server::start_with(&of).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Server::sentinel_of(master.port).await);
        }
        let watched = Self { master, replica, sentinels };
        within(LONG, "the sentinels know the replica and one another", async || {
            for sentinel in &watched.sentinels {
                let mut sentinel = raw(&sentinel.url()).await;
                let mut masters = redis::cmd("SENTINEL");
                let masters: Vec<std::collections::HashMap<String, String>> =
                    masters.arg("MASTERS").query_async(&mut sentinel).await.unwrap();
                let knows = |what: &str, count: &str| masters.iter().any(|master| master[what] == count);
                if !knows("num-slaves", "1") || !knows("num-other-sentinels", "2") || !knows("flags", "master") {
                    return false;
                }
            }
            true
        })
        .await;
        follows(&watched.replica).await;
        watched
    }

    fn config(&self, namespace: &str) -> RedisViewConfig {
        let places: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        let url = format!("redis+sentinel://{}/mine", places.join(","));
        let mut config = RedisViewConfig::new(url, namespace, KEY);
        config.operation_timeout = Duration::from_secs(5);
        config
    }
}

async fn follows(replica: &Server) {
    within(LONG, "the replica follows", async || {
        // Sentinels cut the connections of a server whose role they change.
        let client = redis::Client::open(replica.url()).unwrap();
        let Ok(mut replica) = client.get_multiplexed_async_connection().await else { return false };
        let info: Result<String, _> = redis::cmd("INFO").arg("replication").query_async(&mut replica).await;
        info.is_ok_and(|info| info.contains("master_link_status:up"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let watched = Watched::start().await;
    let count = std::sync::atomic::AtomicU32::new(0);
    let view = async || {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let view: Arc<dyn SessionView> = Arc::new(tracked(watched.config(&format!("ns{number}"))).await);
        (view, ())
    };
    session_view::conformance_tests!(in_turn view);
}

/// The master dies with the end of a session that its replica never heard of. Nobody is shown the session again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_died_with_the_master_is_not_undone_by_its_replica() {
    let mut watched = Watched::start().await;
    let view = tracked(watched.config("own")).await;
    applied(&view, session(1, 5)).await;
    applied(&view, session(2, 6)).await;
    view.set_reflects(TreeSize(7)).await.unwrap();
    let mut master = raw(&watched.master.url()).await;
    let caught_up: i64 = redis::cmd("WAIT").arg(1).arg(5_000).query_async(&mut master).await.unwrap();
    assert_eq!(caught_up, 1);
    // From here on the replica hears nothing, and nothing waits for it in a buffer.
    watched.replica.signal("-STOP");
    let _: i64 = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("replica").query_async(&mut master).await.unwrap();
    applied(&view, ended(1, 7)).await;
    let losses = view.losses();
    watched.master.kill();
    watched.replica.signal("-CONT");

    let start = Instant::now();
    while !view.status().available || view.losses() == losses {
        assert!(start.elapsed() < LONG, "no other master was found");
        assert!(!matches!(view.get(id(1)).await, Ok(Some(Viewed::Active(_)))), "an ended session came back");
        assert!(!matches!(view.peek(id(1)), Some(Viewed::Active(_))), "an ended session came back");
        sleep(Duration::from_millis(1)).await;
    }
    eprintln!("failed over after {:?}", start.elapsed());
    assert!(matches!(view.held(id(1)).await.unwrap(), Some(Viewed::Active(_))), "the replica does lack the end");
    assert_eq!(view.reflects().await.unwrap(), TreeSize(7), "and does not know it");
    for n in [1, 2] {
        assert!(matches!(view.get(id(n)).await, Err(ViewError::Unavailable(_))), "in doubt: the log is asked");
        assert!(view.peek(id(n)).is_none());
    }
    // A node that starts now is in doubt as well.
    let other = RedisView::connect(watched.config("own")).await.unwrap();
    assert!(matches!(other.get(id(1)).await, Err(ViewError::Unavailable(_))));
    // As the follower does.
    applied(&view, ended(1, 7)).await;
    view.restored(view.losses());
    assert!(matches!(view.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
    assert!(matches!(view.get(id(2)).await.unwrap(), Some(Viewed::Active(_))));
    within(LONG, "tracking is on again", async || view.is_tracking()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_on_purpose_is_followed() {
    let watched = Watched::start().await;
    let view = tracked(watched.config("own")).await;
    applied(&view, ended(1, 7)).await;
    let mut master = raw(&watched.master.url()).await;
    let caught_up: i64 = redis::cmd("WAIT").arg(1).arg(10_000).query_async(&mut master).await.unwrap();
    assert_eq!(caught_up, 1);
    let mut sentinel = raw(&watched.sentinels[0].url()).await;
    let losses = view.losses();
    within(LONG, "it can be failed over again", async || {
        sleep(Duration::from_millis(200)).await;
        redis::cmd("SENTINEL").arg("FAILOVER").arg("mine").query_async::<()>(&mut sentinel).await.is_ok()
    })
    .await;
    within(LONG, "the view has followed", async || view.losses() > losses && view.status().available).await;
    within(LONG, "it can be written to and read", async || {
        let written = view.apply(&[Arc::new(session(3, 9))]).await.is_ok();
        view.restored(view.losses());
        written && view.get(id(1)).await.is_ok()
    })
    .await;
    assert!(matches!(view.get(id(1)).await.unwrap(), Some(Viewed::Ended(_))));
}

/// A node that is cut off together with the master and one sentinel must not go on to read from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_of_sentinels_nothing_is_read() {
    let watched = Watched::start().await;
    let view = tracked(watched.config("own")).await;
    applied(&view, session(1, 5)).await;
    for sentinel in &watched.sentinels[..2] {
        sentinel.signal("-STOP");
    }
    let cut = Instant::now();
    within(LONG, "the view closes", async || {
        !view.status().available && view.peek(id(1)).is_none() && view.get(id(1)).await.is_err()
    })
    .await;
    // The bound of staleness, and a round of questions that are not answered.
    assert!(cut.elapsed() < Duration::from_secs(8), "it took {:?}", cut.elapsed());
    for sentinel in &watched.sentinels[..2] {
        sentinel.signal("-CONT");
    }
    within(LONG, "the view is back", async || view.get(id(1)).await.is_ok()).await;
}
