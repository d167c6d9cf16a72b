//! Transient sessions in Redis: the suite of their port through two handles; what is in Redis; what Redis loses is lost and takes no seat.

use redis::AsyncCommands;
use session_model::{Digest, RealmName};
use session_view::test_util::at;
use session_view_redis::{ConfigError, RedisTransients, RedisTransientsConfig};
use std::time::Duration;
use transient_store::conformance::{self, all, begun, put};
use transient_store::{Listing, Outcome, Put, StoreError, TransientStore};

use crate::support::{KEY, Namespace};

fn config(namespace: &Namespace) -> RedisTransientsConfig {
    RedisTransientsConfig {
        url: namespace.url.clone(),
        namespace: namespace.name.clone(),
        sealing_key: KEY,
        operation_timeout: Duration::from_secs(5),
    }
}

async fn store(namespace: &Namespace) -> RedisTransients {
    RedisTransients::connect(config(namespace)).await.unwrap()
}

fn realm(name: &str) -> RealmName {
    name.parse().unwrap()
}

#[tokio::test]
async fn it_passes_the_suite() {
    let namespace = Namespace::new().await;
    let (one, two) = (store(&namespace).await, store(&namespace).await);
    let both: [&dyn TransientStore; 2] = [&one, &two];
    conformance::one_of_many(&both, &realm("a")).await;
    conformance::ends_are_final(&one, &realm("b")).await;
    conformance::seats(&both, &realm("c"), &realm("d")).await;
    conformance::lists(&one, &realm("e"), &realm("f")).await;
    conformance::deadlines(&one, &realm("g")).await;
    conformance::answers(&one, &realm("h"), at(0), Digest([1; 32])).await;
}

#[tokio::test]
async fn nothing_personal_is_in_clear_and_a_moved_or_altered_value_is_noticed() {
    let namespace = Namespace::new().await;
    let store = store(&namespace).await;
    let states = [1, 2].map(|n| begun(&realm("a"), n, Some("ada-of-redis")));
    for state in &states {
        let done =
            put(&store, Put { state: state.clone(), base: None, cap: Some(5), answer: None, acknowledged_by: 0 }).await;
        assert_eq!(done, Outcome::Done);
    }
    let mut raw = namespace.raw().await;
    let keys: Vec<String> = raw.keys(namespace.key("*")).await.unwrap();
    assert!(keys.len() >= 5 && !keys.iter().any(|key| key.contains("ada")), "{keys:?}");
    let key = |n: usize| namespace.key(format_args!("t:{}", states[n].session.id));
    let value: Vec<u8> = raw.get(key(0)).await.unwrap();
    assert!(!value.windows(3).any(|window| window == b"ada"));
    let _: () = raw.set(key(1), value).await.unwrap();
    let moved = store.get(states[1].session.id).await;
    assert!(matches!(moved, Err(StoreError::Undecodable(id)) if id == states[1].session.id), "{moved:?}");
}

#[tokio::test]
async fn what_redis_loses_is_gone_takes_no_seat_and_is_forgotten_in_time() {
    let namespace = Namespace::new().await;
    let store = store(&namespace).await;
    let (one, two) = (begun(&realm("a"), 1, Some("ada")), begun(&realm("a"), 2, Some("ada")));
    let begin = |state: &session_model::transient::Stamped| Put {
        state: state.clone(),
        base: None,
        cap: Some(1),
        answer: None,
        acknowledged_by: 0,
    };
    assert_eq!(put(&store, begin(&one)).await, Outcome::Done);
    assert_eq!(put(&store, begin(&two)).await, Outcome::CapReached);
    let mut raw = namespace.raw().await;
    let _: () = raw.del(namespace.key(format_args!("t:{}", one.session.id))).await.unwrap();
    assert!(store.get(one.session.id).await.unwrap().is_none());
    let ada = Listing { subject: Some("ada".into()), ..all(&realm("a")) };
    assert!(store.list(&ada).await.unwrap().is_empty());
    assert_eq!(put(&store, begin(&two)).await, Outcome::Done, "who lists the subject's sessions frees the seat");
    let left: i64 = raw.pttl(namespace.key(format_args!("t:{}", two.session.id))).await.unwrap();
    assert!((43_200_000..=43_801_000).contains(&left), "{left}: to its absolute deadline and ten minutes");
    store.sweep(at(43_200 + 601)).await;
    for what in ["tr:a", "tdue", "tgraves"] {
        let there: bool = raw.exists(namespace.key(what)).await.unwrap();
        assert!(!there, "{what} is left");
    }
}

#[tokio::test]
async fn without_redis_there_is_no_answer_and_a_redis_cluster_is_refused() {
    let namespace = Namespace::new().await;
    let nowhere = RedisTransientsConfig { url: "redis://127.0.0.1:1".into(), ..config(&namespace) };
    let store = RedisTransients::connect(nowhere).await.unwrap();
    assert!(!store.status().available);
    assert!(matches!(store.list(&all(&realm("a"))).await, Err(StoreError::Unavailable(_))));
    let put = Put { state: begun(&realm("a"), 1, None), base: None, cap: None, answer: None, acknowledged_by: 0 };
    assert!(matches!(store.put(put).await, Err(StoreError::Unavailable(_))), "nothing was sent");
    let cluster = RedisTransientsConfig { url: "redis+cluster://127.0.0.1:1".into(), ..config(&namespace) };
    assert!(matches!(RedisTransients::connect(cluster).await, Err(ConfigError::Cluster)));
}
