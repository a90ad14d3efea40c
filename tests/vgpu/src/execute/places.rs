//! Maps by place in shared memory, which the executor asks at every product and every wait.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by place. Places are few and nobody chooses them to collide, so one multiplication spreads them.
pub(super) type Places<T> = HashMap<usize, T, BuildHasherDefault<PlaceHasher>>;

#[derive(Default)]
pub(super) struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_usize(usize::from(byte));
        }
    }

    fn write_usize(&mut self, place: usize) {
        let mixed = (self.0 ^ place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The upper half is the better one, and maps look at both ends.
        self.0 = mixed ^ mixed >> 32;
    }
}
