//! As much of a kernel as the hooks of a new connection read: a sender, its sockets and packets, and entries of conntrack.
//! Where most fields stand in it is made up, as the programs ask no kernel but their globals.

use std::collections::HashMap;
use std::mem::offset_of;

use anyhow::{Context, Result};
use snat_trace::probe::OBJECT;
use snat_trace_common::{Counter, OFFSETS, SocketHead};

use super::machine::Current;
use super::{Machine, Programs};

/// Bytes of every structure, with room for every field of two.
const STRUCTURE: usize = 16384;
/// Bytes from one field to the next, more than any has.
const APART: u16 = 64;

/// Where a kprobe's context has the first arguments (arch/x86/include/asm/ptrace.h, `struct pt_regs`).
const ARGUMENTS: [u64; 3] = [112, 104, 96];
/// Bytes of the context.
const CONTEXT: usize = 168;

/// Where from and where to, in network byte order.
const SOURCE: [u8; 4] = [10, 0, 0, 2];
const SOURCE6: [u8; 16] = [0xfd; 16];
const DESTINATION: [u8; 4] = [10, 0, 0, 3];
const DESTINATION6: [u8; 16] = [0xfe; 16];
const DESTINATION_PORT: u16 = 53;

/// The system call that sends, and its descriptor.
const SENDTO: u64 = 44;
const DESCRIPTOR: u32 = 3;

/// How the first packet of a connection is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packet {
    /// UDP over IPv4, from a socket that is bound to an address, to one that is named.
    Udp,
    /// The same over IPv6.
    Udp6,
    /// UDP over IPv4, through a socket that was connected before.
    Connected,
    /// UDP over IPv4, from a socket that is bound to no address.
    Unbound,
    /// The same over IPv6.
    Unbound6,
    /// A request of ICMP over IPv4.
    Ping,
    /// The same over IPv6.
    Ping6,
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
    /// Its registers, and its open files.
    registers: u64,
    descriptors: u64,
}

/// What one run executed, and of which program.
pub type Executed = (&'static str, u32);

/// The machine, with a kernel in it.
#[derive(Debug)]
pub struct Scene<'a> {
    machine: Machine<'a>,
    netns: u64,
    /// The original tuple of what was sent last.
    tuple: [u8; 40],
}

impl Programs {
    /// The programs that snat-trace loads at full detail.
    ///
    /// # Errors
    ///
    /// The object cannot be read, or has not the globals that are set here.
    pub fn in_full() -> Result<Self> {
        let places: Vec<u16> = OFFSETS.iter().map(|offset| place(offset.symbol)).collect::<Result<_>>()?;
        let fields: Vec<u8> = places.into_iter().flat_map(u16::to_ne_bytes).collect();
        let flags = ["FULL", "PROCESS_FACTS", "CGROUP_FACTS", "SENDERS", "SENDERS6", "RING_HAS_ROOM", "COMMANDS"];
        let mut globals: HashMap<&str, (&[u8], bool)> = HashMap::from([("FIELDS", (fields.as_slice(), true))]);
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
        let mut scene = Self { machine: Machine::new(programs, "note_process"), netns: 0, tuple: [0; 40] };
        scene.netns = scene.structure(&[])?;
        scene.set(scene.netns, "NET_NS_INUM", &4_026_532_000_u32.to_ne_bytes())?;
        scene.devices()?;
        Ok(scene)
    }

