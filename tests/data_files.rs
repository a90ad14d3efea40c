//! Files of rows as other programs write them: line ends, quotes, separators, arrays, compression, and the names of splits.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use promptmix::data::{
    Format, Reader, RowIndex, Split, Splits, count_rows, is_split_file, json::with_fields, open,
};
use promptmix::tasks::{Purpose, Row, SplitRule, Task};
use serde_json::{Map, Value, json};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The rows of a file of that name, each with its line; or the message of the error.
fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<(Value, u64)>, String> {
    let folder = folder();
    let path = write(folder.path(), name, content);
    let rows = open(&path).and_then(|reader| reader.collect::<promptmix::Result<Vec<Row>>>());
    let rows = rows.map_err(|error| error.to_string())?;
    // Counting sees the same rows, and so does whoever reads a stream.
    assert_eq!(count_rows(&path).unwrap(), rows.len(), "{name}");
    Ok(rows.into_iter().map(|row| (Value::Object(row.fields().clone()), row.line())).collect())
}

fn texts(name: &str, content: impl AsRef<[u8]>) -> Vec<String> {
    let rows = read(name, content).unwrap();
    rows.iter().map(|(row, _)| row["text"].as_str().unwrap().to_owned()).collect()
}

// Line ends

#[test]
fn lines_that_end_with_a_carriage_return_alone_are_rows() {
    let expected = vec![(json!({"text": "a", "label": "1"}), 2), (json!({"text": "b\nc", "label": "0"}), 3)];
    // A line feed is then a letter, as a carriage return is in other files.
    assert_eq!(read("f.csv", "text,label\ra,1\r\"b\nc\",0\r").unwrap(), expected);
    assert_eq!(read("f.csv", "\u{feff}\"text\",label\ra,1\rb\nc,0").unwrap(), expected);
    assert_eq!(read("f.tsv", "text\tlabel\ra\t1\rb\nc\t0\r").unwrap(), expected);
    let rows = "{\"text\": \"a\", \"label\": \"1\"}\r{\"text\": \"b\\nc\", \"label\": \"0\"}\r";
    let expected: Vec<_> = expected.into_iter().zip(1..).map(|((row, _), line)| (row, line)).collect();
    assert_eq!(read("f.jsonl", rows).unwrap(), expected);
    assert_eq!(read("f.jsonl", format!("\u{feff}{rows}")).unwrap(), expected);
    let folder = folder();
    let mut index = RowIndex::build(&write(folder.path(), "f.jsonl", rows)).unwrap();
    assert_eq!((index.len(), index.row(1).unwrap().fields()["text"].clone()), (2, json!("b\nc")));
}

#[test]
fn a_carriage_return_in_a_file_of_line_feeds_stays_a_letter() {
    for name in ["f.csv", "f.tsv"] {
        let content =
            "text\tlabel\na\rb\t0\n\nc\r\t1\r\n".replace('\t', if name == "f.csv" { "," } else { "\t" });
        let rows = read(name, content).unwrap();
        let expected =
            vec![(json!({"text": "a\rb", "label": "0"}), 2), (json!({"text": "c\r", "label": "1"}), 4)];
        assert_eq!(rows, expected, "{name}");
    }
}

/// As Python writes CSV on Windows into a file that translates line ends once more.
#[test]
fn two_carriage_returns_before_a_line_feed_are_one_end() {
    let expected = vec![json!({"text": "a", "label": "1"}), json!({"text": "b", "label": "0"})];
    for (name, content) in [
        ("f.csv", "text,label\r\r\na,1\r\r\nb,0\r\r\n"),
        ("f.tsv", "text\tlabel\r\r\na\t1\r\r\nb\t0\r\r\n"),
        ("f.jsonl", "{\"text\":\"a\",\"label\":\"1\"}\r\r\n{\"text\":\"b\",\"label\":\"0\"}\r\r\n"),
    ] {
        let rows: Vec<Value> = read(name, content).unwrap().into_iter().map(|(row, _)| row).collect();
        assert_eq!(rows, expected, "{name}");
    }
    // A quoted field may end with one of its own.
    assert_eq!(texts("f.csv", "label,text\r\n1,\"a\r\"\r\n"), ["a\r"]);
}

