//! Why a lab could not be built or did not come to its end.

use std::io;
use std::time::Duration;

/// Every failure is one sentence that says what to do, or what is missing.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces and rules need privilege.
    #[error("the lab needs {missing} for namespaces and NAT rules of its own: run it as root")]
    NotPermitted {
        /// Names of the missing capabilities.
        missing: String,
    },
    /// A command the lab runs is not installed.
    #[error("the lab needs the command `{tool}`, which is not on this machine: install the package {package}")]
    MissingTool {
        /// The command.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The kernel cannot queue packets to user space, so a race cannot be forced.
    #[error("this kernel has no nft queue ({reason}), so races cannot be forced on it: use --natural")]
    NoQueue {
        /// What refused it.
        reason: String,
    },
    /// There is no IPv6.
    #[error("this kernel has no IPv6, or was told to do without: leave out --ipv6")]
    NoIpv6,
    /// Connection tracking does not know SCTP's ports.
    #[error(
        "this kernel's connection tracking knows no SCTP (CONFIG_NF_CT_PROTO_SCTP), so nothing races for its ports"
    )]
    NoSctp,
    /// The node's links cannot be set so.
    #[error("the lab cannot have packets taken in that way: {0}")]
    Links(&'static str),
    /// Somebody else needs what the lab would take away.
    #[error("the lab leaves the node as it is: {0}")]
    NodeInUse(String),
    /// What the lab took away is not there again.
    #[error("the lab could not load the module {module} again, which it had unloaded: run `modprobe {module}`")]
    NotPutBack {
        /// Its name.
        module: String,
    },
    /// The kernel does not touch entries on their way into the table.
    #[error("on this kernel nothing dies on its way into the table: it leaves alone what is not there yet")]
    NothingDies,
    /// No thread of the kernel sends for anybody.
    #[error("no thread of this kernel sends for a process (io_uring with a poller: {reason}): use other --senders")]
    NoPoller {
        /// What refused it.
        reason: io::Error,
    },
    /// There are no tunnels.
    #[error("this kernel has no tunnels for the lab's pods ({reason}): use other --senders")]
    NoTunnel {
        /// What refused it.
        reason: String,
    },
    /// The node's table cannot be filled, and what would have to be set is the whole node's.
    #[error("the lab cannot have its own connection tracking table that full: {0}")]
    Table(String),
    /// `ip`, `nft` or `iptables` failed.
    #[error("`{tool}` failed in the lab's {place} namespace: {message}")]
    Command {
        /// The command.
        tool: &'static str,
        /// Which namespace.
        place: String,
        /// What it said.
        message: String,
    },
    /// The setup asks for something the lab cannot do.
    #[error("{0}")]
    Setup(String),
    /// A system call failed.
    #[error("the lab could not {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
    /// A pod's process ended or failed before its work was done.
    #[error("pod {pod} of the lab {what}")]
    Pod {
        /// Its number.
        pod: usize,
        /// What happened.
        what: String,
    },
    /// Something that must happen did not.
    #[error("the lab waited {} s in vain: {missing}", .after.as_secs())]
    Deadline {
        /// How long it was waited for.
        after: Duration,
        /// What is missing.
        missing: String,
    },
    /// This kernel's conntrack statistics could not be read or understood.
    #[error("the conntrack statistics in {path} cannot be used: {reason}")]
    Counters {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A service thread of the lab ended early.
    #[error("the lab's {0} ended early")]
    Ended(&'static str),
    /// The caller's stop flag was set.
    #[error("the lab was stopped")]
    Stopped,
}

/// Adds what was being done to a failed system call.
pub(super) trait Doing<T> {
    /// Names the act in the infinitive: "create a socket".
    fn doing(self, what: &'static str) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T, LabError> {
        self.map_err(|source| LabError::System { doing: what, source: source.into() })
    }
}
