//! Which registers have a value wherever they are read, as the flow of control shows before anything runs.
//!
//! The executor follows at run time which lanes of a register were computed; it need not do so for these.

use super::{Op, Program};

/// The most cells of all sets together; beyond that nothing is claimed.
const MAX_CELLS: usize = 1 << 24;

/// Marks the instructions that the register check must follow, and the registers that need none.
pub fn mark(program: &mut Program) {
    let suspects = suspects(program);
    for (decoded, note) in program.code.iter_mut().zip(&program.notes) {
        decoded.followed = note.uses.iter().chain(&note.defines).any(|&id| suspects[id as usize]);
    }
    program.definite = suspects.into_iter().map(|suspect| !suspect).collect();
}

/// Registers that may be read before they have a value, or that get theirs from such.
fn suspects(program: &Program) -> Vec<bool> {
    let [words, longs, predicates] = program.registers.map(|count| count as usize);
    let total = words + longs + predicates;
    let cells = total.div_ceil(64);
    let starts = block_starts(program);
    if starts.len().saturating_mul(cells) > MAX_CELLS {
        return vec![true; total];
    }
    // Bit by register: whether a thread may come to the start of a block without having set it.
    let mut unset = vec![vec![0u64; cells]; starts.len()];
    unset[0].fill(u64::MAX);
    let known = (program.word_constants.iter().map(|(slot, _)| *slot as usize))
        .chain(program.specials.iter().map(|(slot, _)| *slot as usize))
        .chain(program.long_constants.iter().map(|(slot, _)| words + *slot as usize))
        .chain(program.predicate_constants.iter().map(|(slot, _)| words + longs + *slot as usize));
    for id in known {
        unset[0][id / 64] &= !(1 << (id % 64));
    }
    let block_of = |at: usize| starts.partition_point(|&start| start <= at) - 1;
    let end_of = |block: usize| starts.get(block + 1).copied().unwrap_or(program.code.len());
    let mut reached = vec![false; starts.len()];
    reached[0] = true;
    let mut waiting = vec![0usize];
    while let Some(block) = waiting.pop() {
        let mut now = unset[block].clone();
        for at in starts[block]..end_of(block) {
            define(program, at, &mut now);
        }
        for next in successors(program, end_of(block) - 1) {
            let next = block_of(next);
            let mut changed = !reached[next];
            reached[next] = true;
            for (into, from) in unset[next].iter_mut().zip(&now) {
                changed |= *from & !*into != 0;
                *into |= from;
            }
            if changed {
                waiting.push(next);
            }
        }
    }
    let mut suspects = vec![false; total];
    // A product of a warpgroup may hold what nobody wrote, as its copies bring it.
    for (id, _) in program.uses.fragments.iter().enumerate().filter(|(_, fragment)| **fragment) {
        suspects[id] = true;
    }
    for (block, now) in unset.iter_mut().enumerate() {
        if !reached[block] {
            continue;
        }
        for at in starts[block]..end_of(block) {
            for &id in &program.notes[at].uses {
                suspects[id as usize] |= now[id as usize / 64] >> (id % 64) & 1 != 0;
            }
            define(program, at, now);
        }
    }
    loop {
        let mut changed = false;
        for note in program.notes.iter().filter(|note| !note.strict) {
            if note.uses.iter().any(|&id| suspects[id as usize]) {
                for &id in &note.defines {
                    changed |= !suspects[id as usize];
                    suspects[id as usize] = true;
                }
            }
        }
        if !changed {
            return suspects;
        }
    }
}

/// Takes what an instruction surely sets from the registers that may be unset.
fn define(program: &Program, at: usize, unset: &mut [u64]) {
    if program.code[at].guard.is_none() {
        for &id in &program.notes[at].defines {
            unset[id as usize / 64] &= !(1 << (id % 64));
        }
    }
}

/// Where a thread may go after an instruction.
fn successors(program: &Program, at: usize) -> Vec<usize> {
    let decoded = &program.code[at];
    let mut next = match &decoded.op {
        Op::Branch(target) => vec![*target],
        Op::BranchTable(_, targets) => {
            let mut next = targets.to_vec();
            next.push(program.code.len() - 1);
            next
        }
        Op::Exit => Vec::new(),
        _ => vec![at + 1],
    };
    if decoded.guard.is_some() {
        next.push(at + 1);
    }
    next.retain(|&target| target < program.code.len());
    next
}

/// First instructions of stretches without branches into or out of their middle.
fn block_starts(program: &Program) -> Vec<usize> {
    let mut starts = vec![0];
    for (at, decoded) in program.code.iter().enumerate() {
        if matches!(decoded.op, Op::Branch(_) | Op::BranchTable(..) | Op::Exit) {
            starts.extend(successors(program, at));
            starts.push(at + 1);
        }
    }
    starts.retain(|&start| start < program.code.len());
    starts.sort_unstable();
    starts.dedup();
    starts
}
