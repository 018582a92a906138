//! Runs programs as the kernel would, and counts what they execute. It knows what they use, and refuses anything else.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};

use super::{Instruction, Programs, code};

/// Bytes of a function's stack (`MAX_BPF_STACK`, include/linux/filter.h).
const STACK: usize = 512;
/// The register that points behind it.
const FRAME: usize = 10;
/// Where the first region of memory stands.
const FIRST: u64 = 0xffff_8880_0000_0000;
/// Regions lie so far apart that none is reached from another.
const APART: u64 = 1 << 32;
/// More than any run takes: it is caught in a loop.
const TOO_MANY: u32 = 1 << 20;

/// Errors of helpers (include/uapi/asm-generic/errno-base.h).
const EFAULT: i64 = -14;
const EEXIST: i64 = -17;

/// Who runs the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) task: u64,
    pub(super) pid_tgid: u64,
    /// Where the registers stand with which it entered the kernel.
    pub(super) registers: u64,
}

/// Memory, maps, and a program's way through them.
#[derive(Debug)]
pub struct Machine<'a> {
    programs: &'a Programs,
    /// By the address of their first byte.
    regions: BTreeMap<u64, Vec<u8>>,
    next: u64,
    /// Where the values of each map are, by key.
    maps: Vec<HashMap<Vec<u8>, u64>>,
    pub(super) current: Current,
    /// The program of the only tail call there is.
    continuation: &'a str,
    clock: u64,
}

/// One run.
struct Run<'a> {
    program: &'a [Instruction],
    at: usize,
    registers: [u64; 11],
    /// Who called the function that runs: where to go on, and the registers that are its own.
    callers: Vec<(usize, [u64; 5])>,
    executed: u32,
}

impl<'a> Machine<'a> {
    /// One with empty maps. A tail call goes on with `continuation`.
    #[must_use]
    pub fn new(programs: &'a Programs, continuation: &'a str) -> Self {
        let maps = vec![HashMap::new(); programs.maps.len()];
        let current = Current { task: 0, pid_tgid: 0, registers: 0 };
        let mut machine =
            Self { programs, regions: BTreeMap::new(), next: FIRST, maps, current, continuation, clock: 1 };
        for (number, (_, map)) in programs.maps.iter().enumerate() {
            if !map.data().is_empty() {
                let values = machine.allocate(map.data().to_vec());
                machine.maps[number].insert(0_u32.to_ne_bytes().to_vec(), values);
            }
        }
        machine
    }

    /// New memory; its address.
    pub(super) fn allocate(&mut self, bytes: Vec<u8>) -> u64 {
        let address = self.next;
        self.next += APART;
        self.regions.insert(address, bytes);
        address
    }

