//! Data: readers, splits, few-shot draws, tokenised examples and the order of batches.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use promptmix::data::{
    Batches, ExampleSettings, Examples, FewShot, Format, Part, Reader, RowIndex, Split, Splits, count_rows,
    epoch_order, open,
};
use promptmix::files::{POINTER_BYTES, refuse_lfs_pointer};
use promptmix::metrics::{self, Metric, References};
use promptmix::tasks::{Purpose, Row, SplitRule, Task};
use promptmix::{Error, Result};
use serde_json::json;

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Reads everything; rows, or the message of the error.
fn read(content: &[u8], format: Format, limit: usize) -> std::result::Result<Vec<Row>, String> {
    let path = PathBuf::from(format!("file.{}", format.extension()));
    Reader::new(Cursor::new(content.to_vec()), format, &path, limit)
        .and_then(|reader| reader.collect::<Result<Vec<_>>>())
        .map_err(|error| error.to_string())
}

fn fields_and_lines(rows: Vec<Row>) -> Vec<(serde_json::Value, u64)> {
    rows.into_iter().map(|row| (serde_json::Value::Object(row.fields().clone()), row.line())).collect()
}

/// One id a byte and an end mark: enough to follow every token.
fn by_byte(text: &str) -> Result<Vec<u32>> {
    Ok(text.bytes().map(u32::from).chain([1]).collect())
}

fn settings(max_source_length: usize, purpose: Purpose) -> ExampleSettings {
    ExampleSettings::new(max_source_length, 8, purpose)
}

fn sst2(rows: usize) -> String {
    (0..rows).map(|row| format!("{{\"sentence\": \"row {row}\", \"label\": {}}}\n", row % 2)).collect()
}

// Readers

#[test]
fn the_three_formats_give_the_same_rows_with_their_lines() {
    let jsonl = b"{\"a\": \"1\", \"b\": \"x, \\\"y\\\"\"}\n\n{\"a\": \"2\", \"b\": \"\\u00e4\"}\r\n{\"a\":\"3\",\"b\":\"z\"}";
    let csv = "a,b\n1,\"x, \"\"y\"\"\"\n\n2,ä\r\n3,z".as_bytes();
    let tsv = "a\tb\n1\tx, \"y\"\n\n2\tä\r\n3\tz".as_bytes();
    let expected = |lines: [u64; 3]| {
        vec![
            (json!({"a": "1", "b": "x, \"y\""}), lines[0]),
            (json!({"a": "2", "b": "ä"}), lines[1]),
            (json!({"a": "3", "b": "z"}), lines[2]),
        ]
    };
    assert_eq!(fields_and_lines(read(jsonl, Format::Jsonl, 1000).unwrap()), expected([1, 3, 4]));
    assert_eq!(fields_and_lines(read(csv, Format::Csv, 1000).unwrap()), expected([2, 4, 5]));
    assert_eq!(fields_and_lines(read(tsv, Format::Tsv, 1000).unwrap()), expected([2, 4, 5]));
}

#[test]
fn csv_counts_lines_through_quoted_line_breaks_and_crlf() {
    let csv = b"a,b\r\n1,\"x\r\ny\"\r\n\r\n2,z\r\n";
    let rows = fields_and_lines(read(csv, Format::Csv, 1000).unwrap());
    assert_eq!(rows, [(json!({"a": "1", "b": "x\r\ny"}), 2), (json!({"a": "2", "b": "z"}), 5)]);
}

#[test]
fn a_csv_ends_well_with_a_quote_or_a_null() {
    for (content, last) in
        [("a\n\"x\"", "x"), ("a\n\"x\n\"\n", "x\n"), ("a\n\0\n", "\0"), ("a\n\0", "\0"), ("a\nx\"", "x\"")]
    {
        let rows = read(content.as_bytes(), Format::Csv, 100).unwrap();
        assert_eq!(fields_and_lines(rows), [(json!({"a": last}), 2)], "{content:?}");
    }
}

#[test]
fn a_quotation_mark_in_a_tsv_is_a_letter() {
    let rows = read(b"s\tl\n\"never closed\t0\nnext\t1\n", Format::Tsv, 1000).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].fields()["s"], json!("\"never closed"));
}

