//! DNS queries, relayed from the guest to a name server on the host.
//!
//! Docker's own name server listens at 127.0.0.11 in a container's network namespace. A packet to
//! that address does not leave the guest, so the agent accepts the queries and sends them over a
//! stream, each as a frame: a [`Header`] and a DNS message. The host answers every frame with one
//! of the same tag; an empty message means that there was no answer.

use std::net::Ipv4Addr;

/// The address of Docker's name server in a container's network namespace.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The port of DNS.
pub const PORT: u16 = 53;

/// The transport of a query, in the guest and then on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers have at most 512 bytes without EDNS.
    Udp,
    /// Answers have at most 65535 bytes.
    Tcp,
}

/// What precedes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the agent; matches answers to queries.
    pub tag: u32,
    /// How the client in the guest has asked.
    pub transport: Transport,
    /// The message's length in bytes.
    pub length: u16,
}

impl Header {
    /// Bytes of an encoded header.
    pub const SIZE: usize = 8;

    /// Encodes the header, in big-endian order.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.tag.to_be_bytes();
        let [high, low] = self.length.to_be_bytes();
        let transport = match self.transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
        };
        [a, b, c, d, 0, transport, high, low]
    }

    /// Decodes a header. An unknown transport is TCP.
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
    fn a_header_is_decoded_as_it_was_encoded() {
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
