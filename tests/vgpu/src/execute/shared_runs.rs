//! Many chunks of shared memory at once, as bulk copies write them and products of a warpgroup read them: what one touch after
//! the other would find and note, without what it costs to begin each.

use std::ops::Range;

use super::chunk::{MANY_LANES, ONES, Toucher};
use super::clocks::Clocks;
use super::proxy::{Proxies, Unfenced};
use super::shared::{Finding, Shared, Touch};
use crate::tensor_map::Swizzle;

/// What is not as it should be with a chunk that a product reads.
pub(super) struct Odd {
    /// Its place in the list of chunks.
    pub position: usize,
    pub found: Finding,
    pub unfenced: Option<Unfenced>,
    /// How a tensor copy laid it out; none where something else wrote it.
    pub layout: Option<Swizzle>,
}

impl Shared {
    /// Checks and notes that a lane's bulk copy will write some chunks, which are awaited from here on.
    pub fn await_copy(&mut self, chunks: Range<usize>, lane: usize, warp: usize, clocks: &Clocks) -> Finding {
        let (who, lanes) = (Toucher::new(warp, clocks), lane as u64 * ONES);
        let touch = Touch { write: true, atomic: false, warp };
        let mut out = Finding::default();
        for index in chunks {
            if !self.hollow.is_empty() {
                self.fill(index, u16::MAX);
            }
            let chunk = &mut self.chunks[index];
            out.pending |= chunk.pending != 0;
            chunk.written = u16::MAX;
            chunk.pending = u16::MAX;
            let collision = if chunk.split {
                self.touch_split(index, lanes, touch, clocks)
            } else {
                chunk.touch(&mut self.chunk_reads, index, lanes, true, false, who)
            };
            out.collision = out.collision.or(collision);
        }
        out
    }

    /// Marks some chunks as arrived.
    pub fn arrive(&mut self, chunks: Range<usize>) {
        if let Some(chunks) = self.chunks.get_mut(chunks) {
            chunks.iter_mut().for_each(|chunk| chunk.pending = 0);
        }
    }

    /// Checks and notes that products of a warp read chunks of a list from a position on, as `reader` and by way of spans of
    /// some bytes, up to the first that is not as it should be.
    pub fn read_chunks(
        &mut self,
        chunks: &[u32],
        from: usize,
        (reader, warp): (usize, usize),
        span: u64,
        proxies: &Proxies,
        clocks: &Clocks,
    ) -> Option<Odd> {
        let (who, lanes) = (Toucher::new(reader, clocks), u64::from(MANY_LANES) * ONES);
        let touch = Touch { write: false, atomic: false, warp: reader };
        for (position, &index) in chunks.iter().enumerate().skip(from) {
            let index = index as usize;
            let hollow = !self.hollow.is_empty() && self.is_hollow(index, u16::MAX);
            let chunk = &mut self.chunks[index];
            let (unwritten, pending) = (chunk.written != u16::MAX, chunk.pending != 0);
            let collision = if chunk.split {
                self.touch_split(index, lanes, touch, clocks)
            } else {
                chunk.touch(&mut self.chunk_reads, index, lanes, false, false, who)
            };
            let found = Finding { unwritten, hollow, pending, collision };
            let layout = proxies.layout(index);
            let unfenced = proxies.check_product(index, warp, clocks);
            let other = layout.is_some_and(|layout| layout.span() as u64 != span);
            if !found.is_clean() || unfenced.is_some() || other {
                return Some(Odd { position, found, unfenced, layout });
            }
        }
        None
    }
}
