//! Parquet files, as the hub ships them: the same rows as JSONL, shards in order, damage refused.
#![cfg(feature = "parquet")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use promptmix::data::{Split, Splits, count_rows, open};
use promptmix::tasks::{Purpose, SplitRule, Task};
use serde_json::{Value, json};

/// Rows `first..end` of a question-answering set, in row groups of four; the answers are a list in a structure.
fn write(path: &Path, first: usize, end: usize, compression: Compression) {
    let schema = "message schema {
        OPTIONAL BYTE_ARRAY question (UTF8);
        REQUIRED BYTE_ARRAY context (UTF8);
        REQUIRED INT64 id;
        OPTIONAL DOUBLE weight;
        REQUIRED GROUP answers {
            REQUIRED GROUP text (LIST) { REPEATED GROUP list { OPTIONAL BYTE_ARRAY element (UTF8); } }
            REQUIRED GROUP answer_start (LIST) { REPEATED GROUP list { OPTIONAL INT32 element; } }
        }
    }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let file = File::create(path).expect("created");
    let mut writer = SerializedFileWriter::new(file, schema, properties).expect("a writer");
    let rows: Vec<usize> = (first..end).collect();
    for rows in rows.chunks(4) {
        let mut group = writer.next_row_group().expect("a group");
        let text = |make: &dyn Fn(usize) -> String| -> Vec<ByteArray> {
            rows.iter().map(|&row| ByteArray::from(make(row).as_str())).collect()
        };
        for column in 0..6 {
            let mut next = group.next_column().expect("a column").expect("one more");
            // Row n has n % 3 answers; every fourth question is null.
            let (mut definition, mut repetition) = (vec![], vec![]);
            for &row in rows {
                let answers = row % 3;
                definition.extend(if answers == 0 { vec![0] } else { vec![2; answers] });
                repetition.extend((0..answers.max(1)).map(|answer| i16::from(answer > 0)));
            }
            let answers = || rows.iter().flat_map(|&row| (0..row % 3).map(move |answer| (row, answer)));
            match column {
                0 => {
                    let some: Vec<ByteArray> = rows
                        .iter()
                        .filter(|&&row| row % 4 != 3)
                        .map(|row| ByteArray::from(format!("what is {row}? ž").as_str()))
                        .collect();
                    let defined: Vec<i16> = rows.iter().map(|row| i16::from(row % 4 != 3)).collect();
                    next.typed::<ByteArrayType>().write_batch(&some, Some(&defined), None).expect("written");
                }
                1 => {
                    let texts = text(&|row| format!("it is {row}."));
                    next.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("written");
                }
                2 => {
                    let ids: Vec<i64> = rows.iter().map(|&row| row as i64 - 5).collect();
                    next.typed::<Int64Type>().write_batch(&ids, None, None).expect("written");
                }
                3 => {
                    let weights: Vec<f64> = rows.iter().map(|&row| row as f64 / 4.0).collect();
                    let defined = vec![1; rows.len()];
                    next.typed::<DoubleType>().write_batch(&weights, Some(&defined), None).expect("written");
                }
                4 => {
                    let texts: Vec<ByteArray> = answers()
                        .map(|(row, answer)| ByteArray::from(format!("{row}-{answer}").as_str()))
                        .collect();
                    next.typed::<ByteArrayType>()
                        .write_batch(&texts, Some(&definition), Some(&repetition))
                        .expect("written");
                }
                _ => {
                    let starts: Vec<i32> = answers().map(|(row, _)| row as i32).collect();
                    next.typed::<Int32Type>()
                        .write_batch(&starts, Some(&definition), Some(&repetition))
                        .expect("written");
                }
            }
            next.close().expect("closed");
        }
        group.close().expect("closed");
    }
    writer.close().expect("closed");
}

