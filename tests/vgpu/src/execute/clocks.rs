//! What warps know of each other: vector clocks.
//!
//! A warp's own entry ticks at every barrier it passes, and whoever passes the barrier with it learns all it knew. Lanes
//! of one warp are ordered by `__syncwarp` and barriers, which move the warp's tick.

/// What the warps of a block know of each other.
pub struct Clocks {
    /// `known[w * warps + u]`: touches by warp `u` at clocks below this came before what warp `w` does now.
    known: Vec<u16>,
    warps: usize,
    /// Moves at everything that orders the lanes of a warp.
    pub ticks: Vec<u32>,
}

impl Clocks {
    /// For a block of so many warps.
    pub fn new(warps: usize) -> Self {
        Self { known: vec![1; warps * warps], warps, ticks: vec![1; warps] }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.known.fill(1);
        self.ticks.fill(1);
    }

    /// What a warp knows.
    #[inline(always)]
    pub fn of(&self, warp: usize) -> &[u16] {
        &self.known[warp * self.warps..(warp + 1) * self.warps]
    }

    /// A warp's own clock.
    pub fn now(&self, warp: usize) -> u16 {
        self.of(warp)[warp]
    }

    /// Whether what another warp did at a clock came before what a warp does now.
    pub fn knows(&self, warp: usize, other: usize, clock: u16) -> bool {
        warp == other || self.of(warp)[other] > clock
    }

    /// Lets `to` know all that a warp knows, and keeps its own clock.
    pub fn lend(&mut self, warp: usize, to: usize) {
        let own = self.now(to);
        self.known.copy_within(warp * self.warps..(warp + 1) * self.warps, to * self.warps);
        self.known[to * self.warps + to] = own;
    }

    /// Lets a warp know what another did at a clock, and nothing else.
    pub fn see(&mut self, warp: usize, other: usize, clock: u16) {
        let known = &mut self.known[warp * self.warps + other];
        *known = (*known).max(clock.saturating_add(1));
    }

    /// Ends the warp's present interval, but orders none of its lanes.
    pub fn advance(&mut self, warp: usize) {
        let own = &mut self.known[warp * self.warps + warp];
        *own = own.saturating_add(1);
    }

    /// Ends the warp's present interval and adds what it knows to `pool`.
    pub fn give(&mut self, warp: usize, pool: &mut Vec<u16>) {
        let own = &mut self.known[warp * self.warps + warp];
        *own = own.saturating_add(1);
        self.ticks[warp] += 1;
        pool.resize(self.warps, 0);
        for (into, from) in pool.iter_mut().zip(self.of(warp)) {
            *into = (*into).max(*from);
        }
    }

    /// Lets a warp learn what is in `pool`.
    pub fn take(&mut self, warp: usize, pool: &[u16]) {
        self.ticks[warp] += 1;
        for (into, from) in self.known[warp * self.warps..(warp + 1) * self.warps].iter_mut().zip(pool) {
            *into = (*into).max(*from);
        }
    }
}
