//! The measurements, one after the other.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::sleep;

use crate::Which;
use crate::network::{Cut, Network};
use crate::node::{Report, now};

#[derive(clap::Args)]
pub(crate) struct Run {
    transport: Which,
    /// Records a second that are offered, from the most on: the first at which nothing is lost is the rate.
    #[arg(long, value_delimiter = ',', default_values_t = [200_000, 150_000, 106_000, 80_000, 53_000, 30_000, 20_000, 10_000])]
    rates: Vec<u64>,
    /// Share of packets that are lost, at each node, where losses are measured.
    #[arg(long, default_value_t = 0.05)]
    loss: f64,
    /// Seconds of each measurement of rates.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Seconds that a node is cut off.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 15])]
    cuts: Vec<u64>,
    /// Where it is cut off: its own cable, or further away.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Cut::Cable, Cut::Beyond])]
    how: Vec<Cut>,
    /// How often each cut is measured.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Milliseconds after which a machine asks again for a hardware address that nobody told (`net.ipv4.neigh.*.retrans_time_ms`); the system's
    /// own, a second, if absent.
    #[arg(long)]
    ask_again_ms: Option<u32>,
    /// Measures the cuts alone.
    #[arg(long)]
    only_cuts: bool,
}

/// A node's process, as seen from here.
struct Process {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Process {
    async fn say(&mut self, line: &str) {
        self.to.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.to.flush().await.unwrap();
    }

    async fn answer(&mut self) -> String {
        self.from.next_line().await.unwrap().expect("the node has ended")
    }

    async fn ask(&mut self, line: &str) -> String {
        self.say(line).await;
        self.answer().await
    }

    async fn moment(&mut self, line: &str) -> u64 {
        self.ask(line).await.parse().unwrap()
    }

