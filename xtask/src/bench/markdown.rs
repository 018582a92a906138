//! What was measured as a document. Nothing in it depends on the day it is written.

use std::fmt::Write as _;

use super::figure::{Cost, Figure};
use super::plot;
use super::targets::{BPFTRACE, FAILURES, FULL, MINIMAL, NOTHING, Point, TRAFFIC, Target, spoken, targets};
use super::words::{grouped, ratio, short, size};

const HEAD: &str = "\
# What snat-trace costs

Written by `cargo xtask bench`, which measures what it says; every figure is in [cost.json](cost.json) too. Do not edit: `cargo
xtask bench --again` writes this anew from that file.
";

const BESIDE: &str = "\
## Beside what you would use instead

New connections and datagrams that pass a node that masquerades, as a ratio to the same node with nothing attached: 1.000 is
free, 0.950 takes one connection in twenty from a generator that fills one processor. In parentheses the 95 % interval over
pairs of runs, each compared with those right before and after it in the same guest; the second line is what nothing attached
differs from itself. Collisions: how many of the pairs of flows that could collide did, to nothing attached; a tool above or
below 1 changes the races it watches.
";

const WAYS: &str = "\
* **snat-trace minimal**, **full**, **full --failures**: `snat-trace watch` at these levels of detail; full is what it does if
  nothing else is asked for.
* **bpftrace**: a script that notes the same of each connection (`tests/src/measure/full.bt`), but takes whatever task is current
  for the sender, where full makes sure of it, and remembers who else sent the same tuple.
* **bpftrace, empty**: a script that does nothing, at the functions at which full has a program that runs for each connection
  (`tests/src/measure/empty.bt`): what these traps take, whoever sets them, before anything is noted.
* **conntrack -E**: every event of the table, as text. It does not show the flow that lost.
* **tcpdump**: every packet on every link of the node, as `-w` writes them.
";

const HOOKS: &str = "\
## Hooks

BPF programs by the kernel's own statistics (`kernel.bpf_stats_enabled`; they see the program and not the trap that leads to it,
of which a kprobe has one and a return probe two), and the instructions of the longest path through each. `snat-trace doctor`
says which function of the kernel each is at.

*Natively*: the same bodies on this machine itself, run by its kernel without a trap (`BPF_PROG_TEST_RUN`, for raw tracepoints), of
a connected socket that has not sent before; `allocation` of an entry that is no datagram's, so that nobody looks who sends.
";

const EXECUTED: &str = "\
Instructions of one connection, at full detail, counted without a kernel: on the way of one that succeeds, of a process that has
sent before. A helper is one; what it does is not in it.
";

const USER: &str = "\
## User side

On this machine itself, without a kernel: records as the ring has them, of clashes with a verdict each. *records* (clashes and
verdicts) and *races* are of one core; *ring to printed line* is the whole way with its threads, for as many collisions as it
takes in without a loss.
";

const MEMORY: &str = "\
## Memory and idling

Of the process that watches, as the kernel counts it: the ring twice, as it is mapped twice, and those pages of the binary that
were used, are in it; where there is no kernel there is no ring either.
";

const STORM: &str = "\
## Storms

A burst of more collisions than the ring has room for, or as many as could be made in a while, with the reader stopped; then how
many of them were kept and told. The others are counted as lost.
";

const GROWTH: &str = "\
## As it grows

*A new flow* is the time from the making of its socket to its arrival. With nothing attached it says how much of a change is not
the programs' own: an emulator is slower the less there is to do.
";

const CAVEATS: &str = "\
* Under emulation (TCG) a microsecond is none: instructions, atomics, page faults and interrupts have other relative costs than
  on a processor. Ratios and their order are what can be read.
* Every twentieth of a second the sender's stack in the kernel is put somewhere else (`tests/src/measure/generator.rs`): an
  emulator can be slower by a seventh at one place than at another, which would be taken for what a tool does.
* One generator on one processor; tools that read run on the other. What readers take from a node that is busy everywhere comes
  on top: see the user side.
