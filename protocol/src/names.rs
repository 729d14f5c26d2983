//! Questions about names, passed from the guest to a name server on the host.
//!
//! Docker's own name server listens at 127.0.0.11 in a container's network namespace. A packet to
//! that address does not leave the guest, so the agent takes the questions and sends them over a
//! stream, each as a frame: a [`Header`] and a DNS message. The host answers every frame with one
//! of the same tag; an empty message says that there was no answer.

use std::net::Ipv4Addr;

/// Where the name server listens.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The port of the domain name system.
pub const PORT: u16 = 53;

/// How a question was asked, and is to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection. Answers are longer there.
    Tcp,
}

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The agent's choice; it tells answers apart.
    pub tag: u32,
    /// How the question was asked.
    pub transport: Transport,
    /// The message's length in bytes.
    pub length: u16,
}

impl Header {
    /// Its length in bytes.
    pub const SIZE: usize = 8;

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.tag.to_be_bytes();
        let [high, low] = self.length.to_be_bytes();
        let transport = match self.transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
        };
        [a, b, c, d, 0, transport, high, low]
    }

    /// What was sent.
    pub fn from_bytes([a, b, c, d, _, transport, high, low]: [u8; Self::SIZE]) -> Self {
        Self {
            tag: u32::from_be_bytes([a, b, c, d]),
            transport: match transport {
                0 => Transport::Udp,
                _ => Transport::Tcp,
            },
            length: u16::from_be_bytes([high, low]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_way() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let header = Header {
                tag: 0x0102_0304,
                transport,
                length: 0xfffe,
            };
            assert_eq!(Header::from_bytes(header.to_bytes()), header);
        }
    }
}
