//! As much of a kernel as the hooks of a new connection read: a sender, its sockets and packets, and entries of conntrack.
//! Where fields stand in it is made up, as the programs ask no kernel but their globals.

use std::collections::HashMap;

use anyhow::{Context, Result};
use snat_trace::probe::OBJECT;
use snat_trace_common::{Counter, OFFSETS};

use super::{Machine, Programs};

/// Bytes of every structure, with room for every field.
const STRUCTURE: usize = 8192;
/// Bytes from one field to the next, more than any has.
const APART: u16 = 64;

/// Where a kprobe's context has the first arguments (arch/x86/include/asm/ptrace.h, `struct pt_regs`).
const ARGUMENTS: [u64; 3] = [112, 104, 96];
/// Bytes of the context.
const CONTEXT: usize = 168;

/// Where the headers stand behind a packet's head.
const NETWORK_HEADER: u16 = 64;

/// How a packet is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packet {
    /// UDP over IPv4.
    Udp,
    /// UDP over IPv6.
    Udp6,
    /// A request of ICMP over IPv4.
    Ping,
    /// The SYN of a connection over IPv4.
    Tcp,
    /// The SYN of a connection over IPv6.
    Tcp6,
}

/// A process that sends.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    task: u64,
    pid: u32,
}

/// What one run executed, and of which program.
pub type Executed = (&'static str, u32);

/// The machine, with a kernel in it.
#[derive(Debug)]
pub struct Scene<'a> {
    machine: Machine<'a>,
    netns: u64,
}

impl Programs {
    /// The programs that snat-trace loads at full detail.
    ///
    /// # Errors
    ///
    /// The object cannot be read, or has not the globals that are set here.
    pub fn in_full() -> Result<Self> {
        let offsets: Vec<(&str, [u8; 2])> = OFFSETS
            .iter()
            .map(|offset| Ok((offset.symbol, place(offset.symbol)?.to_ne_bytes())))
            .collect::<Result<_>>()?;
        let flags = ["FULL", "PROCESS_FACTS", "CGROUP_FACTS", "RING_HAS_ROOM", "COMMANDS"];
        let mut globals: HashMap<&str, (&[u8], bool)> =
            offsets.iter().map(|(symbol, offset)| (*symbol, (offset.as_slice(), true))).collect();
        globals.extend(flags.map(|flag| (flag, ([1].as_slice(), true))));
        Self::with_globals(OBJECT, globals)
    }
}

/// Where a field is.
fn place(field: &str) -> Result<u16> {
    let number = OFFSETS.iter().position(|offset| offset.symbol == field);
    Ok(u16::try_from(number.with_context(|| format!("there is no offset {field}"))?)? * APART)
}

impl<'a> Scene<'a> {
    /// One without senders.
    ///
    /// # Errors
    ///
    /// Offsets are missing that are used here.
    pub fn new(programs: &'a Programs) -> Result<Self> {
        let mut scene = Self { machine: Machine::new(programs, "note_process"), netns: 0 };
        scene.netns = scene.structure(&[])?;
        scene.set(scene.netns, "NET_NS_INUM", &4_026_532_000_u32.to_ne_bytes())?;
        Ok(scene)
    }

