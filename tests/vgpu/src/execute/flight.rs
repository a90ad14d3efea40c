//! Registers of a product of a warpgroup belong to the hardware from its issue to the wait that covers it, and must be
//! fenced before it. The compiler's own copies between registers carry what is known along.

use super::block::Room;
use super::warp::Warp;
use crate::check::Check;
use crate::program::{Note, Wgmma, WgmmaLeft, is_copy};

/// What a warp has under way.
#[derive(Default)]
pub(super) struct Flight {
    /// By register: the group that has it, counted from 1; 0 for none.
    group: Vec<u32>,
    /// By register: columns of the product that has it.
    columns: Vec<u16>,
    /// By register: whether it was written since the last fence.
    unfenced: Vec<bool>,
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
            group: vec![0; count],
            columns: vec![0; count],
            unfenced: vec![false; count],
            fragments: (0..count as u32).filter(|&id| fragments[id as usize]).collect(),
            current: 1,
            ..Self::default()
        }
    }

    pub fn reset(&mut self) {
        self.group.fill(0);
        self.unfenced.fill(false);
        self.current = 1;
        self.has_fenced = false;
    }

    pub fn fence(&mut self) {
        self.has_fenced = true;
        for &id in &self.fragments {
            self.unfenced[id as usize] = false;
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
            let (from, to) = (*from as usize, *to as usize);
            let overwritten = self.group[to] != 0 && self.group[from] == 0;
            self.group[to] = self.group[from];
            self.columns[to] = self.columns[from];
            self.unfenced[to] = self.unfenced[from];
            return overwritten.then_some("is written");
        }
        let mut wrong = None;
        for &id in &note.uses {
            if self.group[id as usize] != 0 {
                wrong = Some("is read");
            }
        }
        for &id in &note.defines {
            let id = id as usize;
            if self.group[id] != 0 {
                wrong = wrong.or(Some("is written"));
                self.group[id] = 0;
            }
            self.unfenced[id] = true;
        }
        wrong
    }

    /// Notes a product; gives what is wrong with its registers.
    fn begin(&mut self, op: &Wgmma, adds: bool) -> Option<&'static str> {
        let mut wrong = None;
        if !self.has_fenced {
            wrong = Some("no wgmma.fence was executed before the first wgmma");
        }
        for &slot in &op.d {
            let id = slot as usize;
            if self.group[id] != 0 && usize::from(self.columns[id]) != op.columns {
                wrong = wrong.or(Some("a product of another shape has a register of D under way"));
            }
            if adds && self.unfenced[id] {
                wrong = wrong.or(Some("a register of D was written since the last wgmma.fence"));
            }
            self.unfenced[id] = false;
            self.group[id] = self.current;
            self.columns[id] = op.columns as u16;
        }
        if let WgmmaLeft::Registers(registers) = &op.a {
            for &slot in registers {
                let id = slot as usize;
                if self.unfenced[id] {
                    wrong = wrong.or(Some("a register of A was written since the last wgmma.fence"));
                }
                self.group[id] = self.current;
                self.columns[id] = 0;
            }
        }
        wrong
    }

    /// Ends all but the last `leave` groups.
    fn end(&mut self, leave: u32) {
        for &id in &self.fragments {
            if self.group[id as usize].saturating_add(leave) < self.current {
                self.group[id as usize] = 0;
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