#[test]
fn mixed_line_ends_are_named() {
    for (name, content) in [
        ("f.csv", "text,label\ra,1\nb,0\n"),
        ("f.csv", "text,label\na,1\rb,0\r"),
        ("f.tsv", "text\tlabel\ra\t1\nb\t0\n"),
    ] {
        let message = read(name, content).unwrap_err();
        assert!(message.contains("line endings"), "{message}");
    }
}

// Quotes in TSV

#[test]
fn a_tsv_that_data_frames_wrote_gives_the_text_that_they_hold() {
    // pandas.DataFrame({"text": ..., "label": ...}).to_csv(sep="\t", index=False)
    let content = "text\tlabel\nplain\t1\n\"he said \"\"great\"\" twice\"\t1\n\"a\ttab\"\t0\n\"two\nlines\"\t0\n\
                   \"\"\"all\"\"\"\t1\n\"\"\"open\"\t0\n\"close\"\"\"\t0\n";
    let expected =
        ["plain", "he said \"great\" twice", "a\ttab", "two\nlines", "\"all\"", "\"open", "close\""];
    assert_eq!(texts("f.tsv", content), expected);
    let lines: Vec<u64> = read("f.tsv", content).unwrap().iter().map(|(_, line)| *line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 7, 8, 9]);
    // The text may come last, and its line break may be that of Windows, or an empty line.
    let content = "label\ttext\r\n1\tplain\r\n0\t\"two\r\nlines\"\r\n0\t\"a\r\n\r\nb\"\r\n1\tend\r\n";
    assert_eq!(texts("f.tsv", content), ["plain", "two\r\nlines", "a\r\n\r\nb", "end"]);
    // quoting=csv.QUOTE_ALL
    let content = "\"text\"\t\"label\"\n\"plain\"\t\"1\"\n\"\"\"x\"\" y\"\t\"0\"\n\"a\nb\"\t\"0\"\n";
    assert_eq!(texts("f.tsv", content), ["plain", "\"x\" y", "a\nb"]);
}

#[test]
fn quotes_of_a_tsv_without_quoting_are_letters() {
    // As GLUE ships them: single quotes at either end, around the whole, doubled inside alone.
    let lines = [
        "\"never closed",
        "closed\"",
        "\"whole\"",
        "say \"\"this\"\" now",
        "\"a\" and \"b\"",
        "\"",
        "\"\"",
        "\"a \"\" b",
    ];
    let rows: String = lines.iter().map(|line| format!("{line}\t0\n")).collect();
    assert_eq!(texts("f.tsv", format!("text\tlabel\n{rows}")), lines);
    let rows: String = lines.iter().map(|line| format!("0\t{line}\n")).collect();
    assert_eq!(texts("f.tsv", format!("label\ttext\n{rows}")), lines);
    // In a single column a line is a row, whatever its quotes.
    assert_eq!(texts("f.tsv", format!("text\n{}", lines.join("\n"))), lines);
}

#[test]
fn a_tsv_row_that_no_quotes_make_whole_is_an_error_at_its_line() {
    for (content, line) in [
        ("text\tlabel\na\t0\n\"open\nb\t1\n", 3),
        ("text\tlabel\na\t0\n\"open\" and more\nb\"\t1\n", 3),
        ("label\ttext\n0\t\"open\nshort\n1\tb\n", 3),
        ("text\tlabel\n\"a\n", 2),
        ("text\tlabel\na\n", 2),
    ] {
        let message = read("f.tsv", content).unwrap_err();
        assert!(message.contains(&format!("line {line}:")) && message.contains("2 columns"), "{message}");
    }
}

