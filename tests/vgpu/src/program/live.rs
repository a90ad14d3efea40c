//! How many registers a kernel needs, guessed from how many of its values are alive at once.
//!
//! Only ptxas knows the true number. This stands in for it where ptxas was not asked.

use super::{Op, Program, WgmmaLeft};

/// Registers that the hardware's calling convention and addressing take besides the values.
const OVERHEAD: u32 = 8;
/// The most that a thread can have.
const MAX_REGISTERS: u32 = 255;

/// The estimate, in 32-bit registers; `limit` is `.maxnreg`, 0 for none.
pub fn estimate(program: &Program, limit: u32) -> u32 {
    let [words, longs, predicates] = program.registers;
    let total = (words + longs + predicates) as usize;
    let cells = total.div_ceil(64);
    let count = program.code.len();
    // Large kernels would make the fixed point slow; they are estimated by their limit.
    if count.saturating_mul(cells) > 1 << 24 {
        return MAX_REGISTERS.min(if limit > 0 { limit } else { MAX_REGISTERS });
    }
    let mut constant = vec![0u64; cells];
    let slots = (program.word_constants.iter().map(|(slot, _)| *slot))
        .chain(program.long_constants.iter().map(|(slot, _)| words + slot))
        .chain(program.predicate_constants.iter().map(|(slot, _)| words + longs + slot));
    for id in slots {
        constant[id as usize / 64] |= 1 << (id % 64);
    }
    let mut alive: Vec<Vec<u64>> = vec![vec![0; cells]; count + 1];
    let mut most = 0u32;
    loop {
        let mut changed = false;
        for at in (0..count).rev() {
            let mut now = vec![0u64; cells];
            let mut follow = |next: usize| {
                for (cell, other) in now.iter_mut().zip(&alive[next.min(count)]) {
                    *cell |= other;
                }
            };
            match &program.code[at].op {
                Op::Branch(target) => {
                    follow(*target);
                    if program.code[at].guard.is_some() {
                        follow(at + 1);
                    }
                }
                Op::BranchTable(_, targets) => targets.iter().for_each(|&target| follow(target)),
                Op::Exit if program.code[at].guard.is_none() => {}
                _ => follow(at + 1),
            }
            let note = &program.notes[at];
            if program.code[at].guard.is_none() {
                for &id in &note.defines {
                    now[id as usize / 64] &= !(1 << (id % 64));
                }
            }
            for &id in &note.uses {
                now[id as usize / 64] |= 1 << (id % 64);
            }
            if let Op::Wgmma(op) = &program.code[at].op {
                let left = match &op.a {
                    WgmmaLeft::Registers(registers) => &registers[..],
                    WgmmaLeft::Shared(_) => &[],
                };
                op.d.iter().chain(left).for_each(|&id| now[id as usize / 64] |= 1 << (id % 64));
            }
            for (cell, fixed) in now.iter_mut().zip(&constant) {
                *cell &= !fixed;
            }
            if now != alive[at] {
                alive[at] = now;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for set in &alive {
        let mut registers = 0u32;
        for (cell, bits) in set.iter().enumerate() {
            let first = cell as u32 * 64;
            let bits = *bits;
            if bits == 0 {
                continue;
            }
            for bit in 0..64 {
                if bits >> bit & 1 != 0 {
                    let id = first + bit;
                    registers += if id < words {
                        1
                    } else if id < words + longs {
                        2
                    } else {
                        0
                    };
                }
            }
        }
        most = most.max(registers);
    }
    let wanted = (most + OVERHEAD).next_multiple_of(8).clamp(16, MAX_REGISTERS);
    if limit > 0 { wanted.min(limit) } else { wanted }
}
