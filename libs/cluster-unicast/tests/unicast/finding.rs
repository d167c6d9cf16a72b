//! Who finds whom.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::{Audience, Received, Transport};
use cluster_unicast::{Resolve, UnicastConfig, UnicastTransport};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Authority, LONG, SHORT, connections, free_ports, hears, life, open, plain, says, sees_go, tls, until,
};

/// Names of a test. An address resolves to itself.
#[derive(Default)]
struct Names(Mutex<HashMap<String, Vec<SocketAddr>>>);

impl Names {
    fn set(&self, name: &str, addresses: &[&str]) {
        self.0.lock().insert(name.into(), addresses.iter().map(|address| address.parse().unwrap()).collect());
    }
}

#[async_trait]
impl Resolve for Names {
    async fn resolve(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        match (self.0.lock().get(address), address.parse()) {
            (Some(found), _) => Ok(found.clone()),
            (None, Ok(itself)) => Ok(vec![itself]),
            (None, Err(_)) => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        }
    }
}

async fn open_with(n: u8, config: UnicastConfig, names: &Arc<Names>) -> UnicastTransport {
    UnicastTransport::open_with(config, life(n), Arc::clone(names) as _).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_one_node_meets_the_others_and_they_go_on_without_it() {
    let [a, b, c] = free_ports();
    let seed = open(1, plain(&a, &[])).await;
    let one = open(2, plain(&b, std::slice::from_ref(&a))).await;
    assert!(hears(&one, &seed, LONG).await);
    let late = open(3, plain(&c, &[a])).await;
    assert!(hears(&late, &one, LONG).await, "{:?}", late.describe());
    assert!(hears(&one, &late, LONG).await);
    seed.close().await;
    assert!(hears(&late, &one, LONG).await);
    assert!(hears(&one, &late, LONG).await);
    says(&late, "1 nodes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_everywhere_is_found_through_a_third() {
    let [a, b, c] = free_ports();
    let everywhere = |address: &str| format!("0.0.0.0:{}", address.rsplit_once(':').unwrap().1);
    let seed = open(1, plain(&everywhere(&a), &[])).await;
    let one = open(2, plain(&everywhere(&b), std::slice::from_ref(&a))).await;
    assert!(hears(&one, &seed, LONG).await);
    let late = open(3, plain(&everywhere(&c), &[a])).await;
    assert!(hears(&late, &one, LONG).await, "{:?}", late.describe());
    // And a port that the system gives.
    let any = open(4, plain("127.0.0.1:0", &[b])).await;
    assert!(hears(&any, &late, LONG).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_on_the_same_addresses_hear_nothing_of_one_another() {
    let [a, b, c] = free_ports();
    let one = open(1, plain(&a, &[])).await;
    let other = open(2, plain(&b, std::slice::from_ref(&a))).await;
    let elsewhere = open(3, UnicastConfig { cluster_id: "another".into(), ..plain(&c, &[a, b]) }).await;
    assert!(hears(&other, &one, LONG).await);
    assert!(!hears(&elsewhere, &one, SHORT).await);
    says(&one, "not let in from 127.0.0.1: there is another cluster").await;
    says(&elsewhere, "it takes us for another cluster").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_resolved_again_and_why_nobody_is_reached_is_said() {
    let [a, b, dead] = free_ports();
    let names = Arc::new(Names::default());
    let peers = ["seed.example:7447".to_owned(), dead.clone()];
    let late = open_with(2, plain(&b, &peers), &names).await;
    says(&late, "peer seed.example:7447: no address: no such name").await;
    says(&late, &format!("peer {dead}: {dead}: Connection refused")).await;
    names.set("seed.example:7447", &[&dead]);
    says(&late, &format!("peer seed.example:7447: {dead}: Connection refused")).await;
    let seed = open(1, plain(&a, &[])).await;
    names.set("seed.example:7447", &[&a]);
    assert!(hears(&late, &seed, Duration::from_secs(4)).await, "{:?}", late.describe());
    until(|| !late.describe().iter().any(|line| line.contains("seed.example")), || format!("{:?}", late.describe()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_address_of_a_name_is_a_peer_and_the_node_itself_is_passed_over() {
    let [a, b, c] = free_ports();
    let names = Arc::new(Names::default());
    names.set("all.example:7447", &[&a, &b, &c]);
    let peers = ["all.example:7447".to_owned()];
    // Only the third asks for the name; the others know nobody.
    let one = open(1, plain(&a, &[])).await;
    let other = open(2, plain(&b, &[])).await;
    let third = open_with(3, plain(&c, &peers), &names).await;
    assert!(hears(&one, &third, LONG).await && hears(&other, &third, LONG).await);
    says(&third, "2 nodes").await;
    assert!(third.describe().iter().all(|line| !line.contains("all.example")), "{:?}", third.describe());
    // A pod that comes later, behind the same name.
    let [d] = free_ports();
    let late = open(4, plain(&d, &[])).await;
    names.set("all.example:7447", &[&a, &b, &c, &d]);
    assert!(hears(&late, &third, LONG).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_meets_itself_by_another_address_knows_itself() {
    let [a, b, detour] = free_ports();
    // Something in between, as an address translator would be.
    let between = TcpListener::bind(&detour).await.unwrap();
    let to = a.clone();
    let passed = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&passed);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = between.accept().await {
            *counted.lock() += 1;
            let Ok(mut to) = TcpStream::connect(&to).await else { continue };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    let one = open(1, plain(&a, &[detour, b.clone()])).await;
    let other = open(2, plain(&b, &[])).await;
    assert!(hears(&one, &other, LONG).await);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*passed.lock(), 1, "it is not tried again");
    assert_eq!(connections(&one), 1, "{:#?}", one.describe());
    assert!(one.describe().iter().all(|line| !line.contains("tried again") && !line.contains("not let in")));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_simultaneous_dials_one_stays_and_nothing_is_lost() {
    let authority = Authority::new();
    for round in 0..5 {
        let [a, b] = free_ports();
        let both = [a.clone(), b.clone()];
        let (one, other) = tokio::join!(
            open(1, tls(&a, &both, authority.valid("one"))),
            open(2, tls(&b, &both, authority.valid("other")))
        );
        until(|| connections(&one) > 0, || format!("{:?}", one.describe())).await;
        // From the first moment on, while there may be two.
        for number in 0..500_u32 {
            one.send(Audience::Everybody, &number.to_be_bytes()).unwrap();
            if number % 10 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let mut heard = std::collections::BTreeSet::new();
        while heard.len() < 500 {
            match timeout(LONG, other.receive()).await {
                Ok(Some(Received::Frame(frame))) => heard.extend(<[u8; 4]>::try_from(frame.as_slice())),
                end => {
                    let lacking = (0..500_u32).filter(|number| !heard.contains(&number.to_be_bytes()));
                    panic!("round {round}: {end:?}, lacking {:?}, {:#?}", lacking.collect::<Vec<_>>(), other.describe())
                }
            }
        }
        until(|| connections(&one) == 1 && connections(&other) == 1, || format!("{:#?}", one.describe())).await;
        assert!(hears(&one, &other, LONG).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_at_its_address_is_another_one() {
    let [a, b] = free_ports();
    let one = open(1, plain(&a, std::slice::from_ref(&b))).await;
    let before = open(2, plain(&b, &[])).await;
    assert!(hears(&one, &before, LONG).await);
    before.close().await;
    drop(before);
    assert!(sees_go(&one, life(2), LONG).await);
    // It knows nobody: it has to be dialed where it was.
    let after = open(3, plain(&b, &[])).await;
    assert!(hears(&one, &after, LONG).await && hears(&after, &one, LONG).await);
    let to_the_old = one.send(Audience::One(life(2)), b"x");
    assert!(matches!(to_the_old, Err(cluster::SendError::Unavailable(_))));
    assert!(one.send(Audience::One(life(3)), b"x").is_ok());
    says(&one, "1 nodes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_made_again_at_once_and_the_loss_is_told() {
    let [a, b, between] = free_ports();
    let listener = TcpListener::bind(&between).await.unwrap();
    let to = b.clone();
    let (broken, _) = tokio::sync::broadcast::channel::<()>(1);
    let breaks = broken.clone();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let Ok(mut to) = TcpStream::connect(&to).await else { continue };
            let mut broken = breaks.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                    _ = broken.recv() => {}
                }
            });
        }
    });
    let one = open(1, plain(&a, &[between])).await;
    let other = open(2, plain(&b, &[])).await;
    assert!(hears(&one, &other, LONG).await);
    broken.send(()).unwrap();
    let began = Instant::now();
    // It may see the peer go first, or be dialed before it sees anything.
    let lost = async { while one.receive().await != Some(Received::Lost) {} };
    timeout(LONG, lost).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(hears(&one, &other, LONG).await);
}
