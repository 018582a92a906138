//! What snat-trace may cost, and whether it costs less.

use super::figure::{Cost, Figure};
use super::words::{grouped, ratio, short};

/// Ways of watching that are snat-trace's.
pub(super) const MINIMAL: &str = "snat-trace minimal";
pub(super) const FULL: &str = "snat-trace full";
pub(super) const FAILURES: &str = "snat-trace full --failures";
/// And those it is measured against.
pub(super) const NOTHING: &str = "nothing";
pub(super) const BPFTRACE: &str = "bpftrace";
/// Traps at the same functions as full, and nothing else.
const EMPTY: &str = "bpftrace, empty";

/// What reads all that a start begins with and attaches nothing, on the machine that measures.
pub(super) const DOCTOR: &str = "snat-trace doctor, natively";

/// Kinds of traffic, and a unit of each.
pub(super) const TRAFFIC: [(&str, &str); 3] = [
    ("udp-flows", "new UDP flows"),
    ("tcp-flows", "new TCP connections"),
    ("udp-datagrams", "datagrams of established flows"),
];

const MIB: f64 = 1024.0 * 1024.0;

/// A bound set before anything was measured.
#[derive(Debug, PartialEq)]
pub(super) struct Target {
    pub(super) what: String,
    /// The figure that decides.
    pub(super) measured: String,
    /// Unknown where it was not measured.
    pub(super) met: Option<bool>,
}

/// What a connection costs where something has grown so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) value: f64,
    /// Nanoseconds in our programs.
    pub(super) programs: f64,
    /// Nanoseconds of a new flow in all.
    pub(super) flow: f64,
    /// The same with nothing attached.
    pub(super) alone: f64,
    /// CPU milliseconds of the user side a second.
    pub(super) user: f64,
}

/// All of them.
pub(super) fn targets(cost: &Cost) -> Vec<Target> {
    let mut targets = rates(cost);
    targets.extend(hooks(cost));
    targets.extend(observer(cost));
    targets.extend(user_side(cost));
    targets.extend(start(cost));
    targets.extend(growth(cost));
    let bytes = cost.figures.iter().find_map(|figure| match figure {
        Figure::Size { bytes } => Some(*bytes as f64),
        _ => None,
    });
    targets.push(judged(
        "the static binary: less than 6 MiB",
        bytes,
        |bytes| bytes < 6.0 * MIB,
        |bytes| format!("{:.2} MiB", bytes / MIB),
    ));
    targets
}

/// A target that one number decides.
fn judged(
    what: impl Into<String>,
    value: Option<f64>,
    holds: impl Fn(f64) -> bool,
    say: impl Fn(f64) -> String,
) -> Target {
    Target { what: what.into(), measured: value.map_or_else(|| "not measured".to_owned(), say), met: value.map(holds) }
}

fn rates(cost: &Cost) -> Vec<Target> {
    let mut targets = Vec::new();
    for (traffic, unit) in TRAFFIC {
        let interval = cost.ratio(traffic, MINIMAL);
        targets.push(Target {
            what: format!("minimal, {unit}: the interval of the ratio contains 1.00 and is no wider than ±2 %"),
            measured: interval.map_or_else(|| "not measured".to_owned(), ratio),
            met: interval.map(|[_, low, high]| low <= 1.0 && high >= 1.0 && high - low <= 0.04),
        });
    }
    for ((traffic, unit), least) in TRAFFIC.into_iter().zip([0.95, 0.98]) {
        let interval = cost.ratio(traffic, FULL);
        let traps = cost.ratio(traffic, EMPTY);
        let traps = traps.map_or_else(String::new, |traps| format!("; with empty programs there {}", ratio(traps)));
        targets.push(Target {
            what: format!("full, {unit}: a ratio of at least {least}"),
            measured: interval.map_or_else(|| "not measured".to_owned(), |interval| ratio(interval) + &traps),
            met: interval.map(|[mean, ..]| mean >= least),
        });
    }
    for (traffic, unit) in &TRAFFIC[..2] {
        let loss = |way| cost.ratio(traffic, way).map(|[mean, ..]| 1.0 - mean);
        let losses = loss(FULL).zip(loss(BPFTRACE));
        targets.push(Target {
            what: format!("full, {unit}: at most a quarter of bpftrace's loss"),
            measured: losses.map_or_else(
                || "not measured".to_owned(),
                |(ours, theirs)| format!("{:.1} % of traffic, bpftrace {:.1} %", 100.0 * ours, 100.0 * theirs),
            ),
            // Without a loss of theirs there is nothing to have a quarter of.
            met: losses.filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours <= theirs / 4.0),
        });
    }
    targets
}

