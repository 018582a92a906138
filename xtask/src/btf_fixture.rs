//! Cuts the BTF of a kernel down to the structures snat-trace reads, for tests.
//!
//! It has a BTF reader of its own, so that what is tested with the fixtures is not what made them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io::Write};

use anyhow::{Context, Result, bail, ensure};
use snat_trace_common::OFFSETS;

/// What to cut, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A kernel image (vmlinuz or vmlinux) or the BTF of one, as in /sys/kernel/btf/vmlinux.
    input: PathBuf,
    /// BTF to write.
    output: PathBuf,
    /// Puts connection tracking's own structures into a second file, as if only the module had them (split BTF).
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
}

/// Fields read besides [`OFFSETS`]: the layout of a tuple is checked, and that of what a socket begins with.
const LAYOUT: [(&str, &[&str]); 2] = [
    ("nf_conntrack_tuple", &["src.u3", "src.u", "src.l3num", "dst.u3", "dst.u", "dst.protonum", "dst.dir"]),
    (
        "sock",
        &["__sk_common.skc_addrpair", "__sk_common.skc_portpair", "__sk_common.skc_family", "__sk_common.skc_net"],
    ),
];

/// Paths of fields by name of structure.
type Wanted = BTreeMap<&'static str, BTreeSet<String>>;

/// Reads, cuts, writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let kernel = fs::read(&args.input).with_context(|| format!("cannot read {}", args.input.display()))?;
    let btf = find_btf(kernel).with_context(|| format!("no BTF in {}", args.input.display()))?;
    let source = Source::parse(&btf).with_context(|| format!("BTF of {} is not understood", args.input.display()))?;

    let mut wanted = Wanted::new();
    for offset in OFFSETS {
        let paths = wanted.entry(offset.structure).or_default();
        paths.extend(offset.field.split('|').filter(|field| !field.is_empty()).map(str::to_owned));
    }
    for (structure, fields) in LAYOUT {
        wanted.entry(structure).or_default().extend(fields.iter().map(|&field| field.to_owned()));
    }

    let mut image = Writer::default();
    let mut module = None;
    let in_module = |name: &str| args.module.is_some() && name.starts_with("nf_con");
    for name in wanted.keys().filter(|name| !in_module(name)) {
        image.add(&source, &wanted, name)?;
    }
    if let Some(path) = &args.module {
        let mut split = Writer::on(&image);
        for name in wanted.keys().filter(|name| in_module(name)) {
            split.add(&source, &wanted, name)?;
        }
        module = Some((path, split));
    }
    write(&args.output, &image)?;
    module.map_or(Ok(()), |(path, split)| write(path, &split))
}

fn write(path: &Path, writer: &Writer) -> Result<()> {
    let bytes = writer.bytes()?;
    fs::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {} bytes, {} types", path.display(), bytes.len(), writer.count);
    Ok(())
}

const BTF_MAGIC: [u8; 2] = [0x9f, 0xeb];
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// The BTF in a file: the file itself, a section of an ELF file, or that of the ELF file compressed in a kernel image.
fn find_btf(file: Vec<u8>) -> Result<Vec<u8>> {
    if file.starts_with(&BTF_MAGIC) {
        return Ok(file);
    }
    if file.starts_with(&ELF_MAGIC) {
        return elf_section(&file, b".BTF");
    }
    let compressed: [(&[u8], &str, &[&str]); 4] = [
        (b"\xfd7zXZ\0", "xz", &["-dc", "--single-stream"]),
        (b"\x28\xb5\x2f\xfd", "zstd", &["-dcq"]),
        (b"\x02!L\x18", "lz4", &["-dc"]),
        (b"\x1f\x8b\x08", "gzip", &["-dc"]),
    ];
    for (magic, program, arguments) in compressed {
        for start in file.windows(magic.len()).enumerate().filter(|(_, bytes)| *bytes == magic).map(|(at, _)| at) {
            let Some(elf) = unpack(&file[start..], program, arguments)? else { continue };
            return elf_section(&elf, b".BTF");
        }
    }
    bail!("neither BTF nor ELF nor a compressed kernel image")
}

/// What `program` makes of `bytes`, if that is an ELF file. Bytes after the compressed ones make it fail at the end,
/// when everything is out already, so its exit code says nothing.
fn unpack(bytes: &[u8], program: &str, arguments: &[&str]) -> Result<Option<Vec<u8>>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}, which the kernel image is compressed with"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let output = std::thread::scope(|scope| {
        // It stops reading where its own data ends.
        scope.spawn(move || drop(stdin.write_all(bytes)));
        child.wait_with_output()
    })?;
    Ok(output.stdout.starts_with(&ELF_MAGIC).then_some(output.stdout))
}