/// What row `row` of [`write`] is.
fn expected(row: usize) -> Value {
    let texts: Vec<String> = (0..row % 3).map(|answer| format!("{row}-{answer}")).collect();
    let question = if row % 4 == 3 { Value::Null } else { json!(format!("what is {row}? ž")) };
    json!({
        "question": question, "context": format!("it is {row}."), "id": row as i64 - 5, "weight": row as f64 / 4.0,
        "answers": { "text": texts, "answer_start": vec![row; row % 3] },
    })
}

#[test]
fn rows_come_as_they_were_written_with_their_numbers() {
    let folder = tempfile::tempdir().expect("folder");
    for (name, compression) in [
        ("plain.parquet", Compression::UNCOMPRESSED),
        ("snappy.PARQUET", Compression::SNAPPY),
        ("gzip.parquet", Compression::GZIP(GzipLevel::default())),
        ("brotli.parquet", Compression::BROTLI(BrotliLevel::default())),
        ("zstd.parquet", Compression::ZSTD(ZstdLevel::default())),
        ("lz4.parquet", Compression::LZ4_RAW),
        // In Hadoop's frames, as older programs wrote it.
        ("lz4-hadoop.parquet", Compression::LZ4),
    ] {
        let path = folder.path().join(name);
        write(&path, 0, 10, compression);
        assert_eq!(count_rows(&path).expect("counted"), 10, "{name}");
        let rows: Vec<_> = open(&path).expect("opened").collect::<Result<_, _>>().expect("rows");
        assert_eq!(rows.len(), 10, "{name}");
        for (index, row) in rows.iter().enumerate() {
            assert_eq!(Value::Object(row.fields().clone()), expected(index), "{name}");
            assert_eq!((row.line(), row.path()), (index as u64 + 1, path.as_path()));
        }
        // A task reads them as any others: the list of answers lies in a structure.
        let examples =
            Task::named("squad").expect("a task").examples(&rows[5], Purpose::Evaluation).expect("one");
        assert_eq!(examples[0].target, "5 - 0");
        let error =
            Task::named("squad").expect("a task").examples(&rows[7], Purpose::Evaluation).expect_err("null");
        assert!(error.to_string().contains("line 8") && error.to_string().contains("question"), "{error}");
    }
}

#[test]
fn shards_are_one_split_in_order_and_must_be_complete() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    let shard =
        |stem: &str, number: usize, of: usize| data.join(format!("{stem}-{number:05}-of-{of:05}.parquet"));
    write(&shard("train", 1, 3), 7, 9, Compression::SNAPPY);
    write(&shard("train", 0, 3), 0, 7, Compression::SNAPPY);
    let rule = SplitRule::HoldOutTraining { rows: 4 };
    let error = Splits::open(folder.path(), rule, false).expect_err("a shard is missing").to_string();
    assert!(error.contains("shards 0 to 2 of 3") && error.contains("fetch"), "{error}");
    write(&shard("train", 2, 3), 9, 15, Compression::SNAPPY);
    write(&shard("validation", 0, 1), 0, 5, Compression::SNAPPY);
    let splits = Splits::open(folder.path(), rule, false).expect("splits");
    let train = splits.get(Split::Train).expect("a split");
    assert_eq!(train.row_count().expect("counted"), 15);
    let rows: Vec<Value> = train
        .rows()
        .expect("opened")
        .map(|row| Value::Object(row.expect("a row").fields().clone()))
        .collect();
    assert_eq!(rows, (0..15).map(expected).collect::<Vec<_>>());
    // The split rule counts rows over all shards, and chosen rows are found in the shard that they lie in.
    let splits = Splits::open(folder.path(), rule, true).expect("splits");
    let ids = |split| -> Vec<i64> {
        let rows = splits.get(split).expect("a split").rows().expect("opened");
        rows.map(|row| row.expect("a row").fields()["id"].as_i64().expect("a number") + 5).collect()
    };
    let (train, validation) = (ids(Split::Train), ids(Split::Validation));
    assert_eq!((train.len(), validation.len(), ids(Split::Test).len()), (11, 4, 5));
    let mut all = [train, validation].concat();
    all.sort_unstable();
    assert_eq!(all, (0..15).collect::<Vec<i64>>());
    std::fs::write(folder.path().join("train.jsonl"), "{}").expect("written");
    Splits::open(folder.path(), rule, false).expect_err("which of the two?");
}

