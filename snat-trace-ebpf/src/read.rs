//! Reads of kernel memory through the patched offsets.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use snat_trace_common::{ABSENT, OFFSETS, SocketHead, Tuple, for_each_offset};

/// A kernel address could not be read.
pub(crate) struct Unreadable;

/// Where fields are, by the order of [`OFFSETS`]. In one place: a program that has its address has all of them.
#[unsafe(no_mangle)]
static FIELDS: [u16; OFFSETS.len()] = [ABSENT; OFFSETS.len()];

/// The offset of a field on this kernel.
#[derive(Clone, Copy)]
pub(crate) struct Offset(usize);

impl Offset {
    /// In bytes, or [`ABSENT`]. What the loader patched in, not what was compiled.
    #[inline(always)]
    pub(crate) fn load(self) -> u16 {
        // SAFETY: all of these are numbers in `OFFSETS`, and so many places are there; an aligned integer is read.
        unsafe { (&raw const FIELDS).cast::<u16>().add(self.0).read_volatile() }
    }
}

macro_rules! offsets {
    ($($symbol:ident = $structure:literal . $field:literal, $need:ident;)*) => {
        enum Number { $($symbol),* }
        $(
            #[doc = concat!("Of `", $structure, ".", $field, "`; see `snat_trace_common::OFFSETS`.")]
            pub(crate) const $symbol: Offset = Offset(Number::$symbol as usize);
        )*
    };
}
for_each_offset!(offsets);

/// A kernel address.
#[derive(Clone, Copy)]
pub(crate) struct Address(u64);

impl Address {
    /// From a hook's argument.
    #[inline(always)]
    pub(crate) fn new(address: u64) -> Self {
        Self(address)
    }

    /// As a map key.
    #[inline(always)]
    pub(crate) fn as_key(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on.
    #[inline(always)]
    pub(crate) fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The address of the field at `offset`.
    #[inline(always)]
    pub(crate) fn field(self, offset: Offset) -> Self {
        self.plus(u64::from(offset.load()))
    }

    /// As the source of a read.
    #[inline(always)]
    pub(crate) fn as_ptr<T>(self) -> *const T {
        // Addresses have 64 bits on this target.
        core::ptr::with_exposed_provenance(self.0 as usize)
    }

    /// The value that stands there. `T` is plain integers in every use.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(self) -> Result<T, Unreadable> {
        // SAFETY: the helper checks the address and fails on one that cannot be read; every bit pattern is a `T`.
        unsafe { bpf_probe_read_kernel(self.as_ptr()) }.map_err(|_| Unreadable)
    }

    /// Copies what stands there into place: a copy of bytes on the way would be made one by one. `T` is plain integers in
    /// every use.
    #[inline(always)]
    pub(crate) fn read_into<T: Copy>(self, to: &mut T) -> Result<(), Unreadable> {
        // SAFETY: a reference can be written to.
        unsafe { self.read_to(core::ptr::from_mut(to)) }
    }

    /// The same where nothing stood before; zeros where it fails.
    ///
    /// # Safety
    ///
    /// A `T` can be written there.
    #[inline(always)]
    pub(crate) unsafe fn read_to<T: Copy>(self, to: *mut T) -> Result<(), Unreadable> {
        // SAFETY: the helper writes the bytes of a `T`, zeros where it fails; every bit pattern is one.
        let failed = unsafe { generated::bpf_probe_read_kernel(to.cast(), size_of::<T>() as u32, self.as_ptr()) };
        if failed == 0 { Ok(()) } else { Err(Unreadable) }
    }

    /// The value that stands there, or zeros where it cannot be read. Unlike a result this does not branch, and the verifier
    /// walks all that follows but once. `T` is plain integers in every use.
    #[inline(always)]
    pub(crate) fn read_or_zero<T: Copy>(self) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of `value`, zeros where it fails (kernel/trace/bpf_trace.c,
        // `bpf_probe_read_kernel_common`); every bit pattern is a `T`.
        unsafe {
            generated::bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, self.as_ptr());
            value.assume_init()
        }
    }

    /// The address that stands there, or one at which nothing can be read.
    #[inline(always)]
    pub(crate) fn follow_or_zero(self) -> Self {
        Self(self.read_or_zero())
    }

    /// The address that stands there.
    #[inline(always)]
    pub(crate) fn follow(self) -> Result<Self, Unreadable> {
        self.read::<u64>().map(Self)
    }
}

/// A structure of which the verifier knows the type: its numbers are loaded as the program's own are, by no helper. Not its
/// pointers: to know what they may be used for the verifier looks through all types there are, several times for each
/// (kernel/bpf/btf.c, `btf_nested_type_is_trusted`), and no start has time for that.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const c_void);

