//! Instructions that lanes of a warp execute together: whoever comes first waits for the others.
//!
//! Lanes wait for those that their mask names and that live. The lowest instruction runs first, so lanes that a
//! branch sent to a higher one come late, and are waited for; lanes that end, or that wait elsewhere for good,
//! never come, and that is reported. Lanes that ended before are not waited for. Groups of lanes that name
//! different masks execute the same instruction one after the other, as a device does it.

use super::block::Room;
use super::warp::{Path, Warp};
use crate::check::Check;
use crate::program::{LANES, Members, Op, Program};

impl Warp {
    /// Whether the lanes that stand at an instruction are just those that it needs.
    #[inline(always)]
    pub(super) fn all_came(&self, room: &Room<'_>, me: usize, members: Members, mask: u32) -> bool {
        let live = room.live_lanes[me];
        match members {
            Members::None => true,
            Members::All => mask == live,
            Members::Named(slot) => {
                let named = &self.registers.words[slot as usize].0;
                let first = named[mask.trailing_zeros() as usize & 31];
                let mut other = 0;
                for (lane, name) in named.iter().enumerate() {
                    other |= u32::from(*name != first) << lane;
                }
                other & mask == 0 && first & live == mask
            }
        }
    }

    /// Joins the lanes that have come to an instruction with those that wait there, and gives a group that is whole;
    /// 0 for none. Of the others, those that lack somebody wait, and those that are whole follow.
    #[cold]
    pub(super) fn meet(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        mask: u32,
        lanes: &mut u32,
    ) -> u32 {
        let program = room.launch.program;
        let live = room.live_lanes[me];
        *lanes &= !mask;
        let (mut rest, mut go) = (mask, 0);
        while rest != 0 {
            let wanted = self.wanted(program.code[at].members, rest.trailing_zeros() as usize);
            let mut group = lanes_where(rest, |lane| self.wanted(program.code[at].members, lane) == wanted);
            rest &= !group;
            if group & !wanted != 0 {
                let lane = (group & !wanted).trailing_zeros() as usize;
                room.report(Check::MemberMask, at, me, lane, || {
                    format!("the lane names lanes {wanted:08x}, and is not among them")
                });
            }
            let together = |path: &Path| path.awaits == wanted && meets(program, path.at, at);
            let waiting = self.paths.iter().filter(|path| together(path));
            let came = waiting.fold(group, |came, path| came | path.lanes);
            if wanted & live & !came != 0 {
                self.paths.push(Path { awaits: wanted, ..Path::new(at, group) });
                continue;
            }
            self.paths.retain_mut(|path| {
                let here = together(path) && path.at == at;
                if here {
                    group |= path.lanes;
                } else if together(path) {
                    // What they came to elsewhere is done as well.
                    path.awaits = 0;
                    path.at += 1;
                }
                !here
            });
            if go == 0 {
                go = group;
            } else {
                self.paths.push(Path::new(at, group));
            }
        }
        *lanes |= go;
        go
    }

    /// The lanes that a lane must meet at an instruction.
    fn wanted(&self, members: Members, lane: usize) -> u32 {
        match members {
            Members::None => 1 << lane,
            Members::Named(slot) => self.registers.words[slot as usize].0[lane & 31],
            Members::All => u32::MAX,
        }
    }

    /// Reports who waited for lanes that ended, and lets those go on that wait for nobody else.
    pub(super) fn miss(&mut self, room: &mut Room<'_>, me: usize, ended: u32) {
        let program = room.launch.program;
        let live = room.live_lanes[me];
        for index in 0..self.paths.len() {
            let path = &self.paths[index];
            let (at, awaits) = (path.at, path.awaits);
            if awaits & ended == 0 {
                continue;
            }
            report_missing(room, me, path, ended, "ended without coming");
            let together = |path: &&Path| path.awaits == awaits && meets(program, path.at, at);
            let came = self.paths.iter().filter(together).fold(0, |came, path| came | path.lanes);
            if awaits & live & !came == 0 {
                // They execute the instruction again, and now all of them are there.
                for path in &mut self.paths {
                    if path.awaits == awaits && meets(program, path.at, at) {
                        path.awaits = 0;
                    }
                }
            }
        }
    }

    /// Reports the first path that waits for lanes of its warp in vain; `false` when none does.
    pub(super) fn report_waiting(&self, room: &mut Room<'_>, me: usize) -> bool {
        let Some(path) = self.paths.iter().find(|path| path.awaits != 0) else { return false };
        let missing = path.awaits & room.live_lanes[me] & !path.lanes;
        report_missing(room, me, path, missing, "wait elsewhere");
        true
    }
}

/// Whether lanes at two instructions meet: at the same one, or at any two `bar.warp.sync`.
fn meets(program: &Program, one: usize, other: usize) -> bool {
    let syncs = |at: usize| matches!(program.code[at].op, Op::SyncWarp(_));
    one == other || syncs(one) && syncs(other)
}

fn lanes_where(mask: u32, holds: impl Fn(usize) -> bool) -> u32 {
    (0..LANES).filter(|lane| mask >> lane & 1 != 0 && holds(*lane)).fold(0, |out, lane| out | 1 << lane)
}

fn report_missing(room: &mut Room<'_>, me: usize, path: &Path, missing: u32, why: &str) {
    let check = match room.launch.program.code[path.at].op {
        Op::Barrier(_) => Check::BarrierInDivergentCode,
        Op::ClusterBarrier(_) => Check::Cluster,
        _ => Check::MemberMask,
    };
    let (lanes, awaits) = (path.lanes, path.awaits);
    room.report(check, path.at, me, lanes.trailing_zeros() as usize, || {
        format!("lanes {lanes:08x} came to what lanes {awaits:08x} must reach together; {missing:08x} {why}")
    });
}
