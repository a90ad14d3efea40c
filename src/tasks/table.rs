//! The named tasks: one row each. Source text, labels, metrics and split rule are those of the ATTEMPT release, but for
//! the defects in it that [`super`] lists.

use super::row::Field;
use super::target::{Class, Target};
use super::text::Filter;
use super::{HubData, SplitRule, Task};
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
    hub: &'static str,
}

enum Answer {
    /// Classes 0 to n - 1, generated as digits, in field `label`, by what they mean.
    Digits(&'static [&'static str]),
    /// The same, rows labelled -1 having no gold label.
    DigitsOrNone(&'static [&'static str]),
    /// Classes by what the field says, in index order, `|` between spellings, and what they mean; generated as digits.
    Written(&'static str, &'static [(&'static str, &'static str)]),
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

const INFERENCE: Answer = Digits(INFERENCE_LABELS);
const INFERENCE_LABELS: &[&str] = &["entailment", "neutral", "contradiction"];
const ENTAILMENT: Answer = Digits(&["entailment", "not entailment"]);
const PARAPHRASE: Answer = Digits(&["no paraphrase", "paraphrase"]);
const SENTIMENT: Answer = Digits(&["negative", "positive"]);
const CHOICES: Answer = Digits(&["the first choice", "the second choice"]);
const WRITTEN_CHOICES: Answer =
    Written("label", &[("1", "the first answer"), ("2", "the second answer"), ("3", "the third answer")]);
const LETTERS: Answer = Written(
    "answerKey",
    &[
        ("A", "the first choice"),
        ("B", "the second choice"),
        ("C", "the third choice"),
        ("D", "the fourth choice"),
        ("E", "the fifth choice"),
    ],
);
const OPTIONS: Answer = Written("answer", &[("1", "the first option"), ("2", "the second option")]);
const SUPPORT: Answer =
    Written("gold_label or label", &[("entailment|entails", "entailment"), ("neutral", "neutral")]);
