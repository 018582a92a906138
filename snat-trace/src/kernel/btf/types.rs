//! Structures in BTF, and where their fields are; and the values of enumerations.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use btf_rs::{Backend, Btf, BtfType, Enum, Member, Struct, Type};
use bytes::Buf as _;
use rustix::fs::{MemfdFlags, memfd_create};
use snat_trace_common::ABSENT;

use super::OffsetsError;
use crate::kernel::hooks::CONNTRACK_MODULE;

/// Some structures of a kernel.
pub(super) struct Structures {
    base: Btf,
    module: Option<Btf>,
    by_name: BTreeMap<&'static str, Found>,
}

/// The structures and enumerations of one name. A name may stand for several, which should be the same (a module's type
/// information may repeat those of the kernel image).
struct Found {
    types: Vec<Named>,
    in_module: bool,
}

/// What has fields or enumerators.
enum Named {
    Structure(Struct),
    Enumeration(Enum),
}

impl Named {
    /// A function or a variable may have the same name.
    fn of(found: Type) -> Option<Self> {
        match found {
            Type::Struct(structure) => Some(Self::Structure(structure)),
            Type::Enum(enumeration) => Some(Self::Enumeration(enumeration)),
            _ => None,
        }
    }
}

impl Structures {
    /// Those of the kernel image with these names.
    ///
    /// Its BTF has some 100 000 types. `btf-rs` parses them all into heap objects, unless it maps a file, and that
    /// takes a tenth of the time. The file in sysfs can be mapped on new kernels only (6.16), so a copy in memory is. And then
    /// it looks at all types for each name: which have one is found out here, for all names at once.
    pub(super) fn new(vmlinux: &[u8], names: impl IntoIterator<Item = &'static str>) -> Result<Self, OffsetsError> {
        let file = "vmlinux";
        let invalid = |error: String| OffsetsError::Invalid { file, error };
        let sections = Sections::of(vmlinux).map_err(|error| invalid(error.to_owned()))?;
        let copy =
            copy_in_memory(vmlinux).map_err(|error| OffsetsError::Unreadable { file, error: error.to_string() })?;
        let base = Btf::from_file_with_backend(format!("/proc/self/fd/{}", copy.as_raw_fd()), Backend::Mmap)
            .map_err(|error| invalid(error.to_string()))?;
        let by_name = sections.find(names).into_iter().map(|(name, ids)| {
            let types = ids.into_iter().filter_map(|id| base.resolve_type_by_id(id).ok());
            (name, Found { types: types.filter_map(Named::of).collect(), in_module: false })
        });
        Ok(Self { by_name: by_name.collect(), base, module: None })
    }

    /// Whether every name has a structure.
    pub(super) fn complete(&self) -> bool {
        self.by_name.values().all(|found| !found.types.is_empty())
    }

    /// Looks for those that are not in the kernel image in the BTF of `nf_conntrack`.
    pub(super) fn add_module(&mut self, bytes: &[u8]) -> Result<(), OffsetsError> {
        let invalid = |error| OffsetsError::Invalid { file: CONNTRACK_MODULE, error };
        Sections::of(bytes).map_err(|error| invalid(error.to_owned()))?;
        let module = Btf::from_split_bytes(bytes, &self.base).map_err(|error| invalid(error.to_string()))?;
        for (name, found) in self.by_name.iter_mut().filter(|(_, found)| found.types.is_empty()) {
            let types = module.resolve_types_by_name(name).unwrap_or_default();
            *found = Found { types: types.into_iter().filter_map(Named::of).collect(), in_module: true };
        }
        self.module = Some(module);
        Ok(())
    }