#[test]
fn a_byte_order_mark_is_skipped() {
    for (format, content) in [
        (Format::Jsonl, "\u{feff}{\"a\": \"1\"}"),
        (Format::Csv, "\u{feff}a\n1"),
        (Format::Tsv, "\u{feff}a\n1"),
    ] {
        let rows = read(content.as_bytes(), format, 1000).unwrap();
        assert_eq!(rows[0].fields()["a"], json!("1"), "{format:?}");
    }
}

#[test]
fn bad_content_is_an_error_with_file_line_and_the_start_of_the_line() {
    let long = format!("{{\"a\": \"{}\"", "x".repeat(200));
    for (format, content, parts) in [
        (Format::Jsonl, b"".as_slice(), vec!["file.jsonl", "at least one row"]),
        (Format::Jsonl, b"\n \n", vec!["at least one row"]),
        (Format::Jsonl, b"{\"a\": 1}\n{\"a\": \n", vec!["line 2", "one JSON object", "EOF", "column"]),
        (Format::Jsonl, long.as_bytes(), vec!["line 1", "xxx..."]),
        (Format::Jsonl, b"[1, 2]\n", vec!["line 1", "one JSON object", "\"1\"", "each row is an object"]),
        (Format::Jsonl, b"{\"a\": 1} {\"a\": 2}\n", vec!["line 1", "trailing characters"]),
        (Format::Jsonl, b"{\"a\": 1}\n{\"a\": \"\xff\"}\n", vec!["line 2", "UTF-8", "0xff"]),
        (Format::Jsonl, b"\xff\xfe{\x00", vec!["line 1", "UTF-16"]),
        (Format::Csv, b"", vec!["file.csv", "at least one row"]),
        (Format::Csv, b"a,b\n", vec!["at least one row"]),
        (Format::Csv, b"a,a\n1,2\n", vec!["line 1", "header", "\"a\" twice"]),
        (Format::Csv, b"a,b\n1,2\n1,2,3\n", vec!["line 3", "2 columns (a, b)", "3 in \"1,2,3\"", "quotes"]),
        (Format::Csv, b"a,b\n1,2\n3,\"x\ny\n", vec!["line 3", "a closing quote"]),
        (Format::Csv, b"a,b\n3,\"x", vec!["line 2", "a closing quote"]),
        (Format::Csv, b"\"a,b\n", vec!["line 1", "a closing quote"]),
        (Format::Csv, b"a,b\n1,\xff\n", vec!["line 2", "UTF-8"]),
        (Format::Tsv, b"a\tb\n1\n", vec!["line 2", "2 columns", "1 in \"1\"", "tabs"]),
    ] {
        let message = read(content, format, 1000).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[test]
fn a_row_longer_than_the_limit_is_refused_before_it_is_held() {
    let text = "x".repeat(2_000_000);
    let jsonl = format!("{{\"a\": 1}}\n{{\"a\": \"{text}\"}}\n");
    // A quote that never closes makes the rest of a CSV one row.
    let csv = format!("a\nfine\n\"{}", "line\n".repeat(400_000));
    let tsv = format!("a\nfine\n{text}\n");
    for (format, content) in [(Format::Jsonl, jsonl), (Format::Csv, csv), (Format::Tsv, tsv)] {
        let message = read(content.as_bytes(), format, 100_000).unwrap_err();
        assert!(message.contains("at most 100000 bytes"), "{message}");
    }
    let message = read(format!("a\nfine\n{text}\n").as_bytes(), Format::Tsv, 100_000).unwrap_err();
    assert!(message.contains("line 3"), "{message}");
}

#[test]
fn a_reader_ends_after_its_first_error() {
    let content = b"{\"a\": 1}\nbroken\n{\"a\": 2}\n".to_vec();
    let reader = Reader::new(Cursor::new(content), Format::Jsonl, Path::new("f.jsonl"), 100).unwrap();
    let outcomes: Vec<bool> = reader.map(|row| row.is_ok()).collect();
    assert_eq!(outcomes, [true, false]);
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let folder = folder();
    let missing = folder.path().join("no.jsonl");
    assert!(matches!(open(&missing), Err(Error::File { .. })));
    assert!(matches!(open(&folder.path().join("data.xlsx")), Err(Error::Unsupported { .. })));
    let inside = folder.path().join("folder.jsonl");
    std::fs::create_dir(&inside).unwrap();
    assert!(open(&inside).is_err());
    assert!(count_rows(&inside).is_err());
}

#[test]
fn a_pointer_of_git_lfs_is_named_and_nothing_else_is() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    let path = Path::new("train.parquet");
    for start in [&pointer[..], &pointer[..POINTER_BYTES]] {
        let error = refuse_lfs_pointer(path, start).unwrap_err().to_string();
        assert!(error.contains("train.parquet") && error.contains("git lfs pull"), "{error}");
    }
    for start in [&b""[..], b"version", b"{\"version\": 1}", b"PAR1"] {
        refuse_lfs_pointer(path, start).unwrap();
    }
}

/// Every reader on an example file with bytes changed, cut, doubled and swapped, 1,000 times each: rows or an error.
#[test]
fn mutated_files_never_panic() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let task = Task::named("rte").unwrap();
    let examples: [(Format, String); 3] = [
        (
            Format::Jsonl,
            "{\"sentence1\": \"a \\\"b\\\"\", \"sentence2\": \"ü\", \"label\": 0}\n{\"sentence1\": \"c\", \
             \"sentence2\": \"d\", \"label\": 1}\n"
                .to_owned(),
        ),
        (Format::Csv, "sentence1,sentence2,label\n\"a, \"\"b\"\"\",ü,0\r\n\"c\nc\",d,1\n".to_owned()),
        (Format::Tsv, "sentence1\tsentence2\tlabel\na \"b\"\tü\t0\r\nc\td\t1\n".to_owned()),
    ];
    for (format, example) in examples {
        let example = example.into_bytes();
        let length = example.len();
        let mutation = (0..length, 0..length, any::<u8>(), 0..5_u8);
        let mutations = prop::collection::vec(mutation, 1..6);
        let mut runner =
            TestRunner::new(Config { cases: 1000, failure_persistence: None, ..Config::default() });
        runner
            .run(&mutations, |mutations| {
                let mut content = example.clone();
                for (first, second, byte, kind) in mutations {
                    let (first, second) = (first % content.len().max(1), second % content.len().max(1));
                    match kind {
                        _ if content.is_empty() => content.push(byte),
                        0 => content[first] = byte,
                        1 => content.insert(first, byte),
                        2 => content.truncate(first),
                        3 => content.swap(first, second),
                        _ => content.extend_from_within(first.min(second)..first.max(second)),
                    }
                }
                if let Ok(rows) = read(&content, format, 200) {
                    prop_assert!(!rows.is_empty());
                    for row in rows {
                        let _ = task.examples(&row, Purpose::Training);
                    }
                }
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn a_row_index_reads_rows_in_any_order() {
    let folder = folder();
    let mut content = String::from("\u{feff}\n");
    for row in 0..200_000 {
        content.push_str(&format!("{{\"n\": {row}}}\n"));
        if row % 7 == 0 {
            content.push_str(" \n");
        }
    }
    let path = write(folder.path(), "train.jsonl", content.trim_end());
    let mut index = RowIndex::build(&path).unwrap();
    assert_eq!(index.len(), 200_000);
    assert_eq!(count_rows(&path).unwrap(), 200_000);
    // Both sides of the first allocation's end, and the ends of the file.
    for row in [199_999, 0, 65_535, 65_536, 131_072, 7] {
        assert_eq!(index.row(row).unwrap().fields()["n"], json!(row));
    }
    assert!(index.row(200_000).is_err());
    assert!(RowIndex::build(&write(folder.path(), "e.jsonl", "\n\n")).is_err());
    assert!(RowIndex::build(&write(folder.path(), "e.csv", "a\n1\n")).is_err());
}

// Splits

#[test]
fn the_permutation_is_that_of_torch() {
    let folder = folder();
    write(folder.path(), "validation.jsonl", sst2(10));
    let splits = Splits::open(folder.path(), SplitRule::HalveValidation, true).unwrap();
    // torch.manual_seed(42); torch.randperm(10) is 2 6 1 8 4 5 0 9 3 7.
    assert_eq!(splits.get(Split::Validation).unwrap().chosen().unwrap(), [1, 2, 4, 6, 8]);
    assert_eq!(splits.get(Split::Test).unwrap().chosen().unwrap(), [0, 3, 5, 7, 9]);
    assert!(splits.get(Split::Train).unwrap_err().to_string().contains("train.jsonl"));

    // The same of torch 2.13 for the training rows of SST-2: the smallest of the first 1,000 rows of the permutation,
    // and the sum of each of them times its rank.
    write(folder.path(), "train.jsonl", "{}\n".repeat(67_349));
    let splits = Splits::open(folder.path(), SplitRule::HoldOutTraining { rows: 1_000 }, true).unwrap();
    let chosen = splits.get(Split::Validation).unwrap().chosen().unwrap();
    assert_eq!(chosen[..8], [28, 308, 362, 389, 431, 472, 495, 717]);
    assert_eq!(chosen.iter().zip(1..).map(|(row, rank)| u64::from(*row) * rank).sum::<u64>(), 22_509_434_139);
}

#[test]
fn split_sizes_are_those_of_the_release_for_the_hubs_row_counts() {
    for (name, train, validation, sizes) in [
        ("sst2", 67_349, 872, [66_349, 1_000, 872]),
        ("mrpc", 3_668, 408, [3_668, 204, 204]),
        ("rte", 2_490, 277, [2_490, 138, 139]),
        ("cola", 8_551, 1_043, [8_551, 521, 522]),
    ] {
        let folder = folder();
        write(folder.path(), "train.jsonl", sst2(train));
        write(folder.path(), "validation.jsonl", sst2(validation));
        let splits = Splits::open(folder.path(), Task::named(name).unwrap().split, true).unwrap();
        let found = [Split::Train, Split::Validation, Split::Test]
            .map(|split| splits.get(split).unwrap().row_count().unwrap());
        assert_eq!(found, sizes, "{name}");
    }
}

#[test]
fn split_sizes_on_the_real_files() {
    for (name, sizes) in [("sst2", [66_349, 1_000, 872]), ("rte", [2_490, 138, 139])] {
        let folder = Path::new("../shared/data").join(name);
        if !folder.is_dir() {
            println!("skipped: {} is not there", folder.display());
            continue;
        }
        let splits = Splits::open(&folder, Task::named(name).unwrap().split, true).unwrap();
        let found = [Split::Train, Split::Validation, Split::Test]
            .map(|split| splits.get(split).unwrap().row_count().unwrap());
        assert_eq!(found, sizes, "{name}");
    }
}

#[test]
fn splits_of_one_file_share_no_row_and_lose_none() {
    let folder = folder();
    write(folder.path(), "train.csv", "sentence,label\n".to_owned() + &"s,0\n".repeat(3_000));
    write(folder.path(), "validation.tsv", "sentence\tlabel\ns\t0\n");
    let splits = Splits::open(folder.path(), SplitRule::HoldOutTraining { rows: 1_000 }, true).unwrap();
    let rows = |split| splits.get(split).unwrap().chosen().unwrap().iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(rows(Split::Validation).len(), 1_000);
    assert!(rows(Split::Train).is_disjoint(&rows(Split::Validation)));
    assert_eq!(rows(Split::Train).len() + rows(Split::Validation).len(), 3_000);
    assert!(splits.get(Split::Test).unwrap().path().ends_with("validation.tsv"));
}

#[test]
fn a_file_that_shrinks_after_it_was_counted_is_an_error() {
    let folder = folder();
    let path = write(folder.path(), "train.jsonl", sst2(5));
    let rows: Vec<_> = Part::some(&path, vec![1, 4, 5, 6]).rows().unwrap().collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[2].as_ref().unwrap_err().to_string().contains("2 more rows"));
}

#[test]
fn without_the_rule_each_split_is_its_own_file() {
    let folder = folder();
    for split in ["train", "validation", "test"] {
        write(folder.path(), &format!("{split}.jsonl"), sst2(4));
    }
    let splits = Splits::open(folder.path(), SplitRule::HoldOutTraining { rows: 1_000 }, false).unwrap();
    assert!(splits.get(Split::Test).unwrap().path().ends_with("test.jsonl"));
    assert_eq!(splits.get(Split::Train).unwrap().chosen(), None);
}

/// As yelp_polarity and amazon_polarity are on the hub: train and test alone, both with labels.
#[test]
fn a_test_file_tests_where_there_is_no_validation_file() {
    let folder = folder();
    write(folder.path(), "train.jsonl", sst2(1_200));
    write(folder.path(), "test.jsonl", sst2(7));
    let task = Task::named("yelp_polarity").unwrap();
    for is_papers in [true, false] {
        let splits = Splits::of_task(folder.path(), &task, is_papers).unwrap();
        assert_eq!(splits.get(Split::Train).unwrap().row_count().unwrap(), 200);
        let validation = splits.get(Split::Validation).unwrap();
        assert!(validation.path().ends_with("train.jsonl"));
        assert_eq!(validation.row_count().unwrap(), 1_000);
        let test = splits.get(Split::Test).unwrap();
        assert!(test.path().ends_with("test.jsonl"));
        assert_eq!(test.row_count().unwrap(), 7);
    }
    // The rule cannot take 1,000 rows of fewer, and nobody is told to turn off what may not be on.
    write(folder.path(), "train.jsonl", sst2(6));
    let splits = Splits::of_task(folder.path(), &task, false).unwrap();
    assert_eq!(splits.get(Split::Train).unwrap().row_count().unwrap(), 6);
    let found = splits.get(Split::Validation).unwrap_err().to_string();
    assert!(found.contains("of more than 1000 rows beside a test file"), "{found}");
    let found = Splits::of_task(folder.path(), &task, true).unwrap_err().to_string();
    assert!(
        found.contains("at least 1001 rows") && found.contains("without `--splits paper` and"),
        "{found}"
    );
}

/// One data set of the hub holds six of questions: a task reads its own subset, counts it, splits it and draws from it.
#[test]
fn a_task_reads_the_rows_of_its_subset_alone() {
    let folder = folder();
    let subsets = ["SQuAD", "NewsQA", "TriviaQA-web", "SearchQA", "HotpotQA", "NaturalQuestionsShort"];
    let rows = |count: usize| {
        (0..count)
            .map(|i| {
                let subset = subsets[i % 6];
                format!(
                    "{{\"subset\":{subset:?},\"question\":\"q{i}\",\"context\":\"c\",\"answers\":[\"a\"]}}\n"
                )
            })
            .collect::<String>()
    };
    write(folder.path(), "train.jsonl", rows(6_120));
    write(folder.path(), "validation.jsonl", rows(63));
    for (name, first, of_validation) in
        [("newsqa", 1, 11), ("triviaqa", 2, 11), ("searchqa", 3, 10), ("hotpotqa", 4, 10), ("nq", 5, 10)]
    {
        let task = Task::named(name).unwrap();
        let splits = Splits::of_task(folder.path(), &task, true).unwrap();
        let count = |split| splits.get(split).unwrap().row_count().unwrap();
        assert_eq!([Split::Train, Split::Validation, Split::Test].map(count), [20, 1_000, of_validation]);
        let mut questions = BTreeSet::new();
        for split in [Split::Train, Split::Validation] {
            for row in splits.get(split).unwrap().rows_for(&task).unwrap() {
                questions.insert(row.unwrap().fields()["question"].as_str().unwrap().to_owned());
            }
        }
        let expected: BTreeSet<String> = (0..1_020).map(|i| format!("q{}", 6 * i + first)).collect();
        assert_eq!(questions, expected, "{name}");
        let train = splits.get(Split::Train).unwrap();
        let drawn = FewShot { shots: 8, class_balanced: false, seed: 3 }.draw(train, &task).unwrap();
        let drawn: Vec<Row> = drawn.rows_for(&task).unwrap().map(Result::unwrap).collect();
        assert_eq!(drawn.len(), 8);
        for row in drawn {
            let question = row.fields()["question"].as_str().unwrap();
            assert!(expected.contains(question), "{name}: {question}");
        }
    }
    // A file of one task alone need not name it.
    write(folder.path(), "train.jsonl", rows(6).replace("subset", "source"));
    let splits = Splits::of_task(folder.path(), &Task::named("nq").unwrap(), false).unwrap();
    assert_eq!(splits.get(Split::Train).unwrap().row_count().unwrap(), 6);
    // One of others alone is refused, with what it has.
    write(folder.path(), "train.jsonl", rows(2));
    let splits = Splits::of_task(folder.path(), &Task::named("nq").unwrap(), false).unwrap();
    let found = splits.get(Split::Train).unwrap().row_count().unwrap_err().to_string();
    assert!(found.contains("rows with subset? == NaturalQuestionsShort"), "{found}");
    assert!(found.contains("NewsQA, SQuAD there"), "{found}");
}

#[test]
fn mnli_validates_on_mismatched_and_tests_on_matched() {
    let folder = folder();
    for stem in ["train", "validation_matched", "validation_mismatched", "test"] {
        write(folder.path(), &format!("{stem}.jsonl"), sst2(2));
    }
    let splits = Splits::open(folder.path(), Task::named("mnli").unwrap().split, true).unwrap();
    assert!(splits.get(Split::Validation).unwrap().path().ends_with("validation_mismatched.jsonl"));
    assert!(splits.get(Split::Test).unwrap().path().ends_with("validation_matched.jsonl"));
}

#[test]
fn folders_that_cannot_be_meant_are_refused() {
    let folder = folder();
    let message = |rule, split| Splits::open(folder.path(), rule, split).unwrap_err().to_string();
    assert!(message(SplitRule::Files, true).contains("train, validation or test as .jsonl"));
    write(folder.path(), "train.jsonl", sst2(5));
    assert!(message(SplitRule::HoldOutTraining { rows: 1_000 }, true).contains("at least 1001 rows"));
    assert!(message(SplitRule::HalveValidation, true).contains("validation.jsonl"));
    write(folder.path(), "train.csv", "a\n1\n");
    assert!(message(SplitRule::Files, false).contains("train.jsonl and train.csv"));
    assert!(matches!(
        Splits::open(&folder.path().join("none"), SplitRule::Files, false),
        Err(Error::File { .. })
    ));
}

// Few-shot

#[test]
fn a_few_shot_draw_depends_on_its_seed_alone() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "train.jsonl", sst2(100)));
    let task = Task::named("sst2").unwrap();
    let draw = |seed, class_balanced| {
        let few = FewShot { shots: 16, class_balanced, seed };
        few.draw(&part, &task).unwrap().chosen().unwrap().to_vec()
    };
    assert_eq!(draw(1, false).len(), 16);
    assert_eq!(draw(1, false), draw(1, false));
    assert_ne!(draw(1, false), draw(2, false));
    let balanced = draw(1, true);
    assert_eq!(balanced.len(), 32);
    // Row n has label n % 2.
    assert_eq!(balanced.iter().filter(|row| *row % 2 == 0).count(), 16);
}

