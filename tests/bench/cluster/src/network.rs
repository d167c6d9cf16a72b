//! Three machines on two switches: network namespaces, or loopback where this may not make them.

use std::process::Command;

/// Where a node is cut off.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cut {
    /// Its own cable is pulled: its interface has no carrier.
    Cable,
    /// That between the switches is: its interface sees nothing of it.
    Beyond,
}

/// The node that is cut off, at the second switch.
const CUT_OFF: u8 = 3;

/// The network of a measurement; taken down when dropped.
pub(crate) struct Network {
    /// What its namespaces are called, followed by 0 for the switch and 1 to 3 for the nodes; `None` is loopback.
    name: Option<String>,
}

fn run(command: &str) -> bool {
    let words: Vec<&str> = command.split(' ').collect();
    let done = Command::new(words[0]).args(&words[1..]).output();
    match done {
        Ok(done) if done.status.success() => true,
        Ok(done) => {
            eprintln!("{command}: {}", String::from_utf8_lossy(&done.stderr).trim());
            false
        }
        Err(failure) => {
            eprintln!("{command}: {failure}");
            false
        }
    }
}

impl Network {
    /// Namespaces, or loopback.
    pub(crate) fn new() -> Self {
        let name = format!("cfb{}-", std::process::id());
        let network = Self { name: Some(name.clone()) };
        let made = run(&format!("ip netns add {name}0"))
            && run(&format!("ip -n {name}0 link add trunk0 type veth peer name trunk1"))
            && (0..=1).all(|switch| {
                run(&format!("ip -n {name}0 link add br{switch} type bridge"))
                    && run(&format!("ip -n {name}0 link set br{switch} up"))
                    && run(&format!("ip -n {name}0 link set trunk{switch} master br{switch}"))
                    && run(&format!("ip -n {name}0 link set trunk{switch} up"))
            })
            && (1..=3).all(|n| {
                run(&format!("ip netns add {name}{n}"))
                    && run(&format!("ip -n {name}{n} link set lo up"))
                    && run(&format!("ip -n {name}{n} link add eth0 type veth peer name port{n} netns {name}0"))
                    && run(&format!("ip -n {name}{n} address add 10.99.0.{n}/24 dev eth0"))
                    && run(&format!("ip -n {name}{n} link set eth0 up"))
                    && run(&format!("ip -n {name}0 link set port{n} master br{}", u8::from(n == CUT_OFF)))
                    && run(&format!("ip -n {name}0 link set port{n} up"))
            });
        if made {
            return network;
        }
        eprintln!("no network namespaces: loopback, without losses and cuts");
        drop(network);
        Self { name: None }
    }

    /// Whether packets can be lost in it, and nodes cut off.
    pub(crate) const fn is_own(&self) -> bool {
        self.name.is_some()
    }

    /// Where a node listens.
    pub(crate) fn address(&self, n: u8) -> String {
        if self.is_own() { format!("10.99.0.{n}:7447") } else { format!("127.0.0.1:{}", 17_440 + u16::from(n)) }
    }

    /// How a node's program is started.
    pub(crate) fn enter(&self, n: u8) -> Vec<String> {
        let words = |line: String| line.split(' ').map(str::to_owned).collect();
        self.name.as_ref().map_or_else(Vec::new, |name| words(format!("ip netns exec {name}{n}")))
    }

    /// Every node loses so many of the packets that come to it, by chance. Packets are as on a wire: no offloading.
    pub(crate) fn lose(&self, share: f64) -> bool {
        let Some(name) = &self.name else { return false };
        (1..=3).all(|n| {
            run(&format!("ip netns exec {name}{n} ethtool -K eth0 tso off gso off gro off"))
                && run(&format!(
                    "ip netns exec {name}{n} iptables -t raw -A PREROUTING -i eth0 -m statistic --mode random --probability {share} -j DROP"
                ))
        })
    }

    /// Nothing is lost any more.
    pub(crate) fn lose_nothing(&self) {
        if let Some(name) = &self.name {
            let _all = (1..=3).all(|n| run(&format!("ip netns exec {name}{n} iptables -t raw -F PREROUTING")));
        }
    }

    /// Cuts off the node that has a switch for itself, or puts it back.
    pub(crate) fn cut(&self, how: Cut, is_cut: bool) -> bool {
        let Some(name) = &self.name else { return false };
        let link = match how {
            Cut::Cable => format!("port{CUT_OFF}"),
            Cut::Beyond => "trunk0".to_owned(),
        };
        run(&format!("ip -n {name}0 link set {link} {}", if is_cut { "down" } else { "up" }))
    }

    /// Has every node ask again for a hardware address after so long.
    pub(crate) fn ask_again_after(&self, milliseconds: u32) -> bool {
        let Some(name) = &self.name else { return false };
        (1..=3).all(|n| {
            run(&format!("ip netns exec {name}{n} sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms={milliseconds}"))
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            for n in 0..=3 {
                let _may_not_be_there = run(&format!("ip netns del {name}{n}"));
            }
        }
    }
}