    /// Where the field is, in bytes, or the structure's size when `field` is empty; the value of an enumerator. Of several
    /// names for a field, `|` between them, the first that there is.
    pub(super) fn offset(&self, structure: &'static str, field: &'static str) -> Result<Option<u16>, OffsetsError> {
        for name in field.split('|') {
            if let Some(offset) = self.offset_of(structure, name)? {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    fn offset_of(&self, structure: &'static str, field: &'static str) -> Result<Option<u16>, OffsetsError> {
        let Some(found) = self.by_name.get(structure) else { return Ok(None) };
        let btf = if found.in_module { self.module.as_ref().unwrap_or(&self.base) } else { &self.base };
        let mut result = None;
        for candidate in &found.types {
            let value = match candidate {
                Named::Structure(structure) => field_offset(btf, structure, field),
                Named::Enumeration(enumeration) => Ok(enumerator(btf, enumeration, field)),
            };
            let Some(bytes) = value.map_err(|NotBytes| OffsetsError::NotBytes { structure, field })? else {
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

/// Two sections of a BTF file: types, and the strings that are their names (Documentation/bpf/btf.rst).
struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Sections<'a> {
    /// Those the header tells of (include/uapi/linux/btf.h, `struct btf_header`), if they are in the file. `btf-rs` takes a
    /// mapped file that is cut off for one with less in it.
    fn of(file: &'a [u8]) -> Result<Self, &'static str> {
        const MAGIC: u16 = 0xeb9f;

        let mut header = file;
        let mut word = || header.try_get_u32_ne().map_err(|_| "it is too short");
        let [_, header_len, type_offset, type_len, string_offset, string_len] =
            [word()?, word()?, word()?, word()?, word()?, word()?];
        if !file.starts_with(&MAGIC.to_ne_bytes()) {
            return Err("it does not begin as BTF does");
        }
        let section = |offset: u32, len: u32| {
            let start = usize::try_from(u64::from(header_len) + u64::from(offset)).ok()?;
            file.get(start..)?.get(..usize::try_from(len).ok()?)
        };
        let shorter = "it is shorter than its header says";
        Ok(Self {
            types: section(type_offset, type_len).ok_or(shorter)?,
            strings: section(string_offset, string_len).ok_or(shorter)?,
        })
    }

    /// Which types have these names and may be structures or enumerations, by their ids, for all names at once. What follows
    /// a kind of type that is not known is not found; `btf-rs` refuses it.
    fn find(&self, names: impl IntoIterator<Item = &'static str>) -> BTreeMap<&'static str, Vec<u32>> {
        let mut found: BTreeMap<_, _> = names.into_iter().map(|name| (name, Vec::new())).collect();
        let mut rest = self.types;
        // They are numbered in their order, behind `void`.
        let mut id = 1;
        while let Some(Head { name, kind }) = Head::take(&mut rest) {
            if matches!(kind, Head::STRUCT | Head::ENUM)
                && let Some(ids) = self.string(name).and_then(|name| found.get_mut(name))
            {
                ids.push(id);
            }
            id += 1;
        }
        found
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let text = self.strings.get(usize::try_from(offset).ok()?..)?;
        CStr::from_bytes_until_nul(text).ok()?.to_str().ok()
    }
}

/// What each type begins with (`struct btf_type`).
struct Head {
    /// Where its name is among the strings.
    name: u32,
    kind: u32,
}

impl Head {
    const STRUCT: u32 = 4;
    const ENUM: u32 = 6;

    /// That of the first of `types`, which is taken from them with all that belongs to it.
    fn take(types: &mut &[u8]) -> Option<Self> {
        let name = types.try_get_u32_ne().ok()?;
        let info = types.try_get_u32_ne().ok()?;
        let _size_or_type = types.try_get_u32_ne().ok()?;
        let (kind, members) = (info >> 24 & 0x1f, info & 0xffff);
        let more = match kind {
            // Pointers, forward declarations, typedefs, volatile, const, restrict, functions, floats, type tags.
            2 | 7..=12 | 16 | 18 => 0,
            // Integers, variables, tags of declarations.
            1 | 14 | 17 => 4,
            // Arrays.
            3 => 12,
            // Enumerations, prototypes of functions.
            Self::ENUM | 13 => 8 * members,
            // Structures, unions, data sections, enumerations of 64 bits.
            Self::STRUCT | 5 | 15 | 19 => 12 * members,
            _ => return None,
        };
        *types = types.get(usize::try_from(more).ok()?..)?;
        Some(Self { name, kind })
    }
}

fn copy_in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("snat-trace-btf", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// The value of an enumerator, if it fits where an offset does.
fn enumerator(btf: &Btf, enumeration: &Enum, name: &str) -> Option<u16> {
    let member =
        enumeration.members.iter().find(|&member| btf.resolve_name(member).is_ok_and(|known| known == name))?;
    u16::try_from(member.val()).ok().filter(|&value| value != ABSENT)
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// BTF made by hand (Documentation/bpf/btf.rst).
    #[derive(Default)]
    pub(in crate::kernel::btf) struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Builder {
        /// Id of the first type, an `unsigned int`.
        const INT: u32 = 1;

        pub(in crate::kernel::btf) fn new() -> Self {
            let mut builder = Self { strings: vec![0], ..Self::default() };
            let name = builder.string("unsigned int");
            builder.words(&[name, 1 << 24, 4, 32]);
            builder
        }

        fn words(&mut self, words: &[u32]) -> u32 {
            self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            self.count += 1;
            self.count
        }

        fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len();
            self.strings.extend(text.bytes().chain([0]));
            u32::try_from(at).unwrap()
        }

        /// Members are a name, a type and an offset in bits; with `bit_fields`, their sizes in bits stand in bits 24-31.
        pub(in crate::kernel::btf) fn structure(
            &mut self,
            name: &str,
            size: u32,
            bit_fields: bool,
            members: &[(&str, u32, u32)],
        ) -> u32 {
            let info = u32::from(bit_fields) << 31 | 4 << 24 | u32::try_from(members.len()).unwrap();
            let mut words = vec![self.string(name), info, size];
            for (name, member_type, offset) in members {
                words.extend([self.string(name), *member_type, *offset]);
            }
            self.words(&words)
        }

        fn typedef(&mut self, name: &str, target: u32) -> u32 {
            let name = self.string(name);
            self.words(&[name, 8 << 24, target])
        }

        pub(in crate::kernel::btf) fn bytes(&self) -> Vec<u8> {
            let [types, strings] = [&self.types, &self.strings].map(|part| u32::try_from(part.len()).unwrap());
            let mut bytes = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat();
            bytes.extend([24, 0, types, types, strings].iter().flat_map(|word| word.to_ne_bytes()));
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }

        fn offset(&self, structure: &'static str, field: &'static str) -> Result<Option<u16>, OffsetsError> {
            Structures::new(&self.bytes(), [structure]).unwrap().offset(structure, field)
        }
    }
    #[test]
    fn walks_nameless_members_typedefs_and_nested_structures() {
        let mut btf = Builder::new();
        let inner = btf.structure("inner", 8, false, &[("a", Builder::INT, 0), ("b", Builder::INT, 32)]);
        let nameless = btf.structure("", 16, false, &[("first", Builder::INT, 0), ("in", inner, 64)]);
        let alias = btf.typedef("inner_t", inner);
        btf.structure("outer", 64, false, &[("x", Builder::INT, 0), ("", nameless, 64), ("y", alias, 256)]);
        for (field, expected) in [
            ("", Some(64)),
            ("x", Some(0)),
            ("first", Some(8)),
            ("in", Some(16)),
            ("in.b", Some(20)),
            ("y.b", Some(36)),
            ("b", None),
            ("x.a", None),
            ("in.c", None),
        ] {
            assert_eq!(btf.offset("outer", field), Ok(expected), "outer.{field}");
        }
        assert_eq!(btf.offset("inner_t", "a"), Ok(None), "a typedef is no structure");
        assert_eq!(btf.offset("absent", ""), Ok(None));
    }

    /// Each kind has a length of its own, and what stands behind it must be found all the same.
    #[test]
    fn types_of_every_kind_are_passed_over() {
        // Words for each, for two members: integers, arrays, structures and so on, as the kernel numbers them.
        let words = [1, 0, 3, 6, 6, 4, 0, 0, 0, 0, 0, 0, 4, 1, 6, 0, 1, 0, 6];
        for (kind, more) in (1..).zip(words) {
            let mut btf = Builder::new();
            btf.words(&[&[0, kind << 24 | 2, 4][..], &vec![0; more]].concat());
            btf.structure("s", 8, false, &[("a", Builder::INT, 32)]);
            assert_eq!(btf.offset("s", "a"), Ok(Some(4)), "behind kind {kind}");
        }
        let mut btf = Builder::new();
        btf.words(&[0, 31 << 24, 0]);
        btf.structure("s", 8, false, &[("a", Builder::INT, 32)]);
        assert!(Structures::new(&btf.bytes(), ["s"]).is_err());
    }

    #[test]
    fn bit_fields_are_refused() {
        let mut btf = Builder::new();
        let members = [("whole", Builder::INT, 32), ("bits", Builder::INT, 3 << 24 | 64), ("odd", Builder::INT, 67)];
        btf.structure("s", 16, true, &members);
        assert_eq!(btf.offset("s", "whole"), Ok(Some(4)));
        for field in ["bits", "odd"] {
            assert_eq!(btf.offset("s", field), Err(OffsetsError::NotBytes { structure: "s", field }));
        }
    }

    #[test]
    fn offsets_that_do_not_fit_are_refused() {
        let mut btf = Builder::new();
        let at = |bytes: u32| bytes * 8;
        let members = [
            ("last", Builder::INT, at(0xfffe)),
            ("absent", Builder::INT, at(0xffff)),
            ("far", Builder::INT, at(0x1_0000)),
        ];
        btf.structure("s", 0x2_0000, false, &members);
        assert_eq!(btf.offset("s", "last"), Ok(Some(0xfffe)));
        for field in ["absent", "far", ""] {
            assert_eq!(btf.offset("s", field), Err(OffsetsError::NotBytes { structure: "s", field }));
        }
    }

    #[test]
    fn structures_of_one_name_must_agree() {
        let mut btf = Builder::new();
        btf.structure("s", 8, false, &[("same", Builder::INT, 0), ("moved", Builder::INT, 32)]);
        btf.structure("s", 8, false, &[("same", Builder::INT, 0), ("moved", Builder::INT, 64)]);
        assert_eq!(btf.offset("s", "same"), Ok(Some(0)));
        assert_eq!(btf.offset("s", "moved"), Err(OffsetsError::Contradiction { structure: "s", field: "moved" }));
    }

    #[test]
    fn structures_that_contain_themselves_come_to_an_end() {
        let mut btf = Builder::new();
        let itself = btf.count + 1;
        btf.structure("s", 8, false, &[("", itself, 0), ("", itself, 0), ("inner", itself, 8)]);
        assert_eq!(btf.offset("s", "absent"), Ok(None));
        let alias = btf.count + 1;
        btf.typedef("loop", alias);
        btf.structure("t", 8, false, &[("inner", alias, 0)]);
        assert_eq!(btf.offset("t", "inner.x"), Ok(None));
    }

    /// Types after the strings, and the last one cut off: for `btf-rs` alone this is a structure without fields.
    #[test]
    fn types_beyond_the_end_are_refused() {
        let mut btf = Builder::new();
        btf.structure("s", 8, false, &[("a", Builder::INT, 0)]);
        let [types, strings] = [&btf.types, &btf.strings].map(|part| u32::try_from(part.len()).unwrap());
        let mut bytes = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat();
        bytes.extend([24, strings, types, 0, strings].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(btf.strings.iter().chain(&btf.types));
        assert_eq!(Structures::new(&bytes, ["s"]).unwrap().offset("s", "a"), Ok(Some(0)));
        for len in 0..bytes.len() {
            assert!(Structures::new(&bytes[..len], ["s"]).is_err(), "{len}");
        }
    }
}