#[test]
fn a_few_shot_draw_stays_within_its_split() {
    let folder = folder();
    let path = write(folder.path(), "train.jsonl", sst2(100));
    let part = Part::some(&path, (40..60).collect());
    let drawn = FewShot { shots: 10, class_balanced: true, seed: 3 }
        .draw(&part, &Task::named("sst2").unwrap())
        .unwrap();
    assert_eq!(drawn.chosen().unwrap(), (40..60).collect::<Vec<u32>>());
}

#[test]
fn more_shots_than_rows_are_refused() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "train.jsonl", sst2(9)));
    let task = Task::named("sst2").unwrap();
    let draw = |shots, class_balanced| FewShot { shots, class_balanced, seed: 0 }.draw(&part, &task);
    assert!(draw(9, false).is_ok());
    assert!(draw(10, false).unwrap_err().to_string().contains("at most 9 rows"));
    assert!(draw(5, true).unwrap_err().to_string().contains("at most 4 rows of class \"1\""));
    assert!(draw(0, false).is_err());
}

// Examples

#[test]
fn examples_hold_what_the_tokenizer_gave() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "train.jsonl", sst2(10_000)));
    let task = Task::named("sst2").unwrap();
    let examples = Examples::load(&part, &task, &by_byte, &settings(64, Purpose::Training)).unwrap();
    assert_eq!(examples.len(), 10_000);
    for row in [0, 4_095, 4_096, 9_999] {
        assert_eq!(examples.source(row), by_byte(&format!("sst2 sentence: row {row}")).unwrap());
        assert_eq!(examples.target(row), by_byte(&(row % 2).to_string()).unwrap());
        assert_eq!(examples.source_length(row), examples.source(row).len());
        assert_eq!(examples.target_length(row), 2);
    }
    let References::Classes { labels, classes: 2, .. } = examples.references() else { panic!("classes") };
    assert_eq!(labels[..4], [0, 1, 0, 1]);
    assert_eq!(examples.counts().truncated_sources, 0);
    // 15 to 24 bytes of text and the end mark, two of a target: two bytes each, and two offsets.
    let tokens: usize = (0..10_000).map(|row| examples.source_length(row) + 2).sum();
    assert_eq!(examples.token_bytes(), 2 * tokens + 8 * 2 * 10_001);
}

