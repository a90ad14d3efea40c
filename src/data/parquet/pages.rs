//! What the pages of a column say of their sizes, checked before the parquet crate makes room by it.
//!
//! The crate reserves and fills as much memory as a page claims to be when decompressed, as many entries as a dictionary claims
//! to have, and as many lengths as a delta-encoded page claims. A kilobyte can claim gigabytes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use parquet::basic::{Encoding, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::{ColumnDescPtr, Type};

use super::thrift::{Shape, Thrift};

/// A page may be this large, or [`MAX_RATIO`] times what is stored of it: writers aim at 1 MB, and one long text makes a page of
/// its own.
const MAX_PAGE: u64 = 512 << 20;
/// The most that DEFLATE can compress. Others compress constant pages further, which [`MAX_PAGE`] and [`MAX_VALUES`] allow for.
const MAX_RATIO: u64 = 1032;
/// Values of a column in a row group, beyond [`MAX_RATIO`] for each stored byte: the largest row group that pyarrow writes.
const MAX_VALUES: u64 = 1 << 26;
/// Values of a column in one row on average, beyond [`MAX_VALUES`]: lists may be alike, such as embeddings of zeros.
const MAX_MEAN_LIST: u64 = 1 << 16;
/// Values of a column in one row: all of them are in memory at once.
const MAX_LIST: u64 = 1 << 24;

/// Whether a chunk of `stored` bytes may claim so many `values` in so many `rows`.
pub(super) fn holds(values: u64, stored: u64, rows: u64, listed: bool) -> bool {
    let in_lists = if listed { rows.saturating_mul(MAX_MEAN_LIST) } else { 0 };
    values <= stored.saturating_mul(MAX_RATIO).max(MAX_VALUES).max(in_lists)
}

/// A file whose pages are checked.
pub(super) struct CheckedFile {
    reader: SerializedFileReader<File>,
    file: File,
}

impl CheckedFile {
    /// Of `reader`, whose file is `file` too.
    pub(super) fn new(reader: SerializedFileReader<File>, file: File) -> Self {
        Self { reader, file }
    }
}