    /// Writes into memory.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory(address, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn memory(&mut self, address: u64, length: usize) -> Result<&mut [u8]> {
        let wrong = || format!("{length} bytes at {address:#x} are nobody's");
        let (start, region) = self.regions.range_mut(..=address).next_back().with_context(wrong)?;
        let from = usize::try_from(address - start)?;
        region.get_mut(from..from.saturating_add(length)).with_context(wrong)
    }

    pub(super) fn read(&mut self, address: u64, length: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(self.memory(address, length)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Where the values of a map are, by key.
    pub(super) fn values(&self, map: &str) -> Result<&HashMap<Vec<u8>, u64>> {
        let number = self.programs.maps.iter().position(|(name, _)| name == map);
        number.and_then(|number| self.maps.get(number)).with_context(|| format!("there is no map {map}"))
    }

    /// Runs a program with a context to its end, and says how many instructions it executed: those of the program it goes
    /// over to too, and a helper for one.
    ///
    /// # Errors
    ///
    /// There is no such program, or it does what it must not, or what is not known here.
    pub(super) fn run(&mut self, program: &str, context: u64) -> Result<u32> {
        let mut run = self.begin(program, context)?;
        let programs = self.programs;
        while self.step(&mut run, programs).with_context(|| format!("{program}, instruction {}", run.at))? {
            ensure!(run.executed < TOO_MANY, "{program} comes to no end");
        }
        Ok(run.executed)
    }

    fn begin(&mut self, program: &str, context: u64) -> Result<Run<'a>> {
        let mut registers = [0; 11];
        registers[1] = context;
        registers[FRAME] = self.frame();
        let program = self.programs.instructions(program)?;
        Ok(Run { program, at: 0, registers, callers: Vec::new(), executed: 0 })
    }

    fn frame(&mut self) -> u64 {
        self.allocate(vec![0; STACK]) + STACK as u64
    }

    /// One instruction; `false` at the end.
    fn step(&mut self, run: &mut Run<'a>, programs: &'a Programs) -> Result<bool> {
        let at = run.at;
        let instruction = *run.program.get(at).context("the program is left without an end")?;
        run.executed += 1;
        run.at = instruction.next(at);
        let (dst, src) = (usize::from(instruction.dst), usize::from(instruction.src));
        ensure!(dst <= FRAME && (src <= FRAME || instruction.code == code::LD_IMM64), "no such register");
        match instruction.class() {
            code::ALU | code::ALU64 => {
                ensure!(instruction.offset == 0, "an operation with signs");
                run.registers[dst] = compute(instruction, run.registers[dst], operand(instruction, run))?;
            }
            code::LDX => {
                run.registers[dst] = self.read(at_offset(run.registers[src], instruction), size(instruction)?)?;
            }
            code::ST | code::STX => {
                ensure!(instruction.code & 0xe0 == 0x60, "an atomic operation");
                let value = operand_of_store(instruction, run).to_le_bytes();
                self.write(at_offset(run.registers[dst], instruction), &value[..size(instruction)?])?;
            }
            code::LD => {
                ensure!(instruction.code == code::LD_IMM64, "a load of another mode");
                let high = run.program.get(at + 1).context("half of 64 bits")?.immediate;
                run.registers[dst] = self.wide(instruction, high)?;
            }
            _ => return self.branch(run, instruction, at, programs),
        }
        Ok(true)
    }

    /// What 64 bits in the program mean: themselves, a map, or an address in its values.
    fn wide(&self, instruction: Instruction, high: i32) -> Result<u64> {
        let low = instruction.immediate.cast_unsigned();
        match instruction.src {
            0 => Ok(u64::from(low) | u64::from(high.cast_unsigned()) << 32),
            1 => Ok(u64::from(low)),
            2 => {
                let values = self.maps.get(low as usize).and_then(|map| map.get(0_u32.to_ne_bytes().as_slice()));
                Ok(values.context("no such global")? + u64::from(high.cast_unsigned()))
            }
            other => bail!("64 bits of kind {other}"),
        }
    }

    fn branch(
        &mut self,
        run: &mut Run<'a>,
        instruction: Instruction,
        at: usize,
        programs: &'a Programs,
    ) -> Result<bool> {
        match instruction.operation() {
            code::EXIT => {
                let Some((back, saved)) = run.callers.pop() else { return Ok(false) };
                run.at = back;
                run.registers[6..].copy_from_slice(&saved);
            }
            code::CALL if instruction.src == code::LOCAL => {
                let mut saved = [0; 5];
                saved.copy_from_slice(&run.registers[6..]);
                run.callers.push((run.at, saved));
                run.registers[FRAME] = self.frame();
                run.at = instruction.target(at)?;
            }
            code::CALL if instruction.immediate == code::TAIL_CALL => {
                ensure!(run.callers.is_empty(), "a tail call out of a function");
                let begun = self.begin(self.continuation, run.registers[1])?;
                *run = Run { executed: run.executed, ..begun };
            }
            code::CALL => {
                let [_, arguments @ .., _, _, _, _, _] = run.registers;
                run.registers[0] = self.help(instruction.immediate, arguments, programs)?.cast_unsigned();
            }
            code::JA => run.at = instruction.target(at)?,
            _ => {
                if holds(instruction, run.registers[usize::from(instruction.dst)], operand(instruction, run))? {
                    run.at = instruction.target(at)?;
                }
            }
        }
        Ok(true)
    }

    /// A helper, by its number (include/uapi/linux/bpf.h).
    fn help(&mut self, helper: i32, arguments: [u64; 5], programs: &Programs) -> Result<i64> {
        let [one, two, three, four, _] = arguments;
        Ok(match helper {
            // bpf_map_lookup_elem, bpf_map_update_elem, bpf_map_delete_elem
            1..=3 => {
                let number = usize::try_from(one)?;
                let (_, map) = programs.maps.get(number).context("no such map")?;
                let (key_len, value_len) = (map.key_size() as usize, map.value_size() as usize);
                let key = self.memory(two, key_len)?.to_vec();
                let known = self.maps[number].get(&key).copied();
                match helper {
                    1 => known
                        .map_or_else(|| self.lookup_absent(number, key, map.map_type(), value_len), u64::cast_signed),
                    2 => {
                        const NOEXIST: u64 = 1;
                        let value = self.memory(three, value_len)?.to_vec();
                        match known {
                            Some(_) if four == NOEXIST => return Ok(EEXIST),
                            Some(known) => self.write(known, &value)?,
                            None => {
                                let address = self.allocate(value);
                                self.maps[number].insert(key, address);
                            }
                        }
                        0
                    }
                    _ => self.maps[number].remove(&key).map_or(-2, |_| 0),
                }
            }
            // bpf_ktime_get_ns
            5 => {
                self.clock += 1000;
                self.clock.cast_signed()
            }
            // bpf_get_smp_processor_id
            8 => 0,
            14 => self.current.pid_tgid.cast_signed(),
            // bpf_get_current_uid_gid
            15 => 0,
            // bpf_get_current_comm
            16 => {
                self.memory(one, usize::try_from(two)?)?.fill(0);
                self.write(one, b"sender")?;
                0
            }
            // bpf_get_current_task, bpf_get_current_task_btf
            35 | 158 => self.current.task.cast_signed(),
            // bpf_get_current_cgroup_id
            80 => 1,
            // bpf_probe_read_user, bpf_probe_read_kernel
            112 | 113 => {
                let length = usize::try_from(two)?;
                let found = self.memory(three, length).map(|bytes| bytes.to_vec());
                let result = if found.is_ok() { 0 } else { EFAULT };
                self.write(one, &found.unwrap_or_else(|_| vec![0; length]))?;
                result
            }
            // bpf_probe_read_kernel_str
            115 => {
                let most = usize::try_from(two)?;
                let mut text = Vec::new();
                while text.len() < most && text.last() != Some(&0) {
                    let Ok(byte) = self.memory(three + text.len() as u64, 1) else { return Ok(EFAULT) };
                    text.push(byte[0]);
                }
                self.write(one, &text)?;
                i64::try_from(text.len())?
            }
            // bpf_task_pt_regs
            175 => self.current.registers.cast_signed(),
            other => bail!("helper {other} is not known here"),
        })
    }

    /// Looks up what is not there: an array has it all the same, and it is zero.
    fn lookup_absent(&mut self, number: usize, key: Vec<u8>, kind: u32, value_len: usize) -> i64 {
        const ARRAY: u32 = 2;
        const PERCPU_ARRAY: u32 = 6;
        if kind != ARRAY && kind != PERCPU_ARRAY {
            return 0;
        }
        let address = self.allocate(vec![0; value_len]);
        self.maps[number].insert(key, address);
        address.cast_signed()
    }
}

