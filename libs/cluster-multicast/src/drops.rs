//! What the system dropped because a socket's receive buffer was full.

use std::collections::HashSet;

/// Asks the system how many datagrams it dropped before a set of sockets.
#[derive(Debug)]
pub(crate) struct Drops {
    inodes: HashSet<String>,
    table: &'static str,
    total: u64,
}

impl Drops {
    /// Of the sockets of these descriptors. Nothing is counted where the system has no such table.
    #[cfg(unix)]
    pub(crate) fn of(descriptors: &[std::os::fd::RawFd], v4: bool) -> Self {
        let inode = |descriptor: &std::os::fd::RawFd| {
            let link = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?;
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        };
        let table = if v4 { "/proc/self/net/udp" } else { "/proc/self/net/udp6" };
        Self { inodes: descriptors.iter().filter_map(inode).collect(), table, total: 0 }
    }

    /// How many more there are since this was last asked.
    pub(crate) async fn more(&mut self) -> u64 {
        let Ok(table) = tokio::fs::read_to_string(self.table).await else { return 0 };
        let total = dropped(&table, &self.inodes);
        let more = total.saturating_sub(self.total);
        self.total = total;
        more
    }
}

/// The sum of the last column (`drops`) of the lines with these inodes (the tenth column); see proc(5).
fn dropped(table: &str, inodes: &HashSet<String>) -> u64 {
    let of_line = |line: &str| {
        let mut columns = line.split_whitespace();
        let inode = columns.nth(9)?;
        inodes.contains(inode).then(|| columns.last()?.parse::<u64>().ok()).flatten()
    };
    table.lines().skip(1).filter_map(of_line).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 0100FFEF:1B58 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 41001 2 0000000000000000 17
  101: 0100007F:9C40 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 41002 2 0000000000000000 3
  102: 0100007F:9C41 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 41003 2 0000000000000000 1000
";

    #[test]
    fn drops_of_our_sockets_are_summed_and_those_of_others_not() {
        let ours = ["41001", "41002"].map(str::to_owned).into();
        assert_eq!(dropped(TABLE, &ours), 20);
        assert_eq!(dropped("", &ours), 0);
    }

    #[tokio::test]
    async fn a_socket_that_ran_over_is_seen() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut drops = Drops::of(&[std::os::fd::AsRawFd::as_raw_fd(&receiver)], true);
        assert_eq!(drops.more().await, 0);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..50_000 {
            sender.send_to(&[0; 1_000], receiver.local_addr().unwrap()).unwrap();
        }
        assert!(drops.more().await > 0);
        assert_eq!(drops.more().await, 0, "each is told once");
    }
}