fn hooks(cost: &Cost) -> Vec<Target> {
    let (traffic, _) = TRAFFIC[2];
    // A run in a hundred datagrams is one of something else.
    let runs: Vec<_> = [MINIMAL, FULL, FAILURES].iter().flat_map(|way| cost.runs(way, traffic)).collect();
    let most = runs.iter().map(|(_, runs, _)| *runs).reduce(f64::max);
    let mut targets = vec![judged(
        "nothing of ours runs per datagram of an established flow",
        most,
        |most| most < 0.01,
        |_| {
            let running = runs.iter().filter(|(_, runs, _)| *runs >= 0.01);
            let list = running.map(|(program, runs, _)| format!("{program} {}", short(*runs))).collect::<Vec<_>>();
            if list.is_empty() { "nothing runs".to_owned() } else { format!("runs per datagram: {}", list.join(", ")) }
        },
    )];
    let executed: Vec<_> = cost.executed().collect();
    let over = executed.iter().filter(|(_, instructions)| *instructions >= 400).count();
    targets.push(judged(
        "full: less than 400 BPF instructions for a new connection of any kind",
        executed.iter().map(|(_, instructions)| *instructions as f64).reduce(f64::max),
        |most| most < 400.0,
        |most| format!("at most {most:.0}; {over} of {} kinds are not below", executed.len()),
    ));
    targets
}

fn observer(cost: &Cost) -> Vec<Target> {
    let of = |way: &str| {
        cost.figures.iter().find_map(|figure| match figure {
            Figure::Collisions { way: there, ratio: Some(ratio), .. } if there == way => Some(*ratio),
            _ => None,
        })
    };
    let target = |way: &str| Target {
        what: format!("{way}, observer's effect: a ratio of collisions from 0.9 to 1.1"),
        measured: of(way).map_or_else(|| "not measured".to_owned(), ratio),
        met: of(way).map(|[mean, ..]| (0.9..=1.1).contains(&mean)),
    };
    vec![target(MINIMAL), target(FULL)]
}

fn user_side(cost: &Cost) -> Vec<Target> {
    let records = cost.figures.iter().find_map(|figure| match figure {
        Figure::User { what, per_second } if what == "records/decode and correlate" => Some(*per_second),
        _ => None,
    });
    let memory = |wanted: fn(f64) -> bool, size: fn(&Figure) -> u64| {
        let of = |figure: &&Figure| matches!(figure, Figure::Memory { collisions_per_second, .. } if wanted(*collisions_per_second));
        cost.figures.iter().filter(of).map(|figure| size(figure) as f64 / 1024.0).reduce(f64::max)
    };
    let resident = |figure: &Figure| if let Figure::Memory { resident_kib, .. } = figure { *resident_kib } else { 0 };
    let peak = |figure: &Figure| if let Figure::Memory { peak_kib, .. } = figure { *peak_kib } else { 0 };
    let wakeups = cost.figures.iter().filter_map(|figure| match figure {
        Figure::Idle { wakeups, seconds, .. } => Some(*wakeups as f64 / seconds),
        _ => None,
    });
    let mib = |mib: f64| format!("{mib:.1} MiB");
    vec![
        judged(
            "decode and correlate: at least 2 000 000 records a second on one core",
            records,
            |records| records >= 2e6,
            grouped,
        ),
        judged(
            "resident memory when idle: less than 8 MiB",
            memory(|rate| rate == 0.0, resident),
            |mib| mib < 8.0,
            mib,
        ),
        judged(
            "peak memory in the worst storm: less than 64 MiB",
            memory(|rate| rate > 0.0, peak),
            |mib| mib < 64.0,
            mib,
        ),
        judged(
            "no wake-up when nothing happens",
            wakeups.reduce(f64::max),
            |rate| rate == 0.0,
            |rate| format!("{} a second", short(rate)),
        ),
    ]
}

