//! How the node takes in what comes by the links of its pods.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::error::{Doing, LabError};
use super::netns::Netns;
use super::senders::Senders;
use super::setup::{Setup, refuse};

/// How the node takes packets in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Links {
    /// On the sender's CPU, while it still sends
    Plain,
    /// On CPUs chosen by flow (RPS), in whatever task they interrupt there
    Rps,
    /// In softirqs of the links' own, merged where they can be (GRO)
    Gro,
}

impl Setup {
    /// Whether there are links to set.
    pub(super) fn check_links(&self) -> Result<(), LabError> {
        if self.links != Links::Plain && self.senders == Senders::Host {
            return refuse("what processes of the node itself send comes by no link: leave out --links");
        }
        Ok(())
    }
}

/// Sets the links behind the node, which are its `p0` and so on.
pub(super) fn set(setup: &Setup, node: &Netns) -> Result<(), LabError> {
    let each = || (0..setup.pods).map(|pod| format!("p{pod}")).take(setup.pod_namespaces());
    match setup.links {
        Links::Plain => Ok(()),
        Links::Rps => {
            let cpus = sched_getaffinity(None).doing("read the CPUs it may use")?;
            if cpus.count() < 2 {
                return Err(LabError::Links("there is one CPU, and no other to take packets over"));
            }
            node.inside(|| each().try_for_each(|link| steer(&link, &mask(&cpus))))
        }
        Links::Gro => node.inside(|| each().try_for_each(|link| merge(&link))),
    }
}

/// A set of CPUs as the kernel writes it: words of 32 bits in hexadecimal, the highest first (lib/bitmap.c).
fn mask(cpus: &CpuSet) -> String {
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| cpus.is_set(*cpu)).unwrap_or(0);
    let word =
        |word: usize| (0..32).filter(|bit| cpus.is_set(word * 32 + bit)).fold(0_u32, |bits, bit| bits | 1 << bit);
    let words: Vec<String> = (0..=last / 32).rev().map(|number| format!("{:08x}", word(number))).collect();
    words.join(",")
}

/// Has these CPUs take over what comes by a link of the calling thread's namespace.
fn steer(link: &str, cpus: &str) -> Result<(), LabError> {
    let sysfs = sysfs().doing("open the node's sysfs")?;
    // The kernel gives a new link of veth one queue to receive (drivers/net/veth.c, `veth_newlink`).
    let open = |flags| {
        let path = format!("class/net/{link}/queues/rx-0/rps_cpus");
        match openat(&sysfs, path, flags | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(File::from(file)),
            Err(Errno::NOENT) => Err(LabError::Links("this kernel hands no packets to other CPUs (CONFIG_RPS)")),
            Err(error) => Err(error).doing("open a link's rps_cpus"),
        }
    };
    open(OFlags::WRONLY)?.write_all(cpus.as_bytes()).doing("write a link's rps_cpus")?;
    let mut told = String::new();
    open(OFlags::RDONLY)?.read_to_string(&mut told).doing("read a link's rps_cpus")?;
    // A machine that may have more CPUs shows more words.
    let significant = |mask: &str| mask.trim().replace(',', "").trim_start_matches('0').to_owned();
    if significant(&told) == significant(cpus) {
        Ok(())
    } else {
        Err(LabError::Links("a link's rps_cpus do not stay as they were written"))
    }
}

/// The sysfs of the calling thread's network namespace, mounted nowhere: the node's own shows other links.
fn sysfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: u32 = 0x8946;
/// `ETHTOOL_GGRO` and `ETHTOOL_SGRO` (include/uapi/linux/ethtool.h).
const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` (include/uapi/linux/if.h) with a pointer in its union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: *mut Value,
    rest: [u8; 16],
}

/// Has a link of the calling thread's namespace take packets in by NAPI and merge them. One of veth that says it does from
/// the start does not: the word meant nothing then (drivers/net/veth.c, `veth_set_features`, which others have since).
fn merge(link: &str) -> Result<(), LabError> {
    let ask = |command, data| ethtool(link, Value { command, data }).doing("set a link's GRO");
    if ask(GET_GRO, 0)? != 0 {
        return Err(LabError::Links("the links of this kernel (veth) merge nothing, whatever they are told"));
    }
    ask(SET_GRO, 1)?;
    if ask(GET_GRO, 0)? == 1 { Ok(()) } else { Err(LabError::Links("a link's GRO does not stay on")) }
}

/// What the kernel answers.
fn ethtool(link: &str, mut value: Value) -> rustix::io::Result<u32> {
    const { assert!(size_of::<Request>() == 40) };
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = Request { name: [0; 16], value: &raw mut value, rest: [0; 16] };
    // A name is shorter, and ends with 0.
    for (slot, byte) in request.name.iter_mut().take(15).zip(link.bytes()) {
        *slot = byte;
    }
    // SAFETY: the kernel reads and writes a `struct ifreq`, and a `struct ethtool_value` where that points.
    unsafe { rustix::ioctl::ioctl(&socket, rustix::ioctl::Updater::<SIOCETHTOOL, Request>::new(&mut request)) }?;
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_cpus_is_written_as_the_kernel_reads_it() {
        let mut cpus = CpuSet::new();
        cpus.set(0);
        cpus.set(1);
        assert_eq!(mask(&cpus), "00000003");
        cpus.set(36);
        assert_eq!(mask(&cpus), "00000010,00000003");
    }
}