* Collisions need two senders at one instant: shares are of a race that was provoked, not of a node's day.
";

/// Where the document looks for the picture of an axis.
pub(super) fn picture(axis: &str) -> String {
    format!("cost-{axis}.svg")
}

/// The document.
pub(super) fn markdown(cost: &Cost) -> String {
    let mut text = format!("{HEAD}{}", in_short(cost));
    _ = write!(text, "\n{BESIDE}\n{}\n{WAYS}", beside(cost));
    section(&mut text, HOOKS, &hooks(cost));
    section(&mut text, USER, &user_side(cost));
    section(&mut text, MEMORY, &memory(cost));
    section(&mut text, "## From start to the last hook\n", &start(cost));
    section(&mut text, STORM, &storms(cost));
    section(&mut text, GROWTH, &growth(cost));
    section(&mut text, "## Targets\n\nSet before anything was measured.\n", &verdicts(&targets(cost)));
    section(&mut text, "## Where, and what to make of it\n", &place(cost));
    text.push_str(CAVEATS);
    text.push_str(&impossible(cost));
    text
}

/// What must not be read into ratios, where one is of what cannot be.
fn impossible(cost: &Cost) -> String {
    let faster = TRAFFIC.iter().filter_map(|(traffic, _)| cost.ratio(traffic, MINIMAL));
    let most = faster.filter(|[_, low, _]| *low > 1.0).map(|[mean, ..]| mean).reduce(f64::max);
    most.map_or_else(String::new, |most| {
        format!(
            "* In this run snat-trace minimal is faster than nothing attached, by up to {:.1} %, which it cannot be: nothing of it runs. So\n  \
             much of any ratio is not the tool's.\n",
            100.0 * (most - 1.0)
        )
    })
}

/// A section without a figure is left out; its targets say that it was not measured.
fn section(text: &mut String, head: &str, body: &str) {
    if !body.is_empty() {
        _ = write!(text, "\n{head}\n{body}");
    }
}

/// What most readers came for, as sentences.
fn in_short(cost: &Cost) -> String {
    let share = |traffic, way| cost.ratio(traffic, way).map(|[mean, ..]| 100.0 * (mean - 1.0));
    let mut words = Vec::new();
    for way in [FULL, BPFTRACE, "conntrack -E"] {
        if let (Some(udp), Some(tcp)) = (share(TRAFFIC[0].0, way), share(TRAFFIC[1].0, way)) {
            words.push(format!("{way} {udp:+.1} % and {tcp:+.1} %"));
        }
    }
    let emulated = if cost.emulated { ", under emulation" } else { "" };
    if words.is_empty() {
        String::new()
    } else {
        format!(
            "\nIn short: new UDP flows and TCP connections a second{emulated}, to nothing attached: {}.\n",
            words.join("; ")
        )
    }
}

/// Rows of a table below its head.
fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut text = String::new();
    for row in rows {
        _ = writeln!(text, "| {} |", row.join(" | "));
    }
    if text.is_empty() {
        return text;
    }
    format!("| {} |\n|{}\n{text}", head.join(" | "), " --- |".repeat(N))
}

