//! Evidence for other tools: the packets that lost, as a pcapng file for Wireshark and its kin.
//!
//! One packet for each loser whose packet head is known, at the time its insert failed, on an interface that stands for the
//! network namespace, with a comment that names both flows. Each recording is a section of its own.

mod blocks;
mod comment;

use std::collections::HashMap;
use std::io::{self, Read, Write};

use snat_trace_common::PACKET_LEN;

use self::blocks::{Packet, Text};
use self::comment::{bounded, comment};
use crate::evidence::{Cut, Evidence, Item, ReadError};
use crate::race::event::{NetnsInum, Race};
use crate::session::Session;

/// What there is to export, known before anything is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Survey {
    /// Lines of evidence.
    items: usize,
    /// Losers whose packet there is.
    pub packets: u64,
    /// Losers without: their packet could not be read, or does not begin with an IP header.
    pub without: u64,
    /// How the evidence ends.
    pub cut: Cut,
}

impl Survey {
    /// Reads everything once.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn of<R: Read>(mut evidence: Evidence<R>) -> Result<Self, ReadError> {
        let (mut items, mut packets, mut without) = (0, 0, 0);
        for item in &mut evidence {
            items += 1;
            if let Item::Race(race) = item? {
                let count = if length(&race.packet).is_some() { &mut packets } else { &mut without };
                *count += 1;
            }
        }
        Ok(Self { items, packets, without, cut: evidence.cut() })
    }

    /// What every section says of the file.
    fn comment(&self, redacted: bool) -> String {
        let Self { items: _, packets, without, cut } = self;
        let end = match cut {
            Cut::No => "",
            Cut::NoSummary => " The evidence ends without a summary: its recording was killed, or went on.",
            Cut::Torn => " The evidence is cut short or damaged: what stands behind the last line is not known.",
        };
        let names = if redacted { " Addresses and names are exchanged for others, contents are zero." } else { "" };
        format!(
            "First packets of flows that lost a clash over a translated tuple: translated, at the time they lost, cut \
             after {PACKET_LEN} bytes. {packets} packets; {without} losers without.{end}{names}"
        )
    }
}

/// Why there is no pcapng file.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The evidence cannot be read again.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file cannot be written.
    #[error("cannot write the packets: {0}")]
    Write(#[from] io::Error),
}

/// Writes what the survey found; what has been added to the evidence since is left out. `redacted` says that addresses and
/// names in the items are others.
///
/// # Errors
/// See [`ExportError`].
pub fn pcapng(
    survey: &Survey,
    items: impl Iterator<Item = Result<Item, ReadError>>,
    redacted: bool,
    out: impl Write,
) -> Result<(), ExportError> {
    let mut file = File { out, comment: survey.comment(redacted), interfaces: None };
    for item in items.take(survey.items) {
        match item? {
            Item::Session(session) => file.section(Some(&session))?,
            Item::Race(race) => file.race(&race)?,
            Item::Node(_) | Item::Failure(_) | Item::Rules(_) | Item::Sample(_) | Item::Summary(_) => {}
        }
    }
    // A file without a section is none.
    file.interfaces()?;
    Ok(file.out.flush()?)
}

/// A file as it grows.
struct File<W> {
    out: W,
    comment: String,
    /// Of the section at hand, if one has begun.
    interfaces: Option<HashMap<Option<NetnsInum>, u32>>,
}

impl<W: Write> File<W> {
    fn section(&mut self, session: Option<&Session>) -> io::Result<()> {
        let origin = session.map(|Session { machine, kernel, tool, .. }| {
            [bounded(machine), format!("Linux {}", bounded(kernel)), bounded(tool)]
        });
        let mut texts = vec![Text::comment(&self.comment)];
        if let Some([machine, kernel, tool]) = &origin {
            texts.extend(Text::origin(machine, kernel, tool));
        }
        blocks::section(&mut self.out, &texts)?;
        self.interfaces = Some(HashMap::new());
        Ok(())
    }

    /// The interfaces of the section at hand; begins one if there is none.
    fn interfaces(&mut self) -> io::Result<&mut HashMap<Option<NetnsInum>, u32>> {
        if self.interfaces.is_none() {
            self.section(None)?;
        }
        Ok(self.interfaces.get_or_insert_default())
    }

    fn race(&mut self, race: &Race) -> io::Result<()> {
        let Some(length) = length(&race.packet) else { return Ok(()) };
        let interface = self.interface(race.netns)?;
        // Restored times are those of the wall clock from the epoch on.
        let time = race.time.nanoseconds();
        let packet = Packet { interface, time, length, head: &race.packet, comment: &comment(race) };
        blocks::packet(&mut self.out, &packet)
    }

    /// The number of the interface that stands for a namespace.
    fn interface(&mut self, netns: Option<NetnsInum>) -> io::Result<u32> {
        let interfaces = self.interfaces()?;
        if let Some(&number) = interfaces.get(&netns) {
            return Ok(number);
        }
        let number = u32::try_from(interfaces.len()).map_err(io::Error::other)?;
        interfaces.insert(netns, number);
        let (name, description) = match netns {
            Some(NetnsInum(inum)) => (format!("netns-{inum}"), format!("network namespace {inum} (lsns -t net)")),
            None => ("netns-unknown".to_owned(), "a network namespace that could not be read".to_owned()),
        };
        blocks::interface(&mut self.out, &Text::interface(&name, &description))?;
        Ok(number)
    }
}

/// How long a packet was, as its header says; never less than what there is of it, as headers of packets that the network
/// card is to cut may say 0. `None` for what does not begin with an IP header.
fn length(packet: &[u8]) -> Option<u32> {
    const IPV6_HEADER: u32 = 40;

    let field = |at: usize| Some(u32::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
    let told = match (packet.first()? >> 4, packet.len()) {
        // Total length (RFC 791, section 3.1), and payload length (RFC 8200, section 3).
        (4, 20..) => field(2)?,
        (6, 40..) => IPV6_HEADER + field(4)?,
        _ => return None,
    };
    Some(told.max(u32::try_from(packet.len()).ok()?))
}

#[cfg(test)]
mod tests;
