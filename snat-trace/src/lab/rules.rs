//! The node's rules: translation, and in a forced run the chain that holds packets.

use super::addresses::{PLAIN_TTL, mark};
use super::{Family, Mode, Setup};

/// The hold chain's queue.
pub(super) const QUEUE: u16 = 0;

/// Test ports are below this one; a retransmitted SYN of a forced run gets one from here on, so that it never takes the
/// port of a later round.
pub(super) const RETRY_PORTS: u16 = 50_000;

/// The node's nft rules.
pub(super) fn rules(setup: &Setup) -> String {
    let (table, ttl) = match setup.family {
        Family::V4 => ("ip", "ip ttl"),
        Family::V6 => ("ip6", "ip6 hoplimit"),
    };
    let random = if setup.random_fully { " fully-random" } else { "" };
    let mut nat = String::new();
    let mut hold = String::new();
    if setup.mode == Mode::Forced {
        if setup.scenario.transport().retransmits() {
            nat = format!(
                "    oifname x0 {ttl} {retried} meta l4proto tcp masquerade to :{RETRY_PORTS}-65535{random}\n",
                retried = PLAIN_TTL - 1
            );
        }
        // Between the choice of a port (priority 100) and its insertion (INT_MAX). Only first packets are held: a
        // retransmitted SYN must not wait for a round that is over.
        let (first, last) = (mark(0), mark(setup.pods.saturating_sub(1)));
        hold = format!(
            "  chain hold {{\n    type filter hook postrouting priority 200; policy accept;\n    \
             oifname x0 ct state new {ttl} {first}-{last} queue num {QUEUE}\n  }}\n"
        );
    }
    format!(
        "table {table} snat_trace_lab {{\n  chain nat {{\n    type nat hook postrouting priority 100; policy accept;\n\
         {nat}    oifname x0 masquerade{random}\n  }}\n{hold}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Control, Scenario};
    use super::*;

    #[test]
    fn only_a_forced_run_holds_packets() {
        let mut setup = Setup { pods: 8, random_fully: true, ..Setup::new(Scenario::SnatTcp) };
        let forced = rules(&setup);
        assert!(forced.contains("ip ttl 200-207 queue num 0"), "{forced}");
        assert!(forced.contains("oifname x0 masquerade fully-random"), "{forced}");
        assert!(forced.contains("ip ttl 63 meta l4proto tcp masquerade to :50000-65535"), "{forced}");
        setup.family = Family::V6;
        let forced = rules(&setup);
        assert!(forced.contains("ip6 hoplimit 200-207 queue num 0") && !forced.contains("ip ttl"), "{forced}");
        for mode in [Mode::Natural, Mode::Control(Control::OneCpu)] {
            setup.mode = mode;
            let natural = rules(&setup);
            assert!(!natural.contains("queue") && !natural.contains("hoplimit"), "{natural}");
        }
    }
}