/// A section of a 64-bit little-endian ELF file.
fn elf_section(elf: &[u8], wanted: &[u8]) -> Result<Vec<u8>> {
    let cut = "the ELF file is cut off";
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))).ok()
    };
    let table = number(40, 8).context(cut)?;
    let (size, count, names) = (number(58, 2).context(cut)?, number(60, 2).context(cut)?, number(62, 2).context(cut)?);
    let header = |index: usize| {
        let at = table + size * index;
        Some((number(at, 4)?, number(at + 24, 8)?, number(at + 32, 8)?))
    };
    let (_, names, _) = header(names).context(cut)?;
    for index in 0..count {
        let (name, offset, len) = header(index).context(cut)?;
        if elf.get(names + name..).context(cut)?.split(|&byte| byte == 0).next() == Some(wanted) {
            return Ok(elf.get(offset..offset + len).context(cut)?.to_vec());
        }
    }
    bail!("it was built without")
}

/// Kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// `struct btf_type` and the words after it.
struct RawType {
    name: u32,
    info: u32,
    /// Size or type id, by kind.
    size_or_type: u32,
    words: Vec<u32>,
}

impl RawType {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }

    /// Words after `struct btf_type`.
    fn words_after(info: u32) -> Result<usize> {
        let entries = (info & 0xffff) as usize;
        Ok(match info >> 24 & 0x1f {
            kind::INT | kind::VAR | kind::DECL_TAG => 1,
            kind::ARRAY => 3,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 3 * entries,
            kind::ENUM | kind::FUNC_PROTO => 2 * entries,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            unknown => bail!("type of unknown kind {unknown}"),
        })
    }
}

/// Parsed BTF. Type 0 is void and stands in front of `types`.
struct Source<'a> {
    types: Vec<RawType>,
    strings: &'a [u8],
}

impl<'a> Source<'a> {
    fn parse(btf: &'a [u8]) -> Result<Self> {
        let word = |at: usize| -> Result<u32> {
            let bytes = btf.get(at..at + 4).context("it is cut off")?;
            Ok(u32::from_le_bytes(bytes.try_into()?))
        };
        let place = |at: usize| -> Result<usize> { Ok(word(at)? as usize) };
        let (header, strings) = (place(4)?, place(4)? + place(16)?);
        let strings = btf.get(strings..strings + place(20)?).context("its strings are cut off")?;
        let mut types = Vec::new();
        let mut at = header + place(8)?;
        let end = at + place(12)?;
        while at < end {
            let (name, info, size_or_type) = (word(at)?, word(at + 4)?, word(at + 8)?);
            let count = RawType::words_after(info)?;
            let words = (0..count).map(|index| word(at + 12 + 4 * index)).collect::<Result<_>>()?;
            types.push(RawType { name, info, size_or_type, words });
            at += 12 + 4 * count;
        }
        Ok(Self { types, strings })
    }

    fn get(&self, id: u32) -> Result<&RawType> {
        let index = (id as usize).checked_sub(1).context("void has no layout")?;
        self.types.get(index).with_context(|| format!("no type {id}"))
    }

    fn name(&self, at: u32) -> Result<&'a str> {
        let bytes = self.strings.get(at as usize..).context("no such string")?;
        let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(str::from_utf8(name)?)
    }
}

/// BTF being made.
#[derive(Default)]
struct Writer {
    /// Strings and types of the BTF this one is split from.
    base_strings: Vec<u8>,
    strings: Vec<u8>,
    types: Vec<u8>,
    /// Types so far, those of the base included, void not.
    count: u32,
    /// New id by old id and the fields kept.
    ids: HashMap<(u32, BTreeSet<String>), u32>,
}

impl Writer {
    /// Split BTF: ids and strings go on where those of `base` end.
    fn on(base: &Self) -> Self {
        Self { base_strings: base.strings(), count: base.count, ids: base.ids.clone(), ..Self::default() }
    }

    fn strings(&self) -> Vec<u8> {
        [self.base_strings.as_slice(), if self.base_strings.is_empty() { b"\0" } else { b"" }, &self.strings].concat()
    }

    /// A structure by its name, with the fields wanted of it.
    fn add(&mut self, source: &Source, wanted: &Wanted, name: &str) -> Result<()> {
        let mut found = false;
        for (id, raw) in (1..).zip(&source.types) {
            if matches!(raw.kind(), kind::STRUCT | kind::ENUM) && source.name(raw.name)? == name {
                self.copy(source, wanted, id, BTreeSet::new())?;
                found = true;
            }
        }
        ensure!(found, "there is no struct or enum {name}");
        Ok(())
    }