#[test]
fn examples_do_not_depend_on_the_number_of_threads() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "train.jsonl", sst2(9_000)));
    let task = Task::named("sst2").unwrap();
    let load = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Examples::load(&part, &task, &by_byte, &settings(64, Purpose::Training)).unwrap())
    };
    assert_eq!(load(1), load(3));
}

#[test]
fn ids_beyond_two_bytes_are_kept_whole() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "train.jsonl", sst2(3)));
    let wide = |text: &str| Ok(vec![if text.ends_with('1') { 250_000 } else { 65_535 }, 1]);
    let examples =
        Examples::load(&part, &Task::named("sst2").unwrap(), &wide, &settings(64, Purpose::Training))
            .unwrap();
    assert_eq!(examples.source(0), [65_535, 1]);
    assert_eq!(examples.source(1), [250_000, 1]);
    assert_eq!(examples.source(2), [65_535, 1]);
}

#[test]
fn a_source_beyond_the_limit_keeps_its_end_mark_and_is_counted() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "train.jsonl", sst2(101)));
    let task = Task::named("sst2").unwrap();
    let examples = Examples::load(&part, &task, &by_byte, &settings(22, Purpose::Training)).unwrap();
    // "sst2 sentence: row 9" has 20 bytes, "row 10" 21, "row 100" 22; each and an end mark.
    assert_eq!(examples.source(10).len(), 22);
    assert_eq!(examples.source(100), by_byte("sst2 sentence: row 10").unwrap());
    let counts = examples.counts();
    assert_eq!((counts.truncated_sources, counts.longest_source), (1, 23));
    assert!(counts.to_string().contains("1 source truncated (the longest had 23 tokens)"), "{counts}");
}

