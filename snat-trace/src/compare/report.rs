//! A comparison in words, in 80 columns.

use std::fmt;
use std::time::Duration;

use super::differences::Difference;
use super::intervals::{Interval, LEVEL};
use super::rate::{Rate, Rates};
use super::{Basis, Comparison, Judgement, Kind, Side};
use crate::output::wrap::wrapped;

/// Where the columns of the table begin, but the first.
const KIND: usize = 21;
const CELL: usize = 22;
/// In a table without verdicts, whose numbers are larger.
const WIDE: usize = 29;
/// A space at which no line ends.
const JOINED: char = '\u{a0}';

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rates) = self.dropped() {
            field(f, "", &self.headline(rates), 0)?;
            field(f, "", &self.meaning(rates), 0)?;
        }
        writeln!(f, "\n{:KIND$}{:CELL$}{:CELL$}VERDICT", format!("{LEVEL} % INTERVALS"), "BEFORE", "AFTER")?;
        for (kind, Rates { before, after, judgement, .. }) in &self.rows {
            let [before, after] = [before, after].map(cell);
            writeln!(f, "{:KIND$}{before:CELL$}{after:CELL$}{}", kind.name(), judgement.name())?;
        }
        writeln!(f, "Races {}.\n", self.basis.name())?;
        if let Some(rows) = &self.by_time {
            writeln!(f, "{:KIND$}{:WIDE$}AFTER", "BY TIME", "BEFORE")?;
            for (kind, Rates { before, after, .. }) in rows {
                let [before, after] = [before, after].map(cell);
                writeln!(f, "{:KIND$}{before:WIDE$}{after}", kind.name())?;
            }
            writeln!(
                f,
                "Races {}, which change with the traffic: the verdicts are not by them.\n",
                Basis::Hours.name()
            )?;
        }
        for (name, side) in self.sides() {
            field(f, name, &side.figures(), 8)?;
        }
        let differences = self.differences();
        if !differences.is_empty() {
            writeln!(f, "\nWhat else differs:")?;
        }
        for difference in differences {
            let Difference { what, before, after } = difference;
            field(f, "  * ", &format!("{what}: {before}, then {after}"), 4)?;
        }
        let cautions = self.cautions();
        if !cautions.is_empty() {
            writeln!(f, "\nBefore you rely on it:")?;
        }
        cautions.iter().try_for_each(|caution| field(f, "  * ", caution, 4))
    }
}

impl Comparison {
    /// The verdict and both rates.
    fn headline(&self, Rates { before, after, judgement, .. }: &Rates) -> String {
        let interval =
            |rate: &Rate| rate.interval.map_or_else(String::new, |interval| format!(" ({})", range(interval)));
        let mut unit = format!(" races {}", self.basis.name());
        let mut side = |rate: &Rate, side: &Side| match rate.rate {
            // The second time it is known what the number is of.
            Some(known) if rate.races > 0 => format!("{}{}", number(known), std::mem::take(&mut unit)),
            _ => format!("none {}", self.whole(side)),
        };
        let (first, second) = (side(before, &self.before), side(after, &self.after));
        let (its, whose) = (interval(before), interval(after));
        format!("{}: {first} dropped a packet before{its}, {second} after{whose}", judgement.name())
    }

    /// Of how much.
    fn whole(&self, side: &Side) -> String {
        match self.basis {
            Basis::Connections => format!("of {} new connections", side.connections.unwrap_or(0)),
            Basis::Hours => format!("in {}", time(side.watched)),
        }
    }

    /// What the verdict stands on.
    fn meaning(&self, Rates { before, after, ratio, burst, judgement }: &Rates) -> String {
        let Some(ratio) = ratio else {
            return if burst.is_none() {
                "Whether races come in bursts is not known, and so not how much these tell: record 10 s or more on each \
                 side."
                    .to_owned()
            } else {
                "One side watched nothing.".to_owned()
            };
        };
        if before.races == 0 && after.races == 0 {
            return "Neither side has a race that dropped a packet: there is nothing to compare.".to_owned();
        }
        let times = match (ratio.low > 0.0, ratio.high.is_finite()) {
            (true, true) => format!("{} to {} times", number(ratio.low), number(ratio.high)),
            (true, false) => format!("at least {} times", number(ratio.low)),
            (false, _) => format!("at most {} times", number(ratio.high)),
        };
        let rate = format!("The rate after is {times} that before ({LEVEL}{JOINED}%)");
        match judgement {
            Judgement::Fixed => format!("{rate}: had even a tenth of the races stayed, some would have shown."),
            Judgement::Better | Judgement::Worse => format!("{rate}."),
            Judgement::NoChange => format!("{rate}: it may be the same, and is not twice or half of it."),
            Judgement::NotEnoughData => format!("{rate}, which may be anything: record for longer."),
        }
    }
}

impl Side {
    /// What there is of it.
    fn figures(&self) -> String {
        let Self { recordings, watched, connections, .. } = self;
        let (races, dropped) = (self.races(Kind::All), self.races(Kind::Dropped));
        let connections =
            connections.map_or_else(|| "new connections not known".to_owned(), |n| format!("{n} new connections"));
        let account = match (self.unfinished, self.open.is_empty()) {
            (0, true) => "the account closes",
            (0, false) => "the account does not close",
            _ => "there is no account",
        };
        let recordings = if *recordings == 1 { String::new() } else { format!(" in {recordings} recordings") };
        format!(
            "{races} races, {dropped} dropped a packet; {connections}; {} watched{recordings}; {account}",
            time(*watched)
        )
    }
}

fn cell(rate: &Rate) -> String {
    let known = rate.rate.map_or_else(|| "?".to_owned(), number);
    match rate.interval {
        Some(Interval { low, high }) => format!("{known} ({}-{})", number(low), number(high)),
        None => known,
    }
}

fn range(Interval { low, high }: Interval) -> String {
    if low > 0.0 {
        format!("{LEVEL}{JOINED}%: {} to {}", number(low), number(high))
    } else {
        format!("at most {}", number(high))
    }
}

/// Three digits that tell something.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        _ if value < 0.001 => "<0.001".to_owned(),
        _ if value < 1.0 => format!("{value:.3}"),
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ if value < 1e7 => format!("{value:.0}"),
        _ => format!("{value:.2e}"),
    }
}

fn time(watched: Duration) -> String {
    match watched.as_secs() {
        0..120 => format!("{:.1} s", watched.as_secs_f64()),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{:.1} h", Duration::from_secs(seconds).as_secs_f64() / 3600.0),
    }
}

/// A label and a text that goes on below itself; the text may be from outside.
fn field(f: &mut fmt::Formatter<'_>, label: &str, text: &str, indent: usize) -> fmt::Result {
    let mut lines = String::new();
    wrapped(&mut lines, text, indent)?;
    write!(f, "{label:indent$}{}", lines.replace(JOINED, " "))
}
