//! Which registers hold fragments of products of a warpgroup, by themselves or as copies: the executor watches who touches
//! them while a product is under way.

use super::{Op, Program, WgmmaLeft};

/// Notes what a kernel uses of the asynchronous proxy, and its fragments.
pub fn mark(program: &mut Program) {
    let [words, longs, predicates] = program.registers.map(|count| count as usize);
    let mut fragments = vec![false; words + longs + predicates];
    let mut any = false;
    for decoded in &program.code {
        match &decoded.op {
            Op::Wgmma(op) => {
                any = true;
                let left = match &op.a {
                    WgmmaLeft::Registers(registers) => &registers[..],
                    WgmmaLeft::Shared(_) => &[],
                };
                op.d.iter().chain(left).for_each(|&slot| fragments[slot as usize] = true);
                program.uses.async_proxy = true;
            }
            Op::BulkCopy(_) | Op::TensorCopy(_) => program.uses.async_proxy = true,
            Op::DependencyWait => program.uses.dependency_wait = true,
            _ => {}
        }
    }
    if !any {
        return;
    }
    // Copies between registers pass fragments on in either direction; constants are nobody's fragments.
    let constants: Vec<u32> = program.word_constants.iter().map(|(slot, _)| *slot).collect();
    loop {
        let mut changed = false;
        for note in program.notes.iter().filter(|note| is_copy(&note.opcode)) {
            if let ([from], [to]) = (&note.uses[..], &note.defines[..])
                && !constants.contains(from)
            {
                let either = fragments[*from as usize] || fragments[*to as usize];
                changed |= either && !(fragments[*from as usize] && fragments[*to as usize]);
                fragments[*from as usize] = either;
                fragments[*to as usize] = either;
            }
        }
        if !changed {
            break;
        }
    }
    program.uses.fragments = fragments;
}

/// Whether an opcode only copies a register, which the compiler does for its own ends.
pub fn is_copy(opcode: &str) -> bool {
    opcode.starts_with("mov.")
}