#[test]
fn of_several_bad_rows_the_first_is_named() {
    let folder = folder();
    let content = sst2(50) + "{\"sentence\": \"s\", \"label\": 5}\n{\"label\": 0}\n";
    let part = Part::file(write(folder.path(), "train.jsonl", content));
    let error =
        Examples::load(&part, &Task::named("sst2").unwrap(), &by_byte, &settings(64, Purpose::Training));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("train.jsonl, line 51") && message.contains("`label`"), "{message}");
}

#[test]
fn no_example_left_is_an_error() {
    let folder = folder();
    let rows = "{\"premise\": \"p\", \"hypothesis\": \"h\", \"label\": -1}\n".repeat(3);
    let part = Part::file(write(folder.path(), "train.jsonl", rows));
    let snli = Task::named("snli").unwrap();
    let error = Examples::load(&part, &snli, &by_byte, &settings(64, Purpose::Training)).unwrap_err();
    assert!(error.to_string().contains("3 rows, 3 of them without a label"), "{error}");
    assert!(
        matches!(error, Error::Format { path, .. } if path.ends_with("train.jsonl")),
        "the file's, no setting's"
    );
    assert!(Examples::load(&part, &snli, &by_byte, &settings(0, Purpose::Training)).is_err());
    let silent = |_: &str| Ok(vec![]);
    let prediction = settings(64, Purpose::Prediction);
    assert!(Examples::load(&part, &snli, &silent, &prediction).unwrap_err().to_string().contains("end mark"));
}