fn beside(cost: &Cost) -> String {
    let mut ways: Vec<&str> = Vec::new();
    for figure in &cost.figures {
        if let Figure::Rate { way, .. } | Figure::Collisions { way, .. } = figure
            && !ways.contains(&way.as_str())
        {
            ways.push(way);
        }
    }
    let rate = |wanted: &str| {
        let of = |figure: &Figure| match figure {
            Figure::Rate { traffic, way, per_second, .. } if traffic == wanted && way == NOTHING => Some(*per_second),
            _ => None,
        };
        cost.figures.iter().find_map(of).map_or_else(String::new, |rate| format!("{}/s", grouped(rate)))
    };
    let collisions = |wanted: &str| {
        cost.figures.iter().find_map(|figure| match figure {
            Figure::Collisions { way, share, ratio, .. } if way == wanted => Some((*share, *ratio)),
            _ => None,
        })
    };
    let share = collisions(NOTHING).map_or_else(String::new, |(share, _)| format!("{:.1} % of pairs", 100.0 * share));
    let [udp, tcp, datagrams] = TRAFFIC.map(|(_, unit)| unit);
    let first = [NOTHING.to_owned(), rate(TRAFFIC[0].0), rate(TRAFFIC[1].0), rate(TRAFFIC[2].0), share];
    let rows = ways.iter().map(|way| {
        let cell = |traffic| cost.ratio(traffic, way).map_or_else(String::new, ratio);
        let name = if *way == NOTHING { "nothing, to itself".to_owned() } else { (*way).to_owned() };
        let collided = collisions(way).and_then(|(_, ratio)| ratio).map_or_else(String::new, ratio);
        [name, cell(TRAFFIC[0].0), cell(TRAFFIC[1].0), cell(TRAFFIC[2].0), collided]
    });
    table(["attached", udp, tcp, datagrams, "collisions"], [first].into_iter().chain(rows)) + &pairs(cost)
}

/// Of how many pairs the intervals are.
fn pairs(cost: &Cost) -> String {
    let ours = cost.figures.iter().filter_map(|figure| match figure {
        Figure::Rate { way, pairs, .. } if way != NOTHING => Some(*pairs),
        _ => None,
    });
    let turns = cost.figures.iter().filter_map(|figure| match figure {
        Figure::Collisions { way, turns, .. } if way != NOTHING => Some(*turns),
        _ => None,
    });
    match (ours.min(), turns.min()) {
        (Some(pairs), Some(turns)) => {
            format!("\nAt least {pairs} pairs of runs each, and {turns} turns of collisions.\n")
        }
        _ => String::new(),
    }
}

fn hooks(cost: &Cost) -> String {
    let ways = [(FULL, ""), (FAILURES, "With `--failures`, on top:\n\n")];
    let tables = ways.into_iter().map(|(way, head)| {
        let table = hooks_of(cost, way);
        if table.is_empty() { table } else { format!("{head}{table}") }
    });
    joined(tables.chain([executed(cost)]))
}

/// What new connections execute, and a socket before.
fn executed(cost: &Cost) -> String {
    let rows = cost.executed().map(|(connection, instructions)| [connection.to_owned(), instructions.to_string()]);
    let table = table(["a new connection", "BPF instructions"], rows);
    let bound = cost.figures.iter().find_map(|figure| match figure {
        Figure::Bound { instructions } => {
            Some(format!("\nA socket for datagrams over IPv6 that is bound takes {instructions} more, once.\n"))
        }
        _ => None,
    });
    if table.is_empty() { table } else { format!("{EXECUTED}\n{table}{}", bound.unwrap_or_default()) }
}

/// A row for each program of a way, and the sum.
fn hooks_of(cost: &Cost, way: &str) -> String {
    let runs = TRAFFIC.map(|(traffic, _)| cost.runs(way, traffic));
    let mut programs: Vec<&str> = Vec::new();
    for (program, ..) in runs.iter().flatten() {
        if !programs.contains(program) {
            programs.push(program);
        }
    }
    if programs.is_empty() {
        return String::new();
    }
    let cell = |traffic: &[(&str, f64, f64)], wanted: &str| {
        let found = traffic.iter().find(|(program, ..)| *program == wanted);
        found.map_or_else(String::new, |&(_, runs, ns)| match runs {
            0.0 => "0".to_owned(),
            _ => format!("{} × {} ns", short(runs), grouped(ns)),
        })
    };
    let rows = programs.iter().map(|program| {
        let longest = cost.longest(program).map_or_else(String::new, |longest| longest.to_string());
        let body = cost.body(program).map_or_else(String::new, |ns| format!("{} ns", grouped(ns)));
        let [udp, tcp, datagrams] = runs.each_ref().map(|traffic| cell(traffic, program));
        [format!("`{program}`"), longest, udp, tcp, datagrams, body]
    });
    let [udp, tcp, datagrams] = runs.each_ref().map(|runs| {
        let ns = runs.iter().map(|(_, runs, ns)| runs * ns).sum();
        if runs.is_empty() { String::new() } else { format!("{} ns", grouped(ns)) }
    });
    let last = ["together".to_owned(), String::new(), udp, tcp, datagrams, String::new()];
    let head = [
        "program",
        "longest path",
        "per new UDP flow",
        "per new TCP connection",
        "per datagram of an established flow",
        "natively",
    ];
    table(head, rows.chain([last]))
}

