//! Checking a SentencePiece `precompiled_charsmap` before the crate that applies it, which trusts every offset in it.
//!
//! Not for applying it. The format: the length of a double-array trie in bytes, the trie as 32-bit units, then the
//! replacements, each ended by a zero byte. A walk through the trie may only ever meet units that exist, and a value
//! that it ends on must be the start of a replacement.

/// Whether every walk through the map stays inside it; otherwise what is wrong with it.
pub(super) fn check(charsmap: &[u8]) -> Result<(), &'static str> {
    let (length, rest) = charsmap.split_first_chunk::<4>().ok_or("no length")?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| "a length that cannot be")?;
    let (trie, replacements) = rest.split_at_checked(length).ok_or("a trie longer than the map")?;
    let (units, remainder) = trie.as_chunks::<4>();
    if units.is_empty() || !remainder.is_empty() {
        return Err("a trie that is not made of whole units");
    }
    let replacements = std::str::from_utf8(replacements).map_err(|_| "replacements that are not UTF-8")?;
    let unit = |at: usize| units.get(at).map(|bytes| u32::from_le_bytes(*bytes));

    // Each node is visited once; its children are the positions that its base reaches by one more byte.
    let mut visited = vec![false; units.len()];
    let mut waiting = vec![0];
    while let Some(node) = waiting.pop() {
        let found = unit(node).ok_or("a node outside the trie")?;
        let base = node ^ offset(found);
        if has_leaf(found) {
            let value = (unit(base).ok_or("a value outside the trie")? & !(1 << 31)) as usize;
            if !replacements.is_char_boundary(value) {
                return Err("a value that is not the start of a replacement");
            }
        }
        for byte in 1..=255 {
            let child = base ^ byte;
            let found = unit(child).ok_or("a branch outside the trie")?;
            if found & (1 << 31 | 0xff) == byte as u32 && !std::mem::replace(&mut visited[child], true) {
                waiting.push(child);
            }
        }
    }
    Ok(())
}

/// Whether a value hangs below a node.
fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

/// What is exclusive-ored to a node's position to find its children.
fn offset(unit: u32) -> usize {
    (unit as usize >> 10) << ((unit as usize & 1 << 9) >> 6)
}
