//! SQuAD's exact match and F1 over free text, with SQuAD's normalisation (Rajpurkar et al. 2016).

use std::collections::HashMap;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Share of predictions equal to one of their references after [`normalise`]; `None` without examples. An example
/// without references is wrong unless the prediction too is empty.
pub fn exact_match(predictions: &[String], references: &[Vec<String>]) -> Option<f64> {
    mean_of_best(predictions, references, |prediction, reference| {
        f64::from(u8::from(prediction == reference))
    })
}

/// Mean over the examples of the best word F1 with any reference after [`normalise`]; `None` without examples. An
/// example without references scores 0, as does a pair of texts with no word left.
pub fn f1(predictions: &[String], references: &[Vec<String>]) -> Option<f64> {
    mean_of_best(predictions, references, word_f1)
}

/// Lower case, no ASCII punctuation, no article `a`, `an`, `the`, single spaces: what SQuAD compares.
pub fn normalise(text: &str) -> String {
    let lowered: String =
        text.to_lowercase().chars().filter(|letter| !letter.is_ascii_punctuation()).collect();
    let mut without_articles = String::with_capacity(lowered.len());
    let mut rest = lowered.as_str();
    while let Some(first) = rest.chars().next() {
        let in_word = is_word(first);
        let end = rest.find(|letter| is_word(letter) != in_word).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        without_articles.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    let words: Vec<_> = without_articles.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// A letter, number or underscore: what `\w` means to the scripts whose results are to be equalled. Combining marks
/// are not among them.
pub(crate) fn is_word(letter: char) -> bool {
    letter == '_'
        || if letter.is_ascii() {
            letter.is_ascii_alphanumeric()
        } else {
            matches!(
                letter.general_category_group(),
                GeneralCategoryGroup::Letter | GeneralCategoryGroup::Number
            )
        }
}

/// White space as the same scripts see it: Unicode's, and the four ASCII separators.
pub(crate) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\x1c'..='\x1f').contains(&letter)
}

fn mean_of_best(
    predictions: &[String],
    references: &[Vec<String>],
    score: impl Fn(&str, &str) -> f64,
) -> Option<f64> {
    let examples = predictions.len().min(references.len());
    let mut total = 0.0;
    for (prediction, references) in predictions.iter().zip(references) {
        let prediction = normalise(prediction);
        total += if references.is_empty() {
            score(&prediction, "")
        } else {
            references.iter().map(|reference| score(&prediction, &normalise(reference))).fold(0.0, f64::max)
        };
    }
    (examples > 0).then(|| total / examples as f64)
}

/// F1 over the bags of words. 0 without a shared word, so also for two empty texts, as in the script of SQuAD 1.1
/// (exact match calls those equal).
fn word_f1(prediction: &str, reference: &str) -> f64 {
    let mut counts: HashMap<&str, i64> = HashMap::new();
    let mut reference_words = 0_u32;
    for word in reference.split_ascii_whitespace() {
        *counts.entry(word).or_default() += 1;
        reference_words += 1;
    }
    let (mut shared, mut prediction_words) = (0_u32, 0_u32);
    for word in prediction.split_ascii_whitespace() {
        prediction_words += 1;
        if let Some(left) = counts.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            shared += 1;
        }
    }
    if shared == 0 {
        return 0.0;
    }
    // The order of operations is the script's, for the same last digit.
    let precision = f64::from(shared) / f64::from(prediction_words);
    let recall = f64::from(shared) / f64::from(reference_words);
    2.0 * precision * recall / (precision + recall)
}