fn start(cost: &Cost) -> Vec<Target> {
    let median_of = |wanted: &str| {
        cost.figures.iter().find_map(|figure| match figure {
            Figure::Start { way, milliseconds: [median, ..], .. } if way == wanted => Some(*median),
            _ => None,
        })
    };
    let mut targets = [(false, 300.0, "natively"), (true, 600.0, "under emulation")].map(|(emulated, limit, how)| {
        let median = median_of(FULL).filter(|_| cost.emulated == emulated);
        let what = format!("full: attached within {limit} ms {how}");
        judged(what, median, |median| median <= limit, |median| format!("{median:.0} ms"))
    });
    if let (None, Some(median)) = (targets[0].met, median_of(DOCTOR)) {
        targets[0].measured += &format!("; symbols and types are read within {median:.0} ms");
    }
    targets.into()
}

/// What may lie between the least and the largest cost on an axis: machines under emulation are no steadier.
const FLAT: f64 = 1.25;

fn growth(cost: &Cost) -> Vec<Target> {
    let target = |axis: &&str| {
        let points = cost.growth(axis);
        let factor = |costs: fn(&Point) -> f64| {
            let costs = points.iter().map(costs);
            let (least, most) = (costs.clone().reduce(f64::min)?, costs.reduce(f64::max)?);
            (points.len() > 1 && least > 0.0).then_some(most / least)
        };
        let what = format!(
            "cost per connection stays flat with {}: from least to most a factor of at most {FLAT}",
            spoken(axis)
        );
        let alone = factor(|point| point.alone);
        let alone = alone.map_or_else(String::new, |factor| format!("; of a flow with nothing attached {factor:.2}"));
        judged(what, factor(|point| point.programs), |factor| factor <= FLAT, |factor| format!("{factor:.2}{alone}"))
    };
    cost.axes().iter().map(target).collect()
}

/// An axis in words: `network-namespaces` is network namespaces.
pub(super) fn spoken(axis: &str) -> String {
    axis.replace("-per-second", " a second").replace('-', " ")
}

impl Cost {
    /// How much traffic passes beside `way`, to nothing attached.
    pub(super) fn ratio(&self, traffic: &str, way: &str) -> Option<[f64; 3]> {
        self.figures.iter().find_map(|figure| match figure {
            Figure::Rate { traffic: of, way: by, ratio, .. } if of == traffic && by == way => Some(*ratio),
            _ => None,
        })
    }

    /// Program, runs per unit and nanoseconds per run.
    pub(super) fn runs(&self, wanted_way: &str, wanted: &str) -> Vec<(&str, f64, f64)> {
        let of = |figure| match figure {
            &Figure::Hook { ref way, ref traffic, ref program, runs_per_unit, ns_per_run }
                if way == wanted_way && traffic == wanted =>
            {
                Some((program.as_str(), runs_per_unit, ns_per_run))
            }
            _ => None,
        };
        self.figures.iter().filter_map(of).collect()
    }

    /// Nanoseconds of the body of a program, natively.
    pub(super) fn body(&self, wanted: &str) -> Option<f64> {
        self.figures.iter().find_map(|figure| match figure {
            Figure::Body { program, ns_per_run, .. } if program == wanted => Some(*ns_per_run),
            _ => None,
        })
    }

    /// Instructions of the longest path through a program.
    pub(super) fn longest(&self, wanted: &str) -> Option<u64> {
        self.figures.iter().find_map(|figure| match figure {
            Figure::Instructions { program, longest } if program == wanted => Some(*longest),
            _ => None,
        })
    }

    /// Instructions that new connections execute at full detail.
    pub(super) fn executed(&self) -> impl Iterator<Item = (&str, u64)> {
        self.figures.iter().filter_map(|figure| match figure {
            Figure::Executed { connection, instructions } => Some((connection.as_str(), *instructions)),
            _ => None,
        })
    }

