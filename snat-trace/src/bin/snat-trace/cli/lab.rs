//! Arguments of the lab.

use clap::Args;
use snat_trace::lab::{
    Control, DoubleNat, Family, Links, Mode, RuleTool, Scenario, Senders, Setup, Translation, Zones,
};

use super::TraceArgs;

#[derive(Args, Debug)]
pub(crate) struct LabArgs {
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    /// What each pod sends
    #[arg(long, value_name = "NAME", default_value = "snat-udp")]
    pub(crate) scenario: Scenario,
    /// Over IPv6 instead of IPv4
    #[arg(long)]
    pub(crate) ipv6: bool,
    /// How the node's rule translates
    #[arg(long, value_name = "HOW", default_value = "masquerade")]
    pub(crate) nat: Translation,
    /// Which tool makes that rule; races are forced by an nft chain in any case
    #[arg(long, value_name = "TOOL", default_value = "nft")]
    pub(crate) rules: RuleTool,
    /// Give all pods one address and each a conntrack zone
    #[arg(long, value_name = "DIRECTION")]
    pub(crate) zones: Option<Zones>,
    /// Translate every packet twice, in two namespaces in a row, and race in one of them
    #[arg(long, value_name = "WHERE")]
    pub(crate) double_nat: Option<DoubleNat>,
    /// Who sends
    #[arg(long, value_name = "WHO", default_value = "processes")]
    pub(crate) senders: Senders,
    /// How the node takes in what pods send
    #[arg(long, value_name = "HOW", default_value = "plain")]
    pub(crate) links: Links,
    /// Let a scenario change the whole node for a while, if nobody else uses what it changes
    #[arg(long)]
    pub(crate) change_node: bool,
    /// How many pods, 2 to 8; all but one lose in each forced round
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) pods: usize,
    /// How many rounds, each with a new source port
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) rounds: u32,
    /// Force nothing: let the CPUs race as they happen to
    #[arg(long, conflicts_with = "control")]
    pub(crate) natural: bool,
    /// Take away one thing without which there is no race
    #[arg(long, value_name = "WHAT")]
    pub(crate) control: Option<Control>,
    /// Show the fix: let the node's rule say fully-random
    #[arg(long)]
    pub(crate) random_fully: bool,
}

impl LabArgs {
    pub(crate) fn to_setup(&self) -> Setup {
        let mode = match self.control {
            Some(control) => Mode::Control(control),
            None if self.natural => Mode::Natural,
            None => Mode::Forced,
        };
        Setup {
            family: if self.ipv6 { Family::V6 } else { Family::V4 },
            pods: self.pods,
            rounds: self.rounds,
            mode,
            random_fully: self.random_fully,
            translation: self.nat,
            rules: self.rules,
            zones: self.zones,
            double_nat: self.double_nat,
            senders: self.senders,
            links: self.links,
            change_node: self.change_node,
            ..Setup::new(self.scenario)
        }
    }
}
