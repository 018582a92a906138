//! The longest path through a program: an upper bound of what one run executes, whatever the kernel's memory says.

use anyhow::{Context, Result};

use super::{Instruction, Programs, code};

/// The longest path from the first instruction to an end, branches that no kernel takes included. A call of a helper counts
/// as one; a tail call ends the path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Longest {
    /// Instructions on it, each loop taken for one turn of all it has.
    pub instructions: u32,
    /// Whether there is a loop: then this is no bound.
    pub has_loop: bool,
}

impl Programs {
    /// The longest path through a program.
    ///
    /// # Errors
    ///
    /// There is none of that name, or it is none that the kernel would take.
    pub fn longest_path(&self, program: &str) -> Result<Longest> {
        longest(self.instructions(program)?, 0).with_context(|| program.to_owned())
    }
}

fn longest(program: &[Instruction], start: usize) -> Result<Longest> {
    let mut search = Search { program, seen: vec![None; program.len()], count: 0, open: Vec::new() };
    search.visit(start)?;
    Ok(search.found(start)?.longest)
}

/// What is known of an instruction.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// The earliest that can be come back to from here, by when each was come to first, within what is still open.
    back: usize,
    open: bool,
    /// From here to an end, once it is no longer open.
    longest: Longest,
}

/// Tarjan's search for strongly connected components (SIAM J. Comput. 1, 1972): a component is closed after all that can be
/// come to from it, so the longest path on from there is known by then.
struct Search<'a> {
    program: &'a [Instruction],
    seen: Vec<Option<Found>>,
    count: usize,
    open: Vec<usize>,
}

impl Search<'_> {
    fn visit(&mut self, at: usize) -> Result<()> {
        let order = self.count;
        self.count += 1;
        let nothing = Longest { instructions: 0, has_loop: false };
        *self.slot(at)? = Some(Found { back: order, open: true, longest: nothing });
        self.open.push(at);
        let mut back = order;
        for next in self.successors(at)? {
            if self.slot(next)?.is_none() {
                self.visit(next)?;
            }
            let next = self.found(next)?;
            if next.open {
                back = back.min(next.back);
            }
        }
        if let Some(found) = self.slot(at)? {
            found.back = back;
        }
        if back == order { self.close(at) } else { Ok(()) }
    }

    /// Closes the component that begins with `first`.
    fn close(&mut self, first: usize) -> Result<()> {
        let from = self.open.iter().rposition(|&at| at == first).context("an instruction that is not open")?;
        let component = self.open.split_off(from);
        let mut here = Longest { instructions: 0, has_loop: component.len() > 1 };
        let mut on = Longest { instructions: 0, has_loop: false };
        for &at in &component {
            here.instructions += 1;
            if let Some(callee) = self.callee(at)? {
                here.instructions += callee.instructions;
                here.has_loop |= callee.has_loop;
            }
            for next in self.successors(at)? {
                if component.contains(&next) {
                    here.has_loop = true;
                } else {
                    let next = self.found(next)?.longest;
                    on.instructions = on.instructions.max(next.instructions);
                    on.has_loop |= next.has_loop;
                }
            }
        }
        let longest =
            Longest { instructions: here.instructions + on.instructions, has_loop: here.has_loop || on.has_loop };
        for at in component {
            if let Some(found) = self.slot(at)? {
                found.open = false;
                found.longest = longest;
            }
        }
        Ok(())
    }

    /// The function of this program that is called, if one is.
    fn callee(&self, at: usize) -> Result<Option<Longest>> {
        let instruction = self.at(at)?;
        let calls = instruction.branches() && instruction.operation() == code::CALL && instruction.src == code::LOCAL;
        calls.then(|| longest(self.program, instruction.target(at)?)).transpose()
    }

    fn successors(&self, at: usize) -> Result<Vec<usize>> {
        let instruction = self.at(at)?;
        let next = instruction.next(at);
        if !instruction.branches() {
            return Ok(vec![next]);
        }
        Ok(match instruction.operation() {
            code::EXIT => Vec::new(),
            code::CALL if instruction.src == code::HELPER && instruction.immediate == code::TAIL_CALL => Vec::new(),
            code::CALL => vec![next],
            code::JA => vec![instruction.target(at)?],
            _ => vec![next, instruction.target(at)?],
        })
    }

    fn at(&self, at: usize) -> Result<Instruction> {
        self.program.get(at).copied().context("the program is left without an end")
    }

    fn slot(&mut self, at: usize) -> Result<&mut Option<Found>> {
        self.seen.get_mut(at).context("the program is left without an end")
    }

    fn found(&self, at: usize) -> Result<Found> {
        self.seen.get(at).copied().flatten().context("an instruction that was not come to")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Instruction = of(code::JMP | code::EXIT, 0, 0);
    const MOVE: Instruction = of(code::ALU64 | 0xb0, 0, 0);

    const fn of(code: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction { code, dst: 0, src: 0, offset, immediate }
    }

    /// `if r0 == 0 goto`.
    const fn unless(offset: i16) -> Instruction {
        of(code::JMP | 0x10, offset, 0)
    }

    fn path(program: &[Instruction]) -> (u32, bool) {
        let Longest { instructions, has_loop } = longest(program, 0).unwrap();
        (instructions, has_loop)
    }

    #[test]
    fn the_longer_of_two_branches_counts() {
        assert_eq!(path(&[EXIT]), (1, false));
        assert_eq!(path(&[unless(2), MOVE, MOVE, EXIT]), (4, false));
        // Two ways that meet, one after the other.
        assert_eq!(path(&[unless(1), EXIT, unless(3), MOVE, MOVE, MOVE, EXIT]), (6, false));
        // 64 bits that stand in the program take two slots and are one.
        assert_eq!(path(&[of(code::LD_IMM64, 0, 0), of(0, 0, 0), EXIT]), (2, false));
    }

    #[test]
    fn a_loop_is_told() {
        assert_eq!(path(&[MOVE, MOVE, unless(-2), EXIT]), (4, true));
        assert_eq!(path(&[unless(-1), EXIT]), (2, true));
        // Behind a branch too.
        assert_eq!(path(&[unless(2), MOVE, EXIT, MOVE, unless(-2), EXIT]), (4, true));
    }

    #[test]
    fn calls_are_one_and_what_they_call() {
        let helper = of(code::JMP | code::CALL, 0, 5);
        assert_eq!(path(&[helper, EXIT]), (2, false));
        assert_eq!(path(&[of(code::JMP | code::CALL, 0, code::TAIL_CALL), MOVE, EXIT]), (1, false));
        let local = Instruction { src: code::LOCAL, ..of(code::JMP | code::CALL, 0, 1) };
        assert_eq!(path(&[local, EXIT, MOVE, MOVE, EXIT]), (5, false));
        assert_eq!(path(&[local, EXIT, MOVE, unless(-2), EXIT]), (5, true));
    }

    #[test]
    fn a_program_without_an_end_is_refused() {
        assert!(longest(&[MOVE], 0).is_err());
        assert!(longest(&[unless(-3), EXIT], 0).is_err());
    }
}
