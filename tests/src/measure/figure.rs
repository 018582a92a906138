//! What was measured, a line for each: `figure ` and JSON, which xtask reads.

use anyhow::Result;
use serde::Serialize;

use crate::statistics::Interval;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Figure {
    /// How much traffic goes through the lab's node by one CPU.
    Rate {
        /// Of what.
        traffic: Traffic,
        /// Who watches.
        way: &'static str,
        /// How many windows there were, each between two with nothing attached.
        pairs: usize,
        /// Mean over the windows.
        per_second: f64,
        /// Of a window's rate to the mean of the two around it.
        ratio: Interval,
    },
    /// What one program costs, by the kernel's run-time statistics.
    Hook {
        /// Who has the program, and nobody that has fewer.
        way: &'static str,
        /// What was sent.
        traffic: Traffic,
        /// The program.
        program: &'static str,
        /// Per flow, or per datagram of an established flow.
        runs_per_unit: f64,
        /// Nanoseconds; 0 when it never ran.
        ns_per_run: f64,
    },
    /// What the body of a hook takes on this machine's own kernel.
    Body {
        /// The program.
        program: String,
        /// How often it was run.
        runs: u32,
        /// Nanoseconds.
        ns_per_run: f64,
    },
    /// The longest path through a program.
    Instructions {
        /// The program.
        program: String,
        /// BPF instructions.
        longest: u32,
    },
    /// What all programs of full detail execute for a new connection.
    Executed {
        /// Of what, in words.
        connection: &'static str,
        /// BPF instructions.
        instructions: u32,
    },
    /// What they execute when a socket for datagrams over IPv6 is bound.
    Bound {
        /// BPF instructions.
        instructions: u32,
    },
    /// How often two senders collide.
    Collisions {
        /// Who watches.
        way: &'static str,
        /// How often it had its turn.
        turns: usize,
        /// Mean share of rounds with a collision.
        share: f64,
        /// Of that share to the one with nothing attached; absent of that itself.
        ratio: Option<Interval>,
    },
    /// From the start of a process to the last hook attached.
    Start {
        /// Which.
        way: &'static str,
        /// How many starts.
        runs: usize,
        /// Median, least and most.
        milliseconds: [f64; 3],
    },
    /// A burst of collisions while the reader stands still.
    Storm {
        /// Size of the ring.
        ring_bytes: u32,
        /// How many there were.
        sent: u64,
        /// How many of them were printed afterwards.
        kept: u64,
    },
    /// Memory of snat-trace.
    Memory {
        /// In which state.
        when: String,
        /// As many as there really were.
        collisions_per_second: f64,
        /// `VmRSS`, at the end.
        resident_kib: u64,
        /// `VmHWM`.
        peak_kib: u64,
    },
    /// A process with nothing to do.
    Idle {
        /// Which.
        way: &'static str,
        /// For how long it was looked at.
        seconds: f64,
        /// Context switches of all its threads, voluntary or not.
        wakeups: u64,
        /// In user space and the kernel, by the kernel's ticks.
        cpu_milliseconds: u64,
    },
    /// What a connection costs as something grows.
    Growth {
        /// What grows.
        axis: Axis,
        /// How far.
        value: f64,
        /// In our programs, by the kernel's run-time statistics.
        ns_per_connection: f64,
        /// What a new flow takes in all, from its socket's making to its arrival.
        ns_of_a_flow: f64,
        /// The same with nothing attached.
        ns_of_a_flow_alone: f64,
        /// CPU time of snat-trace itself.
        cpu_milliseconds_of_user_side_per_second: f64,
    },
}

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// A socket, a datagram and an entry for each.
    UdpFlows,
    /// A connection and its reset for each.
    TcpFlows,
    /// Datagrams of one established flow.
    UdpDatagrams,
}

/// What grows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// New UDP flows, each second.
    FlowsPerSecond,
    /// Collisions, each second.
    CollisionsPerSecond,
    /// Network namespaces of the node.
    NetworkNamespaces,
    /// Cgroups of the node.
    Cgroups,
}

impl Traffic {
    /// All.
    pub const ALL: [Self; 3] = [Self::UdpFlows, Self::TcpFlows, Self::UdpDatagrams];
}

impl Figure {
    /// Prints it.
    ///
    /// # Errors
    ///
    /// A number is not finite.
    pub fn tell(&self) -> Result<()> {
        println!("figure {}", serde_json::to_string(self)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_xtask_reads_them() {
        let rate = Figure::Rate {
            traffic: Traffic::UdpFlows,
            way: "snat-trace full",
            pairs: 10,
            per_second: 6000.5,
            ratio: [0.95, 0.9, 1.0],
        };
        let hook = Figure::Hook {
            way: "snat-trace full",
            traffic: Traffic::TcpFlows,
            program: "clash",
            runs_per_unit: 0.0,
            ns_per_run: 0.0,
        };
        let growth = Figure::Growth {
            axis: Axis::NetworkNamespaces,
            value: 10.0,
            ns_per_connection: 1.5,
            ns_of_a_flow: 9.0,
            ns_of_a_flow_alone: 7.5,
            cpu_milliseconds_of_user_side_per_second: 0.0,
        };
        for (figure, written) in [
            (
                rate,
                r#"{"kind":"rate","traffic":"udp-flows","way":"snat-trace full","pairs":10,"per_second":6000.5,"ratio":[0.95,0.9,1.0]}"#,
            ),
            (
                hook,
                r#"{"kind":"hook","way":"snat-trace full","traffic":"tcp-flows","program":"clash","runs_per_unit":0.0,"ns_per_run":0.0}"#,
            ),
            (
                growth,
                r#"{"kind":"growth","axis":"network-namespaces","value":10.0,"ns_per_connection":1.5,"ns_of_a_flow":9.0,"ns_of_a_flow_alone":7.5,"cpu_milliseconds_of_user_side_per_second":0.0}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&figure).unwrap(), written);
        }
    }
}
