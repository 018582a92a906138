//! The columns of the table of races, and which of them a narrow terminal has room for.

use super::{Style, clock_time, duration};
use crate::output::escape;
use crate::race::event::{Class, Flow, Race, Verdict};
use crate::race::time::WallClock;
use crate::race::tuple::{Ends, Protocol};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Spaces between columns.
const GAP: usize = 2;

/// What the columns hold. The order in which [`Columns::fitting`] gives things up is the order of their use: which
/// container, which translated address, how long, what became of it, which pod address, which protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Columns {
    container: bool,
    translated_address: bool,
    overlap: bool,
    verdict: bool,
    pod_address: bool,
    protocol: bool,
}

/// One cell: its heading, its width, whether it is there.
struct Cell {
    heading: &'static str,
    width: usize,
    shown: bool,
}

impl Columns {
    const ALL: Self = Self {
        container: true,
        translated_address: true,
        overlap: true,
        verdict: true,
        pod_address: true,
        protocol: true,
    };

    /// As many as `width` has room for.
    pub(super) fn fitting(width: Option<usize>) -> Self {
        let mut columns = Self::ALL;
        let give_up: [fn(&mut Self); 6] = [
            |columns| columns.container = false,
            |columns| columns.translated_address = false,
            |columns| columns.overlap = false,
            |columns| columns.verdict = false,
            |columns| columns.pod_address = false,
            |columns| columns.protocol = false,
        ];
        for give_up in give_up {
            if width.is_none_or(|width| columns.width() <= width) {
                break;
            }
            give_up(&mut columns);
        }
        columns
    }

    fn cells(self) -> [Cell; 7] {
        let owner = match (self.pod_address, self.container) {
            (true, true) => 34,
            (true, false) => 27,
            (false, _) => 15,
        };
        let contested = if self.translated_address { 43 } else { 27 };
        [
            Cell { heading: "TIME", width: 12, shown: true },
            Cell { heading: "VERDICT", width: 8, shown: self.verdict },
            Cell { heading: "PROTO", width: 5, shown: self.protocol },
            Cell { heading: "CONTESTED", width: contested, shown: true },
            Cell { heading: "LOSER", width: owner, shown: true },
            Cell { heading: "WINNER", width: owner, shown: true },
            Cell { heading: "OVERLAP", width: 8, shown: self.overlap },
        ]
    }

    fn width(self) -> usize {
        self.cells().iter().filter(|cell| cell.shown).map(|cell| cell.width + GAP).sum::<usize>() - GAP
    }

    /// The line of headings.
    pub(super) fn header(self) -> String {
        self.join(self.cells().map(|cell| cell.heading.to_owned()))
    }

    /// The line of a race. A value wider than its column is not cut: a line too long is better than half an address.
    pub(super) fn line(self, race: &Race, clock: WallClock, style: &Style) -> String {
        let overlap = race.overlap.map_or_else(|| "-".to_owned(), duration);
        let line = self.join([
            clock_time(clock.wall(race.time), &style.zone),
            verdict(race.verdict).to_owned(),
            race.protocol.to_string(),
            self.contested(race),
            self.who(&race.loser),
            self.who(&race.winner),
            overlap,
        ]);
        let line = match race.class {
            Class::SnatPortCollision => line,
            class => format!("{line}  {class}"),
        };
        if !style.colour {
            return line;
        }
        let (word, colour) = match race.verdict {
            Some(Verdict::Dropped) => (verdict(race.verdict), RED),
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => (verdict(race.verdict), GREEN),
            None => return line,
        };
        if self.verdict { line.replacen(word, &format!("{colour}{word}{PLAIN}"), 1) } else { line }
    }

    fn contested(self, race: &Race) -> String {
        let Ends { source, destination } = race.contested.ends();
        let destination = match race.protocol {
            Protocol::ICMP | Protocol::ICMPV6 => destination.ip().to_string(),
            _ => destination.to_string(),
        };
        if self.translated_address {
            format!("{source} > {destination}")
        } else {
            format!("{} > {destination}", source.port())
        }
    }

    fn who(self, flow: &Flow) -> String {
        let mut words = Vec::with_capacity(3);
        if self.pod_address {
            words.push(flow.original.ends().source.ip().to_string());
        }
        match &flow.owner {
            Some(owner) => {
                words.push(format!("{}[{}]", escape(&owner.comm), owner.pid));
                if let (true, Some(container)) = (self.container, &owner.container) {
                    words.push(escape(short_id(&container.id)).into_owned());
                }
            }
            None => words.push("?".to_owned()),
        }
        words.join(" ")
    }

    fn join(self, values: [String; 7]) -> String {
        let mut line = String::new();
        for (Cell { width, shown, .. }, value) in self.cells().into_iter().zip(values) {
            if shown {
                line.push_str(&format!("{value:<width$}"));
                line.push_str(&" ".repeat(GAP));
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Short enough for a column; the long names are in the verbose block and in JSON.
fn verdict(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Dropped) => "dropped",
        Some(Verdict::Resolved) => "resolved",
        Some(Verdict::ResolvedReplyOnly) => "reply",
        None => "?",
    }
}

/// The first six characters of a hexadecimal id; a unit's name as it is.
fn short_id(id: &str) -> &str {
    if id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) { id.get(..6).unwrap_or(id) } else { id }
}
