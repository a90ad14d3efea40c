//! The demonstration: its generated rows, and a comparison of a few steps.

use std::collections::HashSet;

use promptmix::demo::words::{
    ACT, AGENT, BEFORE, EVENT_ACT, EVENT_AGENT, EVENT_BEFORE, EVENT_LATER, LATER, NEGATIVE, POSITIVE,
};
use promptmix::demo::{Generated, GeneratedTask, Rows, SOURCES, TARGET};

const ROWS: Rows = Rows { train: 200, validation: 60, test: 100 };

fn tasks() -> impl Iterator<Item = GeneratedTask> {
    SOURCES.into_iter().chain([TARGET])
}

fn splits(generated: &Generated) -> [&[(String, usize)]; 3] {
    [&generated.train, &generated.validation, &generated.test]
}

#[test]
fn a_seed_gives_the_same_rows_and_another_seed_others() {
    for task in tasks() {
        let rows = task.generate(ROWS, 7).unwrap();
        assert_eq!(rows, task.generate(ROWS, 7).unwrap(), "{}", task.name);
        assert_ne!(rows, task.generate(ROWS, 8).unwrap(), "{}", task.name);
    }
}

#[test]
fn every_split_is_balanced_and_no_text_is_in_two() {
    for task in tasks() {
        let rows = task.generate(ROWS, 1).unwrap();
        let mut seen = HashSet::new();
        for (split, count) in splits(&rows).into_iter().zip([200, 60, 100]) {
            assert_eq!(split.len(), count);
            assert_eq!(split.iter().filter(|(_, label)| *label == 1).count(), count / 2, "{}", task.name);
            for (text, _) in split {
                assert!(seen.insert(text.clone()), "{}: {text:?} occurs twice", task.name);
            }
        }
    }
}

#[test]
fn the_words_of_a_sentence_tell_its_label() {
    for task in tasks() {
        let rows = task.generate(ROWS, 3).unwrap();
        for (text, label) in splits(&rows).concat() {
            assert_eq!(label_of(task.name, &text), label, "{}: {text:?}", task.name);
        }
    }
}

#[test]
fn lists_that_labels_hang_on_do_not_overlap_and_the_target_has_words_of_its_own() {
    let past = |acts: &[(&'static str, &'static str)]| acts.iter().map(|(past, _)| *past).collect::<Vec<_>>();
    for (one, other) in [
        (POSITIVE.to_vec(), NEGATIVE.to_vec()),
        ([BEFORE, EVENT_BEFORE].concat(), [LATER, EVENT_LATER].concat()),
        ([AGENT, BEFORE, LATER].concat(), [EVENT_AGENT, EVENT_BEFORE, EVENT_LATER].concat()),
        (past(ACT), past(EVENT_ACT)),
    ] {
        assert!(one.iter().all(|word| !other.contains(word)), "{one:?} and {other:?}");
    }
    assert!(ACT.iter().chain(EVENT_ACT).all(|(past, future)| past != future));
}

#[test]
fn more_rows_than_the_words_can_make_are_refused() {
    let rows = Rows { train: 1_000_000, validation: 2, test: 2 };
    let error = SOURCES[0].generate(rows, 1).unwrap_err().to_string();
    assert!(error.contains("ask for fewer"), "{error}");
}

/// The label by the task's question, from the words alone.
fn label_of(task: &str, text: &str) -> usize {
    let words: Vec<&str> = text.split(' ').collect();
    let opinions = opinions(&words);
    match task {
        "film" => {
            assert_eq!(opinions.len(), 1, "{text:?}");
            opinions[0]
        }
        "contrast" => {
            assert!(opinions.len() == 2 && opinions[0] != opinions[1], "{text:?} does not contrast");
            opinions[1]
        }
        "opinion" => usize::from(!opinions.is_empty()),
        "agreement" => {
            assert_eq!(opinions.len(), 2, "{text:?}");
            usize::from(opinions[0] == opinions[1])
        }
        "time" | "outlook" | "event" => {
            let later = words.contains(&"will");
            let past = BEFORE.iter().chain(EVENT_BEFORE).any(|time| text.contains(time));
            let future = LATER.iter().chain(EVENT_LATER).any(|time| text.contains(time));
            assert_eq!(past || future, task != "outlook", "{text:?}");
            assert!(!(past && later) && (!future || later), "{text:?} contradicts itself");
            usize::from(later)
        }
        other => panic!("no rule for {other}"),
    }
}

/// The sentiments of a sentence's opinions, in order.
fn opinions(words: &[&str]) -> Vec<usize> {
    let sentiment = |word: &&str| {
        let good = POSITIVE.contains(word);
        (good || NEGATIVE.contains(word)).then_some(usize::from(good))
    };
    words.iter().filter_map(sentiment).collect()
}