fn user_side(cost: &Cost) -> String {
    let speed = table(
        ["what", "a second"],
        cost.figures.iter().filter_map(|figure| match figure {
            Figure::User { what, per_second } => Some([what.clone(), grouped(*per_second)]),
            _ => None,
        }),
    );
    let heap = table(
        ["what", "allocations per event"],
        cost.figures.iter().filter_map(|figure| match figure {
            Figure::Allocations { what, per_event } => Some([what.clone(), short(*per_event)]),
            _ => None,
        }),
    );
    joined([speed, heap])
}

fn memory(cost: &Cost) -> String {
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    let memory = cost.figures.iter().filter_map(|figure| match figure {
        Figure::Memory { when, collisions_per_second: rate, resident_kib, peak_kib } => {
            Some([when.clone(), grouped(*rate), mib(*resident_kib), mib(*peak_kib)])
        }
        _ => None,
    });
    let idle = cost.figures.iter().filter_map(|figure| match figure {
        Figure::Idle { way, seconds, wakeups, cpu_milliseconds } => {
            Some([way.clone(), short(*seconds), wakeups.to_string(), short(*cpu_milliseconds)])
        }
        _ => None,
    });
    joined([
        table(["when", "collisions a second", "resident", "peak"], memory),
        table(["nothing happens to", "seconds", "wake-ups", "CPU ms"], idle),
    ])
}

fn start(cost: &Cost) -> String {
    table(
        ["way", "starts", "median", "least to most"],
        cost.figures.iter().filter_map(|figure| match figure {
            Figure::Start { way, runs, milliseconds: [median, least, most] } => {
                Some([way.clone(), runs.to_string(), format!("{median:.0} ms"), format!("{least:.0} to {most:.0} ms")])
            }
            _ => None,
        }),
    )
}

fn storms(cost: &Cost) -> String {
    table(
        ["ring", "collisions in the burst", "kept"],
        cost.figures.iter().filter_map(|figure| match figure {
            Figure::Storm { ring_bytes, sent, kept } => {
                Some([size(*ring_bytes), grouped(*sent as f64), grouped(*kept as f64)])
            }
            _ => None,
        }),
    )
}

fn growth(cost: &Cost) -> String {
    let sections = cost.axes().into_iter().map(|axis| {
        let (points, axis_words) = (cost.growth(axis), spoken(axis));
        let rows = points.iter().map(|&Point { value, programs, flow, alone, user }| {
            [grouped(value), grouped(programs), grouped(flow), grouped(alone), short(user)]
        });
        let head = [
            axis_words.as_str(),
            "BPF programs, ns per connection",
            "a new flow beside snat-trace, ns",
            "with nothing attached, ns",
            "user side, CPU ms a second",
        ];
        format!("![cost against {axis_words}]({})\n\n{}", picture(axis), table(head, rows))
    });
    joined(sections)
}

fn verdicts(targets: &[Target]) -> String {
    table(
        ["target", "measured", ""],
        targets.iter().map(|Target { what, measured, met }| {
            let verdict = match met {
                Some(true) => "met",
                Some(false) => "**NOT met**",
                None => "not known",
            };
            [what.clone(), measured.clone(), verdict.to_owned()]
        }),
    )
}

