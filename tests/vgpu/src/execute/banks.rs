//! What requests to memory cost: passes over the banks of shared memory, sectors of global memory.

use crate::counters::{GlobalTraffic, SharedTraffic};
use crate::program::LANES;

impl SharedTraffic {
    /// Counts an instruction whose lanes move `bytes` each.
    #[inline]
    pub(super) fn count(&mut self, addresses: &[u64; LANES], mask: u32, bytes: usize) {
        let (passes, least) = wavefronts(addresses, mask, bytes);
        self.requests += 1;
        self.wavefronts += passes;
        self.conflicts += passes - least;
    }
}

impl GlobalTraffic {
    /// Counts an instruction whose lanes move `bytes` together.
    #[inline]
    pub(super) fn count(&mut self, addresses: &[u64; LANES], mask: u32, bytes: u64) {
        self.requests += 1;
        self.sectors += sectors(addresses, mask);
        self.bytes += bytes;
    }
}

/// Passes over the banks that the accesses of some lanes need together, and the fewest that their bytes would.
///
/// Lanes come in groups that the hardware serves together: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16.
pub fn wavefronts(addresses: &[u64; LANES], mask: u32, bytes: usize) -> (u64, u64) {
    let group = match bytes {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    let (mut total, mut least) = (0, 0);
    let mut first = 0;
    while first < 32 {
        let lanes = (mask >> first) & if group == 32 { u32::MAX } else { (1 << group) - 1 };
        if lanes != 0 {
            total += if spread(addresses, first, lanes, bytes) {
                1
            } else {
                passes(addresses, first, lanes, bytes)
            };
            least += 1;
        }
        first += group;
    }
    (total, least)
}

/// Whether no two lanes meet on a bank, as a quick look can tell.
#[inline(always)]
fn spread(addresses: &[u64; LANES], first: usize, mut lanes: u32, bytes: usize) -> bool {
    let words = bytes.div_ceil(4) as u32;
    let banks = ((1u64 << words) - 1) as u32;
    let (mut seen, mut clash) = (0u32, false);
    let mut last = u64::MAX;
    while lanes != 0 {
        let lane = first + lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        // Neighbours that read the same are served at once.
        if addresses[lane] == last {
            continue;
        }
        last = addresses[lane];
        let own = banks.rotate_left((addresses[lane] / 4 % 32) as u32);
        clash |= seen & own != 0;
        seen |= own;
    }
    !clash && words <= 8
}

/// The most distinct words that fall on one bank.
fn passes(addresses: &[u64; LANES], first: usize, mut lanes: u32, bytes: usize) -> u64 {
    let mut seen = [u64::MAX; 32];
    let mut clash: Vec<u64> = Vec::new();
    while lanes != 0 {
        let lane = first + lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let (from, to) = (addresses[lane] / 4, (addresses[lane] + bytes as u64 - 1) / 4);
        for word in from..=to {
            let bank = (word % 32) as usize;
            if seen[bank] == u64::MAX {
                seen[bank] = word;
            } else if seen[bank] != word && !clash.contains(&word) {
                clash.push(word);
            }
        }
    }
    let mut per_bank = [1u64; 32];
    for word in clash {
        per_bank[(word % 32) as usize] += 1;
    }
    per_bank.into_iter().max().unwrap_or(1)
}

/// Sectors that the lanes of a request touch.
pub fn sectors(addresses: &[u64; LANES], mask: u32) -> u64 {
    if mask == u32::MAX {
        // Addresses mostly rise from lane to lane, and then the changes of sector are counted.
        let (mut falls, mut changes) = (false, 1);
        for pair in addresses.windows(2) {
            falls |= pair[1] < pair[0];
            changes += u64::from(pair[1] / 32 != pair[0] / 32);
        }
        if !falls {
            return changes;
        }
    }
    let mut seen = [0u64; LANES];
    let mut count = 0usize;
    let mut highest = None;
    let mut lanes = mask;
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        // Every access is aligned to its size, so none lies in two sectors.
        let sector = addresses[lane] / 32;
        if highest.is_none_or(|high| sector > high) {
            highest = Some(sector);
        } else if highest == Some(sector) || seen[..count].contains(&sector) {
            continue;
        }
        seen[count] = sector;
        count += 1;
    }
    count as u64
}
