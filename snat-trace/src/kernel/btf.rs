//! Offsets of kernel structure fields, from the BTF of the running kernel.

use std::fs::{self, File};
use std::io::{self, Write};
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::path::Path;

use btf_rs::{Backend, Btf, BtfType, Member, Struct, Type};
use rustix::fs::{MemfdFlags, memfd_create};
use snat_trace_common::{ABSENT, OFFSETS, Offset, Tuple};

use super::hooks::CONNTRACK_MODULE;

/// Every offset of [`OFFSETS`] on one kernel, in bytes; [`ABSENT`] for an optional field it does not have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offsets(Vec<u16>);

/// Why the offsets of a kernel are not known. Reads as what follows "this kernel: ".
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OffsetsError {
    /// The kernel was built without BTF.
    #[error("it has no type information (no /sys/kernel/btf/vmlinux), it needs CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf,
    /// A file of BTF cannot be read.
    #[error("its type information cannot be read ({file}: {error})")]
    Unreadable {
        /// Name below `/sys/kernel/btf`.
        file: &'static str,
        /// As the system has it.
        error: String,
    },
    /// A file is no BTF, or of a newer format.
    #[error("its type information is not understood ({file}: {error}), a newer snat-trace may know it")]
    Invalid {
        /// Name below `/sys/kernel/btf`.
        file: &'static str,
        /// What is wrong.
        error: String,
    },
    /// A structure has no such field, or is not there.
    #[error("its type information has no {}, which tracing cannot do without", FieldName(structure, field))]
    NoField {
        /// The structure.
        structure: &'static str,
        /// Path of the field, empty for the structure itself.
        field: &'static str,
    },
    /// A field cannot be read as whole bytes near the start of its structure.
    #[error("{} is a bit field or lies too far into its structure to be read", FieldName(structure, field))]
    NotBytes {
        /// The structure.
        structure: &'static str,
        /// Path of the field.
        field: &'static str,
    },
    /// Two structures of one name differ.
    #[error("its type information has several structures {structure}, which differ in {field}")]
    Contradiction {
        /// The structure.
        structure: &'static str,
        /// Path of the field.
        field: &'static str,
    },
    /// A structure that has always looked the same looks different.
    #[error(
        "{} is {found} where it has always been {expected}, so its connection tracking is not one snat-trace knows",
        FieldName(structure, field)
    )]
    Layout {
        /// The structure.
        structure: &'static str,
        /// Path of the field, empty for the size of the structure.
        field: &'static str,
        /// As in every known kernel, bytes.
        expected: usize,
        /// In this one, bytes.
        found: u16,
    },
}

/// `structure.field` in a sentence.
struct FieldName<'a>(&'a str, &'a str);

impl std::fmt::Display for FieldName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self(structure, "") => write!(f, "struct {structure}"),
            Self(structure, field) => write!(f, "{structure}.{field}"),
        }
    }
}

/// The inner layout of a tuple, which the programs copy whole (include/net/netfilter/nf_conntrack_tuple.h).
const TUPLE_LAYOUT: [(&str, usize); 8] = [
    ("", size_of::<Tuple>()),
    ("src.u3", offset_of!(Tuple, src)),
    ("src.u", offset_of!(Tuple, src_port_be)),
    ("src.l3num", offset_of!(Tuple, l3num)),
    ("dst.u3", offset_of!(Tuple, dst)),
    ("dst.u", offset_of!(Tuple, dst_port_be)),
    ("dst.protonum", offset_of!(Tuple, protonum)),
    ("dst.dir", offset_of!(Tuple, dir)),
];