fn place(cost: &Cost) -> String {
    let Cost { version, kernel, emulator, processors, memory_mib, machine, peers, .. } = cost;
    let mut text = format!(
        "* snat-trace {version}, and in one guest of {processors} processors and {memory_mib} MiB, kernel {kernel}: {emulator}.\n\
         * User side without a kernel: on {machine}.\n"
    );
    if !peers.is_empty() {
        _ = writeln!(text, "* Other tools as Debian packages them: {}.", peers.join(", "));
    }
    text
}

/// Those that there are, apart.
fn joined(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Every picture of the document: its name, and what is in it.
pub(super) fn pictures(cost: &Cost) -> Vec<(String, String)> {
    cost.axes().into_iter().map(|axis| (picture(axis), plot::svg(axis, &cost.growth(axis)))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::cost;
    use super::*;

    #[test]
    fn every_figure_has_its_place() {
        let text = markdown(&cost());
        for line in [
            "In short: new UDP flows and TCP connections a second, under emulation, to nothing attached: snat-trace full -4.5 % and -2.5 %.",
            "| attached | new UDP flows | new TCP connections | datagrams of established flows | collisions |",
            "| nothing | 6 213/s | 1 517/s |  | 25.0 % of pairs |",
            "| nothing, to itself | 1.000 (0.990 to 1.010) | 1.000 (0.995 to 1.005) |  |  |",
            "| snat-trace full | 0.955 (0.945 to 0.965) | 0.975 (0.965 to 0.985) |  | 0.850 (0.800 to 0.900) |",
            "| conntrack -E | 0.557 (0.540 to 0.580) |  |  |  |",
            "At least 10 pairs of runs each, and 10 turns of collisions.",
            "| `allocation` | 100 | 2.00 × 1 293 ns |  | 0.0001 × 1 300 ns | 610 ns |",
            "| `clash` | 1200 | 0 |  |  |  |",
            "| together |  | 3 486 ns | 500 ns | 880 ns |  |",
            "| UDP over IPv6 | 410 |",
            "A socket for datagrams over IPv6 that is bound takes 30 more, once.",
            "| `confirm_ends` |  | 1.00 × 700 ns |  |  |  |",
            "| together |  | 700 ns |  |  |  |",
            "| records/decode and correlate | 7 500 000 |",
            "| decode and correlate | 1.50 |",
            "| a flood | 100 000 | 58.6 MiB | 80.0 MiB |",
            "| snat-trace full | 10.0 | 20 | 3.00 |",
            "| snat-trace full | 10 | 410 ms | 390 to 520 ms |",
            "| 64 MiB | 100 000 | 100 000 |",
            "![cost against flows a second](cost-flows-per-second.svg)",
            "| 10 000 | 7 500 | 120 000 | 110 000 | 4.00 |",
            "| the static binary: less than 6 MiB | 5.50 MiB | met |",
            "| no wake-up when nothing happens | 2.00 a second | **NOT met** |",
            "| full: attached within 300 ms natively | not measured; symbols and types are read within 61 ms | not known |",
            "* Other tools as Debian packages them: bpftrace 0.23.2-1.",
        ] {
            assert!(text.lines().any(|there| there == line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let said = |ratio| {
            let (traffic, way) = (TRAFFIC[0].0.to_owned(), MINIMAL.to_owned());
            let rate = Figure::Rate { traffic, way, pairs: 10, per_second: 1.0, ratio };
            impossible(&Cost { figures: vec![rate], ..Cost::default() })
        };
        assert_eq!(said([1.01, 0.99, 1.03]), "");
        assert!(said([1.048, 1.02, 1.07]).contains("by up to 4.8 %"));
    }

    #[test]
    fn what_was_not_measured_has_no_section() {
        let text = markdown(&Cost::default());
        for head in ["## Hooks", "## User side", "## Storms", "## As it grows", "In short"] {
            assert!(!text.contains(head), "{head} in\n{text}");
        }
        assert!(text.contains("| the static binary: less than 6 MiB | not measured | not known |"), "{text}");
    }
}
