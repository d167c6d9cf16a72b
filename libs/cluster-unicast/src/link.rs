//! Whether a packet to an address could leave this machine at all.
//!
//! What is sent while the cable is pulled does harm. Linux asks for the hardware address of whom it is sent to, and asks again only after a
//! second (`net.ipv4.neigh.*.retrans_time_ms`), whatever else is sent and though the cable is back meanwhile. Nobody who was silent has to wait for
//! that: the first packet then asks at once. So a peer is not dialed while there is no link to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::sleep;

/// Between two looks at a link that is down: some microseconds each.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until there is a link towards an address, as far as can be told.
pub(crate) async fn there(remote: SocketAddr) {
    while is_down(remote) {
        sleep(LOOK).await;
    }
}

/// Whether the interface by which packets to this address leave is seen to have no carrier. Where that cannot be found out it has.
fn is_down(remote: SocketAddr) -> bool {
    let Some(from) = source(remote) else { return false };
    let Ok(interfaces) = if_addrs::get_if_addrs() else { return false };
    let mut own = interfaces.iter().filter(|interface| interface.ip() == from).peekable();
    own.peek().is_some() && own.all(|interface| !interface.is_oper_up())
}

/// From which of this machine's addresses packets to another go. To connect a socket of datagrams asks for the route and sends nothing.
fn source(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(5);

    #[test]
    fn loopback_is_always_there_and_so_is_what_is_not_known() {
        let here: SocketAddr = "127.0.0.1:7447".parse().unwrap();
        assert_eq!(source(here), Some(here.ip()));
        assert!(!is_down(here));
        // No route at all: whoever dials is told so.
        assert!(!is_down("[100::1]:7447".parse().unwrap()));
    }

    /// Runs itself again in a network of its own, where it may pull a cable.
    #[tokio::test]
    async fn a_link_without_carrier_is_down_until_it_is_back() {
        const INSIDE: &str = "COUNTERFOIL_LINK_TEST";
        if std::env::var_os(INSIDE).is_none() {
            let apart = |program: &std::path::Path| {
                let mut command = Command::new("unshare");
                command.args(["--map-root-user", "--net"]).arg(program);
                command
            };
            let mut cable = apart("ip".as_ref());
            cable.args(["link", "add", "eth0", "type", "veth", "peer", "name", "port"]);
            if !cable.output().is_ok_and(|output| output.status.success()) {
                eprintln!(
                    "SKIPPED: a network of its own cannot be made here (not root, no user namespaces, no `unshare`, no `ip`, or no veth)"
                );
                return;
            }
            let mut again = apart(&std::env::current_exe().unwrap());
            again.args(["--exact", "link::tests::a_link_without_carrier_is_down_until_it_is_back", "--nocapture"]);
            let output = again.env(INSIDE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.contains("1 passed"),
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            return;
        }
        let ip =
            |words: &str| assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
        ip("link set lo up");
        ip("link add eth0 type veth peer name port");
        ip("address add 10.99.0.1/24 dev eth0");
        ip("link set eth0 up");
        ip("link set port up");
        let peer = "10.99.0.2:7447".parse().unwrap();
        timeout(LONG, there(peer)).await.unwrap();

        ip("link set port down");
        // The system takes up to a second to say so.
        let pulled = async {
            while !is_down(peer) {
                sleep(LOOK).await;
            }
        };
        timeout(LONG, pulled).await.unwrap();
        assert!(!is_down("127.0.0.1:7447".parse().unwrap()), "another link");
        assert!(timeout(MOMENT, there(peer)).await.is_err());

        let waiting = tokio::spawn(timeout(LONG, there(peer)));
        ip("link set port up");
        waiting.await.unwrap().unwrap();
    }
}