impl FileReader for CheckedFile {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, index: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(CheckedGroup { group: self.reader.get_row_group(index)?, file: &self.file }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct CheckedGroup<'a> {
    group: Box<dyn RowGroupReader + 'a>,
    file: &'a File,
}

impl RowGroupReader for CheckedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, index: usize) -> Result<Box<dyn PageReader>> {
        let column = self.group.metadata().column(index);
        let (start, stored) = column.byte_range();
        check_sizes(self.file, start, stored)?;
        let pages = self.group.get_column_page_reader(index)?;
        Ok(Box::new(CheckedPages { pages, column: column.column_descr_ptr(), in_row: 0 }))
    }

    fn get_column_bloom_filter(&self, index: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(index)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

struct CheckedPages {
    pages: Box<dyn PageReader>,
    column: ColumnDescPtr,
    /// Values so far of the row at hand.
    in_row: u64,
}

impl CheckedPages {
    fn checked(&mut self, page: Page) -> Result<Page> {
        let found = match &page {
            Page::DictionaryPage { buf, num_values, .. } => {
                let count = u64::from(*num_values);
                let fits = count <= buf.len() as u64 / least_bytes(&self.column).max(1);
                (!fits).then(|| format!("a dictionary of {count} entries in {} bytes", buf.len()))
            }
            Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, .. } => {
                let levels = [
                    (self.column.max_rep_level(), *rep_level_encoding),
                    (self.column.max_def_level(), *def_level_encoding),
                ];
                let mut values = &buf[..];
                for (max, encoding) in levels {
                    values = after_levels(values, max, encoding, *num_values);
                }
                // Levels were once written without runs, some bits each; their order within a byte changes no row by eight.
                let packed = *rep_level_encoding != Encoding::RLE;
                let starts = if packed { &buf[..] } else { buf.get(4..).unwrap_or_default() };
                self.check_lists(starts, packed, *num_values)
                    .or_else(|| check_lengths(values, *encoding, *num_values))
            }
            Page::DataPageV2 {
                buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, ..
            } => {
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                let values = usize::try_from(levels).ok().and_then(|levels| buf.get(levels..));
                self.check_lists(buf, false, *num_values)
                    .or_else(|| check_lengths(values.unwrap_or_default(), *encoding, *num_values))
            }
        };
        found.map_or(Ok(page), |found| Err(ParquetError::General(found)))
    }

    /// Counts the values of each row, by the repetition levels that `bytes` begin with: a row's first has level 0. What is
    /// wrong with them, if anything; the crate finds levels that end early.
    fn check_lists(&mut self, bytes: &[u8], packed: bool, values: u32) -> Option<String> {
        let max = self.column.max_rep_level();
        if max <= 0 {
            return None;
        }
        let width = 16 - max.leading_zeros();
        let (mut most, mut left) = (0, u64::from(values));
        let mut take = |is_first: bool, count: u64| {
            self.in_row = if is_first { 1 } else { self.in_row.saturating_add(count) };
            most = most.max(self.in_row);
        };
        let mut rest = bytes;
        while left > 0 {
            let header = if packed { (left.div_ceil(8) << 1) | 1 } else { varint(&mut rest)? };
            let run = header >> 1;
            if header & 1 == 0 {
                let level = *rest.first()?;
                rest = rest.get(width.div_ceil(8) as usize..)?;
                let count = run.min(left);
                take(level == 0, count);
                left -= count;
            } else {
                let count = run.saturating_mul(8).min(left);
                let length = usize::try_from((count * u64::from(width)).div_ceil(8)).ok()?;
                let levels = rest.get(..length)?;
                for index in 0..count {
                    let bits = index * u64::from(width)..(index + 1) * u64::from(width);
                    let set = |bit: u64| levels[(bit / 8) as usize] >> (bit % 8) & 1 == 1;
                    take(!bits.into_iter().any(set), 1);
                }
                rest = rest
                    .get(usize::try_from(run.saturating_mul(u64::from(width))).ok()?..)
                    .unwrap_or_default();
                left -= count;
            }
            if run == 0 {
                break;
            }
        }
        (most > MAX_LIST).then(|| format!("{most} values in one row"))
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.pages.get_next_page()?.map(|page| self.checked(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.pages.take_deferred_dictionary()?.map(|page| self.checked(page)).transpose()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

/// Bytes that a value of a dictionary takes at least.
fn least_bytes(column: &ColumnDescPtr) -> u64 {
    match column.physical_type() {
        PhysicalType::BOOLEAN => 1,
        // The length of a byte array has four.
        PhysicalType::INT32 | PhysicalType::FLOAT | PhysicalType::BYTE_ARRAY => 4,
        PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
        PhysicalType::INT96 => 12,
        PhysicalType::FIXED_LEN_BYTE_ARRAY => u64::try_from(column.type_length()).unwrap_or(1),
    }
}

/// What of a page of version 1 comes after levels up to `max`.
fn after_levels(page: &[u8], max: i16, encoding: Encoding, values: u32) -> &[u8] {
    let bytes = match encoding {
        _ if max <= 0 => 0,
        Encoding::RLE => match page.first_chunk() {
            Some(length) => 4 + u64::from(u32::from_le_bytes(*length)),
            None => u64::MAX,
        },
        _ => (u64::from(values) * u64::from(16 - max.leading_zeros())).div_ceil(8),
    };
    usize::try_from(bytes).ok().and_then(|bytes| page.get(bytes..)).unwrap_or_default()
}

/// What of the lengths that a page of delta-encoded byte arrays begins with cannot be, if anything.
fn check_lengths(page: &[u8], encoding: Encoding, values: u32) -> Option<String> {
    let lists = match encoding {
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        // Lengths of prefixes, then of what follows them.
        Encoding::DELTA_BYTE_ARRAY => 2,
        _ => 0,
    };
    let mut rest = page;
    for _ in 0..lists {
        let count = after_deltas(&mut rest)?;
        if count > u64::from(values) {
            return Some(format!("{count} lengths in a page of {values} values"));
        }
    }
    None
}

/// Steps over a list of delta-encoded integers: how many it says it has. `None` where it ends too early, which the crate finds
/// before it makes room.
fn after_deltas(bytes: &mut &[u8]) -> Option<u64> {
    let (block, miniblocks, count) = (varint(bytes)?, varint(bytes)?, varint(bytes)?);
    varint(bytes)?;
    let mut left = count.saturating_sub(1);
    let of_miniblock = block.checked_div(miniblocks)?;
    let step = |bytes: &mut &[u8], count: u64| {
        *bytes = bytes.get(usize::try_from(count).ok()?..)?;
        Some(())
    };
    while left > 0 && of_miniblock > 0 {
        // The least delta, then a width for each miniblock, then the miniblocks.
        if varint(bytes).is_none() {
            break;
        }
        let Some(widths) = usize::try_from(miniblocks).ok().and_then(|count| bytes.get(..count)) else {
            break;
        };
        *bytes = &bytes[widths.len()..];
        for width in widths {
            if left > 0 && step(bytes, (u64::from(*width) * of_miniblock) / 8).is_none() {
                *bytes = &[];
            }
            left = left.saturating_sub(of_miniblock);
        }
    }
    Some(count)
}

/// The next number of `bytes`, seven bits a byte.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    Thrift::new(bytes, 0).varint()
}

/// Whether the footer of `file`, of `length` bytes, is a struct within its bytes. Where none can be found, the crate says so.
pub(super) fn check_footer(file: &File, length: u64) -> Result<()> {
    let mut file = BufReader::new(file);
    let mut end = [0; 8];
    if length < end.len() as u64 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(length - 8))?;
    file.read_exact(&mut end)?;
    let [a, b, c, d, magic @ ..] = end;
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    let Some(start) = (length - 8).checked_sub(footer).filter(|_| magic == *b"PAR1") else { return Ok(()) };
    file.seek(SeekFrom::Start(start))?;
    let found = Thrift::new(file.take(footer), footer).skip_struct();
    found.ok_or_else(|| ParquetError::General("a footer that claims more than it has".to_owned()))
}

/// Looks at the header of every page of the chunk of `stored` bytes at `start`: where the last page ends. A header is refused that
/// has what page headers do not have: the crate would step over a list of a billion.
fn check_sizes(file: impl Read + Seek, start: u64, stored: u64) -> Result<u64> {
    let mut file = BufReader::with_capacity(512, file);
    file.seek(SeekFrom::Start(start))?;
    let end = start.saturating_add(stored);
    let mut position = start;
    while position < end {
        // Zeros after the last page are none.
        if file.fill_buf()?.first() == Some(&0) {
            break;
        }
        let Some([plain, stored]) = page_header(&mut Thrift::new(&mut file, stored)) else {
            return Err(ParquetError::General(format!("no page header at byte {position}")));
        };
        if plain > stored.saturating_mul(MAX_RATIO).max(MAX_PAGE) {
            return Err(ParquetError::General(format!("a page of {plain} bytes in {stored}")));
        }
        file.seek_relative(i64::try_from(stored)?)?;
        position = file.stream_position()?;
    }
    Ok(position)
}

// The fields of a page header, as the format's definition has them.
const STATISTICS: &[Shape] = &[
    Shape::Binary,
    Shape::Binary,
    Shape::I64,
    Shape::I64,
    Shape::Binary,
    Shape::Binary,
    Shape::Bool,
    Shape::Bool,
];
const DATA: &[Shape] = &[Shape::I32, Shape::I32, Shape::I32, Shape::I32, Shape::Struct(STATISTICS)];
const DICTIONARY: &[Shape] = &[Shape::I32, Shape::I32, Shape::Bool];
const DATA_V2: &[Shape] = &[
    Shape::I32,
    Shape::I32,
    Shape::I32,
    Shape::I32,
    Shape::I32,
    Shape::I32,
    Shape::Bool,
    Shape::Struct(STATISTICS),
];
const HEADER: &[Shape] = &[
    Shape::I32,
    Shape::I32,
    Shape::I32,
    Shape::I32,
    Shape::Struct(DATA),
    Shape::Struct(&[]),
    Shape::Struct(DICTIONARY),
    Shape::Struct(DATA_V2),
];

/// Bytes of a page when it is decompressed and as it is stored, after its header.
fn page_header(header: &mut Thrift<impl Read>) -> Option<[u64; 2]> {
    const UNCOMPRESSED: i64 = 2;
    const COMPRESSED: i64 = 3;
    let mut sizes = [None; 2];
    let mut number = 0;
    while let Some((kind, next)) = header.field(number)? {
        number = next;
        match number {
            UNCOMPRESSED => sizes[0] = Some(u64::try_from(header.i32(kind)?).ok()?),
            COMPRESSED => sizes[1] = Some(u64::try_from(header.i32(kind)?).ok()?),
            _ => header.skip(kind, Shape::of(HEADER, number))?,
        }
    }
    Some([sizes[0]?, sizes[1]?])
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::*;

    #[test]
    fn deltas_are_stepped_over_as_the_format_describes_them() {
        // Seven lengths in blocks of 128 of 4 miniblocks, first 3: least delta -1, widths 2 0 0 0, one miniblock of 8 bytes.
        let mut list = vec![0x80, 0x01, 4, 7, 6, 1, 2, 0, 0, 0];
        list.extend([0xaa; 8]);
        let mut bytes = [&list[..], &[9, 9]].concat();
        let mut rest = &bytes[..];
        assert_eq!(after_deltas(&mut rest), Some(7));
        assert_eq!(rest, [9, 9]);
        assert_eq!(check_lengths(&bytes, Encoding::DELTA_LENGTH_BYTE_ARRAY, 7), None);
        let found = check_lengths(&bytes, Encoding::DELTA_LENGTH_BYTE_ARRAY, 6);
        assert_eq!(found.as_deref(), Some("7 lengths in a page of 6 values"));
        bytes.truncate(list.len());
        bytes.extend([0x80, 0x01, 4, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]);
        let found = check_lengths(&bytes, Encoding::DELTA_BYTE_ARRAY, 7);
        assert_eq!(found.as_deref(), Some("4294967295 lengths in a page of 7 values"));
        for length in 0..bytes.len() {
            check_lengths(&bytes[..length], Encoding::DELTA_BYTE_ARRAY, 7);
        }
    }

    #[test]
    fn levels_are_stepped_over_by_their_encoding() {
        let page = [2, 0, 0, 0, 7, 7, 1, 2, 3];
        assert_eq!(after_levels(&page, 1, Encoding::RLE, 5), [1, 2, 3]);
        assert_eq!(after_levels(&page, 0, Encoding::RLE, 5), page);
        #[allow(deprecated)] // what old files have
        let packed = Encoding::BIT_PACKED;
        // Twelve levels of two bits.
        assert_eq!(after_levels(&page, 3, packed, 12), &page[3..]);
        assert!(after_levels(&page[..3], 1, Encoding::RLE, 5).is_empty());
    }

    #[test]
    fn headers_of_pages_are_read_as_writers_write_them() {
        let schema = "message rows { required byte_array text (UTF8); optional int64 number; }";
        let schema = Arc::new(parse_message_type(schema).expect("a schema"));
        let texts: Vec<ByteArray> = (0..3_000).map(|i| format!("text {i}").as_str().into()).collect();
        let numbers: Vec<i64> = (0..2_000).collect();
        let levels: Vec<i16> = (0..3_000).map(|i| i16::from(i < 2_000)).collect();
        let mut chunks = 0;
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for dictionary in [true, false] {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .set_writer_version(version)
                    .set_dictionary_enabled(dictionary)
                    .set_data_page_row_count_limit(1_000)
                    .set_write_batch_size(100);
                let mut bytes = Vec::new();
                let writer = SerializedFileWriter::new(&mut bytes, schema.clone(), properties.build().into());
                let mut writer = writer.expect("a writer");
                let mut group = writer.next_row_group().expect("a group");
                let mut text = group.next_column().expect("a column").expect("the first");
                text.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("written");
                text.close().expect("closed");
                let mut number = group.next_column().expect("a column").expect("the second");
                number.typed::<Int64Type>().write_batch(&numbers, Some(&levels), None).expect("written");
                number.close().expect("closed");
                let about = group.close().expect("closed");
                writer.close().expect("closed");
                for column in about.columns() {
                    let (start, stored) = column.byte_range();
                    let end = check_sizes(Cursor::new(&bytes), start, stored).expect("pages");
                    assert_eq!(end, start + stored, "{version:?}, {dictionary}");
                    // The page says that it is of 2 GiB less one, in five bytes.
                    let mut claims = vec![0x15, 0, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f];
                    let at = usize::try_from(start).expect("small");
                    let mut rest = &bytes[at + 3..];
                    varint(&mut rest).expect("a size");
                    claims.extend(rest);
                    let found = check_sizes(Cursor::new(&claims), 0, claims.len() as u64);
                    let found = found.expect_err("two gigabytes").to_string();
                    assert!(found.contains("a page of 2147483647 bytes in "), "{found}");
                    chunks += 1;
                }
            }
        }
        assert_eq!(chunks, 8);
    }

    struct OnePage(Option<Page>);

    impl Iterator for OnePage {
        type Item = Result<Page>;

        fn next(&mut self) -> Option<Result<Page>> {
            self.0.take().map(Ok)
        }
    }

    impl PageReader for OnePage {
        fn get_next_page(&mut self) -> Result<Option<Page>> {
            Ok(self.0.take())
        }

        fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
            Ok(None)
        }

        fn skip_next_page(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_dictionary_of_more_entries_than_its_bytes_can_hold_is_refused() {
        let schema = "message rows { required byte_array text; required int64 number; required fixed_len_byte_array(3) code; }";
        let schema = SchemaDescriptor::new(Arc::new(parse_message_type(schema).expect("a schema")));
        for (index, fits) in [(0, 6), (1, 3), (2, 8)] {
            for num_values in [fits, fits + 1] {
                let page = Page::DictionaryPage {
                    buf: vec![0; 24].into(),
                    num_values,
                    encoding: Encoding::PLAIN,
                    is_sorted: false,
                };
                let column = schema.column(index);
                let found =
                    CheckedPages { pages: Box::new(OnePage(Some(page))), column, in_row: 0 }.get_next_page();
                assert_eq!(found.is_ok(), num_values == fits, "column {index}: {num_values}");
            }
        }
    }

    #[test]
    fn a_row_holds_so_many_values_whatever_pages_they_are_on() {
        let schema = "message rows { optional group texts (LIST) { repeated group list { optional int64 element; } } }";
        let schema = SchemaDescriptor::new(Arc::new(parse_message_type(schema).expect("a schema")));
        let pages = || CheckedPages { pages: Box::new(OnePage(None)), column: schema.column(0), in_row: 0 };
        let varint = |mut value: u64| {
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            bytes
        };
        let run = |count: u64, level: u8| [varint(count << 1), vec![level]].concat();
        // A run of a level 0 is as many rows, one of level 1 goes on with the last.
        let levels = [run(5, 0), run((1 << 24) - 1, 1)].concat();
        let count = 5 + (1 << 24) - 1;
        let mut page = pages();
        assert_eq!(page.check_lists(&levels, false, count), None);
        assert_eq!(page.in_row, 1 << 24);
        // The next page begins within the row.
        let found = page.check_lists(&run(1, 1), false, 1);
        assert_eq!(found.as_deref(), Some("16777217 values in one row"));
        // Groups of eight, level by level from the lowest bit: rows of 3, 1 and 4 and more.
        for (levels, packed) in [(&[3, 0b1110_0110, 0][..], false), (&[0b1110_0110, 0][..], true)] {
            let mut page = pages();
            assert_eq!(page.check_lists(levels, packed, 8), None);
            assert_eq!(page.in_row, 4, "{packed}");
        }
        for length in 0..levels.len() {
            pages().check_lists(&levels[..length], false, count);
        }
        assert_eq!(pages().check_lists(&[0, 0, 0, 0], false, 9), None, "runs of nothing end");
    }

    #[test]
    fn more_than_any_writer_makes_is_refused() {
        assert!(holds(1 << 26, 40, 1 << 26, false) && !holds((1 << 26) + 1, 40, 1 << 26, false));
        assert!(holds(1 << 30, 1 << 21, 1 << 26, false));
        // A million embeddings of 768 zeros, in some hundred bytes.
        assert!(holds(768_000_000, 400, 1_000_000, true) && !holds(768_000_000, 400, 1_000, true));
    }
}