    /// The devices of a pod: its loopback, and a link that has the sender's addresses behind others.
    fn devices(&mut self) -> Result<()> {
        let list = self.netns + u64::from(place("NET_DEVICES")?);
        let mut link = list;
        for (v4, v6) in [([127, 0, 0, 1], [0; 16]), (SOURCE, SOURCE6)] {
            let address = self.structure(&[])?;
            self.set(address, "IN_ADDRESS_LOCAL", &v4)?;
            let in_device = self.structure(&[("IN_DEVICE_ADDRESSES", address)])?;
            let inet6_device = self.structure(&[])?;
            let addresses = inet6_device + u64::from(place("INET6_DEVICE_ADDRESSES")?);
            let address6 = self.structure(&[("INET6_ADDRESS_LIST", addresses)])?;
            self.set(address6, "INET6_ADDRESS_ADDR", &v6)?;
            let entry = address6 + u64::from(place("INET6_ADDRESS_LIST")?);
            self.machine.write(addresses, &entry.to_ne_bytes())?;
            let device =
                self.structure(&[("DEVICE_IPV4", in_device), ("DEVICE_IPV6", inet6_device), ("DEVICE_LIST", list)])?;
            let next = device + u64::from(place("DEVICE_LIST")?);
            self.machine.write(link, &next.to_ne_bytes())?;
            link = next;
        }
        Ok(())
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
        let descriptors = self.machine.allocate(vec![0; 64]);
        let table = self.structure(&[("FDTABLE_FD", descriptors)])?;
        let files = self.structure(&[("FILES_FDT", table)])?;
        let registers = self.structure(&[])?;
        let task = self.structure(&[
            ("TASK_FILES", files),
            ("TASK_START", 1_000_000_000 + u64::from(pid)),
            ("TASK_EXEC_ID", 1),
            ("TASK_MM", memory),
            ("TASK_PID", pid_structure),
        ])?;
        self.set(task, "TASK_LEADER", &task.to_ne_bytes())?;
        Ok(Sender { task, pid, registers, descriptors })
    }

    /// What the hooks of senders execute when a socket for datagrams over IPv6 is bound to a port (net/ipv6/af_inet6.c,
    /// `inet6_bind`, or net/ipv4/af_inet.c, `inet_autobind`): once, before it sends.
    ///
    /// # Errors
    ///
    /// A program does not run here.
    pub fn bind(&mut self, port: u16) -> Result<Vec<Executed>> {
        let sk = self.socket([[0; 4]; 2], [[0; 2], port.to_ne_bytes()], 10)?;
        self.hooks(&[("owner_ipv6", &[sk])])
    }

    /// What the hooks of senders execute when a packet is sent from `port`, through a socket of its own.
    ///
    /// # Errors
    ///
    /// A program does not run here.
    pub fn send(&mut self, sender: Sender, packet: Packet, port: u16) -> Result<Vec<Executed>> {
        let Sender { task, pid, registers, descriptors } = sender;
        self.machine.current = Current { task, pid_tgid: u64::from(pid) << 32 | u64::from(pid), registers };
        let ipv6 = matches!(packet, Packet::Udp6 | Packet::Unbound6 | Packet::Ping6 | Packet::Tcp6);
        let protocol: u8 = match packet {
            Packet::Ping => 1,
            Packet::Ping6 => 58,
            Packet::Tcp | Packet::Tcp6 => 6,
            _ => 17,
        };
        let (from, to) = (port.to_be_bytes(), DESTINATION_PORT.to_be_bytes());
        let named = matches!(packet, Packet::Udp | Packet::Udp6 | Packet::Unbound | Packet::Unbound6);
        let bound = !matches!(packet, Packet::Unbound | Packet::Unbound6);

        let addresses = [if named { [0; 4] } else { DESTINATION }, if bound { SOURCE } else { [0; 4] }];
        let ports = [if named { [0; 2] } else { to }, port.to_ne_bytes()];
        let sk = self.socket(addresses, ports, if ipv6 { 10 } else { 2 })?;
        self.set(sk, "SOCK_PROTOCOL", &u16::from(protocol).to_ne_bytes())?;
        if bound {
            self.set(sk, "SOCK_SADDR6", &SOURCE6)?;
        }
        if !named {
            self.set(sk, "SOCK_DADDR6", &DESTINATION6)?;
        }
        let socket = self.structure(&[("SOCKET_SK", sk)])?;
        let file = self.structure(&[("FILE_PRIVATE", socket)])?;
        self.machine.write(descriptors + u64::from(DESCRIPTOR) * 8, &file.to_ne_bytes())?;
        // `struct sockaddr_in`, or `struct sockaddr_in6`.
        let mut name = [&if ipv6 { 10_u16 } else { 2 }.to_ne_bytes()[..], &to].concat();
        name.extend_from_slice(if ipv6 { &[0; 4] } else { &DESTINATION });
        name.extend_from_slice(if ipv6 { &DESTINATION6 } else { &[0; 8] });
        let name = if named { self.machine.allocate(name) } else { 0 };
        let r8 = registers + u64::from(place("PT_REGS_R8")?);
        for (place, value) in [(0, name), (5, DESCRIPTOR.into()), (6, SENDTO)] {
            self.machine.write(r8 + 8 * place, &u64::to_ne_bytes(value))?;
        }

        self.tuple = [0; 40];
        self.tuple[18] = if ipv6 { 10 } else { 2 };
        self.tuple[38] = protocol;
        if ipv6 {
            self.tuple[..16].copy_from_slice(&SOURCE6);
            self.tuple[20..36].copy_from_slice(&DESTINATION6);
        } else {
            self.tuple[..4].copy_from_slice(&SOURCE);
            self.tuple[20..24].copy_from_slice(&DESTINATION);
        }
        self.tuple[16..18].copy_from_slice(&from);
        self.tuple[36..38].copy_from_slice(&to);
        match packet {
            Packet::Udp | Packet::Udp6 | Packet::Unbound | Packet::Unbound6 => Ok(Vec::new()),
            Packet::Connected => self.hooks(&[("owner_ipv4", &[sk])]),
            Packet::Ping | Packet::Ping6 => {
                let flow = self.ping(sk, protocol, port)?;
                self.hooks(&[(if ipv6 { "owner_raw6" } else { "owner_raw" }, &[sk, flow])])
            }
            Packet::Tcp | Packet::Tcp6 => self.hooks(&[("owner_tcp", &[sk])]),
        }
    }

