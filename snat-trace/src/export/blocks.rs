//! The blocks of a pcapng file, as the IETF's draft-ietf-opsawg-pcapng lays them out ("PCAP Next Generation (pcapng) Capture File
//! Format"; sections are named below). Numbers are little-endian; what a block begins with says so.

use std::io::{self, Write};

use snat_trace_common::PACKET_LEN;

/// `LINKTYPE_RAW`: a packet begins with its IPv4 or IPv6 header (draft-ietf-opsawg-pcaplinktype).
const LINKTYPE_RAW: u16 = 101;
/// Of every block that has options (section 3.5).
const OPT_COMMENT: u16 = 1;

/// A text, as an option of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    code: u16,
    text: &'a str,
}

impl<'a> Text<'a> {
    /// Of any block.
    pub(super) fn comment(text: &'a str) -> Self {
        Self { code: OPT_COMMENT, text }
    }

    /// `shb_hardware`, `shb_os` and `shb_userappl` (section 4.1): where and by what it was captured.
    pub(super) fn origin(hardware: &'a str, os: &'a str, application: &'a str) -> [Self; 3] {
        [(2, hardware), (3, os), (4, application)].map(|(code, text)| Self { code, text })
    }

    /// `if_name` and `if_description` (section 4.2).
    pub(super) fn interface(name: &'a str, description: &'a str) -> [Self; 2] {
        [(2, name), (3, description)].map(|(code, text)| Self { code, text })
    }
}

/// Section Header Block (section 4.1): others belong to the last one before them.
pub(super) fn section(out: &mut impl Write, texts: &[Text<'_>]) -> io::Result<()> {
    const BYTE_ORDER: u32 = 0x1A2B_3C4D;
    const MAJOR: u16 = 1;
    const MINOR: u16 = 0;
    const LENGTH_NOT_KNOWN: i64 = -1;

    let mut body = Vec::new();
    body.extend(BYTE_ORDER.to_le_bytes());
    body.extend([MAJOR, MINOR].map(u16::to_le_bytes).as_flattened());
    body.extend(LENGTH_NOT_KNOWN.to_le_bytes());
    texts.iter().for_each(|text| option(&mut body, text.code, text.text.as_bytes()));
    block(out, 0x0A0D_0D0A, body)
}

/// Interface Description Block (section 4.2); the first of a section has number 0. Times of its packets are nanoseconds.
pub(super) fn interface(out: &mut impl Write, texts: &[Text<'_>]) -> io::Result<()> {
    const IF_TSRESOL: u16 = 9;
    /// Ten to the power of minus nine seconds.
    const NANOSECONDS: u8 = 9;

    let snap_length = u32::try_from(PACKET_LEN).map_err(io::Error::other)?;
    let mut body = Vec::new();
    body.extend([LINKTYPE_RAW, 0].map(u16::to_le_bytes).as_flattened());
    body.extend(snap_length.to_le_bytes());
    texts.iter().for_each(|text| option(&mut body, text.code, text.text.as_bytes()));
    option(&mut body, IF_TSRESOL, &[NANOSECONDS]);
    block(out, 1, body)
}

/// A packet, for its block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Of the section.
    pub(super) interface: u32,
    /// Nanoseconds since the epoch.
    pub(super) time: u64,
    /// How long it was.
    pub(super) length: u32,
    /// What there is of it.
    pub(super) head: &'a [u8],
    /// What is said of it.
    pub(super) comment: &'a str,
}

/// Enhanced Packet Block (section 4.3).
pub(super) fn packet(out: &mut impl Write, packet: &Packet<'_>) -> io::Result<()> {
    let Packet { interface, time, length, head, comment } = *packet;
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a time")]
    let (high, low) = ((time >> 32) as u32, time as u32);
    let captured = u32::try_from(head.len()).map_err(io::Error::other)?;
    let mut body = Vec::new();
    body.extend([interface, high, low, captured, length].map(u32::to_le_bytes).as_flattened());
    body.extend(head);
    pad(&mut body);
    option(&mut body, OPT_COMMENT, comment.as_bytes());
    block(out, 6, body)
}

/// One option (section 3.5). What does not fit its length is cut off; callers bound their texts far below.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    body.extend([code, length].map(u16::to_le_bytes).as_flattened());
    body.extend(&value[..usize::from(length)]);
    pad(body);
}

/// The frame of every block (section 3.1), and the end of its options.
fn block(out: &mut impl Write, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
    const OPT_ENDOFOPT: [u8; 4] = [0; 4];
    /// Type and length before, length after.
    const AROUND: usize = 12;

    body.extend(OPT_ENDOFOPT);
    let length = u32::try_from(body.len() + AROUND).map_err(io::Error::other)?.to_le_bytes();
    for part in [&kind.to_le_bytes(), &length, body.as_slice(), &length] {
        out.write_all(part)?;
    }
    Ok(())
}

/// To the next multiple of 32 bits.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}
