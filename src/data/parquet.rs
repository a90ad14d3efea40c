//! Rows of a Parquet file, as the hub ships data sets. Row numbers stand for lines in errors.
//!
//! Uncompressed and Snappy pages; others are refused by name.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tasks::Row;

/// Bytes of one column of one row group at most: a claim beyond it is damage, not data.
const COLUMN_BYTES: i64 = 1 << 31;

/// The rows of an open file.
pub(super) struct Records {
    rows: RowIter<'static>,
    path: Arc<Path>,
    row: u64,
    failed: bool,
}

/// Opens `file`, which is at `path`.
///
/// # Errors
/// [`Error::Format`] if it is no Parquet file or its sizes cannot be.
pub(super) fn open(file: File, path: &Path) -> Result<Records> {
    let reader = reader(file, path)?;
    let rows = shielded(path, None, || Ok(RowIter::from_file_into(Box::new(reader))))?;
    Ok(Records { rows, path: Arc::from(path), row: 0, failed: false })
}

/// How many rows the file says it has.
///
/// # Errors
/// As [`open`].
pub(super) fn count(file: File, path: &Path) -> Result<usize> {
    let rows = reader(file, path)?.metadata().file_metadata().num_rows();
    usize::try_from(rows).map_err(|_| damaged(path, None, &format!("{rows} rows")))
}

fn reader(file: File, path: &Path) -> Result<SerializedFileReader<File>> {
    let length = file.metadata().map_err(|source| Error::file("read", path, source))?.len();
    let reader = shielded(path, None, || SerializedFileReader::new(file))?;
    for group in reader.metadata().row_groups() {
        for column in group.columns() {
            let (stored, plain) = (column.compressed_size(), column.uncompressed_size());
            let fits = u64::try_from(stored).is_ok_and(|stored| stored <= length);
            if !fits || !(0..=COLUMN_BYTES).contains(&plain) || column.num_values() < 0 {
                let found = format!("a column of {stored} bytes, {plain} when read, in a file of {length}");
                return Err(damaged(path, None, &found));
            }
        }
    }
    Ok(reader)
}

impl Iterator for Records {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.failed {
            return None;
        }
        self.row += 1;
        let rows = &mut self.rows;
        let record = shielded(&self.path, Some(self.row), || rows.next().transpose());
        let row = match record {
            Ok(None) => return None,
            Ok(Some(record)) => self.fields(record),
            Err(error) => Err(error),
        };
        self.failed = row.is_err();
        Some(row)
    }
}

impl Records {
    fn fields(&self, record: Record) -> Result<Row> {
        let fields = record.into_columns().into_iter();
        let fields = fields.map(|(name, field)| {
            let value = value(&field).ok_or_else(|| {
                let found = format!("{} in `{name}`", field.to_string().chars().take(40).collect::<String>());
                let advice = "convert the file to .jsonl, or leave the column out";
                Error::format(
                    &*self.path,
                    Some(self.row),
                    "text, numbers, lists and structures",
                    found,
                    advice,
                )
            })?;
            Ok((name, value))
        });
        Ok(Row::new(fields.collect::<Result<Map<_, _>>>()?, self.path.clone(), self.row))
    }
}

/// The JSON of a value; `None` for bytes that are no text, and for maps whose keys are none.
fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::Bool(*truth),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) | Field::Date(number) | Field::TimeMillis(number) => Value::from(*number),
        Field::Long(number)
        | Field::TimeMicros(number)
        | Field::TimestampMillis(number)
        | Field::TimestampMicros(number) => Value::from(*number),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        Field::Float16(number) => Value::from(number.to_f32()),
        // Through its shortest text, so that 0.1 stays 0.1.
        Field::Float(number) => number.to_string().parse::<f64>().map_or(Value::Null, Value::from),
        Field::Double(number) => Value::from(*number),
        Field::Decimal(_) => Value::String(field.to_string()),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => Value::String(std::str::from_utf8(bytes.data()).ok()?.to_owned()),
        Field::Group(record) => {
            let fields = record.get_column_iter().map(|(name, field)| Some((name.clone(), value(field)?)));
            Value::Object(fields.collect::<Option<_>>()?)
        }
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect::<Option<_>>()?),
        Field::MapInternal(map) => {
            let entry = |(key, item): &(Field, Field)| match value(key)? {
                Value::String(key) => Some((key, value(item)?)),
                _ => None,
            };
            Value::Object(map.entries().iter().map(entry).collect::<Option<_>>()?)
        }
    })
}

/// What the crate gives, its panics taken for damage: it indexes by numbers of the file in places.
fn shielded<T>(
    path: &Path,
    row: Option<u64>,
    work: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(damaged(path, row, &error.to_string())),
        Err(_) => Err(damaged(path, row, "numbers that contradict each other")),
    }
}

fn damaged(path: &Path, row: Option<u64>, found: &str) -> Error {
    let found: String = found.chars().take(200).collect();
    let advice = "fetch it again, or convert it to .jsonl where it was made";
    Error::format(path, row, "a Parquet file, plain or compressed with Snappy", found, advice)
}
