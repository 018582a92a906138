//! One INIT chunk per flow, from a raw socket: connection tracking needs no more, and the kernel no SCTP of its own.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with};

use super::super::wire::Stamp;
use super::{First, family, set_ttl};

/// Ports, verification tag and checksum (RFC 9260, 3.1).
const HEADER: usize = 12;
/// The INIT chunk up to its parameters (RFC 9260, 3.3.2).
const INIT: usize = 20;
const INIT_TYPE: u8 = 1;
/// A parameter of an unknown type that says "skip me and go on" (RFC 9260, 3.2.1): type, length, value.
const PARAMETER: usize = 4 + Stamp::LENGTH;
const PARAMETER_TYPE: u16 = 0xbf_fe;

const PACKET: usize = HEADER + INIT + PARAMETER;

pub(super) fn prepare(first: &First) -> io::Result<OwnedFd> {
    let socket = socket_with(family(first.source), SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::SCTP))?;
    // A raw socket has no port.
    bind(&socket, &SocketAddr::new(first.source.ip(), 0))?;
    set_ttl(&socket, first.source, first.ttl)?;
    Ok(socket)
}

pub(super) fn send(socket: &OwnedFd, first: &First) -> io::Result<()> {
    sendto(socket, &packet(first), SendFlags::empty(), &SocketAddr::new(first.destination.ip(), 0))?;
    Ok(())
}

fn packet(first: &First) -> [u8; PACKET] {
    // Lengths on the wire, each with its own header.
    const INIT_LENGTH: u16 = 32;
    const PARAMETER_LENGTH: u16 = 12;
    const { assert!(INIT + PARAMETER == INIT_LENGTH as usize && PARAMETER == PARAMETER_LENGTH as usize) };

    let mut packet = [0; PACKET];
    let mut rest = packet.as_mut_slice();
    let mut put = |bytes: &[u8]| {
        let (place, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        rest = after;
    };
    put(&first.source.port().to_be_bytes());
    put(&first.destination.port().to_be_bytes());
    // An INIT has no verification tag yet (net/netfilter/nf_conntrack_proto_sctp.c, `sctp_new`); the checksum is last.
    put(&[0; 8]);
    put(&[INIT_TYPE, 0]);
    put(&INIT_LENGTH.to_be_bytes());
    // Initiate tag (not 0), window, one stream each way, first sequence number.
    put(&1_u32.to_be_bytes());
    put(&0xffff_u32.to_be_bytes());
    put(&[0, 1, 0, 1]);
    put(&1_u32.to_be_bytes());
    put(&PARAMETER_TYPE.to_be_bytes());
    put(&PARAMETER_LENGTH.to_be_bytes());
    put(&first.stamp.encode());
    let checksum = crc32c(&packet);
    packet[8..HEADER].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// Source port and stamp of a packet as made here.
pub(super) fn read(packet: &[u8]) -> Option<(u16, Stamp)> {
    let (port, _) = packet.split_first_chunk()?;
    let init = packet.get(HEADER..).filter(|chunks| chunks.first() == Some(&INIT_TYPE))?;
    Some((u16::from_be_bytes(*port), Stamp::decode(init.get(INIT + 4..)?)?))
}

/// The checksum of RFC 9260, appendix A, of a packet whose own is 0.
fn crc32c(bytes: &[u8]) -> u32 {
    /// Castagnoli's polynomial, its bits in the reverse order.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_everybody_computes() {
        // The check value of CRC-32C, and a vector of RFC 7143, appendix A.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn what_is_sent_is_read() {
        let stamp = Stamp { round: 3, pod: 1 };
        let [source, destination] = ["10.99.0.10:10007", "10.99.1.2:20000"].map(|text| text.parse().unwrap());
        let packet = packet(&First { source, destination, ttl: 201, ttl_again: 64, open: false, stamp });
        assert_eq!(read(&packet), Some((10_007, stamp)));
        assert_eq!(packet[2..4], 20_000_u16.to_be_bytes());
        assert_eq!(read(&packet[..PACKET - 1]), None);
        assert_eq!(read(&[]), None);
    }
}
