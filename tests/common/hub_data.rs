//! Generated data sets in the layouts that the hub has them in: the folders, the columns and their types, what labels are written
//! as, and what a test file hides.

use promptmix::tasks::Task;
use serde_json::{Value, json};

use crate::parquet_rows::{Column, Kind, parquet};
use crate::stand_in_hub::{Files, StandInHub};

/// Where the files of a data set lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the default branch in a folder by the configuration's name.
    Folder,
    /// On the default branch in `data`.
    Root,
    /// On the branch of the conversion alone; the default branch has a script.
    Converted,
}

/// The data set of one task.
pub struct DataSet {
    pub id: &'static str,
    pub configuration: &'static str,
    pub place: Place,
    columns: Vec<Column>,
    /// Rows by split, in the order in which they are written.
    pub splits: Vec<(&'static str, Vec<Value>)>,
    /// Whether its test file hides its labels.
    pub hides_test_labels: bool,
}

/// Rows of a training file that are enough to hold 1,000 of them out, and of one that has none held out.
pub const MANY: usize = 1_030;
pub const FEW: usize = 36;
pub const VALIDATION: usize = 24;
pub const TEST: usize = 12;

/// Questions of several data sets, told apart by `subset`: those that train and validate, and those that test.
const SUBSETS: [&str; 6] =
    ["SQuAD", "NewsQA", "TriviaQA-web", "SearchQA", "HotpotQA", "NaturalQuestionsShort"];
const TEST_SUBSETS: [&str; 6] =
    ["BioASQ", "DROP", "DuoRC.ParaphraseRC", "RACE", "RelationExtraction", "TextbookQA"];

use Kind::{Fields, Float, Int32, Int64, List, Text};

fn texts(names: &[&'static str]) -> Vec<Column> {
    names.iter().map(|name| (*name, Text)).collect()
}

/// Columns of text, then `idx` and a class as a number, as GLUE has them; SuperGLUE has the two the other way round.
fn classified(names: &[&'static str]) -> Vec<Column> {
    let mut columns = texts(names);
    columns.extend([("label", Int64), ("idx", Int32)]);
    columns
}

fn list(kind: Kind) -> Kind {
    List(Box::new(kind))
}

/// Tokens and where they start, as lists beside each other.
fn tokens() -> Kind {
    Fields(vec![("tokens", list(Text)), ("offsets", list(Int32))])
}

fn spans() -> Kind {
    list(Fields(vec![("start", list(Int32)), ("end", list(Int32))]))
}

/// Row `i`, with a text that names column and row in every column of text.
fn row(columns: &[Column], i: usize, others: &[(&str, Value)]) -> Value {
    let mut row = serde_json::Map::new();
    for (name, kind) in columns {
        let value = match kind {
            Text => json!(format!("{name} {i}, written.")),
            _ => json!(i),
        };
        row.insert((*name).to_owned(), value);
    }
    row.extend(others.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Value::Object(row)
}

/// Splits of so many rows each.
fn splits(
    sizes: &[(&'static str, usize)],
    row: impl Fn(usize, &str) -> Value,
) -> Vec<(&'static str, Vec<Value>)> {
    sizes.iter().map(|&(split, size)| (split, (0..size).map(|i| row(i, split)).collect())).collect()
}

/// The data set of a known task as the hub has it.
pub fn data_set(task: &str) -> DataSet {
    const GLUE: &str = "nyu-mll/glue";
    const SUPER_GLUE: &str = "aps/super_glue";
    let (large, small) = (
        [("train", MANY), ("validation", VALIDATION), ("test", TEST)],
        [("train", FEW), ("validation", VALIDATION), ("test", TEST)],
    );
    // Classes as numbers; -1 for those of the test file, where it hides them.
    let numbered = |id, configuration, names: &[&'static str], classes: usize, sizes: &[_], hides| {
        let columns = classified(names);
        let label = |i: usize, split: &str| {
            if hides && split.starts_with("test") { json!(-1) } else { json!(i % classes) }
        };
        let rows = splits(sizes, |i, split| row(&columns, i, &[("label", label(i, split))]));
        DataSet { id, configuration, place: Place::Folder, columns, splits: rows, hides_test_labels: hides }
    };
    let glue = |configuration, names: &[&'static str], classes, sizes: &[_]| {
        numbered(GLUE, configuration, names, classes, sizes, true)
    };
    let super_glue = |configuration, names: &[&'static str], classes| {
        numbered(SUPER_GLUE, configuration, names, classes, &small, true)
    };
    // Columns of text with one that holds the answer in words.
    let written = |id,
                   configuration,
                   place,
                   names: &[&'static str],
                   answer: &'static str,
                   words: &[&str],
                   sizes: &[_],
                   hides| {
        let mut columns = texts(names);
        columns.push((answer, Text));
        let word = |i: usize, split: &str| {
            if hides && split == "test" { json!("") } else { json!(words[i % words.len()]) }
        };
        let rows = splits(sizes, |i, split| row(&columns, i, &[(answer, word(i, split))]));
        DataSet { id, configuration, place, columns, splits: rows, hides_test_labels: hides }
    };
    match task {
        "mnli" => glue(
            "mnli",
            &["premise", "hypothesis"],
            3,
            &[
                ("train", FEW),
                ("validation_matched", VALIDATION),
                ("validation_mismatched", VALIDATION + 2),
                ("test_matched", TEST),
                ("test_mismatched", TEST + 2),
            ],
        ),
        "snli" => {
            let mut data =
                numbered("stanfordnlp/snli", "plain_text", &["premise", "hypothesis"], 3, &large, false);
            // Rows that annotators did not agree on are in every split.
            data.splits.iter_mut().for_each(|(_, rows)| rows[1]["label"] = json!(-1));
            data
        }
        "qqp" => glue("qqp", &["question1", "question2"], 2, &large),
        "qnli" => glue("qnli", &["question", "sentence"], 2, &large),
        "sst2" => glue("sst2", &["sentence"], 2, &large),
        "cola" => glue("cola", &["sentence"], 2, &small),
        "mrpc" | "rte" | "wnli" => {
            let configuration = ["mrpc", "rte", "wnli"].into_iter().find(|name| *name == task).expect("one");
            glue(configuration, &["sentence1", "sentence2"], 2, &small)
        }
        "stsb" => {
            let columns = vec![("sentence1", Text), ("sentence2", Text), ("label", Float), ("idx", Int32)];
            let label = |i: usize, split: &str| {
                if split == "test" { json!(-1.0) } else { json!((i % 21) as f64 * 0.25) }
            };
            let splits = splits(&small, |i, split| row(&columns, i, &[("label", label(i, split))]));
            let place = Place::Folder;
            DataSet { id: GLUE, configuration: "stsb", place, columns, splits, hides_test_labels: true }
        }
        "paws" => {
            let id = "google-research-datasets/paws";
            let mut data = numbered(id, "labeled_final", &["sentence1", "sentence2"], 2, &small, false);
            data.columns.retain(|(name, _)| *name != "idx");
            data.columns.insert(0, ("id", Int32));
            data
        }
        "superglue-boolq" => super_glue("boolq", &["question", "passage"], 2),
        "superglue-rte" => super_glue("rte", &["premise", "hypothesis"], 2),
        "superglue-cb" => super_glue("cb", &["premise", "hypothesis"], 3),
        "superglue-copa" => super_glue("copa", &["premise", "choice1", "choice2", "question"], 2),
        "superglue-multirc" => {
            let mut data = super_glue("multirc", &["paragraph", "question", "answer"], 2);
            data.columns.retain(|(name, _)| *name != "idx");
            data.columns
                .push(("idx", Fields(vec![("paragraph", Int32), ("question", Int32), ("answer", Int32)])));
            for (i, row) in data.splits.iter_mut().flat_map(|(_, rows)| rows.iter_mut().enumerate()) {
                row["idx"] = json!({ "paragraph": i / 4, "question": i / 2, "answer": i });
                row["paragraph"] = json!(format!("<b>Sent 1: </b>paragraph {i}.<br>"));
            }
            data
        }
        "superglue-wic" => {
            let mut data = super_glue("wic", &["word", "sentence1", "sentence2"], 2);
            data.columns.extend(["start1", "start2", "end1", "end2"].map(|name| (name, Int32)));
            data
        }
        "superglue-wsc.fixed" => {
            let mut data = super_glue("wsc.fixed", &["text", "span1_text", "span2_text"], 2);
            data.columns.extend([("span1_index", Int32), ("span2_index", Int32)]);
            for (i, row) in data.splits.iter_mut().flat_map(|(_, rows)| rows.iter_mut().enumerate()) {
                row["text"] = json!(format!("Ann met guest {i} before she left ."));
                row["span1_text"] = json!("Ann");
                row["span1_index"] = json!(0);
                row["span2_text"] = json!("she");
                row["span2_index"] = json!(5);
            }
            data
        }
        "superglue-record" => {
            let columns = vec![
                ("passage", Text),
                ("query", Text),
                ("entities", list(Text)),
                (
                    "entity_spans",
                    Fields(vec![("text", list(Text)), ("start", list(Int32)), ("end", list(Int32))]),
                ),
                ("answers", list(Text)),
                ("idx", Fields(vec![("passage", Int32), ("query", Int32)])),
            ];
            let splits = splits(&large, |i, split| {
                let answers = match split {
                    "test" => json!([]),
                    _ => json!([format!("Entity {i}"), "Rome"]),
                };
                let others = [
                    ("passage", json!(format!("Passage {i}\n@highlight\nRome fell"))),
                    ("entities", json!([format!("Entity {i}"), "Rome", "Gaul"])),
                    ("entity_spans", json!({ "text": ["Rome"], "start": [3], "end": [7] })),
                    ("answers", answers),
                    ("idx", json!({ "passage": i / 2, "query": i })),
                ];
                row(&columns, i, &others)
            });
            let (configuration, place) = ("record", Place::Folder);
            DataSet { id: SUPER_GLUE, configuration, place, columns, splits, hides_test_labels: true }
        }
        "squad" => {
            let mut columns = texts(&["id", "title", "context", "question"]);
            columns.push(("answers", Fields(vec![("text", list(Text)), ("answer_start", list(Int32))])));
            let splits = splits(&large[..2], |i, _| {
                let answers = json!({ "text": [format!("answer {i}"), "it"], "answer_start": [i, 0] });
                row(&columns, i, &[("answers", answers)])
            });
            let (id, configuration, place) = ("rajpurkar/squad", "plain_text", Place::Folder);
            DataSet { id, configuration, place, columns, splits, hides_test_labels: false }
        }
        "nq" | "newsqa" | "searchqa" | "triviaqa" | "hotpotqa" => {
            let detected =
                Fields(vec![("text", list(Text)), ("char_spans", spans()), ("token_spans", spans())]);
            let columns = vec![
                ("subset", Text),
                ("context", Text),
                ("context_tokens", tokens()),
                ("qid", Text),
                ("question", Text),
                ("question_tokens", tokens()),
                ("detected_answers", detected),
                ("answers", list(Text)),
            ];
            let sizes = large.map(|(split, size)| (split, 6 * size));
            let splits = splits(&sizes, |i, split| {
                let subset = if split == "test" { TEST_SUBSETS[i % 6] } else { SUBSETS[i % 6] };
                let tokens = json!({ "tokens": ["a", "b"], "offsets": [0, 2] });
                let span = json!([{ "start": [0], "end": [4] }]);
                let others = [
                    ("subset", json!(subset)),
                    ("context_tokens", tokens.clone()),
                    ("question_tokens", tokens),
                    ("detected_answers", json!({ "text": ["a"], "char_spans": span, "token_spans": span })),
                    ("answers", json!([format!("answer {i}"), "a"])),
                ];
                row(&columns, i, &others)
            });
            let (id, configuration, place) = ("mrqa-workshop/mrqa", "plain_text", Place::Folder);
            DataSet { id, configuration, place, columns, splits, hides_test_labels: false }
        }
        "drop" => {
            let mut columns = texts(&["section_id", "query_id", "passage", "question"]);
            columns.push(("answers_spans", Fields(vec![("spans", list(Text)), ("types", list(Text))])));
            let splits = splits(&large[..2], |i, _| {
                let answers = json!({ "spans": [i.to_string(), "it"], "types": ["number", "span"] });
                row(&columns, i, &[("answers_spans", answers)])
            });
            let (id, configuration, place) = ("ucinlp/drop", "default", Place::Root);
            DataSet { id, configuration, place, columns, splits, hides_test_labels: false }
        }
        "winogrande" => {
            let names = ["sentence", "option1", "option2"];
            let (id, configuration) = ("allenai/winogrande", "winogrande_xl");
            written(id, configuration, Place::Folder, &names, "answer", &["1", "2"], &large, true)
        }
        "scitail" => {
            let names =
                ["sentence1_binary_parse", "sentence1_parse", "sentence1", "sentence2_parse", "sentence2"];
            let words = ["entailment", "neutral"];
            let (id, configuration) = ("allenai/scitail", "snli_format");
            let mut data =
                written(id, configuration, Place::Folder, &names, "gold_label", &words, &small, false);
            data.columns.push(("annotator_labels", list(Text)));
            data
        }
        "yelp_polarity" => {
            let sizes = [large[0], large[2]];
            let mut data = numbered("fancyzhx/yelp_polarity", "plain_text", &["text"], 2, &sizes, false);
            data.columns.retain(|(name, _)| *name != "idx");
            data
        }
        "amazon_polarity" => {
            let (id, sizes) = ("fancyzhx/amazon_polarity", [large[0], large[2]]);
            let mut data = numbered(id, "amazon_polarity", &["title", "content"], 2, &sizes, false);
            data.columns.retain(|(name, _)| *name != "idx");
            data
        }
        "piqa" => {
            let mut data = numbered("ybisk/piqa", "plain_text", &["goal", "sol1", "sol2"], 2, &small, true);
            data.columns.retain(|(name, _)| *name != "idx");
            data.place = Place::Converted;
            data
        }
        "social_i_qa" => {
            let names = ["context", "question", "answerA", "answerB", "answerC"];
            let (id, place) = ("allenai/social_i_qa", Place::Converted);
            written(id, "default", place, &names, "label", &["1", "2", "3"], &small[..2], false)
        }
        "commonsense_qa" => {
            let names = ["id", "question", "question_concept"];
            let words = ["A", "B", "C", "D", "E"];
            let (id, place) = ("tau/commonsense_qa", Place::Root);
            let mut data = written(id, "default", place, &names, "answerKey", &words, &small, true);
            data.columns.push(("choices", Fields(vec![("label", list(Text)), ("text", list(Text))])));
            for (i, row) in data.splits.iter_mut().flat_map(|(_, rows)| rows.iter_mut().enumerate()) {
                let texts: Vec<String> = words.iter().map(|word| format!("choice {word} of {i}")).collect();
                row["choices"] = json!({ "label": words, "text": texts });
            }
            data
        }
        other => panic!("no layout for {other}: add the one that the hub has"),
    }
}

impl DataSet {
    /// The files by their path in the repository.
    fn files(&self) -> Files {
        let mut files = Files::new();
        for (split, rows) in &self.splits {
            // The largest files come in shards.
            let shards = if rows.len() > FEW && self.place != Place::Converted { 2 } else { 1 };
            for (number, rows) in rows.chunks(rows.len().div_ceil(shards)).enumerate() {
                let path = match self.place {
                    Place::Folder => {
                        format!("{}/{split}-{number:05}-of-{shards:05}.parquet", self.configuration)
                    }
                    Place::Root => format!("data/{split}-{number:05}-of-{shards:05}.parquet"),
                    Place::Converted => format!("{}/{split}/{number:04}.parquet", self.configuration),
                };
                files.insert(path, parquet(&self.columns, rows));
            }
        }
        files
    }

    /// The rows of a split's file, if it has that.
    pub fn rows(&self, split: &str) -> Option<&[Value]> {
        self.splits.iter().find(|(name, _)| *name == split).map(|(_, rows)| rows.as_slice())
    }
}

/// Puts the data sets of these tasks onto the hub.
pub fn put<'a>(hub: &StandInHub, tasks: impl IntoIterator<Item = &'a str>) {
    for task in tasks {
        let data = data_set(task);
        let card = Files::from([("README.md".to_owned(), b"a card".to_vec())]);
        hub.data_set(data.id, "main", card);
        if data.place == Place::Converted {
            let script = format!("{}.py", data.id.rsplit('/').next().expect("a name"));
            hub.data_set(data.id, "main", Files::from([(script, b"a script".to_vec())]));
            hub.data_set(data.id, "refs/convert/parquet", data.files());
        } else {
            hub.data_set(data.id, "main", data.files());
        }
    }
}

/// Which rows are a task's own.
pub fn of_task<'a>(task: &'a Task, rows: &'a [Value]) -> impl Iterator<Item = &'a Value> {
    let subset = task.condition.as_ref().map(|condition| {
        let written = condition.to_string();
        written.rsplit(" == ").next().expect("a value").to_owned()
    });
    rows.iter().filter(move |row| subset.as_ref().is_none_or(|subset| row["subset"] == json!(subset)))
}
