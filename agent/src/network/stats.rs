//! What has passed through the guest's interfaces.

use std::fs;

use crate::sys::{Doing as _, OsError};

/// The counters of an interface, as proc(5) has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Its name.
    pub name: String,
    /// What it has received.
    pub received: Counters,
    /// What it has sent.
    pub sent: Counters,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were damaged, or could not be sent.
    pub errors: u64,
    /// Packets that nobody wanted, or for which there was no room.
    pub dropped: u64,
}

/// Reads the counters of every interface but loopback.
pub fn read() -> Result<Vec<InterfaceStats>, OsError> {
    const TABLE: &str = "/proc/self/net/dev";
    let table = fs::read_to_string(TABLE).doing(|| format!("read {TABLE}"))?;
    Ok(parse(&table))
}

fn parse(table: &str) -> Vec<InterfaceStats> {
    // Two lines of headings.
    let lines = table.lines().skip(2);
    lines
        .filter_map(line)
        .filter(|interface| interface.name != "lo")
        .collect()
}

fn line(line: &str) -> Option<InterfaceStats> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let counters = |first: usize| {
        let &[bytes, packets, errors, dropped, ..] = numbers.get(first..)? else {
            return None;
        };
        Some(Counters {
            bytes,
            packets,
            errors,
            dropped,
        })
    };
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        received: counters(0)?,
        sent: counters(8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read_without_loopback() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1500000    1000    1    2    3     4          5         6    70000     800    7    8    9    10      11         12
";
        let [eth0] = &parse(table)[..] else { panic!() };
        assert_eq!(eth0.name, "eth0");
        let received = (
            eth0.received.bytes,
            eth0.received.packets,
            eth0.received.errors,
        );
        assert_eq!(received, (1_500_000, 1000, 1));
        assert_eq!(
            (eth0.sent.bytes, eth0.sent.errors, eth0.sent.dropped),
            (70_000, 7, 8)
        );
    }

    #[test]
    fn a_line_cut_short_is_left_out() {
        assert_eq!(parse("\n\n eth0: 1 2 3\n"), []);
    }

    #[test]
    fn the_running_kernels_table_is_read() {
        read().unwrap();
    }
}
