//! The columns of the table of races, and which of them a narrow terminal has room for.

use std::borrow::Cow;

use super::{Style, clock_time, duration};
use crate::output::escape;
use crate::owner::behind::{IN, VIA};
use crate::owner::{Behind, Container, Pod, workload};
use crate::race::event::{Class, Flow, Race, Verdict};
use crate::race::failure::Failure;
use crate::race::time::{KernelTime, WallClock};
use crate::race::tuple::{Ends, Protocol};

/// Spaces between columns.
pub(crate) const GAP: usize = 2;
/// Widest IPv4 address.
const ADDRESS: usize = 15;
/// Widest IPv4 address with a port.
const SOCKET: usize = ADDRESS + 1 + PORT;
const PORT: usize = 5;
/// Between what claims and what is claimed.
const TOWARD: &str = " > ";
/// Least room for a pod or container, and most, from the columns that processes leave over.
const CONTAINER: (usize, usize) = (SHORT_ID, 24);
/// Characters of a container's id, where it has no name.
const SHORT_ID: usize = 6;
/// Least room for a process, and room for most: a terminal's columns left over are the processes' too.
const PROCESS: (usize, usize) = (13, 18);
/// Characters of a process's name that stay, however little room there is.
const COMM: usize = 3;
/// In the place of what was cut.
const CUT: char = '~';

/// What stands in a line beyond verdict, contested port, destination and the two processes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Shown {
    translated_address: bool,
    container: bool,
    overlap: bool,
    milliseconds: bool,
    pod_address: bool,
    protocol: bool,
}

/// From wide to narrow. The translated address goes first, as a node seldom has two; the process never goes.
const LAYOUTS: [Shown; 7] = {
    let all = Shown {
        translated_address: true,
        container: true,
        overlap: true,
        milliseconds: true,
        pod_address: true,
        protocol: true,
    };
    let no_address = Shown { translated_address: false, ..all };
    let no_container = Shown { container: false, ..no_address };
    let no_times = Shown { overlap: false, milliseconds: false, ..no_container };
    let no_pod = Shown { milliseconds: false, pod_address: false, ..no_container };
    let no_overlap = Shown { overlap: false, ..no_pod };
    let least = Shown { protocol: false, ..no_overlap };
    [all, no_address, no_container, no_times, no_pod, no_overlap, least]
};

/// The columns chosen for a terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    shown: Shown,
    /// Columns of the terminal, if it is one.
    width: Option<usize>,
    /// Room for one process.
    process: usize,
    /// Room for one pod or container.
    workload: usize,
}