impl Typed {
    /// The current task; `None` before Linux 5.15, which has not both of the helpers here.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        if HELPER_TASK_PT_REGS.load() == ABSENT {
            return None;
        }
        // SAFETY: the helper takes no argument and touches no memory.
        Some(Self(unsafe { generated::bpf_get_current_task_btf() }.cast()))
    }

    /// The registers of a task with which it entered the kernel, its `struct pt_regs`.
    #[inline(always)]
    pub(crate) fn registers(self) -> Self {
        // SAFETY: the verifier lets nothing in but a task, and the helper touches no memory.
        let registers = unsafe { generated::bpf_task_pt_regs(self.0.cast_mut().cast()) };
        // Addresses have 64 bits on this target.
        Self(core::ptr::with_exposed_provenance(registers.cast_unsigned() as usize))
    }

    /// From a field on.
    #[inline(always)]
    pub(crate) fn behind(self, offset: Offset) -> Self {
        Self(self.0.wrapping_byte_add(offset.load().into()))
    }

    /// The word of this number that stands here.
    #[inline(always)]
    pub(crate) fn word(self, number: usize) -> u64 {
        // SAFETY: the verifier lets nothing be read but fields of this structure.
        unsafe { self.0.cast::<u64>().add(number).read_volatile() }
    }

    /// The value of a field. `T` is an integer in every use.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, offset: Offset) -> T {
        // SAFETY: as above.
        unsafe { self.behind(offset).0.cast::<T>().read_volatile() }
    }
}

/// A place on the stack for what a socket begins with, so that it need not be copied there.
pub(crate) struct Place(MaybeUninit<SocketHead>);

impl Place {
    /// Nothing is in it yet.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// The socket that stands at an address.
    #[inline(always)]
    pub(crate) fn read(&mut self, address: Address) -> Result<Socket<'_>, Unreadable> {
        // SAFETY: the place is there, and initialised when the read was not refused.
        unsafe {
            address.read_to(self.0.as_mut_ptr())?;
            Ok(Socket { address, head: self.0.assume_init_ref() })
        }
    }
}

/// A socket, of which what all sockets have was read at once.
#[derive(Clone, Copy)]
pub(crate) struct Socket<'a> {
    address: Address,
    pub(crate) head: &'a SocketHead,
}

impl Socket<'_> {
    /// Where a field stands that is not in its head.
    #[inline(always)]
    pub(crate) fn field(self, offset: Offset) -> Address {
        self.address.field(offset)
    }

    /// Its network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> Address {
        Address(self.head.net)
    }
}

/// The conntrack entry a packet belongs to: `skb->_nfct` without the three bits of `enum ip_conntrack_info`
/// (include/linux/skbuff.h, `NFCT_PTRMASK`).
#[inline(always)]
pub(crate) fn entry_of(skb: Address) -> Result<Address, Unreadable> {
    let nfct = skb.field(SK_BUFF_NFCT).read::<u64>()?;
    Ok(Address(nfct & !7))
}

/// Where an entry's tuple of direction `dir` stands.
#[inline(always)]
pub(crate) fn tuple_address(entry: Address, dir: u8) -> Address {
    entry.field(NF_CONN_TUPLEHASH).plus(u64::from(dir & 1) * u64::from(TUPLE_HASH_SIZE.load())).field(TUPLE_HASH_TUPLE)
}

/// Inode number of the network namespace a `possible_net_t` at `field` points to.
#[inline(always)]
pub(crate) fn netns_at(field: Address) -> Result<u32, Unreadable> {
    field.follow()?.field(NET_NS_INUM).read()
}

/// Inode number of an entry's network namespace; 0 where entries do not know theirs.
#[inline(always)]
pub(crate) fn netns_of(entry: Address) -> Result<u32, Unreadable> {
    if NF_CONN_CT_NET.load() != ABSENT { netns_at(entry.field(NF_CONN_CT_NET)) } else { Ok(0) }
}

/// The two numbers of 16 bits that a word in memory has, in their order.
#[inline(always)]
pub(crate) fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// Whether two tuples are the same, by words.
#[inline(always)]
pub(crate) fn same_tuple(a: &Tuple, b: &Tuple) -> bool {
    type Words = [u64; 5];
    const { assert!(size_of::<Tuple>() == size_of::<Words>() && align_of::<Tuple>() == align_of::<Words>()) };
    // SAFETY: both are 40 initialised bytes without padding, aligned to eight.
    let (a, b) = unsafe { (&*core::ptr::from_ref(a).cast::<Words>(), &*core::ptr::from_ref(b).cast::<Words>()) };
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4]
}
