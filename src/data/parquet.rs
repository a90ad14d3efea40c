//! Rows of a Parquet file, as the hub and data frames ship data sets. Row numbers stand for lines in errors.
//!
//! Pages may be plain or compressed in any way that the format knows but LZO, which nobody writes. The parquet crate takes what a
//! file says about itself at its word in places: counts, sizes and the schema are checked before it reads by them, and what is
//! left is [contained].

mod pages;
mod thrift;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, TimeUnit};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use self::pages::CheckedFile;
use crate::error::{Error, Result};
use crate::panics::contained;
use crate::tasks::Row;

/// Structures within structures at most.
const DEPTH: usize = 64;

/// The rows of an open file.
pub(super) struct Records {
    rows: RowIter<'static>,
    path: Arc<Path>,
    row: u64,
    /// Rows that the file says it has.
    count: u64,
    failed: bool,
    /// Columns of points in time in nanoseconds, which the record reader gives as plain numbers.
    in_nanoseconds: Vec<String>,
}

/// Opens `file`, which is at `path`, to read one column of each entry of `columns`, or all of them if there are none or one is
/// missing.
///
/// # Errors
/// [`Error::Format`] if it is no Parquet file or contradicts itself.
pub(super) fn open(file: File, path: &Path, columns: &[Vec<String>]) -> Result<Records> {
    let length = file.metadata().map_err(|source| Error::file("read", path, source))?.len();
    let pages = file.try_clone().map_err(|source| Error::file("read", path, source))?;
    let reader = CheckedFile::new(reader(file, path)?, pages);
    let schema = reader.metadata().file_metadata().schema();
    let schema = projection(schema, columns).unwrap_or_else(|| schema.clone());
    let fit = schema.get_fields().iter().all(|field| is_readable(field, DEPTH));
    if !fit || schema.get_fields().is_empty() {
        return Err(damaged(path, None, "columns that are no tree of values, lists and maps"));
    }
    for group in reader.metadata().row_groups() {
        check_columns(group, &schema, length).map_err(|found| damaged(path, None, &found))?;
    }
    let count = counted(reader.metadata()).map_err(|found| damaged(path, None, &found))?;
    let nanoseconds = |field: &&Arc<Type>| {
        let of = field.get_basic_info().logical_type_ref();
        matches!(of, Some(LogicalType::Timestamp(time)) if time.unit == TimeUnit::NANOS)
    };
    let in_nanoseconds =
        schema.get_fields().iter().filter(nanoseconds).map(|field| field.name().to_owned()).collect();
    let rows = shielded(path, None, || RowIter::from_file_into(Box::new(reader)).project(Some(schema)))?;
    Ok(Records { rows, path: Arc::from(path), row: 0, count, failed: false, in_nanoseconds })
}

/// How many rows the file says it has.
///
/// # Errors
/// As [`open`].
pub(super) fn count(file: File, path: &Path) -> Result<usize> {
    let rows = counted(reader(file, path)?.metadata());
    let rows = rows.and_then(|rows| usize::try_from(rows).map_err(|_| format!("{rows} rows")));
    rows.map_err(|found| damaged(path, None, &found))
}

fn reader(file: File, path: &Path) -> Result<SerializedFileReader<File>> {
    let length = file.metadata().map_err(|source| Error::file("read", path, source))?.len();
    shielded(path, None, || {
        pages::check_footer(&file, length)?;
        SerializedFileReader::new(file)
    })
}

/// The number of rows, if the file says the same everywhere.
fn counted(file: &ParquetMetaData) -> std::result::Result<u64, String> {
    let all = file.file_metadata().num_rows();
    let mut rows = 0_u64;
    for group in file.row_groups() {
        let count = group.num_rows();
        let sum = u64::try_from(count).ok().and_then(|count| rows.checked_add(count));
        rows = sum.ok_or_else(|| format!("a group of {count} rows"))?;
    }
    if u64::try_from(all) == Ok(rows) { Ok(rows) } else { Err(format!("{all} rows, and groups of {rows}")) }
}

/// What of the columns of a group that are read cannot be, if anything.
fn check_columns(group: &RowGroupMetaData, schema: &Type, length: u64) -> std::result::Result<(), String> {
    for column in group.columns() {
        let read = |name: &String| schema.get_fields().iter().any(|field| field.name() == name);
        if !column.column_path().parts().first().is_some_and(read) {
            continue;
        }
        let (start, stored, plain) =
            (column.data_page_offset(), column.compressed_size(), column.uncompressed_size());
        let start = column.dictionary_page_offset().map_or(start, |dictionary| dictionary.min(start));
        let end = u64::try_from(start).ok().zip(u64::try_from(stored).ok());
        let inside =
            end.and_then(|(start, stored)| start.checked_add(stored)).is_some_and(|end| end <= length);
        if !inside || plain < 0 {
            return Err(format!("a column of {stored} bytes, {plain} when read, at {start} of {length}"));
        }
        let (values, rows) = (column.num_values(), group.num_rows());
        let repeated = column.column_descr().max_rep_level() > 0;
        let holds = pages::holds(values.unsigned_abs(), stored.unsigned_abs(), rows.unsigned_abs(), repeated);
        if values < rows || (values > rows && !repeated) || !holds {
            return Err(format!("{values} values in a column of {rows} rows"));
        }
    }
    Ok(())
}