/// Every line could belong to the row before it: the work must not grow with the square of the file.
#[test]
fn a_quote_that_never_closes_is_found_out_in_one_pass() {
    for line in ["x\n", "\"\"\n", "\"\n"] {
        let content = format!("text\tlabel\n\"open{}", line.repeat(1 << 20));
        let reader =
            Reader::new(Cursor::new(content.into_bytes()), Format::Tsv, Path::new("f.tsv"), 1 << 23).unwrap();
        assert!(reader.last().unwrap().is_err());
    }
}

// Dialects of CSV

#[test]
fn the_separator_of_a_csv_is_that_of_its_header() {
    let expected = vec![
        (json!({"text": "good, really", "label": "1"}), 2),
        (json!({"text": "a;b\tc", "label": "0"}), 3),
    ];
    for separator in [",", ";", "\t", "|"] {
        let content = "text@label\r\n\"good, really\"@1\r\n\"a;b\tc\"@0\r\n".replace('@', separator);
        assert_eq!(read("f.csv", &content).unwrap(), expected, "{separator:?}");
        let reader =
            Reader::new(Cursor::new(content.into_bytes()), Format::Csv, Path::new("f.csv"), 1000).unwrap();
        let remark = reader.remark().map(str::to_owned);
        match separator {
            "," => assert_eq!(remark, None),
            other => assert!(
                remark.unwrap().contains(&format!("separated by {:?}", other.chars().next().unwrap()))
            ),
        }
    }
    // Commas that are no separators: decimal commas, and text without quotes, as spreadsheets in Europe leave it.
    let content = "\u{feff}text;score\ngood, really, good;0,5\nbad;1,5\n";
    assert_eq!(texts("f.csv", content), ["good, really, good", "bad"]);
    // A comma that comes out even is taken, whatever else is in the text.
    assert_eq!(texts("f.csv", "text,label\na;b,0\nc|d,1\n"), ["a;b", "c|d"]);
    assert_eq!(texts("f.csv", "text\na;b\nc\n"), ["a;b", "c"]);
    assert_eq!(read("f.csv", "text; all of it\na\nb\n").unwrap()[0].0, json!({"text; all of it": "a"}));
    // Rows that are broken are told by the separator of those that are not.
    let message = read("f.csv", "text;label\na;1\nb;c;0\n").unwrap_err();
    assert!(message.contains("line 3") && message.contains("separated by ';'"), "{message}");
}

#[test]
fn a_first_line_that_names_the_separator_is_no_header() {
    for (first, separator) in [("sep=,", ","), ("sep=;", ";"), ("SEP=\t", "\t"), ("\"sep=|\"", "|")] {
        for end in ["\n", "\r\n", "\r"] {
            let content = format!("{first}\ntext@label\na b@1\n").replace('@', separator).replace('\n', end);
            let expected = vec![(json!({"text": "a b", "label": "1"}), 3)];
            assert_eq!(read("f.csv", content).unwrap(), expected, "{first:?} {end:?}");
        }
    }
}

#[test]
fn empty_columns_at_the_end_are_left_out() {
    for (name, content) in [
        ("f.csv", "text,label,,\na,1,,\nb,0,,,,\nc,1\n"),
        ("f.tsv", "text\tlabel\t\t\na\t1\t\t\nb\t0\nc\t1\t\n"),
    ] {
        assert_eq!(texts(name, content), ["a", "b", "c"]);
    }
    let message = read("f.csv", "text,label,,\na,1,,note\n").unwrap_err();
    assert!(message.contains("line 2") && message.contains("found 4"), "{message}");
    let message = read("f.csv", "text,,,label\na,,,1\n").unwrap_err();
    assert!(message.contains("two columns without a name"), "{message}");
    // What data frames call their index has no name either, and is a column as any other.
    assert_eq!(texts("f.csv", ",text\n0,a\n"), ["a"]);
}