#[test]
fn a_column_that_no_task_reads_does_not_matter() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("train.parquet");
    let schema = "message schema {
        REQUIRED BYTE_ARRAY text (UTF8);
        REQUIRED INT32 label;
        REQUIRED GROUP image { OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); }
        REQUIRED BYTE_ARRAY thumbnail;
    }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let file = File::create(&path).expect("created");
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let picture = || ByteArray::from(vec![0x89, b'P', 0xff, 0]);
    for column in 0..5 {
        let mut next = group.next_column().expect("a column").expect("one more");
        match column {
            1 => next.typed::<Int32Type>().write_batch(&[1, 0], None, None),
            0 => next.typed::<ByteArrayType>().write_batch(&["a".into(), "b".into()], None, None),
            2 => next.typed::<ByteArrayType>().write_batch(&[picture()], Some(&[1, 0]), None),
            3 => next.typed::<ByteArrayType>().write_batch(&["x.png".into()], Some(&[0, 1]), None),
            _ => next.typed::<ByteArrayType>().write_batch(&[picture(), picture()], None, None),
        }
        .expect("written");
        next.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");

    // What cannot be a value is left out, and said to be there.
    let rows: Vec<_> = open(&path).expect("opened").collect::<Result<_, _>>().expect("rows");
    assert_eq!(Value::Object(rows[0].fields().clone()), json!({"text": "a", "label": 1}));
    assert_eq!(rows[0].left_out(), ["image", "thumbnail"]);
    assert_eq!(rows[1].fields()["image"], json!({"bytes": null, "path": "x.png"}));
    let task = |template: &str| Task::generic("t", template, Some("bad,good"), "label").expect("a task");
    let error = task("{image.bytes}").source_text(&rows[0]).expect_err("bytes").to_string();
    assert!(error.contains("line 1") && error.contains("bytes that are no text in `image`"), "{error}");

    // A task reads its own columns alone: what is damaged or huge beside them is not looked at.
    let splits = Splits::open(folder.path(), SplitRule::Files, false).expect("splits");
    let part = splits.get(Split::Train).expect("a split");
    let rows: Vec<_> =
        part.rows_for(&task("{text}")).expect("opened").collect::<Result<_, _>>().expect("rows");
    assert_eq!(Value::Object(rows[1].fields().clone()), json!({"text": "b", "label": 0}));
    let other = task("{title or text}");
    assert_eq!(part.rows_for(&other).expect("opened").count(), 2);
    // Where one is missing all are read, so that the message can name them.
    let row = part.rows_for(&task("{title}")).expect("opened").next().expect("one").expect("a row");
    let error = task("{title}").source_text(&row).expect_err("missing").to_string();
    assert!(error.contains("fields label, text"), "{error}");
}

#[test]
fn a_footer_that_miscounts_is_refused_by_whoever_reads_it() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("train.parquet");
    write(&path, 0, 3, Compression::SNAPPY);
    let good = std::fs::read(&path).expect("read");
    assert_eq!(open(&path).expect("opened").count(), 3);
    // Three rows in Thrift's compact form: a field of 64 bits after the one before, and 3 as zigzag. Then -33, 2, 4 and 2^20.
    let places: Vec<usize> =
        (good.len() / 2..good.len() - 8).filter(|&at| good[at..at + 2] == [0x16, 6]).collect();
    assert!(places.len() >= 2, "the file's count and the group's: {places:?}");
    let mut refused = 0;
    for at in places {
        for count in [&[0x41][..], &[4], &[8], &[0x80, 0x80, 0x80, 1]] {
            let mut bytes = good.clone();
            bytes.splice(at + 1..at + 2, count.iter().copied());
            let footer = bytes.len() - 8;
            let length = u32::from_le_bytes(bytes[footer..footer + 4].try_into().expect("four"));
            let length = length + count.len() as u32 - 1;
            bytes[footer..footer + 4].copy_from_slice(&length.to_le_bytes());
            std::fs::write(&path, &bytes).expect("written");
            let rows = open(&path).map(|rows| rows.filter(Result::is_ok).count());
            match count_rows(&path) {
                Ok(counted) => assert!(rows.is_err() || rows.is_ok_and(|rows| rows == counted)),
                Err(_) => refused += usize::from(rows.is_err()),
            }
        }
    }
    assert!(refused >= 8, "counts of rows are refused by both: {refused}");
}

