//! Numbers and names of a picture. Names must fit: how wide they are, and how they are cut so that what tells them apart stays.

use crate::train::{NAME_BREAKS, common_ends};

/// The width of `text` in a sans-serif font of so many pixels, rather more than less: fonts differ, and a name that is too
/// wide runs into its neighbour.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' => 0.38,
        'f' | 'r' | 't' | '(' | ')' | '[' | ']' | '/' | '-' | ' ' => 0.45,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '…' => 1.0,
        'A'..='Z' => 0.78,
        // Wide scripts fill a square.
        '\u{1100}'.. => 1.05,
        _ => 0.66,
    };
    text.chars().map(of).sum::<f64>() * size
}

/// A coordinate, to a hundredth.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `text`, or its beginning and end with an ellipsis between if it has more than `most` letters.
pub(super) fn cut(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let kept = most.saturating_sub(1);
    // Names differ at their ends more often than at their beginnings.
    let head = kept / 2;
    let tail = kept - head;
    text.chars().take(head).chain(['…']).chain(text.chars().skip(count - tail)).collect()
}

/// Parts of a name at most, where several are needed to tell it from others.
const MAX_PARTS: usize = 3;
/// Where a path may be parted.
const PATH_BREAKS: &str = "/";

/// The names, each of at most `most` letters where that leaves different names different: what all have in common at the
/// beginning or end goes first, folders before words, then the middle.
pub(super) fn shortened(names: &[String], most: usize) -> Vec<String> {
    let fit = |names: &[String]| names.iter().all(|name| name.chars().count() <= most);
    if fit(names) {
        return names.to_vec();
    }
    let mut inside = names.to_vec();
    for (breaks, drops_end) in [(PATH_BREAKS, false), (PATH_BREAKS, true), (NAME_BREAKS, true)] {
        let (head, tail) = common_ends(names, breaks);
        let tail = if drops_end { tail } else { 0 };
        let mark = |dropped: usize| if dropped > 0 { "…" } else { "" };
        let inner = |name: &String| format!("{}{}{}", mark(head), &name[head..name.len() - tail], mark(tail));
        inside = names.iter().map(inner).collect();
        if fit(&inside) {
            return inside;
        }
    }
    let short: Vec<String> = inside.iter().map(|name| cut(name, most)).collect();
    (0..names.len()).map(|place| apart(names, &inside, &short, place, most)).collect()
}

/// The name at `place` as it was cut, or where another was cut to the same, the parts in which the two differ.
fn apart(names: &[String], inside: &[String], short: &[String], place: usize, most: usize) -> String {
    let agree = |other: usize| {
        inside[place].chars().zip(inside[other].chars()).take_while(|(one, other)| one == other).count()
    };
    let mut shown = short[place].clone();
    let mut places = Vec::new();
    // Each further part is of letters that the parts before do not show; more parts would show too little each.
    while places.len() < MAX_PARTS {
        let reads_the_same = |other: &usize| match places.is_empty() {
            true => short[*other] == shown,
            false => parts(&inside[*other], &places, most) == shown,
        };
        let others = (0..names.len()).filter(|&other| names[other] != names[place]).filter(reads_the_same);
        let Some(differing) = others.map(agree).min() else { break };
        places.push(differing);
        shown = parts(&inside[place], &places, most);
    }
    shown
}

/// The letters of `text` around each of `places`, of at most `most` letters with the marks of what is left out.
fn parts(text: &str, places: &[usize], most: usize) -> String {
    // A third of a part's letters is for what comes before.
    let kept = most.saturating_sub(places.len() + 1) / places.len().max(1);
    let is_kept = |letter: usize| {
        places.iter().any(|place| {
            let from = place.saturating_sub(kept / 3);
            (from..from + kept).contains(&letter)
        })
    };
    let mut shown = String::new();
    let mut was_kept = true;
    for (letter, written) in text.chars().enumerate() {
        match is_kept(letter) {
            true => shown.push(written),
            false if was_kept => shown.push('…'),
            false => {}
        }
        was_kept = is_kept(letter);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn what_names_have_in_common_goes_before_what_tells_them_apart() {
        let long = names([
            "study/mnli/learning-rate-0.1/attempt-seed-*",
            "study/mnli/learning-rate-0.3/attempt-seed-*",
        ]);
        assert_eq!(shortened(&long, 50), long, "names that fit stay");
        let without_head = ["…learning-rate-0.1/attempt-seed-*", "…learning-rate-0.3/attempt-seed-*"];
        assert_eq!(shortened(&long, 34), without_head);
        assert_eq!(shortened(&long, 20), ["…learning-rate-0.1…", "…learning-rate-0.3…"]);
        assert_eq!(shortened(&long, 10), ["…0.1…", "…0.3…"]);
        let cut =
            shortened(&names(["a very long name that ends in 1", "another long name that ends in 2"]), 12);
        assert!(cut.iter().all(|name| name.chars().count() <= 12), "{cut:?}");
        assert!(cut[0].ends_with('1') && cut[1].ends_with('2'), "{cut:?}");
    }

    #[test]
    fn names_that_a_cut_would_make_equal_show_where_they_differ() {
        let same = names(["begin-one-the-very-same-end", "begin-two-the-very-same-end", "beg"]);
        assert_eq!(shortened(&same, 12), ["…in-one-the…", "…in-two-the…", "beg"]);
        // Two places differ: that of the run, and what of the run it is.
        let runs = ["beginning-one-the-very-same-end", "beginning-two-the-very-same-end", "beg"];
        let both = |run: &str| ["prompt", "scorer"].map(|of| format!("{run}: {of}"));
        let short = shortened(&runs.into_iter().flat_map(both).collect::<Vec<_>>(), 20);
        let expected = ["…g-one-th…", "…g-two-th…"].map(both);
        assert_eq!(short[..4], expected.concat());
        // Equal names cannot be told apart, and need not be.
        assert_eq!(shortened(&names(["twice the same", "twice the same"]), 5), ["tw…me", "tw…me"]);
    }

    #[test]
    fn letters_of_several_bytes_are_never_split() {
        let names = names(["äöü/ßé-日本", "äöü/ñ-日本", "äöü/日日日日日日日日日-日本"]);
        let (head, tail) = common_ends(&names, NAME_BREAKS);
        assert_eq!((&names[0][..head], &names[0][names[0].len() - tail..]), ("äöü/", "-日本"));
        assert_eq!(shortened(&names, 6), ["…ßé…", "…ñ…", "…日…日日…"]);
        assert_eq!(shortened(&[], 3), [""; 0]);
    }
}
