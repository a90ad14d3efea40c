//! Hostile PTX gives an error, never a panic: cut, spliced and scrambled texts go through parser and loader.

const SEED_TEXT: &str = include_str!("hostile.ptx");

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % limit.max(1) as u64) as usize
    }
}

fn survives(text: &str) {
    let text = text.to_string();
    // Loading either works or gives an error; a panic fails the test by itself.
    let _ = crate::bench::device().load(&text);
}

#[test]
fn the_seed_is_right() {
    crate::bench::device().load(SEED_TEXT).map(|_| ()).unwrap();
}

#[test]
fn every_prefix_is_survived() {
    for end in (0..SEED_TEXT.len()).step_by(3) {
        if SEED_TEXT.is_char_boundary(end) {
            survives(&SEED_TEXT[..end]);
        }
    }
}

#[test]
fn scrambled_texts_are_survived() {
    let mut random = Random(2024);
    let lines: Vec<&str> = SEED_TEXT.lines().collect();
    let words: Vec<&str> = SEED_TEXT.split_whitespace().collect();
    for round in 0..6000 {
        let text = match round % 4 {
            0 => {
                // Lines dropped, doubled and swapped.
                let mut lines = lines.clone();
                for _ in 0..1 + random.below(4) {
                    let at = random.below(lines.len());
                    match random.below(3) {
                        0 => drop(lines.remove(at)),
                        1 => lines.insert(at, lines[random.below(lines.len())]),
                        _ => {
                            let other = random.below(lines.len());
                            lines.swap(at, other);
                        }
                    }
                }
                lines.join("\n")
            }
            1 => {
                // Words replaced by others of the text.
                let mut text: Vec<String> = lines.iter().map(|line| (*line).to_string()).collect();
                for _ in 0..1 + random.below(3) {
                    let at = random.below(text.len());
                    let new = words[random.below(words.len())];
                    let old = text[at].split_whitespace().nth(random.below(4)).map(str::to_string);
                    if let Some(old) = old {
                        text[at] = text[at].replacen(&old, new, 1);
                    }
                }
                text.join("\n")
            }
            2 => {
                // Bytes changed.
                let mut bytes = SEED_TEXT.as_bytes().to_vec();
                for _ in 0..1 + random.below(8) {
                    let at = random.below(bytes.len());
                    bytes[at] = random.below(256) as u8;
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => {
                // Numbers made extreme.
                let extreme = [
                    "0",
                    "-1",
                    "18446744073709551615",
                    "99999999999999999999",
                    "0x",
                    "0f1",
                    "4294967296",
                    "1e999",
                ];
                let mut text = SEED_TEXT.to_string();
                let places: Vec<usize> =
                    text.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
                let at = places[random.below(places.len())];
                text.replace_range(at..=at, extreme[random.below(extreme.len())]);
                text
            }
        };
        survives(&text);
    }
}

#[test]
fn known_traps_are_survived() {
    for text in [
        "",
        ".version",
        ".version 9.0 .target sm_80 .entry",
        &format!(".version 9.0\n.target sm_80\n.entry k() {{ {} }}", "{".repeat(100_000)),
        ".version 9.0\n.target sm_80\n.entry k() { .reg .b32 %r<4294967295>; ret; }",
        ".version 9.0\n.target sm_80\n.entry k() { .shared .align 4 .b8 x[99999999999999]; ret; }",
        ".version 9.0\n.target sm_80\n.entry k() { bra NOWHERE; }",
        ".version 9.0\n.target sm_80\n.entry k() { .reg .pred %p; @%p bra L; L: @%q ret; }",
        ".version 9.0\n.target sm_80\n.entry k(.param .align 3 .b8 p[7]) { ret; }",
        ".version 9.0\n.target sm_80\n.entry k() { .reg .b32 %r; mov.b32 %r, {%r, %r, %r}; ret; }",
        ".version 9.0\n.target sm_80\n.entry k() { .reg .b32 %r; mov.b32 %r, {}; ret; }",
        ".version 9.0\n.target sm_80\n.entry k() { bar.red.popc.u32 ; ret; }",
        ".version 9.0\n.target sm_80\n.global .b32 x = {1, 2, 3",
        "/* never ends",
        ".version 9.0\n.file 1 \"never ends",
        "\u{7f}ELF\u{0}",
        "ünïcode",
    ] {
        survives(text);
    }
}