/// The schema with one column of each entry alone; `None` if there is no entry or not one of its names is a column.
fn projection(schema: &Type, columns: &[Vec<String>]) -> Option<Type> {
    let has = |name: &String| schema.get_fields().iter().any(|field| field.name() == name);
    if columns.is_empty() || !columns.iter().all(|names| names.iter().any(has)) {
        return None;
    }
    let wanted = |name: &str| columns.iter().flatten().any(|wanted| wanted == name);
    let fields = schema.get_fields().iter().filter(|field| wanted(field.name())).cloned().collect();
    Type::group_type_builder(schema.name()).with_fields(fields).build().ok()
}

/// Whether the record reader can build a tree of readers for this type: it asserts as much.
fn is_readable(field: &Type, depth: usize) -> bool {
    let about = field.get_basic_info();
    if depth == 0 || !about.has_repetition() {
        return false;
    }
    if field.is_primitive() {
        return true;
    }
    let children = field.get_fields();
    let only_child_repeats = || match children {
        [only] => {
            let about = only.get_basic_info();
            about.has_repetition() && about.repetition() == Repetition::REPEATED
        }
        _ => false,
    };
    let shaped = match about.converted_type() {
        ConvertedType::LIST => only_child_repeats(),
        ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => {
            only_child_repeats()
                && !children[0].is_primitive()
                && matches!(children[0].get_fields().len(), 1 | 2)
        }
        _ => !children.is_empty(),
    };
    shaped && children.iter().all(|child| is_readable(child, depth - 1))
}

impl Iterator for Records {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.failed {
            return None;
        }
        if self.row == self.count {
            return None;
        }
        self.row += 1;
        let rows = &mut self.rows;
        let record = shielded(&self.path, Some(self.row), || rows.next().transpose());
        let row = match record {
            Ok(None) => Err(damaged(&self.path, Some(self.row), "the end, before the last of its rows")),
            Ok(Some(record)) => Ok(self.fields(record)),
            Err(error) => Err(error),
        };
        self.failed = row.is_err();
        Some(row)
    }
}

impl Records {
    fn fields(&self, record: Record) -> Row {
        let (mut fields, mut left_out) = (Map::new(), Vec::new());
        for (name, field) in record.into_columns() {
            let value = match field {
                Field::Long(count) if self.in_nanoseconds.contains(&name) => {
                    Some(clock(count, 1_000_000_000, Field::TimestampMicros))
                }
                _ => value(&field),
            };
            match value {
                Some(value) => {
                    fields.insert(name, value);
                }
                None => left_out.push(name),
            }
        }
        Row::new(fields, self.path.clone(), self.row).with_left_out(left_out)
    }
}

/// The JSON of a value; `None` for bytes that are no text, and for maps whose keys are none.
fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::Bool(*truth),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) => Value::from(*number),
        Field::Long(number) => Value::from(*number),
        Field::Date(days) => calendar(field, None).unwrap_or_else(|| Value::from(*days)),
        Field::TimeMillis(count) => clock((*count).into(), 1_000, Field::TimeMicros),
        Field::TimeMicros(count) => clock(*count, 1_000_000, Field::TimeMicros),
        Field::TimestampMillis(count) => clock(*count, 1_000, Field::TimestampMicros),
        Field::TimestampMicros(count) => clock(*count, 1_000_000, Field::TimestampMicros),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        Field::Float16(number) => Value::from(number.to_f32()),
        // Through its shortest text, so that 0.1 stays 0.1.
        Field::Float(number) => number.to_string().parse::<f64>().map_or(Value::Null, Value::from),
        Field::Double(number) => Value::from(*number),
        // A whole number is written with a point after it.
        Field::Decimal(_) => Value::String(field.to_string().trim_end_matches('.').to_owned()),
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

/// What the crate gives, a panic taken for damage.
fn shielded<T>(
    path: &Path,
    row: Option<u64>,
    work: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> Result<T> {
    match contained(work) {
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) => Err(damaged(path, row, &error.to_string())),
        None => Err(damaged(path, row, "numbers that contradict each other")),
    }
}

fn damaged(path: &Path, row: Option<u64>, found: &str) -> Error {
    let found: String = found.chars().take(200).collect();
    let advice = "fetch it again, or convert it to .jsonl where it was made";
    Error::format(path, row, "a whole Parquet file", found, advice)
}

/// A date as Python writes it, `2020-01-31`, and with a `fraction` of a second a time, `12:30:00`, or both; `None` where the calendar
/// ends.
fn calendar(field: &Field, fraction: Option<String>) -> Option<Value> {
    let text = contained(|| field.to_string())?;
    let Some(fraction) = fraction else { return Some(Value::String(text)) };
    // The crate writes a fraction and a time zone, which is UTC, in any case.
    let (seconds, _) = text.split_once('.')?;
    Some(Value::String(format!("{seconds}{fraction}")))
}

/// A number of parts of a second since midnight or since 1970, of which `micros` makes a field of microseconds; the number itself
/// where the calendar ends.
fn clock(count: i64, parts: i64, micros: fn(i64) -> Field) -> Value {
    let (seconds, rest) = (count.div_euclid(parts), count.rem_euclid(parts));
    let fraction = match (rest, rest * 1_000_000 % parts) {
        (0, _) => String::new(),
        (_, 0) => format!(".{:06}", rest * 1_000_000 / parts),
        _ => format!(".{rest:09}"),
    };
    let field = seconds.checked_mul(1_000_000).map(micros);
    field.and_then(|field| calendar(&field, Some(fraction))).unwrap_or_else(|| Value::from(count))
}