/// Questions of several data sets, told apart by the column `subset`.
const MRQA: &str = "mrqa-workshop/mrqa/plain_text";

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("mnli", &["multi_nli"], "mnli premise: {premise} hypothesis: {hypothesis}", INFERENCE, &[Accuracy], MatchedAndMismatched, "nyu-mll/glue/mnli"),
    row("snli", &[], "snli premise: {premise} hypothesis:  {hypothesis}", DigitsOrNone(INFERENCE_LABELS), &[Accuracy], HOLD_OUT, "stanfordnlp/snli/plain_text"),
    row("qqp", &[], "qqp question1: {question1} question2: {question2}", Digits(&["no duplicate", "duplicate"]), &[F1, Accuracy], HOLD_OUT, "nyu-mll/glue/qqp"),
    row("qnli", &[], "qnli question: {question} sentence: {sentence}", ENTAILMENT, &[Accuracy], HOLD_OUT, "nyu-mll/glue/qnli"),
    row("sst2", &[], "sst2 sentence: {sentence}", SENTIMENT, &[Accuracy], HOLD_OUT, "nyu-mll/glue/sst2"),
    row("cola", &[], "cola sentence: {sentence}", Digits(&["unacceptable", "acceptable"]), &[Matthews], HalveValidation, "nyu-mll/glue/cola"),
    row("mrpc", &[], "mrpc sentence1: {sentence1} sentence2: {sentence2}", PARAPHRASE, &[F1, Accuracy], HalveValidation, "nyu-mll/glue/mrpc"),
    row("rte", &[], "rte sentence1: {sentence1} sentence2: {sentence2}", ENTAILMENT, &[Accuracy], HalveValidation, "nyu-mll/glue/rte"),
    row("wnli", &[], "wnli sentence1: {sentence1} sentence2: {sentence2}", Digits(&["not entailment", "entailment"]), &[Accuracy], HalveValidation, "nyu-mll/glue/wnli"),
    row("paws", &[], "paws sentence1: {sentence1} sentence2: {sentence2}", PARAPHRASE, &[Accuracy], Files, "google-research-datasets/paws/labeled_final"),
    row("stsb", &[], "stsb sentence1: {sentence1} sentence2: {sentence2}", Similarity, &[Pearson, Spearman], HalveValidation, "nyu-mll/glue/stsb"),
    row("superglue-boolq", &["boolq"], "superglue-boolq question: {question} passage: {passage}", Digits(&["no", "yes"]), &[Accuracy], HalveValidation, "aps/super_glue/boolq"),
    row("superglue-rte", &[], "superglue-rte premise: {premise} hypothesis: {hypothesis}", ENTAILMENT, &[Accuracy], HalveValidation, "aps/super_glue/rte"),
    row("superglue-cb", &["cb"], "superglue-cb premise: {premise} hypothesis: {hypothesis}", Digits(&["entailment", "contradiction", "neutral"]), &[MacroF1, Accuracy], HalveValidation, "aps/super_glue/cb"),
    row("superglue-copa", &["copa"], "superglue-copa premise: {premise} choice1: {choice1} choice2: {choice2}", CHOICES, &[Accuracy], HalveValidation, "aps/super_glue/copa"),
    row("superglue-multirc", &["multirc"], MULTIRC, Digits(&["wrong answer", "right answer"]), &[AllAnswersF1, QuestionExactMatch], HalveValidation, "aps/super_glue/multirc"),
    row("superglue-wic", &["wic"], "superglue-wic sentence1: {sentence1} sentence2: {sentence2} word: {word}", Digits(&["another sense", "the same sense"]), &[Accuracy], HalveValidation, "aps/super_glue/wic"),
    row("superglue-wsc.fixed", &["wsc", "superglue-wsc"], "superglue-wsc.fixed text: {text|mark_spans}", Digits(&["another referent", "the same referent"]), &[Accuracy], HalveValidation, "aps/super_glue/wsc.fixed"),
    row("superglue-record", &["record"], RECORD, Entities, &[ExactMatch, AnswerF1], HOLD_OUT, "aps/super_glue/record"),
    row("squad", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT, "rajpurkar/squad/plain_text"),
    row("nq", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT, MRQA),
    row("newsqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT, MRQA),
    row("searchqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT, MRQA),
    row("triviaqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT, MRQA),
    row("hotpotqa", &[], SQUAD, Spaced("answers"), &[ExactMatch, AnswerF1], HOLD_OUT, MRQA),
    row("drop", &[], DROP, Spaced("answers_spans or answers"), &[ExactMatch, AnswerF1], HOLD_OUT, "ucinlp/drop"),
    row("winogrande", &[], "winogrande sentence: {sentence} option0: {option1} option1: {option2}", OPTIONS, &[Accuracy], HOLD_OUT, "allenai/winogrande/winogrande_xl"),
    row("scitail", &[], "scitail premise: {sentence1 or premise} hypothesis: {sentence2 or hypothesis}", SUPPORT, &[Accuracy], HalveValidation, "allenai/scitail/snli_format"),
    row("yelp_polarity", &[], "yelp_polarity sentence: {text}", SENTIMENT, &[Accuracy], HOLD_OUT, "fancyzhx/yelp_polarity/plain_text"),
    row("amazon_polarity", &[], "amazon_polarity sentence: <title> {title} <context> {content or context}", SENTIMENT, &[Accuracy], HOLD_OUT, "fancyzhx/amazon_polarity/amazon_polarity"),
    row("piqa", &[], "piqa question: {goal} choice1: {sol1} choice2: {sol2}", CHOICES, &[Accuracy], Files, "ybisk/piqa/plain_text"),
    row("social_i_qa", &[], SOCIAL, WRITTEN_CHOICES, &[Accuracy], Files, "allenai/social_i_qa"),
    row("commonsense_qa", &[], COMMONSENSE, LETTERS, &[Accuracy], Files, "tau/commonsense_qa"),
];

const fn row(
    name: &'static str,
    other_names: &'static [&'static str],
    source: &'static str,
    target: Answer,
    metrics: &'static [Metric],
    split: SplitRule,
    hub: &'static str,
) -> Row {
    Row { name, other_names, source, target, metrics, split, hub }
}

/// The names of all tasks, in table order, without their other spellings.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name)
}

pub(super) fn find(name: &str) -> Result<Task> {
    if name.is_empty() {
        let advice = "give --task; `promptmix tasks` lists the known ones";
        return Err(Error::setting("--task", "a known task, or a TOML file of one's own", "none", advice));
    }
    let row =
        TABLE.iter().find(|row| row.name == name || row.other_names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = names().collect();
            let advice = match super::row::nearest(name, &names) {
                Some(near) => {
                    format!(
                        "did you mean {near}? Other data needs a task file (promptmix tasks --help shows one)"
                    )
                }
                None => "other data needs a task file (promptmix tasks --help shows one)".to_owned(),
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
            hub: Some(self.hub.parse::<HubData>()?),
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
        let digits = |meanings: &[&str]| {
            let class = |(index, meaning): (usize, &&str)| Class {
                meaning: Some((*meaning).to_owned()),
                ..Class::new(index.to_string(), index.to_string())
            };
            meanings.iter().enumerate().map(class).collect()
        };
        let label = || Field::new("label");
        match *self {
            Digits(meanings) => {
                Target::Classes { field: label(), classes: digits(meanings), unlabelled: vec![] }
            }
            DigitsOrNone(meanings) => Target::Classes {
                field: label(),
                classes: digits(meanings),
                unlabelled: vec!["-1".to_owned()],
            },
            Written(field, spellings) => Target::Classes {
                field: Field::new(field),
                classes: spellings
                    .iter()
                    .enumerate()
                    .map(|(index, (values, meaning))| Class {
                        label: index.to_string(),
                        values: values.split('|').map(str::to_owned).collect(),
                        meaning: Some((*meaning).to_owned()),
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