#[test]
fn a_file_whose_answers_are_all_hidden_is_no_data_to_evaluate_by() {
    let folder = folder();
    let rows = |answers: &[&str]| {
        let row = json!({"passage": "p", "query": "q", "entities": ["A"], "answers": answers});
        format!("{row}\n")
    };
    let record = Task::named("record").unwrap();
    let load = |content: String| {
        let part = Part::file(write(folder.path(), "test.jsonl", content));
        Examples::load(&part, &record, &by_byte, &settings(64, Purpose::Evaluation))
    };
    let message = load(rows(&[]).repeat(3)).unwrap_err().to_string();
    assert!(message.contains("3 rows, none of them with one"), "{message}");
    assert!(message.contains("--split-validation-test"), "{message}");
    // One row without an answer among others is what the data has.
    assert_eq!(load(rows(&[]) + &rows(&["A"])).unwrap().len(), 2);
}

#[test]
fn prediction_needs_no_label() {
    let folder = folder();
    let part = Part::file(write(folder.path(), "input.csv", "sentence\na\nb\n"));
    let task = Task::named("sst2").unwrap();
    let examples = Examples::load(&part, &task, &by_byte, &settings(64, Purpose::Prediction)).unwrap();
    assert_eq!((examples.len(), examples.references().len(), examples.target_length(0)), (2, 0, 0));
}