    /// What grows, in the order measured.
    pub(super) fn axes(&self) -> Vec<&str> {
        let mut axes = Vec::new();
        for figure in &self.figures {
            if let Figure::Growth { axis, .. } = figure
                && !axes.contains(&axis.as_str())
            {
                axes.push(axis);
            }
        }
        axes
    }

    /// The points of an axis, by value.
    pub(super) fn growth(&self, wanted: &str) -> Vec<Point> {
        let of = |figure| match figure {
            &Figure::Growth {
                ref axis,
                value,
                ns_per_connection: programs,
                ns_of_a_flow: flow,
                ns_of_a_flow_alone: alone,
                cpu_milliseconds_of_user_side_per_second: user,
            } if axis == wanted => Some(Point { value, programs, flow, alone, user }),
            _ => None,
        };
        let mut points: Vec<_> = self.figures.iter().filter_map(of).collect();
        points.sort_by(|left, right| left.value.total_cmp(&right.value));
        points
    }
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::cost;
    use super::*;

    #[test]
    fn each_target_has_the_figure_that_decides() {
        let shown: String = targets(&cost())
            .into_iter()
            .map(|Target { what, measured, met }| format!("{met:?} {what} | {measured}\n"))
            .collect();
        for line in [
            "Some(true) minimal, new UDP flows: the interval of the ratio contains 1.00 and is no wider than ±2 % | 0.995 (0.985 to 1.005)",
            "Some(false) minimal, new TCP connections: the interval of the ratio contains 1.00 and is no wider than ±2 % | 0.995 (0.970 to 1.020)",
            "None minimal, datagrams of established flows: the interval of the ratio contains 1.00 and is no wider than ±2 % | not measured",
            "Some(true) full, new UDP flows: a ratio of at least 0.95 | 0.955 (0.945 to 0.965); with empty programs there 0.970 (0.960 to 0.980)",
            "Some(false) full, new TCP connections: a ratio of at least 0.98 | 0.975 (0.965 to 0.985)",
            "Some(true) full, new UDP flows: at most a quarter of bpftrace's loss | 4.5 % of traffic, bpftrace 22.0 %",
            "None full, new TCP connections: at most a quarter of bpftrace's loss | not measured",
            "Some(false) nothing of ours runs per datagram of an established flow | runs per datagram: owner_ipv4 1.00",
            "Some(false) full: less than 400 BPF instructions for a new connection of any kind | at most 410; 1 of 2 kinds are not below",
            "Some(true) snat-trace minimal, observer's effect: a ratio of collisions from 0.9 to 1.1 | 1.010 (0.950 to 1.070)",
            "Some(false) snat-trace full, observer's effect: a ratio of collisions from 0.9 to 1.1 | 0.850 (0.800 to 0.900)",
            "Some(true) decode and correlate: at least 2 000 000 records a second on one core | 7 500 000",
            "Some(true) resident memory when idle: less than 8 MiB | 6.0 MiB",
            "Some(false) peak memory in the worst storm: less than 64 MiB | 80.0 MiB",
            "Some(false) no wake-up when nothing happens | 2.00 a second",
            "None full: attached within 300 ms natively | not measured; symbols and types are read within 61 ms",
            "Some(true) full: attached within 600 ms under emulation | 410 ms",
            "Some(true) cost per connection stays flat with flows a second: from least to most a factor of at most 1.25 | 1.10; of a flow with nothing attached 1.16",
            "Some(false) cost per connection stays flat with cgroups: from least to most a factor of at most 1.25 | 1.50; of a flow with nothing attached 1.22",
            "Some(true) the static binary: less than 6 MiB | 5.50 MiB",
        ] {
            assert!(shown.lines().any(|there| there == line), "no {line:?} in\n{shown}");
        }
        assert_eq!(shown.lines().count(), 20, "{shown}");
    }

    #[test]
    fn nothing_measured_meets_nothing() {
        let targets = targets(&Cost::default());
        assert!(targets.iter().all(|target| target.met.is_none() && target.measured == "not measured"), "{targets:?}");
    }
}