#[test]
fn a_truth_value_in_text_is_the_label_that_it_names() {
    let class = |labels: &str, written: Value| {
        let mut fields = Map::new();
        fields.insert("text".into(), json!("a"));
        fields.insert("label".into(), written);
        let row = Row::new(fields, std::sync::Arc::from(Path::new("f.csv")), 2);
        let task = Task::generic("t", "{text}", Some(labels), "label").unwrap();
        task.examples(&row, Purpose::Training).map(|examples| examples[0].target.clone())
    };
    for (written, label) in [("True", "good"), ("FALSE", "bad"), ("true", "good"), (" False ", "bad")] {
        assert_eq!(class("bad,good", json!(written)).unwrap(), label);
    }
    assert_eq!(class("bad,good", json!(true)).unwrap(), "good");
    // By its word where a label or a value says so, and not by its place.
    for written in [json!("True"), json!(true), json!("TRUE")] {
        assert_eq!(class("true,false", written.clone()).unwrap(), "true");
        assert_eq!(class("False,True", written.clone()).unwrap(), "True");
        assert_eq!(class("True=yes,False=no", written).unwrap(), "yes");
    }
    assert!(class("a,b,c", json!("Truth")).is_err());
}

// JSON

#[test]
fn an_array_of_objects_is_rows_wherever_it_stands() {
    let expected = |lines: [u64; 3]| {
        vec![
            (json!({"text": "a ] , \" \\", "n": {"m": [1, 2]}}), lines[0]),
            (json!({"text": "b"}), lines[1]),
            (json!({"text": "c"}), lines[2]),
        ]
    };
    let one = r#"[{"text": "a ] , \" \\", "n": {"m": [1, 2]}}, {"text": "b"},{"text":"c"}]"#;
    for name in ["f.json", "f.jsonl", "f.ndjson", "f.JSON"] {
        assert_eq!(read(name, one).unwrap(), expected([1, 1, 1]), "{name}");
        assert_eq!(read(name, format!("\u{feff}\n {one}\r\n ")).unwrap(), expected([2, 2, 2]), "{name}");
        let many = one.replace("}, {", "},\n  {").replace("},{", "}\n,\n\n{").replace("[{\"t", "[\n  {\n\"t");
        assert_eq!(read(name, many).unwrap(), expected([2, 4, 7]), "{name}");
    }
    // Lines of objects may go by the same name.
    assert_eq!(texts("f.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n"), ["a", "b"]);
    assert_eq!(texts("f.ndjson", "{\"text\": \"a\"}\n"), ["a"]);
}

#[test]
fn a_broken_array_says_where() {
    for (content, said) in [
        ("[{\"a\": 1}", "line 1: expected a comma or the closing bracket"),
        ("[{\"a\": 1}\n,\n", "line 3: expected an entry"),
        ("[{\"a\": 1},]", "expected an entry"),
        ("[,{\"a\": 1}]", "expected an entry"),
        ("[\n{\"a\": 1\n\n", "line 2: expected the end of the entry"),
        ("[{\"a\": 1}]\n[{\"a\": 1}]", "line 2: expected nothing after the array"),
        ("[{\"a\": 1} {\"a\": 2}]", "trailing characters"),
        ("[1, 2]", "found \"1\""),
        ("[{\"a\": }]", "expected value"),
        ("[]", "at least one row"),
        ("[", "expected an entry"),
    ] {
        let message = read("f.json", content).unwrap_err();
        assert!(message.contains("f.json") && message.contains(said), "{content}: {message}");
    }
    let long = format!("[{{\"a\": 1}}, {{\"a\": \"{}\"}}]", "x".repeat(2_000));
    let rows: Vec<_> = Reader::new(Cursor::new(long.into_bytes()), Format::Jsonl, Path::new("f.json"), 1_000)
        .unwrap()
        .collect();
    assert!(rows[0].is_ok() && rows[1].as_ref().unwrap_err().to_string().contains("at most 1000 bytes"));
}