/// The second operand: a register's value, or one that stands in the instruction.
fn operand(instruction: Instruction, run: &Run<'_>) -> u64 {
    /// `BPF_X`.
    const REGISTER: u8 = 0x08;
    if instruction.code & REGISTER == 0 {
        i64::from(instruction.immediate).cast_unsigned()
    } else {
        run.registers[usize::from(instruction.src)]
    }
}

fn operand_of_store(instruction: Instruction, run: &Run<'_>) -> u64 {
    if instruction.class() == code::ST {
        i64::from(instruction.immediate).cast_unsigned()
    } else {
        run.registers[usize::from(instruction.src)]
    }
}

fn at_offset(address: u64, instruction: Instruction) -> u64 {
    address.wrapping_add_signed(instruction.offset.into())
}

/// Bytes of a load or store.
fn size(instruction: Instruction) -> Result<usize> {
    ensure!(instruction.code & 0xe0 == 0x60, "a load of another mode");
    Ok(match instruction.code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    })
}

/// The low half of a register.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
fn low(value: u64) -> u32 {
    value as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the modulus is 32 or 64")]
fn compute(instruction: Instruction, to: u64, from: u64) -> Result<u64> {
    let wide = instruction.class() == code::ALU64;
    let (a, b) = if wide { (to, from) } else { (low(to).into(), low(from).into()) };
    let bits = if wide { 64 } else { 32 };
    let shift = (b % bits) as u32;
    let result = match instruction.operation() {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b).unwrap_or(0),
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a << shift,
        0x70 => a >> shift,
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(b).unwrap_or(a),
        0xa0 => a ^ b,
        0xb0 => b,
        0xc0 if wide => (a.cast_signed() >> shift).cast_unsigned(),
        0xc0 => u64::from((low(a).cast_signed() >> shift).cast_unsigned()),
        0xd0 => return swapped(instruction, to),
        other => bail!("operation {other:#x}"),
    };
    Ok(if wide { result } else { low(result).into() })
}

/// `BPF_END`: the low 16, 32 or 64 bits, in the other byte order if that is big endian.
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
fn swapped(instruction: Instruction, value: u64) -> Result<u64> {
    let big = instruction.code & 0x08 != 0;
    Ok(match (instruction.immediate, big) {
        (16, true) => (value as u16).swap_bytes().into(),
        (16, false) => (value as u16).into(),
        (32, true) => low(value).swap_bytes().into(),
        (32, false) => low(value).into(),
        (64, true) => value.swap_bytes(),
        (64, false) => value,
        (bits, _) => bail!("{bits} bits in another order"),
    })
}

/// Whether a jump is taken.
fn holds(instruction: Instruction, a: u64, b: u64) -> Result<bool> {
    let wide = instruction.class() == code::JMP;
    let (a, b) = if wide { (a, b) } else { (low(a).into(), low(b).into()) };
    let signed = |value: u64| if wide { value.cast_signed() } else { low(value).cast_signed().into() };
    Ok(match instruction.operation() {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => signed(a) > signed(b),
        0x70 => signed(a) >= signed(b),
        0xa0 => a < b,
        0xb0 => a <= b,
        0xc0 => signed(a) < signed(b),
        0xd0 => signed(a) <= signed(b),
        other => bail!("jump {other:#x}"),
    })
}
