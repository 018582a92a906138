//! The thread that lives in the node's namespace: it starts the pods and, in a forced run, serves the queue.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::gettid;

use super::Setup;
use super::addresses::first_ttl;
use super::barrier::Barrier;
use super::error::{Doing, LabError};
use super::hold;
use super::netns::enter;
use super::pod::PodArguments;
use super::queue::Queue;
use super::rules::QUEUE;
use super::senders::{Senders, in_new_pid_namespace};
use super::topology::Topology;
use super::wire::pair;

/// A pod's process as the lab holds it; dropped, it is killed and reaped.
#[derive(Debug)]
pub(super) struct Pod {
    child: Child,
    /// Orders go out here and reports come in.
    pub(super) control: OwnedFd,
}

impl Pod {
    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ended = (self.child.kill(), self.child.wait());
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Node {
    tid: u32,
    /// Closing it ends the thread; the thread's end closes its other end. `None` only while being dropped.
    life: Option<OwnedFd>,
    released: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts the thread, which starts one process per pod, each on the CPU given for it.
    pub(super) fn start(
        setup: &Setup,
        topology: &Topology,
        cpus: &[Option<usize>],
    ) -> Result<(Self, Vec<Pod>), LabError> {
        let (life, other_end) = pair().doing("make a socket pair")?;
        let node = topology.node.as_fd().try_clone_to_owned().doing("duplicate a namespace's fd")?;
        let mut starts = Vec::with_capacity(topology.pods.len());
        for (pod, cpu) in cpus.iter().enumerate().take(setup.processes()) {
            let own = topology.pods.get(pod).unwrap_or(&topology.node);
            let netns = if setup.is_external(pod) { &topology.external } else { own };
            let netns = netns.as_fd().try_clone_to_owned().doing("duplicate a namespace's fd")?;
            // Who is not in its pid namespace has no number there.
            let lab = if setup.senders == Senders::PidNamespace { 0 } else { std::process::id() };
            let arguments = PodArguments {
                pod,
                transport: setup.transport(),
                role: setup.role(cpus),
                source: setup.own(pod),
                listener: setup.listener(),
                destination: setup.ends(0, pod).destination,
                ttl: first_ttl(pod, setup.hops()),
                cpu: *cpu,
                lab,
            };
            starts.push((netns, arguments));
        }
        let (holds, pods, senders) = (setup.holds(), setup.pods, setup.senders);
        let (report, ready) = mpsc::channel();
        let released = Arc::new(AtomicUsize::new(0));
        let rounds = Arc::clone(&released);
        let thread = thread::Builder::new().name("lab-node".to_owned()).spawn(move || {
            let begun = begin(&starts, &node, holds, senders);
            let (queue, begun) = match begun {
                Ok((queue, processes)) => (queue, Ok((tid(), processes))),
                Err(error) => (None, Err(error)),
            };
            let failed = begun.is_err();
            if report.send(begun).is_err() || failed {
                return;
            }
            // Ending closes `other_end`, which the lab sees and names.
            let _ended = match queue {
                Some(queue) => hold::serve(&queue, pods, &rounds, other_end.as_fd()),
                None => wait_for_close(&other_end),
            };
        });
        let thread = thread.doing("start the node's thread")?;
        let (tid, processes) = ready.recv().map_err(|_| LabError::Ended("node's thread"))??;
        Ok((Self { tid, life: Some(life), released, thread: Some(thread) }, processes))
    }

    /// Of how many rounds the packets that were held have gone all their way.
    pub(super) fn released(&self) -> usize {
        self.released.load(Ordering::Acquire)
    }

    /// Its thread id.
    pub(super) fn tid(&self) -> u32 {
        self.tid
    }

    /// Whether the thread still runs, as something to poll for a close.
    pub(super) fn life(&self) -> Result<&OwnedFd, LabError> {
        self.life.as_ref().ok_or(LabError::Ended("node's thread"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.life.take());
        // A panic of the thread has been printed by then.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn tid() -> u32 {
    gettid().as_raw_pid().cast_unsigned()
}

/// Starts every pod, then settles in the node's namespace. Pods die with the thread that started them
/// (`PR_SET_PDEATHSIG` means the thread), and this one lives as long as the lab.
fn begin(
    starts: &[(OwnedFd, PodArguments)],
    node: &OwnedFd,
    holds: bool,
    senders: Senders,
) -> Result<(Option<Queue>, Vec<Pod>), LabError> {
    let barrier = Barrier::memory().doing("make the barrier's memory")?;
    let mut pods = Vec::with_capacity(starts.len());
    for (netns, arguments) in starts {
        enter(netns.as_fd())?;
        let (control, pods_end) = pair().doing("make a socket pair")?;
        let memory: File = barrier.try_clone().doing("duplicate the barrier's fd")?.into();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("snat-trace")
            .arg("lab-pod")
            .args(arguments.to_words())
            .stdin(Stdio::from(pods_end))
            .stdout(Stdio::from(memory))
            // A Ctrl-C at the terminal is for the lab, which then ends its pods.
            .process_group(0);
        let mut start = || command.spawn().doing("start a pod's process");
        let child = if senders == Senders::PidNamespace { in_new_pid_namespace(start)? } else { start()? };
        pods.push(Pod { child, control });
    }
    enter(node.as_fd())?;
    let no_queue = |error: std::io::Error| LabError::NoQueue { reason: error.to_string() };
    let queue = holds.then(|| Queue::bind(QUEUE)).transpose().map_err(no_queue)?;
    Ok((queue, pods))
}

/// Waits until the other end is closed.
pub(super) fn wait_for_close(end: &OwnedFd) -> std::io::Result<()> {
    let mut fds = [PollFd::new(end, PollFlags::empty())];
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    Ok(())
}
