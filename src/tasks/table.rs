//! The named tasks: one row each. Source text, labels, metrics and split rule are those of the ATTEMPT release, but for
//! the defects in it that [`super`] lists.

use super::row::Field;
use super::target::{Class, Target};
use super::text::Filter;
use super::{SplitRule, Task};
use crate::error::{Error, Result};
use crate::metrics::Metric;

/// A row, as short as it can be written; [`Row::task`] spells it out.
struct Row {
    name: &'static str,
    other_names: &'static [&'static str],
    source: &'static str,
    target: Answer,
    metrics: &'static [Metric],
    split: SplitRule,
}

enum Answer {
    /// Classes 0 to n - 1, generated as digits, in field `label`.
    Digits(usize),
    /// The same, rows labelled -1 having no gold label.
    DigitsOrNone(usize),
    /// Classes by what the field says, in index order, `|` between spellings; generated as digits.
    Written(&'static str, &'static [&'static str]),
    /// STS-B's score.
    Similarity,
    /// Answers of a question, punctuation spaced.
    Spaced(&'static str),
    /// ReCoRD's entities.
    Entities,
}

use Answer::{Digits, DigitsOrNone, Entities, Similarity, Spaced, Written};
use Metric::{
    Accuracy, AllAnswersF1, AnswerF1, ExactMatch, F1, MacroF1, Matthews, Pearson, QuestionExactMatch,
    Spearman,
};
use SplitRule::{Files, HalveValidation, HoldOutTraining, MatchedAndMismatched};

const SQUAD: &str =
    "squad question: {question|space_punctuation} context: {context or passage|space_punctuation}";
const DROP: &str =
    "drop question: {question|space_punctuation} context: {passage or context|space_punctuation}";
const MULTIRC: &str = "superglue-multirc question: {question|remove_markup} answer: {answer|remove_markup} \
                       paragraph: {paragraph|remove_markup}";
const RECORD: &str = "superglue-record record query: {query} entities: {entities|join} \
                      passage: {passage|join_highlights}";
const SOCIAL: &str = "social_i_qa question: {question} context: {context} || choice0: {answerA} || \
                      choice1: {answerB} || choice2: {answerC}";
const COMMONSENSE: &str = "commonsense_qa question: {question} choice1: {choices.text.0} choice2: {choices.text.1} \
                           choice3: {choices.text.2} choice4: {choices.text.3} choice5: {choices.text.4}";

const HOLD_OUT: SplitRule = HoldOutTraining { rows: 1000 };

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("mnli", &["multi_nli"], "mnli premise: {premise} hypothesis: {hypothesis}", Digits(3), &[Accuracy], MatchedAndMismatched),
    row("snli", &[], "snli premise: {premise} hypothesis:  {hypothesis}", DigitsOrNone(3), &[Accuracy], HOLD_OUT),
    row("qqp", &[], "qqp question1: {question1} question2: {question2}", Digits(2), &[F1, Accuracy], HOLD_OUT),
    row("qnli", &[], "qnli question: {question} sentence: {sentence}", Digits(2), &[Accuracy], HOLD_OUT),
    row("sst2", &[], "sst2 sentence: {sentence}", Digits(2), &[Accuracy], HOLD_OUT),
    row("cola", &[], "cola sentence: {sentence}", Digits(2), &[Matthews], HalveValidation),
    row("mrpc", &[], "mrpc sentence1: {sentence1} sentence2: {sentence2}", Digits(2), &[F1, Accuracy], HalveValidation),
    row("rte", &[], "rte sentence1: {sentence1} sentence2: {sentence2}", Digits(2), &[Accuracy], HalveValidation),
    row("wnli", &[], "wnli sentence1: {sentence1} sentence2: {sentence2}", Digits(2), &[Accuracy], HalveValidation),
    row("paws", &[], "paws sentence1: {sentence1} sentence2: {sentence2}", Digits(2), &[Accuracy], Files),
    row("stsb", &[], "stsb sentence1: {sentence1} sentence2: {sentence2}", Similarity, &[Pearson, Spearman], HalveValidation),
    row("superglue-boolq", &["boolq"], "superglue-boolq question: {question} passage: {passage}", Digits(2), &[Accuracy], HalveValidation),
    row("superglue-rte", &[], "superglue-rte premise: {premise} hypothesis: {hypothesis}", Digits(2), &[Accuracy], HalveValidation),
    row("superglue-cb", &["cb"], "superglue-cb premise: {premise} hypothesis: {hypothesis}", Digits(3), &[MacroF1, Accuracy], HalveValidation),
    row("superglue-copa", &["copa"], "superglue-copa premise: {premise} choice1: {choice1} choice2: {choice2}", Digits(2), &[Accuracy], HalveValidation),
    row("superglue-multirc", &["multirc"], MULTIRC, Digits(2), &[AllAnswersF1, QuestionExactMatch], HalveValidation),
    row("superglue-wic", &["wic"], "superglue-wic sentence1: {sentence1} sentence2: {sentence2} word: {word}", Digits(2), &[Accuracy], HalveValidation),
    row("superglue-wsc.fixed", &["wsc", "superglue-wsc"], "superglue-wsc.fixed text: {text|mark_spans}", Digits(2), &[Accuracy], HalveValidation),
    row("superglue-record", &["record"], RECORD, Entities, &[ExactMatch, AnswerF1], HOLD_OUT),
    row("squad", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("nq", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("newsqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("searchqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("triviaqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("hotpotqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("drop", &[], DROP, Spaced("answers_spans or answers"), &[ExactMatch, AnswerF1], HOLD_OUT),
    row("winogrande", &[], "winogrande sentence: {sentence} option0: {option1} option1: {option2}", Written("answer", &["1", "2"]), &[Accuracy], HOLD_OUT),
    row("scitail", &[], "scitail premise: {sentence1 or premise} hypothesis: {sentence2 or hypothesis}", Written("gold_label or label", &["entailment|entails", "neutral"]), &[Accuracy], HalveValidation),
    row("yelp_polarity", &[], "yelp_polarity sentence: {text}", Digits(2), &[Accuracy], HOLD_OUT),
    row("amazon_polarity", &[], "amazon_polarity sentence: <title> {title} <context> {content or context}", Digits(2), &[Accuracy], HOLD_OUT),
    row("piqa", &[], "piqa question: {goal} choice1: {sol1} choice2: {sol2}", Digits(2), &[Accuracy], Files),
    row("social_i_qa", &[], SOCIAL, Written("label", &["1", "2", "3"]), &[Accuracy], Files),
    row("commonsense_qa", &[], COMMONSENSE, Written("answerKey", &["A", "B", "C", "D", "E"]), &[Accuracy], Files),
];

const fn row(
    name: &'static str,
    other_names: &'static [&'static str],
    source: &'static str,
    target: Answer,
    metrics: &'static [Metric],
    split: SplitRule,
) -> Row {
    Row { name, other_names, source, target, metrics, split }
}

/// The names of all tasks, in table order, without their other spellings.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name)
}

pub(super) fn find(name: &str) -> Result<Task> {
    let row =
        TABLE.iter().find(|row| row.name == name || row.other_names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = names().collect();
            let advice = match super::row::nearest(name, &names) {
                Some(near) => format!("did you mean {near}? Other data needs a task file, or a --template and --labels for training"),
                None => "other data needs a task file, or a --template and --labels for training".to_owned(),
            };
            Error::setting("task", format!("one of {}", names.join(", ")), super::row::quote(name), advice)
        })?;
    row.task()
}

impl Row {
    fn task(&self) -> Result<Task> {
        Ok(Task {
            name: self.name.to_owned(),
            source: self.source.parse()?,
            target: self.target.spelt_out(),
            metrics: self.metrics.to_vec(),
            split: self.split,
            // Questions are numbered within their paragraph in some releases, throughout in others.
            group: match self.name {
                "superglue-multirc" => Some("{idx.paragraph}:{idx.question}".parse()?),
                _ => None,
            },
            // One data set of the hub holds these, a subset each; files of one alone need not name it.
            condition: match self.name {
                "nq" => Some("subset? == NaturalQuestionsShort".parse()?),
                "newsqa" => Some("subset? == NewsQA".parse()?),
                "searchqa" => Some("subset? == SearchQA".parse()?),
                "triviaqa" => Some("subset? == TriviaQA-web".parse()?),
                "hotpotqa" => Some("subset? == HotpotQA".parse()?),
                _ => None,
            },
            lowercase: false,
        })
    }
}

impl Answer {
    fn spelt_out(&self) -> Target {
        let digits =
            |count: usize| (0..count).map(|index| Class::new(index.to_string(), index.to_string())).collect();
        let label = || Field::new("label");
        match *self {
            Digits(count) => Target::Classes { field: label(), classes: digits(count), unlabelled: vec![] },
            DigitsOrNone(count) => {
                Target::Classes { field: label(), classes: digits(count), unlabelled: vec!["-1".to_owned()] }
            }
            Written(field, spellings) => Target::Classes {
                field: Field::new(field),
                classes: spellings
                    .iter()
                    .enumerate()
                    .map(|(index, values)| Class {
                        label: index.to_string(),
                        values: values.split('|').map(str::to_owned).collect(),
                    })
                    .collect(),
                unlabelled: vec![],
            },
            Similarity => Target::Number { field: label(), minimum: 0.0, maximum: 5.0, step: 0.2 },
            Spaced(field) => Target::Text {
                field: Field::new(field),
                filters: vec![Filter::SpacePunctuation],
                every_answer: false,
                unanswered: None,
            },
            Entities => Target::Text {
                field: Field::new("answers"),
                filters: vec![],
                every_answer: true,
                unanswered: Some("<unk>".to_owned()),
            },
        }
    }
}