    /// A socket that is connected to the first of these addresses and ports, and bound to the second.
    fn socket(&mut self, [daddr, saddr]: [[u8; 4]; 2], [dport, num]: [[u8; 2]; 2], family: u16) -> Result<u64> {
        let sk = self.structure(&[])?;
        for (place, value) in [
            (offset_of!(SocketHead, daddr_be), &daddr[..]),
            (offset_of!(SocketHead, rcv_saddr_be), &saddr),
            (offset_of!(SocketHead, dport_be), &dport),
            (offset_of!(SocketHead, num), &num),
            (offset_of!(SocketHead, family), &family.to_ne_bytes()),
            (offset_of!(SocketHead, net), &self.netns.to_ne_bytes()),
        ] {
            self.machine.write(sk + place as u64, value)?;
        }
        Ok(sk)
    }

    /// Has a socket wait with a request, and hands out the flow in which its addresses stand.
    fn ping(&mut self, sk: u64, protocol: u8, id: u16) -> Result<u64> {
        let kind = if protocol == 1 { 8 } else { 128 };
        let [high, low] = id.to_be_bytes();
        self.tuple[36..38].copy_from_slice(&[kind, 0]);
        let mut head = vec![0; 256];
        head[64..70].copy_from_slice(&[kind, 0, 0, 0, high, low]);
        let head = self.machine.allocate(head);
        let skb = self.structure(&[("SK_BUFF_HEAD", head)])?;
        self.set(skb, "SK_BUFF_TRANSPORT_HEADER", &64_u16.to_ne_bytes())?;
        self.set(sk, "SOCK_WRITE_QUEUE", &skb.to_ne_bytes())?;
        let flow = self.structure(&[])?;
        self.set(flow, "FLOWI4_PROTO", &[protocol])?;
        self.set(flow, "FLOWI4_SADDR", &SOURCE)?;
        self.set(flow, "FLOWI4_DADDR", &DESTINATION)?;
        // What belongs to IPv6 stands in the socket.
        let flow6 = sk + u64::from(place("SOCK_FLOW6")?);
        self.set(flow6, "FLOWI6_PROTO", &[protocol])?;
        self.set(flow6, "FLOWI6_SADDR", &SOURCE6)?;
        self.set(flow6, "FLOWI6_DADDR", &DESTINATION6)?;
        Ok(flow)
    }

    /// What the hooks of NAT and conntrack execute when what was sent last is translated as a new connection: it is bound in
    /// either direction (net/netfilter/nf_nat_core.c, `nf_nat_inet_fn`), and goes into the table.
    ///
    /// # Errors
    ///
    /// A program does not run here.
    pub fn translate(&mut self) -> Result<Vec<Executed>> {
        const SOURCE: u64 = 0;
        const DESTINATION: u64 = 1;
        let entry = self.structure(&[])?;
        let original = entry + u64::from(place("NF_CONN_TUPLEHASH")?) + u64::from(place("TUPLE_HASH_TUPLE")?);
        self.machine.write(original, &self.tuple)?;
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
