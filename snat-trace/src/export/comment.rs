//! What is said of a packet beside it.

use std::fmt::Write as _;

use crate::output::escape;
use crate::output::text::duration;
use crate::owner::{Behind, Container, Pod};
use crate::race::event::{Flow, Race, Verdict};
use crate::race::tuple::{Ends, Protocol};

/// Text from outside is cut here, in characters.
const LONGEST: usize = 256;

/// A race in a few lines.
pub(super) fn comment(race: &Race) -> String {
    let Race { class, verdict, protocol, netns, zone, winner_zone, contested, overlap, winner, loser, .. } = race;
    let verdict = verdict.map_or("verdict unknown", Verdict::name);
    let netns = netns.map_or_else(|| "unknown".to_owned(), |netns| netns.0.to_string());
    let winners = if zone == winner_zone { String::new() } else { format!(", the winner's {winner_zone}") };
    let mut text = format!("{class}, {verdict}; netns {netns}, conntrack zone {zone}{winners}");
    // Writing to a string does not fail.
    let _ = write!(text, "\ncontested: {protocol} {}", ends(contested.ends(), *protocol));
    for (side, flow) in [("loser", loser), ("winner", winner)] {
        let _ = write!(text, "\n{side}: {}, {}", ends(flow.original.ends(), *protocol), sender(flow));
    }
    if let Some(overlap) = overlap {
        let _ = write!(text, "\noverlap: {}", duration(*overlap));
    }
    // Last, as it is long: the list of Wireshark shows the first 240 characters.
    for (side, flow) in [("loser", loser), ("winner", winner)] {
        let owner = flow.owner.as_ref();
        let (container, pod) = flow.place();
        // What is only behind its address need not have sent it.
        let of = owner.map_or_else(|| format!("answers to the {side} go into"), |_| format!("{side}'s"));
        if let Some(Pod { namespace, name, uid }) = pod {
            let _ = write!(text, "\n{of} pod: {}/{}, uid {}", bounded(namespace), bounded(name), bounded(uid));
        }
        if let Some(Container { runtime, id, name, image }) = container {
            let _ = write!(text, "\n{of} container: {} {}", bounded(runtime), bounded(id));
            for (what, known) in [("name", name), ("image", image)] {
                if let Some(known) = known {
                    let _ = write!(text, ", {what} {}", bounded(known));
                }
            }
        }
        if let Some(cgroup) = owner.and_then(|owner| owner.cgroup.as_ref()) {
            let _ = write!(text, "\n{side}'s cgroup: {}", bounded(cgroup));
        }
        if let Some(executable) = owner.and_then(|owner| owner.program.executable.as_ref()) {
            let _ = write!(text, "\n{side} runs: {}", bounded(executable));
        }
    }
    text
}

fn sender(flow: &Flow) -> String {
    match (&flow.owner, &flow.behind) {
        (Some(owner), _) => format!("{}[{}]", bounded(&owner.comm), owner.pid),
        (None, Some(Behind { interface, port, .. })) => {
            let port = port.as_ref().map_or_else(String::new, |port| format!(", port {}", bounded(port)));
            format!("sender unknown, answers go to {}{port}", bounded(interface))
        }
        (None, None) => "sender unknown".to_owned(),
    }
}

/// ICMP has an id and no ports.
fn ends(Ends { source, destination }: Ends, protocol: Protocol) -> String {
    if protocol.is_icmp() {
        format!("{} > {}, id {}", source.ip(), destination.ip(), source.port())
    } else {
        format!("{source} > {destination}")
    }
}

/// Text from outside: nothing in it steers a terminal, and it has an end.
pub(super) fn bounded(text: &str) -> String {
    let end = text.char_indices().nth(LONGEST).map_or(text.len(), |(at, _)| at);
    let mut bounded = escape(&text[..end]).into_owned();
    if end < text.len() {
        bounded.push('~');
    }
    bounded
}