impl Offsets {
    /// From the files below `directory`, which is `/sys/kernel/btf` on a live system. The BTF of the module
    /// `nf_conntrack` is read only when that of the kernel image lacks a structure.
    pub(super) fn read(directory: &Path) -> Result<Self, OffsetsError> {
        let vmlinux = match fs::read(directory.join("vmlinux")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OffsetsError::NoBtf),
            Err(error) => return Err(OffsetsError::Unreadable { file: "vmlinux", error: error.to_string() }),
        };
        let module = || match fs::read(directory.join(CONNTRACK_MODULE)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OffsetsError::Unreadable { file: CONNTRACK_MODULE, error: error.to_string() }),
        };
        Self::parse(&vmlinux, module)
    }

    /// From the BTF of the kernel image and, only if it lacks a structure, that of the module.
    fn parse(
        vmlinux: &[u8],
        module: impl FnOnce() -> Result<Option<Vec<u8>>, OffsetsError>,
    ) -> Result<Self, OffsetsError> {
        let mut types = Types::new(vmlinux)?;
        if OFFSETS.iter().any(|offset| types.structures(offset.structure).is_empty())
            && let Some(bytes) = module()?
        {
            types.add_module(&bytes)?;
        }
        for (field, expected) in TUPLE_LAYOUT {
            let structure = "nf_conntrack_tuple";
            match types.offset(structure, field)? {
                Some(found) if usize::from(found) == expected => {}
                Some(found) => return Err(OffsetsError::Layout { structure, field, expected, found }),
                None => return Err(OffsetsError::NoField { structure, field }),
            }
        }
        let values = OFFSETS.iter().map(|&Offset { structure, field, required, symbol: _ }| {
            match types.offset(structure, field)? {
                Some(value) => Ok(value),
                None if required => Err(OffsetsError::NoField { structure, field }),
                None => Ok(ABSENT),
            }
        });
        Ok(Self(values.collect::<Result<_, _>>()?))
    }

    /// Every offset with its value in bytes, in the order of [`OFFSETS`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static Offset, &u16)> {
        OFFSETS.iter().zip(&self.0)
    }
}

/// The structures of a kernel.
struct Types {
    base: Btf,
    module: Option<Btf>,
    /// Structures asked for so far: a look-up by name goes through every type.
    known: Vec<(&'static str, Found)>,
}

/// The structures of one name and whether they are in the module's BTF.
#[derive(Clone, Default)]
struct Found {
    structures: Vec<Struct>,
    in_module: bool,
}

impl Types {
    /// BTF of the kernel image has some 100 000 types. `btf-rs` parses them all into heap objects, unless it maps a
    /// file, and that takes a hundredth of the time. The file in sysfs can be mapped on new kernels only (6.16), so
    /// a copy in memory is.
    fn new(vmlinux: &[u8]) -> Result<Self, OffsetsError> {
        let file = "vmlinux";
        check_sections(vmlinux).map_err(|error| OffsetsError::Invalid { file, error: error.to_owned() })?;
        let copy =
            copy_in_memory(vmlinux).map_err(|error| OffsetsError::Unreadable { file, error: error.to_string() })?;
        let base = Btf::from_file_with_backend(format!("/proc/self/fd/{}", copy.as_raw_fd()), Backend::Mmap)
            .map_err(|error| OffsetsError::Invalid { file, error: error.to_string() })?;
        Ok(Self { base, module: None, known: Vec::new() })
    }

    fn add_module(&mut self, bytes: &[u8]) -> Result<(), OffsetsError> {
        let invalid = |error| OffsetsError::Invalid { file: CONNTRACK_MODULE, error };
        check_sections(bytes).map_err(|error| invalid(error.to_owned()))?;
        self.module = Some(Btf::from_split_bytes(bytes, &self.base).map_err(|error| invalid(error.to_string()))?);
        self.known.retain(|(_, found)| !found.structures.is_empty());
        Ok(())
    }

    /// Every structure of this name. A module may repeat one of the kernel image, which is then not looked at.
    fn structures(&mut self, name: &'static str) -> &[Struct] {
        &self.find(name).structures
    }

    fn find(&mut self, name: &'static str) -> &Found {
        let index = match self.known.iter().position(|(known, _)| *known == name) {
            Some(index) => index,
            None => {
                let mut found = Found { structures: structures(&self.base, name), in_module: false };
                if found.structures.is_empty()
                    && let Some(module) = &self.module
                {
                    found = Found { structures: structures(module, name), in_module: true };
                }
                self.known.push((name, found));
                self.known.len() - 1
            }
        };
        &self.known[index].1
    }

