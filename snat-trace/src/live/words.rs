//! Which races of the view are shown: words typed into it.

use crate::owner::{Container, Pod};
use crate::race::event::{Flow, Race, Verdict};
use crate::race::filter::Prefix;

/// Words of which each must hold for a race to be shown; without any, all are.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Vec<Word>);

/// One of them.
#[derive(Clone, Debug)]
enum Word {
    /// A number: a port of either flow, or a sender's process id.
    Number(u32),
    /// A prefix with its length, of an address of either flow.
    Prefix(Prefix),
    /// Part of anything else that stands there, in lower case.
    Text(String),
}

impl Words {
    /// Reads what was typed. Nothing is wrong: what is neither a number nor a prefix is text.
    pub(super) fn of(typed: &str) -> Self {
        Self(typed.split_whitespace().map(Word::of).collect())
    }

    /// Whether every word holds.
    pub(super) fn hold(&self, race: &Race) -> bool {
        self.0.iter().all(|word| word.holds(race))
    }
}

impl Word {
    fn of(typed: &str) -> Self {
        if let Ok(number) = typed.parse() {
            return Self::Number(number);
        }
        match typed.parse() {
            Ok(prefix) => Self::Prefix(prefix),
            Err(_) => Self::Text(typed.to_lowercase()),
        }
    }

    fn holds(&self, race: &Race) -> bool {
        let ends = [race.contested.ends(), race.loser.original.ends(), race.winner.original.ends()];
        let mut sockets = ends.iter().flat_map(|ends| [ends.source, ends.destination]);
        let flows = [&race.loser, &race.winner];
        let mut owners = flows.into_iter().filter_map(|flow| flow.owner.as_ref());
        match self {
            Self::Number(number) => {
                sockets.any(|socket| u32::from(socket.port()) == *number) || owners.any(|owner| owner.pid == *number)
            }
            Self::Prefix(prefix) => sockets.any(|socket| prefix.contains(socket.ip())),
            Self::Text(part) => {
                let says = |text: &str| text.to_lowercase().contains(part);
                says(race.class.name())
                    || says(&race.protocol.to_string())
                    || race.verdict.is_some_and(|verdict| says(Verdict::name(verdict)))
                    || flows.into_iter().any(|flow| sender_says(flow, says))
                    || sockets.any(|socket| says(&socket.to_string()))
            }
        }
    }
}

fn sender_says(flow: &Flow, says: impl Fn(&str) -> bool + Copy) -> bool {
    let (container, pod) = flow.place();
    let of_container = container.is_some_and(|Container { runtime, id, name, image }| {
        says(runtime) || says(id) || [name, image].into_iter().flatten().any(|text| says(text))
    });
    let of_pod =
        pod.is_some_and(|Pod { namespace, name, uid }| [namespace, name, uid].into_iter().any(|text| says(text)));
    let of_owner = flow.owner.as_ref().is_some_and(|owner| {
        says(&owner.comm)
            || owner.cgroup.as_deref().is_some_and(says)
            || owner.program.executable.as_deref().is_some_and(says)
    });
    let of_way =
        flow.behind.as_ref().is_some_and(|behind| says(&behind.interface) || behind.port.as_deref().is_some_and(says));
    of_container || of_pod || of_owner || of_way
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::golden::{bare, collision};

    #[track_caller]
    fn shows(typed: &str, of_collision: bool, of_bare: bool) {
        let words = Words::of(typed);
        assert_eq!((words.hold(&collision()), words.hold(&bare())), (of_collision, of_bare), "{typed:?}");
    }

    #[test]
    fn words_match_whatever_stands_there() {
        shows("", true, true);
        shows("  ", true, true);
        shows("443", true, false);
        shows("44", false, false);
        shows("4711", true, false);
        shows("5353", false, true);
        shows("10.244.1.9", true, true);
        shows("198.51.100.0/24", true, true);
        shows("198.51.100.53/32", false, true);
        shows("100.53:", false, true);
        shows("CURL", true, false);
        shows("kubepods", true, false);
        shows("5e3fa1", true, false);
        shows("containerd", true, false);
        shows("snat-port", true, true);
        shows("dropped", true, false);
        shows("udp", false, true);
        shows("udp curl", false, false);
        shows("tcp curl 443", true, false);
    }
}