#[test]
fn examples_go_straight_into_the_metrics() {
    let folder = folder();
    let rows: String = [(0, 0, 1), (0, 1, 0), (1, 0, 1)]
        .iter()
        .map(|(question, answer, label)| {
            json!({"question": "q", "answer": "a", "paragraph": "p", "label": label,
                "idx": {"paragraph": 0, "question": question, "answer": answer}})
            .to_string()
                + "\n"
        })
        .collect();
    let part = Part::file(write(folder.path(), "validation.jsonl", rows));
    let task = Task::named("multirc").unwrap();
    let examples = Examples::load(&part, &task, &by_byte, &settings(256, Purpose::Evaluation)).unwrap();
    let predictions = task.predictions(&["1", "1", "1"]);
    let exact = metrics::evaluate(Metric::QuestionExactMatch, &predictions, examples.references()).unwrap();
    assert_eq!(exact, Some(0.5));
}

// Batches

#[test]
fn an_epoch_reads_every_example_once_in_an_order_of_its_own() {
    let mut batches = Batches::new(10, 4, 42).unwrap();
    assert_eq!(batches.steps_per_epoch(), 3);
    let taken: Vec<_> = batches.by_ref().take(6).collect();
    let epoch = |of: u64| {
        taken
            .iter()
            .filter(|batch| batch.epoch == of)
            .flat_map(|batch| batch.indices.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(taken.iter().map(|batch| batch.indices.len()).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
    for of in [0, 1] {
        assert_eq!(epoch(of), epoch_order(10, 42, of));
        assert_eq!(epoch(of).iter().collect::<BTreeSet<_>>().len(), 10);
    }
    assert_ne!(epoch(0), epoch(1));
    assert_ne!(epoch_order(10, 42, 0), epoch_order(10, 43, 0));
}

/// A resumed run depends on these numbers; they may never change.
#[test]
fn the_order_of_an_epoch_is_fixed_for_all_time() {
    assert_eq!(epoch_order(12, 42, 0), [9, 7, 1, 11, 6, 5, 10, 2, 3, 0, 8, 4]);
}

#[test]
fn a_resumed_run_reads_what_the_unbroken_one_would_have_read() {
    let unbroken: Vec<_> = Batches::new(10, 4, 7).unwrap().take(9).collect();
    let mut resumed = Batches::new(10, 4, 7).unwrap();
    resumed.seek(5);
    assert_eq!(resumed.take(4).collect::<Vec<_>>(), unbroken[5..]);
}

#[test]
fn every_order_is_as_likely_as_any_other() {
    let mut counts = std::collections::BTreeMap::new();
    for epoch in 0..24_000 {
        *counts.entry(epoch_order(4, 1, epoch)).or_insert(0_u32) += 1;
    }
    assert_eq!(counts.len(), 24);
    // 1,000 expected of each; the standard deviation is sqrt(24000 * 1/24 * 23/24) = 31, so 155 is five of them.
    assert!(counts.values().all(|count| count.abs_diff(1_000) < 155), "{counts:?}");
}

#[test]
fn empty_batches_are_refused() {
    assert!(Batches::new(0, 4, 0).is_err());
    assert!(Batches::new(4, 0, 0).is_err());
}