    /// Where the field is, in bytes, or the structure's size when `field` is empty.
    fn offset(&mut self, structure: &'static str, field: &'static str) -> Result<Option<u16>, OffsetsError> {
        let Found { structures, in_module } = self.find(structure).clone();
        let btf = if in_module { self.module.as_ref().unwrap_or(&self.base) } else { &self.base };
        let mut result = None;
        for candidate in &structures {
            let Some(bytes) =
                field_offset(btf, candidate, field).map_err(|NotBytes| OffsetsError::NotBytes { structure, field })?
            else {
                continue;
            };
            if result.is_some_and(|other| other != bytes) {
                return Err(OffsetsError::Contradiction { structure, field });
            }
            result = Some(bytes);
        }
        Ok(result)
    }
}

/// Whether the sections that the header of a BTF file tells of are in the file (include/uapi/linux/btf.h,
/// `struct btf_header`). `btf-rs` reads a mapped file in this trust.
fn check_sections(bytes: &[u8]) -> Result<(), &'static str> {
    const MAGIC: u16 = 0xeb9f;
    let word = |index: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(index * 4..index * 4 + 4)?.try_into().ok()?))
    };
    let header = (|| Some([word(1)?, word(2)?, word(3)?, word(4)?, word(5)?]))();
    let Some([header_len, type_offset, type_len, string_offset, string_len]) = header else {
        return Err("it is too short");
    };
    if bytes[..2] != MAGIC.to_ne_bytes() {
        return Err("it does not begin as BTF does");
    }
    let inside =
        |offset: u32, len: u32| u64::from(header_len) + u64::from(offset) + u64::from(len) <= bytes.len() as u64;
    if inside(type_offset, type_len) && inside(string_offset, string_len) {
        Ok(())
    } else {
        Err("it is shorter than its header says")
    }
}

fn copy_in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("snat-trace-btf", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// Structures of this name in `btf`; a function or variable may have the same name.
fn structures(btf: &Btf, name: &str) -> Vec<Struct> {
    let types = btf.resolve_types_by_name(name).unwrap_or_default();
    types
        .into_iter()
        .filter_map(|found| match found {
            Type::Struct(structure) => Some(structure),
            _ => None,
        })
        .collect()
}

/// The offset is no whole number of bytes that fits.
#[derive(Debug)]
struct NotBytes;

/// Where `path` leads to from the start of `structure`, in bytes; its size for an empty path.
fn field_offset(btf: &Btf, structure: &Struct, path: &str) -> Result<Option<u16>, NotBytes> {
    let fits = |bytes: u64| u16::try_from(bytes).ok().filter(|&bytes| bytes != ABSENT).ok_or(NotBytes);
    if path.is_empty() {
        return fits(structure.size() as u64).map(Some);
    }
    let mut structure = structure.clone();
    let mut bits = 0;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let Some((offset, member)) = find_member(btf, &structure, name, &mut Budget::default()) else {
            return Ok(None);
        };
        bits += offset;
        if names.peek().is_none() {
            if member.bitfield_size().is_some_and(|bits| bits != 0) || bits % 8 != 0 {
                return Err(NotBytes);
            }
            break;
        }
        let Some(inner) = aggregate(btf, &member) else { return Ok(None) };
        structure = inner;
    }
    fits(bits / 8).map(Some)
}

/// How much of a structure is looked at, so that wrong BTF, in which a structure contains itself, comes to an end.
struct Budget {
    depth: u8,
    members: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { depth: 16, members: 1 << 16 }
    }
}

/// A member by its name, also inside members without a name, and where it is in bits from the start of `structure`.
fn find_member(btf: &Btf, structure: &Struct, name: &str, budget: &mut Budget) -> Option<(u64, Member)> {
    budget.depth = budget.depth.checked_sub(1)?;
    for member in &structure.members {
        budget.members = budget.members.checked_sub(1)?;
        let offset = u64::from(member.bit_offset());
        match btf.resolve_name(member).ok()?.as_str() {
            "" => {
                let found = aggregate(btf, member).and_then(|inner| find_member(btf, &inner, name, budget));
                if let Some((inner_offset, found)) = found {
                    return Some((offset + inner_offset, found));
                }
            }
            known if known == name => return Some((offset, member.clone())),
            _ => {}
        }
    }
    budget.depth += 1;
    None
}

/// The structure or union a member is, behind typedefs and qualifiers.
fn aggregate(btf: &Btf, member: &Member) -> Option<Struct> {
    const LONGEST_CHAIN: usize = 16;
    let mut id = member.get_type_id()?;
    for _ in 0..LONGEST_CHAIN {
        match btf.resolve_type_by_id(id).ok()? {
            Type::Struct(inner) | Type::Union(inner) => return Some(inner),
            Type::Typedef(alias) => id = alias.get_type_id()?,
            Type::Const(qualified) | Type::Volatile(qualified) => id = qualified.get_type_id()?,
            Type::TypeTag(tagged) => id = tagged.get_type_id()?,
            _ => return None,
        }
    }
    None
}