    /// Waits until what was sent before has come: it must not be counted with what follows.
    async fn quiet(&mut self) {
        let mut came = None;
        loop {
            let now = self.report(0).await.records;
            if came.replace(now) == Some(now) {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn report(&mut self, since: u64) -> Report {
        serde_json::from_str(&self.ask(&format!("report {since}")).await).unwrap()
    }
}

impl Run {
    async fn start(&self, network: &Network, certificates: &Path, n: u8) -> Process {
        let program = std::env::current_exe().unwrap();
        let mut words = network.enter(n);
        let peers: Vec<_> = (1..=3).map(|n| network.address(n)).collect();
        let name = clap::ValueEnum::to_possible_value(&self.transport).unwrap();
        words.extend([program.to_str().unwrap().to_owned(), "node".into(), name.get_name().into(), n.to_string()]);
        words.extend(["--listen".into(), network.address(n), "--peers".into(), peers.join(",")]);
        words.extend(["--certificates".into(), certificates.to_str().unwrap().to_owned()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut process = Process { child, to, from: BufReader::new(from).lines() };
        assert_eq!(process.answer().await, "ready");
        process
    }

    pub(crate) async fn go(self) {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let network = Network::new();
        if let Some(milliseconds) = self.ask_again_ms {
            assert!(network.ask_again_after(milliseconds), "it cannot be set here");
        }
        let mut nodes = Vec::new();
        for n in 1..=3 {
            nodes.push(self.start(&network, folder.path(), n).await);
        }
        let [sender, healthy, third] = &mut nodes[..] else { panic!("three nodes") };
        for node in [&mut *sender, &mut *healthy, &mut *third] {
            node.moment("up 2").await;
        }

        if !self.only_cuts {
            self.rate("nothing lost on the way", sender, [&mut *healthy, &mut *third]).await;
        }
        if network.is_own() {
            if !self.only_cuts && network.lose(self.loss) {
                self.rate(&format!("{} of packets lost at each node", self.loss), sender, [&mut *healthy, &mut *third])
                    .await;
            }
            network.lose_nothing();
            for cut in &self.cuts {
                for how in self.how.iter().flat_map(|how| std::iter::repeat_n(*how, self.times as usize)) {
                    self.cut(&network, *cut, how, sender, [&mut *healthy, &mut *third]).await;
                }
            }
        }
        if self.only_cuts {
            return;
        }

        sender.ask("hold 10000").await;
        // The others have to hear of it before they ask.
        sleep(Duration::from_millis(600)).await;
        for _ in 0..3 {
            println!("copy of 10,000 records of 1 KiB (µs, records, whole): {}", third.ask("snapshot").await);
        }

        self.end(&network, folder.path(), sender, third, "kill -9").await;
        if network.is_own() {
            third.moment("up 2").await;
            let silent = now();
            network.cut(Cut::Cable, true);
            let seen = sender.moment("gone n3").await;
            println!("silent death seen after {:.1} ms", (seen - silent) as f64 / 1_000.0);
            network.cut(Cut::Cable, false);
            let back = sender.moment("up 2").await;
            println!("back {:.1} ms after it was connected again", (back - seen) as f64 / 1_000.0);
        }
    }

    /// The greatest of the rates at which nothing is lost.
    async fn rate(&self, weather: &str, sender: &mut Process, receivers: [&mut Process; 2]) {
        let [one, other] = receivers;
        for rate in &self.rates {
            for receiver in [&mut *one, &mut *other] {
                receiver.quiet().await;
                receiver.ask("reset").await;
            }
            let sent = sender.ask(&format!("send {rate} {}", self.seconds * 1_000)).await;
            let sent: u64 = sent.split(' ').next().unwrap().parse().unwrap();
            let mut missing = 0;
            // What is still on its way has two seconds.
            sleep(Duration::from_secs(2)).await;
            for (name, receiver) in [("n2", &mut *one), ("n3", &mut *other)] {
                let Report { records, rate: came, p50_ms, p99_ms, silence_ms, .. } = receiver.report(0).await;
                missing += sent - records;
                println!(
                    "{weather}: offered {rate}/s, sent {:.0}/s, {name} got {came:.0}/s, lost {} of {sent}, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, \
                     longest silence {silence_ms:.1} ms",
                    sent as f64 / self.seconds as f64,
                    sent - records
                );
            }
            if missing == 0 {
                return;
            }
        }
    }

    /// The third node is cut off for a while.
    async fn cut(&self, network: &Network, seconds: u64, how: Cut, sender: &mut Process, receivers: [&mut Process; 2]) {
        let [healthy, third] = receivers;
        for node in [&mut *healthy, &mut *third] {
            node.ask("reset").await;
        }
        sender.say(&format!("send 2000 {}", (seconds + 10) * 1_000)).await;
        sleep(Duration::from_secs(2)).await;
        assert!(network.cut(how, true));
        sleep(Duration::from_secs(seconds)).await;
        assert!(network.cut(how, false));
        let healed = now();
        let sent = sender.answer().await;
        let sent = sent.split(' ').next().unwrap();
        sleep(Duration::from_secs(1)).await;
        let (well, back) = (healthy.report(0).await, third.report(healed).await);
        println!(
            "cut of {seconds} s{} at 2,000/s: healthy node's longest silence {:.1} ms (got {} of {sent}); the other heard again {:?} ms after \
             the cut, and got {}",
            if how == Cut::Cable { "" } else { " with the cable in" },
            well.silence_ms,
            well.records,
            back.resumed_ms,
            back.records
        );
        for node in [&mut *sender, &mut *healthy, &mut *third] {
            node.moment("up 2").await;
        }
    }

    /// The third node's process is killed, and started again.
    async fn end(&self, network: &Network, certificates: &Path, sender: &mut Process, third: &mut Process, how: &str) {
        sender.say("gone n3").await;
        let killed = now();
        third.child.start_kill().unwrap();
        let seen: u64 = sender.answer().await.parse().unwrap();
        println!("{how} seen after {:.1} ms", seen.saturating_sub(killed) as f64 / 1_000.0);
        let _gone = third.child.wait().await;
        *third = self.start(network, certificates, 3).await;
        sender.moment("up 2").await;
    }
}

/// An authority, and one certificate for all: what is measured is not whom it names.
fn certificates(folder: &Path) {
    let give = |name: &str, issuer: Option<(&PKey<Private>, &X509)>| {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut subject = X509NameBuilder::new().unwrap();
        subject.append_entry_by_text("CN", name).unwrap();
        let subject = subject.build();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let mut serial = BigNum::new().unwrap();
        serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
        builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        if let Some((issuer_key, issuer)) = issuer {
            builder.set_issuer_name(issuer.subject_name()).unwrap();
            let mut names = SubjectAlternativeName::new();
            names.ip("127.0.0.1").ip("10.99.0.1").ip("10.99.0.2").ip("10.99.0.3");
            let names = names.build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
            builder.sign(issuer_key, MessageDigest::sha256()).unwrap();
        } else {
            builder.set_issuer_name(&subject).unwrap();
            builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
        }
        (key, builder.build())
    };
    let (authority_key, authority) = give("authority", None);
    let (key, certificate) = give("node", Some((&authority_key, &authority)));
    std::fs::write(folder.join("ca.pem"), authority.to_pem().unwrap()).unwrap();
    std::fs::write(folder.join("node.pem"), certificate.to_pem().unwrap()).unwrap();
    std::fs::write(folder.join("node.key"), key.private_key_to_pem_pkcs8().unwrap()).unwrap();
}
