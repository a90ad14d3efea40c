//! `setmaxnreg`: registers that warps of a block give up and take.

use super::block::Room;
use super::warp::{Hold, Next, Warp};
use crate::check::Check;
use crate::device::registers_of;
use crate::execute::Shape;
use crate::profile::REGISTERS;
use crate::program::{Op, Program};

/// Registers of a thread when a block begins: what the launch bounds leave in the kernels that change it.
pub(super) fn at_entry(program: &Program, shape: &Shape) -> u32 {
    if !program.code.iter().any(|decoded| matches!(decoded.op, Op::Registers(..))) {
        return 0;
    }
    if program.max_registers > 0 {
        return program.max_registers / 8 * 8;
    }
    let threads = if program.max_threads > 0 { program.max_threads } else { return registers_of(program) };
    let _ = shape;
    (REGISTERS / (threads.next_multiple_of(32) * program.min_blocks.max(1))).min(255) / 8 * 8
}

impl Warp {
    pub(super) fn change_registers(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        up: bool,
        count: u32,
    ) -> Next {
        let held = self.held_registers;
        let current = room.cluster.current;
        if up && count < held || !up && count > held {
            room.report(Check::Trap, at, me, 0, || {
                let way = if up { "inc" } else { "dec" };
                format!("setmaxnreg.{way} to {count} registers by a warp that has {held}")
            });
            return Next::Fault;
        }
        let free = &mut room.cluster.members[current].free_registers;
        if up {
            if count - held > *free {
                return Next::Park(Hold::Registers);
            }
            *free -= count - held;
        } else {
            *free += held - count;
            room.registers_freed = true;
        }
        room.progress += 1;
        self.held_registers = count;
        Next::Continue
    }
}