#[test]
fn integers_of_any_size_keep_their_digits_in_templates_labels_and_answers() {
    let text = "{\"id\": 123456789012345678901234567890, \"small\": -12, \"b\": [ -99999999999999999999 ,1e2],\n\
                \"s\": \"a 123456789012345678901234567890 \\\" b\", \"f\": 0.10, \"u\": 18446744073709551615}";
    let rows: Vec<Row> =
        Reader::with_text(Cursor::new(format!("[{text}]").into_bytes()), Path::new("f.json"), 1000)
            .collect::<Result<_, _>>()
            .unwrap();
    let task = Task::generic("t", "{id} {small} {b.0} {u} {s}", None, "id").unwrap();
    let source = task.source_text(&rows[0]).unwrap();
    let expected = "123456789012345678901234567890 -12 -99999999999999999999 18446744073709551615 \
                    a 123456789012345678901234567890 \" b";
    assert_eq!(source, expected);
    let labels = "123456789012345678901234567890=yes,123456789012345678901234567891=no";
    let task = Task::generic("t", "{s}", Some(labels), "id").unwrap();
    assert_eq!(task.examples(&rows[0], Purpose::Training).unwrap()[0].target, "yes");
    let mut added = Map::new();
    added.insert("prediction".into(), json!("yes"));
    // One line, by name, every value as it was written.
    let expected = "{\"b\":[-99999999999999999999,1e2],\"f\":0.10,\"id\":123456789012345678901234567890,\"prediction\":\"yes\",\
                    \"s\":\"a 123456789012345678901234567890 \\\" b\",\"small\":-12,\"u\":18446744073709551615}";
    assert_eq!(with_fields(&rows[0], added.clone()), expected);
    // Other formats have no such text: their values are written.
    let row = Reader::new(Cursor::new(b"text,label\na,1\n".to_vec()), Format::Csv, Path::new("f.csv"), 100)
        .unwrap()
        .next();
    assert_eq!(
        with_fields(&row.unwrap().unwrap(), added),
        "{\"label\":\"1\",\"prediction\":\"yes\",\"text\":\"a\"}"
    );
}

#[test]
fn what_is_no_json_is_named() {
    for (line, said) in [
        ("{\"text\": \"a\", \"score\": NaN}", "NaN at column 24 is no JSON"),
        ("{\"text\": \"a\", \"score\": -Infinity}", "Infinity at column 24 is no JSON"),
        ("{\"scores\": [1, Infinity]}", "Infinity at column 16 is no JSON"),
        ("{\"text\": Nano}", "expected value at column 10"),
        ("{", "each object stands on one line"),
    ] {
        let message = read("f.jsonl", format!("{{\"text\": \"a\"}}\n{line}\n")).unwrap_err();
        assert!(message.contains("f.jsonl, line 2") && message.contains(said), "{message}");
    }
}

