//! Registers of a product of a warpgroup belong to the hardware from its issue to the wait that covers it, and must be
//! fenced before it. The compiler's own copies between registers carry what is known along.

use super::block::Room;
use super::warp::Warp;
use crate::check::Check;
use crate::program::{Note, Wgmma, WgmmaLeft, is_copy};

/// What is known of a register.
#[derive(Clone, Copy, Default)]
struct Fragment {
    /// The group that has it, counted from 1; 0 for none.
    group: u32,
    /// Columns of the product that has it.
    columns: u16,
    /// Whether it was written since the last fence.
    unfenced: bool,
}

/// What a warp has under way.
#[derive(Default)]
pub(super) struct Flight {
    /// By register.
    registers: Vec<Fragment>,
    /// Registers that may be fragments at all.
    fragments: Vec<u32>,
    /// Products are put into this group, counted from 1.
    current: u32,
    has_fenced: bool,
}

impl Flight {
    /// For a kernel whose fragments are marked.
    pub fn new(fragments: &[bool]) -> Self {
        let count = fragments.len();
        Self {
            registers: vec![Fragment::default(); count],
            fragments: (0..count as u32).filter(|&id| fragments[id as usize]).collect(),
            current: 1,
            has_fenced: false,
        }
    }

    pub fn reset(&mut self) {
        self.registers.fill(Fragment::default());
        self.current = 1;
        self.has_fenced = false;
    }

    pub fn fence(&mut self) {
        self.has_fenced = true;
        for &id in &self.fragments {
            self.registers[id as usize].unfenced = false;
        }
    }

    pub fn commit(&mut self) {
        self.current += 1;
    }

    /// Notes an instruction that is no product; gives what is wrong with it.
    fn follow(&mut self, note: &Note) -> Option<&'static str> {
        if is_copy(&note.opcode)
            && let ([from], [to]) = (&note.uses[..], &note.defines[..])
        {
            let from = self.registers[*from as usize];
            let to = &mut self.registers[*to as usize];
            let overwritten = to.group != 0 && from.group == 0;
            *to = from;
            return overwritten.then_some("is written");
        }
        let mut wrong = None;
        for &id in &note.uses {
            if self.registers[id as usize].group != 0 {
                wrong = Some("is read");
            }
        }
        for &id in &note.defines {
            let register = &mut self.registers[id as usize];
            if register.group != 0 {
                wrong = wrong.or(Some("is written"));
                register.group = 0;
            }
            register.unfenced = true;
        }
        wrong
    }

    /// Notes a product; gives what is wrong with its registers.
    fn begin(&mut self, op: &Wgmma, adds: bool) -> Option<&'static str> {
        let mut wrong = None;
        if !self.has_fenced {
            wrong = Some("no wgmma.fence was executed before the first wgmma");
        }
        let taken = Fragment { group: self.current, columns: op.columns as u16, unfenced: false };
        for &slot in &op.d {
            let register = &mut self.registers[slot as usize];
            if register.group != 0 && register.columns != taken.columns {
                wrong = wrong.or(Some("a product of another shape has a register of D under way"));
            }
            if adds && register.unfenced {
                wrong = wrong.or(Some("a register of D was written since the last wgmma.fence"));
            }
            *register = taken;
        }
        if let WgmmaLeft::Registers(registers) = &op.a {
            for &slot in registers {
                let register = &mut self.registers[slot as usize];
                if register.unfenced {
                    wrong = wrong.or(Some("a register of A was written since the last wgmma.fence"));
                }
                register.group = self.current;
                register.columns = 0;
            }
        }
        wrong
    }

    /// Ends all but the last `leave` groups.
    fn end(&mut self, leave: u32) {
        for &id in &self.fragments {
            let register = &mut self.registers[id as usize];
            if register.group.saturating_add(leave) < self.current {
                register.group = 0;
            }
        }
    }
}

impl Warp {
    /// Watches an instruction that touches registers which may be fragments.
    pub(super) fn follow_fragments(&mut self, room: &mut Room<'_>, me: usize, at: usize) {
        let Some(flight) = &mut self.flight else { return };
        if let Some(what) = flight.follow(&room.launch.program.notes[at]) {
            room.report(Check::RegisterInFlight, at, me, 0, || {
                format!("a register of a wgmma {what} before a wgmma.wait_group that covers it")
            });
        }
    }

    pub(super) fn begin_product(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        op: &Wgmma,
        adds: bool,
    ) {
        let Some(flight) = &mut self.flight else { return };
        if let Some(what) = flight.begin(op, adds) {
            room.report(Check::RegisterInFlight, at, me, 0, || what.to_string());
        }
    }

    pub(super) fn end_products(&mut self, leave: u32) {
        if let Some(flight) = &mut self.flight {
            flight.end(leave);
        }
    }
}
