//! What the BPF programs come to in instructions: told of the object itself, without a kernel and without a clock.

mod longest;
mod machine;
mod scene;

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use aya_obj::generated::bpf_insn;
use aya_obj::maps::Map;

pub use longest::Longest;
pub use machine::Machine;
pub use scene::{Executed, Packet, Scene, Sender};

/// Classes and operations of instructions (Documentation/bpf/standardization/instruction-set.rst).
mod code {
    pub(super) const LD: u8 = 0x00;
    pub(super) const LDX: u8 = 0x01;
    pub(super) const ST: u8 = 0x02;
    pub(super) const STX: u8 = 0x03;
    pub(super) const ALU: u8 = 0x04;
    pub(super) const JMP: u8 = 0x05;
    pub(super) const JMP32: u8 = 0x06;
    pub(super) const ALU64: u8 = 0x07;

    pub(super) const JA: u8 = 0x00;
    pub(super) const CALL: u8 = 0x80;
    pub(super) const EXIT: u8 = 0x90;

    /// What a call calls: a helper, or another function of the program (`BPF_PSEUDO_CALL`).
    pub(super) const HELPER: u8 = 0;
    pub(super) const LOCAL: u8 = 1;

    /// The only load with two slots, of 64 bits that stand in the program.
    pub(super) const LD_IMM64: u8 = 0x18;

    /// The helper `bpf_tail_call` (include/uapi/linux/bpf.h, as all of them).
    pub(super) const TAIL_CALL: i32 = 12;
}

/// One slot of a program.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    dst: u8,
    src: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn class(self) -> u8 {
        self.code & 0x07
    }

    fn operation(self) -> u8 {
        self.code & 0xf0
    }

    /// Whether it is a jump, a call or an end.
    fn branches(self) -> bool {
        matches!(self.class(), code::JMP | code::JMP32)
    }

    /// Where the next one stands that runs if this does not branch.
    fn next(self, at: usize) -> usize {
        at + if self.code == code::LD_IMM64 { 2 } else { 1 }
    }

    /// Where it jumps to; of a call of another function, where that begins.
    fn target(self, at: usize) -> Result<usize> {
        let call = self.branches() && self.operation() == code::CALL;
        let far = call || self.class() == code::JMP32 && self.operation() == code::JA;
        let by = if far { isize::try_from(self.immediate)? } else { isize::from(self.offset) };
        (at + 1).checked_add_signed(by).context("a jump leads before the program")
    }
}

impl From<&bpf_insn> for Instruction {
    fn from(raw: &bpf_insn) -> Self {
        Self { code: raw.code, dst: raw.dst_reg(), src: raw.src_reg(), offset: raw.off, immediate: raw.imm }
    }
}

/// An object as the loader would hand it to the kernel, with a map's number for its descriptor.
#[derive(Debug)]
pub struct Programs {
    programs: BTreeMap<String, Vec<Instruction>>,
    maps: Vec<(String, Map)>,
}

impl Programs {
    /// Reads an object and links it, its globals being as they were built.
    ///
    /// # Errors
    ///
    /// It is no BPF object, or one that cannot be linked.
    pub fn parse(object: &[u8]) -> Result<Self> {
        Self::with_globals(object, HashMap::new())
    }

    /// Reads an object and links it, with the globals named set, by their bytes.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), or it lacks one of the globals.
    pub fn with_globals(object: &[u8], globals: HashMap<&str, (&[u8], bool)>) -> Result<Self> {
        let mut object = aya_obj::Object::parse(object).context("the BPF object")?;
        object.patch_map_data(globals)?;
        let mut maps: Vec<(String, Map)> = object.maps.iter().map(|(name, map)| (name.clone(), map.clone())).collect();
        maps.sort_by(|(a, _), (b, _)| a.cmp(b));
        let sections: HashSet<usize> = object.functions.keys().map(|&(section, _)| section).collect();
        let numbered = (0..).zip(&maps).map(|(number, (name, map))| (name.as_str(), number, map));
        object.relocate_maps(numbered, &sections)?;
        object.relocate_calls(&sections)?;
        let programs = object.programs.iter().map(|(name, program)| {
            let function = object.functions.get(&program.function_key()).with_context(|| format!("{name} is empty"))?;
            Ok((name.clone(), function.instructions.iter().map(Instruction::from).collect()))
        });
        let programs = programs.collect::<Result<_>>()?;
        Ok(Self { programs, maps })
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.programs.keys().map(String::as_str)
    }

    fn instructions(&self, program: &str) -> Result<&[Instruction]> {
        Ok(self.programs.get(program).with_context(|| format!("the object has no program {program}"))?)
    }
}