/// One column: its heading and its width, if it is there.
type Column = (&'static str, Option<usize>);

impl Columns {
    /// As many as `width` has room for.
    pub(crate) fn fitting(width: Option<usize>) -> Self {
        let of = |shown| Self { shown, width, process: PROCESS.0, workload: CONTAINER.0 };
        let [all, .., narrowest] = LAYOUTS.map(of);
        let Some(width) = width else { return Self { process: PROCESS.1, workload: CONTAINER.1, ..all } };
        let fitting = LAYOUTS.into_iter().map(of).find(|columns| columns.total() <= width).unwrap_or(narrowest);
        let widened = |(least, most): (usize, usize), left_over: usize| most.min(least + left_over / 2);
        let fitting = Self { process: widened(PROCESS, width.saturating_sub(fitting.total())), ..fitting };
        Self { workload: widened(CONTAINER, width.saturating_sub(fitting.total())), ..fitting }
    }

    fn columns(&self) -> [Column; 7] {
        let Self { shown, width: _, process, workload } = *self;
        let only = |shown: bool, width| shown.then_some(width);
        let owner =
            process + if shown.pod_address { ADDRESS + 1 } else { 0 } + if shown.container { 1 + workload } else { 0 };
        let contested = if shown.translated_address { SOCKET } else { PORT } + TOWARD.len() + SOCKET;
        [
            ("TIME", Some(if shown.milliseconds { "00:00:00.000".len() } else { "00:00:00".len() })),
            ("VERDICT", Some("resolved".len())),
            ("PROTO", only(shown.protocol, "PROTO".len())),
            ("CONTESTED", Some(contested)),
            ("LOSER", Some(owner)),
            ("WINNER", Some(owner)),
            ("OVERLAP", only(shown.overlap, "999.9 us".len())),
        ]
    }

    fn total(&self) -> usize {
        self.columns().iter().filter_map(|(_, width)| width.map(|width| width + GAP)).sum::<usize>() - GAP
    }

    /// The line of headings.
    pub(super) fn header(&self) -> String {
        self.join(self.columns().map(|(heading, _)| heading.to_owned()), None)
    }

    /// The line of a race, and a second one for its class where that is not the usual one and finds no room.
    ///
    /// On a terminal the names of a process and of a pod or container are cut to their columns. Nothing else is: a line too
    /// long is better than half an address.
    pub(super) fn line(&self, race: &Race, clock: WallClock, style: &Style) -> String {
        let values = self.values(race, clock, style);
        let colour = match race.verdict {
            Some(Verdict::Dropped) => Some(super::RED),
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => Some(super::GREEN),
            None => None,
        };
        let why = (race.class != Class::SnatPortCollision).then_some(race.class.name());
        self.with_reason(values, colour.filter(|_| style.colour), why.filter(|_| !style.verbose))
    }

    /// What stands in the columns.
    fn values(&self, race: &Race, clock: WallClock, style: &Style) -> [String; 7] {
        [
            self.time(race.time, clock, style),
            verdict(race.verdict).to_owned(),
            race.protocol.to_string(),
            self.contested(race.contested.ends(), race.protocol),
            self.owner(&race.loser),
            self.owner(&race.winner),
            race.overlap.map_or_else(|| "-".to_owned(), duration),
        ]
    }

    /// The columns that are there, with their width and what stands in them; the headings without a race.
    pub(crate) fn cells(&self, race: Option<(&Race, WallClock)>, style: &Style) -> Vec<(usize, String)> {
        let columns = self.columns();
        let values = match race {
            Some((race, clock)) => self.values(race, clock, style),
            None => columns.map(|(heading, _)| heading.to_owned()),
        };
        columns.into_iter().zip(values).filter_map(|((_, width), value)| Some((width?, value))).collect()
    }

    /// The line of a failure: as that of a race, which it says it is not, with the flow as it was sent and no winner.
    pub(super) fn failure(&self, failure: &Failure, clock: WallClock, style: &Style) -> String {
        let values = [
            self.time(failure.time, clock, style),
            NO_RACE.to_owned(),
            failure.protocol.to_string(),
            self.contested(failure.flow.original.ends(), failure.protocol),
            self.owner(&failure.flow),
            "-".to_owned(),
            "-".to_owned(),
        ];
        self.with_reason(values, None, Some(failure.reason.name()).filter(|_| !style.verbose))
    }

    /// A line, with why it happened at its end, or below where there is no room.
    fn with_reason(&self, values: [String; 7], colour: Option<&str>, why: Option<&str>) -> String {
        let plain = self.join(values.clone(), None).chars().count();
        let mut line = self.join(values, colour);
        // The verbose block begins with it.
        if let Some(why) = why {
            let fits = self.width.is_none_or(|width| plain + GAP + why.len() <= width);
            line.push_str(if fits { "  " } else { "\n    " });
            line.push_str(why);
        }
        line
    }

    fn time(&self, time: KernelTime, clock: WallClock, style: &Style) -> String {
        let format = if self.shown.milliseconds { "%H:%M:%S%.3f" } else { "%H:%M:%S" };
        clock_time(clock.wall(time), &style.zone, format)
    }

    fn contested(&self, Ends { source, destination }: Ends, protocol: Protocol) -> String {
        let source = if self.shown.translated_address { source.to_string() } else { source.port().to_string() };
        // ICMP has no port there.
        let destination = if protocol.is_icmp() { destination.ip().to_string() } else { destination.to_string() };
        format!("{source}{TOWARD}{destination}")
    }

    fn owner(&self, flow: &Flow) -> String {
        let mut words = Vec::with_capacity(3);
        if self.shown.pod_address {
            words.push(flow.original.ends().source.ip().to_string());
        }
        let Some(owner) = &flow.owner else {
            words.push("?".to_owned());
            words.extend(flow.behind.as_ref().map(|behind| self.behind(behind)));
            return words.join(" ");
        };
        let workload =
            self.shown.container.then(|| self.workload(owner.container.as_ref(), owner.pod.as_ref())).flatten();
        // An absent container's room is the process's.
        let room = self.process + if self.shown.container && workload.is_none() { 1 + self.workload } else { 0 };
        words.push(self.process(&owner.comm, owner.pid, room));
        words.extend(workload);
        words.join(" ")
    }

    /// Where answers go: the pod or container if that is known and has a column, else the interface.
    fn behind(&self, behind: &Behind) -> String {
        let (container, pod) = (behind.container.as_ref(), behind.pod.as_ref());
        let inside = self.shown.container.then(|| self.workload(container, pod)).flatten();
        if let Some(inside) = inside {
            return format!("{IN} {inside}");
        }
        let room =
            self.process.saturating_sub("? via ".len()) + if self.shown.container { 1 + self.workload } else { 0 };
        format!("{VIA} {}", self.cut(&escape(behind.nearest()), room))
    }

    /// The pod, or else the container or unit. What tells the pods of a deployment apart is the end of their names.
    fn workload(&self, container: Option<&Container>, pod: Option<&Pod>) -> Option<String> {
        if let (None, Some(Container { name: None, id, .. })) = (pod, container)
            && is_made(id)
        {
            return id.get(..SHORT_ID).map(str::to_owned);
        }
        let (name, room) = (workload(container, pod)?, self.workload);
        let name = escape(&name);
        let length = name.chars().count();
        if self.width.is_none() || length <= room {
            return Some(name.into_owned());
        }
        Some(match pod {
            Some(_) => std::iter::once(CUT).chain(name.chars().skip(length - (room - 1))).collect(),
            None => name.chars().take(room - 1).chain([CUT]).collect(),
        })
    }

    fn process(&self, comm: &str, pid: u32, room: usize) -> String {
        let (comm, pid) = (escape(comm), format!("[{pid}]"));
        let room = room.saturating_sub(pid.len()).max(COMM + 1);
        format!("{}{pid}", self.cut(&comm, room))
    }

    /// As much of a name as has room on a terminal.
    fn cut<'a>(&self, name: &'a str, room: usize) -> Cow<'a, str> {
        if self.width.is_none() || name.chars().count() <= room {
            return name.into();
        }
        name.chars().take(room - 1).chain([CUT]).collect()
    }

    /// The columns of a line, the verdict's value in `colour`.
    fn join(&self, values: [String; 7], colour: Option<&str>) -> String {
        let mut line = String::new();
        let mut blanks = 0;
        for ((heading, width), value) in self.columns().into_iter().zip(values) {
            let Some(width) = width else { continue };
            line.push_str(&" ".repeat(blanks));
            match colour.filter(|_| heading == "VERDICT") {
                Some(colour) => line.extend([colour, &value, super::PLAIN]),
                None => line.push_str(&value),
            }
            blanks = width.saturating_sub(value.chars().count()) + GAP;
        }
        line
    }
}

/// In the place of the verdict on a race.
const NO_RACE: &str = "no race";

/// Short enough for a column; the long names are in the verbose block and in JSON.
fn verdict(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Dropped) => "dropped",
        Some(Verdict::Resolved) => "resolved",
        Some(Verdict::ResolvedReplyOnly) => "reply",
        None => "?",
    }
}

/// Whether a runtime made this id, so that its beginning tells it from others.
fn is_made(id: &str) -> bool {
    id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}