#[test]
fn what_is_no_parquet_file_says_so() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("train.parquet");
    for content in [&b""[..], b"PAR1", b"{\"sentence\": \"a\"}", b"PAR1\xff\xff\xff\x7fPAR1"] {
        std::fs::write(&path, content).expect("written");
        let error = open(&path).expect_err("no Parquet").to_string();
        assert!(error.contains("train.parquet") && error.contains("Parquet"), "{error}");
    }
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        .expect("written");
    let error = open(&path).expect_err("a pointer").to_string();
    assert!(error.contains("git lfs pull"), "{error}");
    assert_eq!(count_rows(&path).expect_err("a pointer").to_string(), error);
    write(&path, 0, 0, Compression::SNAPPY);
    let rows: Vec<_> = open(&path).expect("opened").collect();
    assert!(rows.len() == 1 && rows[0].is_err(), "a file without rows is an error");
}

#[test]
fn decimals_dates_and_times_are_written_as_python_writes_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("train.parquet");
    let schema = "message schema {
        REQUIRED INT64 whole (DECIMAL(18, 0));
        REQUIRED INT64 cents (DECIMAL(18, 2));
        REQUIRED INT32 day (DATE);
        REQUIRED INT32 hour (TIME_MILLIS);
        REQUIRED INT64 millis (TIMESTAMP_MILLIS);
        REQUIRED INT64 micros (TIMESTAMP_MICROS);
        REQUIRED INT64 nanos (TIMESTAMP(NANOS,false));
        REQUIRED INT64 beyond (TIMESTAMP_MILLIS);
    }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let file = File::create(&path).expect("created");
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    // 2020-01-31 is the 18,292nd day; the times are a quarter past one, and parts of a second before or after it.
    let (day, quarter) = (18_292_i64, 4_500_i64);
    let second = day * 86_400 + quarter;
    for values in [
        [7, -7],
        [705, -5],
        [day, -1],
        [quarter * 1_000, quarter * 1_000 + 5],
        [second * 1_000, -1],
        [second * 1_000_000 + 250_000, second * 1_000_000],
        [second * 1_000_000_000 + 1, second * 1_000_000_000 + 1_000],
        [i64::MAX, i64::MIN],
    ] {
        let mut column = group.next_column().expect("a column").expect("one more");
        let narrow = values.map(|value| value as i32);
        let written = match values[0] {
            value if value == day || value == quarter * 1_000 => {
                column.typed::<Int32Type>().write_batch(&narrow, None, None)
            }
            _ => column.typed::<Int64Type>().write_batch(&values, None, None),
        };
        written.expect("written");
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
    let rows: Vec<Value> =
        open(&path).expect("opens").map(|row| Value::Object(row.expect("a row").fields().clone())).collect();
    let first = json!({
        "whole": "7", "cents": "7.05", "day": "2020-01-31", "hour": "01:15:00", "millis": "2020-01-31 01:15:00",
        "micros": "2020-01-31 01:15:00.250000", "nanos": "2020-01-31 01:15:00.000000001", "beyond": i64::MAX,
    });
    let second = json!({
        "whole": "-7", "cents": "-0.05", "day": "1969-12-31", "hour": "01:15:00.005000",
        "millis": "1969-12-31 23:59:59.999000", "micros": "2020-01-31 01:15:00",
        "nanos": "2020-01-31 01:15:00.000001", "beyond": i64::MIN,
    });
    assert_eq!(rows, [first, second]);
}