/// What pandas' to_json writes without `orient="records"` is one object, and no row.
#[test]
fn a_table_as_one_object_is_named() {
    for table in [
        json!({"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}),
        json!({"columns": ["text", "label"], "index": [0, 1], "data": [["a", 1], ["b", 0]]}),
        json!({"0": {"text": "a", "label": 1}, "1": {"text": "b", "label": 0}}),
    ] {
        for name in ["f.json", "f.jsonl"] {
            let message = read(name, table.to_string()).unwrap_err();
            assert!(message.contains("orient=\"records\", lines=True"), "{message}");
        }
    }
    let row = json!({"text": "a", "answers": {"0": "b"}});
    assert_eq!(read("f.jsonl", row.to_string()).unwrap(), [(row, 1)]);
}

#[test]
fn a_header_without_rows_and_a_file_by_another_format_s_name_are_said_to_be_that() {
    for (name, content) in
        [("f.csv", "text,label\n"), ("f.tsv", "text\tlabel\n\n"), ("f.csv", "sep=;\na;b\n")]
    {
        let message = read(name, content).unwrap_err();
        assert!(message.contains("a header and nothing after it"), "{message}");
        assert!(!message.contains("empty"), "{message}");
    }
    assert!(read("f.csv", "\n").unwrap_err().contains("the file is empty"));
    let rows = "{\"text\": \"a, b\", \"label\": 1}\n";
    let compact = "{\"text\":\"a\",\"label\":1}\n".repeat(2);
    for content in [rows, &compact, "[{\"text\": \"a\"}]"] {
        for name in ["f.csv", "f.tsv"] {
            let message = read(name, content).unwrap_err();
            assert!(message.contains("line 1") && message.contains("end in .jsonl"), "{name}: {message}");
        }
    }
    for (content, said) in [("text,label\na,1\n", ".csv"), ("text\tlabel\na\t1\n", ".tsv")] {
        let message = read("f.jsonl", content).unwrap_err();
        assert!(message.contains("no JSON line") && message.contains(said), "{message}");
        assert!(!message.contains("ident"), "{message}");
    }
}

#[test]
fn a_null_label_says_that_the_row_has_none() {
    for name in ["sst2", "snli", "squad", "stsb"] {
        let task = Task::named(name).unwrap();
        let rows = "{\"sentence\": \"a\", \"premise\": \"a\", \"label\": null, \"answers\": null}";
        let row =
            Reader::new(Cursor::new(rows.as_bytes().to_vec()), Format::Jsonl, Path::new("f.jsonl"), 1000)
                .unwrap()
                .next();
        let message = task.examples(&row.unwrap().unwrap(), Purpose::Training).unwrap_err().to_string();
        assert!(message.contains("line 1") && message.contains("leave such rows out"), "{message}");
    }
}

// Compression, and files that are something else

#[test]
fn what_gzip_compressed_is_read_by_any_name() {
    let rows = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    for (name, content) in [
        ("f.jsonl.gz", rows),
        ("f.json.GZ", "[{\"text\": \"a\"}, {\"text\": \"b\"}]"),
        ("f.jsonl", rows),
        ("f.csv.gz", "text,label\na,1\nb,0\n"),
        ("f.tsv.gz", "text\tlabel\na\t1\nb\t0\n"),
    ] {
        assert_eq!(texts(name, gzip(content.as_bytes())), ["a", "b"], "{name}");
    }
    // Members after one another are one file, and a name alone compresses nothing.
    let two = [gzip(b"{\"text\": \"a\"}\n"), gzip(b"{\"text\": \"b\"}\n")].concat();
    assert_eq!(texts("f.jsonl.gz", two), ["a", "b"]);
    assert_eq!(texts("f.jsonl.gz", rows), ["a", "b"]);
    let cut = gzip(rows.as_bytes());
    let message = read("f.jsonl.gz", &cut[..cut.len() - 9]).unwrap_err();
    assert!(message.contains("could not read") && message.contains("f.jsonl.gz"), "{message}");
    let folder = folder();
    let message =
        RowIndex::build(&write(folder.path(), "f.jsonl", gzip(rows.as_bytes()))).unwrap_err().to_string();
    assert!(message.contains("decompress"), "{message}");
}

#[test]
fn files_of_another_kind_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for name in ["f.jsonl", "f.csv", "f.tsv", "f.json.gz"] {
        let message = read(name, pointer).unwrap_err();
        assert!(message.contains(name) && message.contains("git lfs pull"), "{message}");
    }
    for (content, said) in [
        (&b"\xff\xfe{\0"[..], "UTF-16"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"PK\x03\x04\x14\x00\xff", "spreadsheet"),
        (b"PAR1\x15\xff\xff", "Parquet"),
        (b"{\"a\": \"\xe9\"}", "convert the file to UTF-8"),
    ] {
        for name in ["f.jsonl", "f.csv", "f.tsv"] {
            let message = read(name, content).unwrap_err();
            assert!(message.contains(said), "{name}: {message}");
        }
    }
    for (name, said) in [
        ("f.parquet.gz", "decompress it first"),
        ("f.jsonl.zst", "decompress it first"),
        ("f.txt", ".txt"),
        ("f", "no extension"),
    ] {
        let message = read(name, "x").unwrap_err();
        assert!(message.contains(said) && message.contains("f"), "{name}: {message}");
    }
    let folder = tempfile::tempdir().unwrap();
    let message = RowIndex::build(folder.path()).unwrap_err().to_string();
    assert!(message.contains("expected a file, found the folder"), "{message}");
}

// The files of a folder

/// The split's files below a folder that holds these, or the message of the error.
fn files(all: &[&str], split: Split) -> Result<Vec<String>, String> {
    let folder = folder();
    for name in all {
        write(folder.path(), name, format!("{{\"text\": {name:?}}}\n"));
    }
    let splits = Splits::open(folder.path(), SplitRule::Files, false).map_err(|error| error.to_string())?;
    let part = splits.get(split).map_err(|error| error.to_string())?;
    let rows = part.rows().and_then(|rows| rows.collect::<promptmix::Result<Vec<_>>>());
    let rows = rows.map_err(|error| error.to_string())?;
    assert_eq!(part.row_count().unwrap(), rows.len());
    Ok(rows.iter().map(|row| row.fields()["text"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn splits_go_by_the_names_in_use() {
    for name in [
        "dev.jsonl",
        "val.jsonl",
        "valid.jsonl",
        "eval.jsonl",
        "Validation.jsonl",
        "DEV.json",
        "validation.ndjson",
        "validation.jsonl.gz",
        "validation/data.jsonl",
        "Validation/0000.jsonl",
        "data/dev.jsonl",
        "data/val/x.json",
        "validation-00000-of-00001-a09b74b3ef9c3b56.jsonl",
        "data/dev-00000-of-00001.jsonl",
    ] {
        assert_eq!(files(&["train.jsonl", name], Split::Validation).unwrap(), [name]);
        assert!(is_split_file(name), "{name}");
    }
    assert_eq!(files(&["Training.jsonl", "test.jsonl"], Split::Train).unwrap(), ["Training.jsonl"]);
    assert_eq!(files(&["train.jsonl", "testing.json"], Split::Test).unwrap(), ["testing.json"]);
    // The hub's own name comes first, as it always did.
    assert_eq!(
        files(&["validation.jsonl", "dev.jsonl", "Validation.json"], Split::Validation).unwrap(),
        ["validation.jsonl"]
    );
    for name in [
        "README.md",
        "trainer.jsonl",
        "train/a/b.jsonl",
        "retrain.csv",
        "train.txt",
        "data/x/train.jsonl",
        "dev/_x.jsonl",
        ".train.jsonl",
    ] {
        assert!(!is_split_file(name), "{name}");
    }
}

#[test]
fn several_files_are_one_split_in_order() {
    let shards = ["train-00001-of-00002-ff01.jsonl", "train-00000-of-00002-aa02.jsonl"];
    assert_eq!(files(&shards, Split::Train).unwrap(), [shards[1], shards[0]]);
    let numbered: Vec<String> = (0..12).map(|number| format!("train/{number}.jsonl")).collect();
    let names: Vec<&str> = numbered.iter().map(String::as_str).collect();
    assert_eq!(files(&names, Split::Train).unwrap(), numbered, "by number, not by letter");
    assert_eq!(
        files(&["train/b.jsonl", "train/a.jsonl", "train/_SUCCESS", "train/.x.jsonl"], Split::Train).unwrap(),
        ["train/a.jsonl", "train/b.jsonl"]
    );
    assert_eq!(
        files(&["train/part-00000-of-00001.jsonl"], Split::Train).unwrap(),
        ["train/part-00000-of-00001.jsonl"]
    );
    for (names, said) in [
        (&["train-00001-of-00002-ff01.jsonl"][..], "shards 0 to 1 of 2"),
        (&["train-00000-of-00001-ff01.jsonl", "train-00000-of-00001-ff02.jsonl"], "keep one set"),
        (&["train/0000.jsonl", "train/0002.jsonl"], "number 1"),
        (&["train/a-00000-of-00002.jsonl"], "shards 0 to 1 of 2"),
        (&["train/a.jsonl", "train/b.csv"], "one format"),
        (&["dev.jsonl", "val.jsonl"], "dev.jsonl and val.jsonl"),
        (&["Train.jsonl", "train/a.jsonl"], "Train.jsonl and train/a.jsonl"),
    ] {
        let message = files(names, Split::Train).unwrap_err();
        assert!(message.contains(said), "{message}");
        assert!(
            message.starts_with('/') && !message.contains("split train:"),
            "a folder's, no setting's: {message}"
        );
    }
}

#[test]
fn a_message_names_the_files_that_are_there() {
    let message = files(&["train.jsonl", "check.jsonl", "held-out/x.csv"], Split::Validation).unwrap_err();
    for part in
        ["validation.jsonl", "named valid, val, dev, eval", "check.jsonl, held-out/x.csv, train.jsonl"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = files(&["notes.txt"], Split::Train).unwrap_err();
    assert!(
        message.contains("train, validation or test as .jsonl") && message.contains("notes.txt"),
        "{message}"
    );
    let folder = folder();
    let file = write(folder.path(), "train.jsonl", "{}\n");
    let message = Splits::open(&file, SplitRule::Files, false).unwrap_err().to_string();
    assert!(message.contains("the file") && message.contains("the folder that it is in"), "{message}");
}

#[test]
fn a_data_set_that_save_to_disk_wrote_says_how_it_is_written_as_files() {
    let of = |folder: &str| {
        ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"].map(|name| format!("{folder}{name}"))
    };
    let dictionary = [&of("train/")[..], &of("validation/"), &["dataset_dict.json".to_owned()]].concat();
    for (saved, read) in [(&dictionary[..], "/train\")"), (&of(""), "\")")] {
        let names: Vec<&str> = saved.iter().map(String::as_str).collect();
        let message = files(&names, Split::Train).unwrap_err();
        let written = format!("{read}.to_json(\"");
        assert!(message.contains("save_to_disk") && message.contains(&written), "{message}");
        assert!(message.contains("/train.jsonl\")"), "{message}");
        assert!(!message.contains("jq"), "{message}");
    }
    // Files that were then written beside them are read.
    let names =
        dictionary.iter().map(String::as_str).chain(["train.jsonl", "validation.jsonl", "test.jsonl"]);
    assert_eq!(files(&names.collect::<Vec<_>>(), Split::Train).unwrap(), ["train.jsonl"]);
}

// Files of the programs themselves

/// Every file of `scripts/peers/data_files.py` holds the same table.
#[test]
fn files_of_other_programs_give_the_rows_that_they_were_written_with() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data_files");
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let task = Task::generic("t", "{text}", Some("bad,good"), "label").unwrap();
    let expected: Vec<(String, &str)> = golden["text"]
        .as_array()
        .unwrap()
        .iter()
        .zip(golden["label"].as_array().unwrap())
        .map(|(text, label)| {
            (text.as_str().unwrap().to_owned(), if *label == json!(1) { "good" } else { "bad" })
        })
        .collect();
    let mut read = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "golden.json" || (cfg!(not(feature = "parquet")) && name.ends_with(".parquet")) {
            continue;
        }
        let rows: Vec<Row> =
            open(&path).and_then(|rows| rows.collect()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let examples = rows.iter().map(|row| task.examples(row, Purpose::Training).unwrap().remove(0));
        let found: Vec<(String, String)> = examples.map(|example| (example.source, example.target)).collect();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.0, found.1.as_str()), (&expected.0, expected.1), "{name}");
        }
        assert_eq!(count_rows(&path).unwrap(), expected.len(), "{name}");
        read += 1;
    }
    assert!(read >= 12, "{read} files");
}