    /// Copies a type and returns its new id. Of a structure only the fields in `paths` are kept, of one without a name
    /// at least one member, so that a search has something to step over. What is behind a pointer is void.
    fn copy(&mut self, source: &Source, wanted: &Wanted, id: u32, mut paths: BTreeSet<String>) -> Result<u32> {
        if id == 0 {
            return Ok(0);
        }
        let raw = source.get(id)?;
        let name = source.name(raw.name)?;
        let aggregate = matches!(raw.kind(), kind::STRUCT | kind::UNION | kind::ENUM);
        if aggregate && let Some(more) = wanted.get(name) {
            paths.extend(more.iter().cloned());
        }
        let key = (id, paths.clone());
        if let Some(&known) = self.ids.get(&key) {
            return Ok(known);
        }
        let (mut info, mut size_or_type, mut words) = (raw.info, raw.size_or_type, raw.words.clone());
        match raw.kind() {
            kind::STRUCT | kind::UNION => {
                words = self.members(source, wanted, raw, &paths)?;
                info = info & !0xffff | u32::try_from(words.len() / 3)?;
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                size_or_type = self.copy(source, wanted, raw.size_or_type, paths)?;
            }
            kind::ARRAY => {
                let [element, index, _] = raw.words[..] else { bail!("array without a length") };
                words[0] = self.copy(source, wanted, element, BTreeSet::new())?;
                words[1] = self.copy(source, wanted, index, BTreeSet::new())?;
            }
            kind::PTR => size_or_type = 0,
            kind::ENUM => {
                let mut kept = Vec::new();
                for enumerator in raw.words.chunks_exact(2) {
                    let [name, value] = *enumerator else { continue };
                    let name = source.name(name)?;
                    if paths.contains(name) {
                        kept.extend([self.string(name)?, value]);
                    }
                }
                info = info & !0xffff | u32::try_from(kept.len() / 2)?;
                words = kept;
            }
            kind::ENUM64 => {
                info &= !0xffff;
                words.clear();
            }
            kind::INT | kind::FLOAT | kind::FWD => {}
            other => bail!("{name:?} of kind {other} in a structure"),
        }
        let name = self.string(name)?;
        for word in [name, info, size_or_type].into_iter().chain(words) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.ids.insert(key, self.count);
        Ok(self.count)
    }

    /// Members to keep, three words each: name, type, offset.
    fn members(
        &mut self,
        source: &Source,
        wanted: &Wanted,
        raw: &RawType,
        paths: &BTreeSet<String>,
    ) -> Result<Vec<u32>> {
        let mut kept = Vec::new();
        for member in raw.words.chunks_exact(3) {
            let [name, member_type, offset] = *member else { continue };
            let name = source.name(name)?;
            let inner: BTreeSet<String> = if name.is_empty() {
                paths.clone()
            } else {
                let below = |path: &String| Some(path.strip_prefix(name)?.strip_prefix('.')?.to_owned());
                paths.iter().filter_map(below).collect()
            };
            let first_of_nameless = raw.name == 0 && kept.is_empty();
            if name.is_empty() || !inner.is_empty() || paths.contains(name) || first_of_nameless {
                let member_type = self.copy(source, wanted, member_type, inner)?;
                kept.extend([self.string(name)?, member_type, offset]);
            }
        }
        Ok(kept)
    }

    /// Offset of a string, written if it is new.
    fn string(&mut self, text: &str) -> Result<u32> {
        let strings = self.strings();
        let with_end = [text.as_bytes(), b"\0"].concat();
        let starts = |at: &usize| strings[*at..].starts_with(&with_end) && (*at == 0 || strings[*at - 1] == 0);
        let at = (0..strings.len()).find(starts).unwrap_or_else(|| {
            self.strings.extend(&with_end);
            strings.len()
        });
        Ok(u32::try_from(at)?)
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        const HEADER: u32 = 24;
        let strings = if self.base_strings.is_empty() { self.strings() } else { self.strings.clone() };
        let (types_len, strings_len) = (u32::try_from(self.types.len())?, u32::try_from(strings.len())?);
        let mut bytes = BTF_MAGIC.to_vec();
        bytes.extend([1, 0]);
        for word in [HEADER, 0, types_len, types_len, strings_len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&strings);
        Ok(bytes)
    }
}
