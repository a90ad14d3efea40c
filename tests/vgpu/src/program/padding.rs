//! Halves of 64-bit registers that hold nothing and that nobody reads.
//!
//! Where a parameter of 32 bits is loaded as one of a pair and then converted, nvcc may join it with a register that it never
//! writes, and convert the low half of the whole. Such a join does not use the half.

use super::{Op, Program};

/// Takes the unwritten half from what a join uses, where all that read the whole read its low half alone.
pub fn mark(program: &mut Program) {
    let [words, longs, predicates] = program.registers.map(|count| count as usize);
    let mut writes = vec![0u32; words + longs + predicates];
    let set = program.notes.iter().flat_map(|note| &note.defines).map(|&id| id as usize);
    let known = program.word_constants.iter().map(|(slot, _)| *slot as usize);
    for id in set.chain(known).chain(program.specials.iter().map(|(slot, _)| *slot as usize)) {
        writes[id] += 1;
    }
    let joins =
        |op: &Op| matches!(op, Op::Join(pack) if pack.long && pack.bits == 32 && pack.parts.len() == 2);
    let padded: Vec<usize> = (0..program.code.len())
        .filter(|&at| {
            let note = &program.notes[at];
            let (Some(&high), Some(&whole)) = (note.uses.get(1), note.defines.first()) else { return false };
            let mut readers =
                program.code.iter().zip(&program.notes).filter(|(_, note)| note.uses.contains(&whole));
            joins(&program.code[at].op)
                && writes[high as usize] == 0
                && writes[whole as usize] == 1
                && readers
                    .all(|(decoded, _)| matches!(&decoded.op, Op::Convert(of) if of.from.0.bits() <= 32))
        })
        .collect();
    for at in padded {
        program.notes[at].uses.remove(1);
    }
}