    /// A process that runs `/usr/bin/sender`, with two arguments, and has sent nothing yet.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn sender(&mut self, pid: u32) -> Result<Sender> {
        let names = [&b"\0"[..], b"usr\0", b"bin\0", b"sender\0"].map(|name| self.machine.allocate(name.to_vec()));
        let mut dentry = 0;
        let mut root = 0;
        for name in names {
            let parent = dentry;
            dentry = self.structure(&[("DENTRY_NAME", name)])?;
            root = if root == 0 { dentry } else { root };
            self.set(dentry, "DENTRY_PARENT", &if parent == 0 { dentry } else { parent }.to_ne_bytes())?;
        }
        let mount = self.structure(&[])?;
        self.set(mount, "MOUNT_PARENT", &mount.to_ne_bytes())?;
        let vfsmount = mount + u64::from(place("MOUNT_MNT")?);
        self.set(vfsmount, "VFSMOUNT_ROOT", &root.to_ne_bytes())?;
        let file = self.structure(&[("FILE_MNT", vfsmount), ("FILE_DENTRY", dentry)])?;
        let arguments = self.machine.allocate(b"sender\0there\0".to_vec());
        let memory =
            self.structure(&[("MM_EXE_FILE", file), ("MM_ARG_START", arguments), ("MM_ARG_END", arguments + 13)])?;
        let pid_structure = self.structure(&[])?;
        let task = self.structure(&[
            ("TASK_START", 1_000_000_000 + u64::from(pid)),
            ("TASK_EXEC_ID", 1),
            ("TASK_MM", memory),
            ("TASK_PID", pid_structure),
        ])?;
        self.set(task, "TASK_LEADER", &task.to_ne_bytes())?;
        Ok(Sender { task, pid })
    }

    /// What the hooks of senders execute when a packet is sent from `port`.
    ///
    /// # Errors
    ///
    /// A program does not run here.
    pub fn send(&mut self, sender: Sender, packet: Packet, port: u16) -> Result<Vec<Executed>> {
        self.machine.current.task = sender.task;
        self.machine.current.pid_tgid = u64::from(sender.pid) << 32 | u64::from(sender.pid);
        let ipv6 = matches!(packet, Packet::Udp6 | Packet::Tcp6);
        let (source, destination) = ([10, 0, 0, 2], [10, 0, 0, 3]);
        let queue = u64::from(place("SOCK_WRITE_QUEUE")?);
        let sk = self.structure(&[("SOCK_NET", self.netns)])?;
        self.set(sk, "SOCK_FAMILY", &if ipv6 { 10_u16 } else { 2 }.to_ne_bytes())?;
        self.set(sk, "SOCK_SPORT", &port.to_ne_bytes())?;
        self.set(sk, "SOCK_DPORT", &53_u16.to_be_bytes())?;
        self.set(sk, "SOCK_SADDR", &source)?;
        self.set(sk, "SOCK_DADDR", &destination)?;
        self.set(sk, "SOCK_SADDR6", &[0xfd; 16])?;
        self.set(sk, "SOCK_DADDR6", &[0xfe; 16])?;
        let mut head = vec![0; 256];
        let network = usize::from(NETWORK_HEADER);
        let transport = network + if ipv6 { 40 } else { 20 };
        let protocol = if packet == Packet::Ping { 1 } else { 17 };
        if ipv6 {
            (head[network], head[network + 6]) = (0x60, protocol);
            head[network + 8..network + 24].fill(0xfd);
            head[network + 24..network + 40].fill(0xfe);
        } else {
            (head[network], head[network + 9]) = (0x45, protocol);
            head[network + 12..network + 16].copy_from_slice(&source);
            head[network + 16..network + 20].copy_from_slice(&destination);
        }
        if packet == Packet::Ping {
            head[transport] = 8;
            head[transport + 4..transport + 6].copy_from_slice(&port.to_be_bytes());
        } else {
            head[transport..transport + 2].copy_from_slice(&port.to_be_bytes());
            head[transport + 2..transport + 4].copy_from_slice(&53_u16.to_be_bytes());
        }
        let head = self.machine.allocate(head);
        let skb = self.structure(&[("SK_BUFF_SK", sk), ("SK_BUFF_HEAD", head)])?;
        self.set(skb, "SK_BUFF_NETWORK_HEADER", &NETWORK_HEADER.to_ne_bytes())?;
        self.set(skb, "SK_BUFF_TRANSPORT_HEADER", &u16::try_from(transport)?.to_ne_bytes())?;
        self.machine.write(sk + queue, &skb.to_ne_bytes())?;
        let flow = self.structure(&[])?;
        self.set(flow, "FLOWI4_PROTO", &[protocol])?;
        self.set(flow, "FLOWI4_SADDR", &source)?;
        self.set(flow, "FLOWI4_DADDR", &destination)?;
        match packet {
            Packet::Udp => self.hooks(&[("owner_ipv4", &[self.netns, skb])]),
            Packet::Udp6 => self.hooks(&[("owner_ipv6", &[skb])]),
            Packet::Ping => self.hooks(&[("owner_raw", &[sk, flow])]),
            Packet::Tcp | Packet::Tcp6 => self.hooks(&[("owner_tcp", &[sk])]),
        }
    }

    /// What the hooks of NAT and conntrack execute when a new connection is translated: it is bound in either direction
    /// (net/netfilter/nf_nat_core.c, `nf_nat_inet_fn`), and goes into the table.
    ///
    /// # Errors
    ///
    /// A program does not run here.
    pub fn translate(&mut self) -> Result<Vec<Executed>> {
        const SOURCE: u64 = 0;
        const DESTINATION: u64 = 1;
        let entry = self.structure(&[])?;
        let range = self.structure(&[])?;
        self.hooks(&[
            ("allocation", &[entry, range, DESTINATION]),
            ("allocation", &[entry, range, SOURCE]),
            ("insertion", &[entry]),
        ])
    }

    /// How many entries a map has.
    ///
    /// # Errors
    ///
    /// There is no such map.
    pub fn entries(&self, map: &str) -> Result<usize> {
        Ok(self.machine.values(map)?.len())
    }

    /// What was counted as lost or not kept.
    ///
    /// # Errors
    ///
    /// The counters are not where they were.
    pub fn counted(&mut self, counter: Counter) -> Result<u64> {
        let slot = self.machine.values("COUNTERS")?.get((counter as u32).to_ne_bytes().as_slice()).copied();
        slot.map_or(Ok(0), |slot| self.machine.read(slot, 8))
    }

    /// Runs programs with arguments of the functions they hook.
    fn hooks(&mut self, hooks: &[(&'static str, &[u64])]) -> Result<Vec<Executed>> {
        hooks
            .iter()
            .map(|(program, arguments)| {
                let mut context = vec![0; CONTEXT];
                for (place, argument) in ARGUMENTS.into_iter().zip(*arguments) {
                    let place = usize::try_from(place)?;
                    context[place..place + 8].copy_from_slice(&argument.to_ne_bytes());
                }
                let context = self.machine.allocate(context);
                Ok((*program, self.machine.run(program, context)?))
            })
            .collect()
    }

    /// A structure with these numbers of 64 bits in it.
    fn structure(&mut self, fields: &[(&str, u64)]) -> Result<u64> {
        let address = self.machine.allocate(vec![0; STRUCTURE]);
        fields.iter().try_for_each(|(field, value)| self.set(address, field, &value.to_ne_bytes()))?;
        Ok(address)
    }

    fn set(&mut self, structure: u64, field: &str, value: &[u8]) -> Result<()> {
        self.machine.write(structure + u64::from(place(field)?), value)
    }
}
