//! Parquet files of JSON rows, as the hub writes them: every column and value optional, lists with `list` and `element`.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

/// The type of a column.
pub enum Kind {
    Text,
    Int32,
    Int64,
    Float,
    List(Box<Kind>),
    Fields(Vec<Column>),
}

/// A column's name and type.
pub type Column = (&'static str, Kind);

/// The values of a leaf, with the levels that Parquet stores beside them.
#[derive(Default)]
struct Leaf {
    values: Vec<Value>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// The bytes of a file with these rows.
pub fn parquet(columns: &[Column], rows: &[Value]) -> Vec<u8> {
    let fields: String = columns.iter().map(|(name, kind)| kind.schema(name)).collect();
    let schema = parse_message_type(&format!("message schema {{ {fields} }}")).expect("a schema");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).expect("a writer");
    let mut kinds = Vec::new();
    columns.iter().for_each(|(_, kind)| kind.leaves(&mut kinds));
    let mut leaves: Vec<Leaf> = kinds.iter().map(|_| Leaf::default()).collect();
    for row in rows {
        let mut rest = leaves.as_mut_slice();
        for (name, kind) in columns {
            let (own, others) = rest.split_at_mut(kind.count());
            kind.add(row.get(name), 0, 0, 0, own);
            rest = others;
        }
    }
    let mut group = writer.next_row_group().expect("a group");
    for (leaf, kind) in leaves.iter().zip(kinds) {
        let mut column = group.next_column().expect("a column").expect("one more");
        let levels = (Some(&leaf.definition[..]), Some(&leaf.repetition[..]));
        let whole = |value: &Value| value.as_i64().expect("a whole number");
        match kind {
            Kind::Text => {
                let text = |value: &Value| ByteArray::from(value.as_str().expect("text"));
                let values: Vec<ByteArray> = leaf.values.iter().map(text).collect();
                column.typed::<ByteArrayType>().write_batch(&values, levels.0, levels.1)
            }
            Kind::Int32 => {
                let values: Vec<i32> = leaf.values.iter().map(|value| whole(value) as i32).collect();
                column.typed::<Int32Type>().write_batch(&values, levels.0, levels.1)
            }
            Kind::Int64 => {
                let values: Vec<i64> = leaf.values.iter().map(whole).collect();
                column.typed::<Int64Type>().write_batch(&values, levels.0, levels.1)
            }
            Kind::Float => {
                let values: Vec<f32> =
                    leaf.values.iter().map(|value| value.as_f64().expect("a number") as f32).collect();
                column.typed::<FloatType>().write_batch(&values, levels.0, levels.1)
            }
            Kind::List(_) | Kind::Fields(_) => unreachable!("no leaf"),
        }
        .expect("written");
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.into_inner().expect("closed")
}

impl Kind {
    fn schema(&self, name: &str) -> String {
        match self {
            Self::Text => format!("OPTIONAL BYTE_ARRAY {name} (UTF8); "),
            Self::Int32 => format!("OPTIONAL INT32 {name}; "),
            Self::Int64 => format!("OPTIONAL INT64 {name}; "),
            Self::Float => format!("OPTIONAL FLOAT {name}; "),
            Self::List(item) => {
                format!(
                    "OPTIONAL GROUP {name} (LIST) {{ REPEATED GROUP list {{ {} }} }} ",
                    item.schema("element")
                )
            }
            Self::Fields(fields) => {
                let fields: String = fields.iter().map(|(name, kind)| kind.schema(name)).collect();
                format!("OPTIONAL GROUP {name} {{ {fields} }} ")
            }
        }
    }

    fn leaves<'a>(&'a self, leaves: &mut Vec<&'a Self>) {
        match self {
            Self::List(item) => item.leaves(leaves),
            Self::Fields(fields) => fields.iter().for_each(|(_, kind)| kind.leaves(leaves)),
            _ => leaves.push(self),
        }
    }

    fn count(&self) -> usize {
        let mut leaves = Vec::new();
        self.leaves(&mut leaves);
        leaves.len()
    }

    /// Adds a value to the leaves under this type. `definition` and `repetition` are the levels where it is missing, `depth` the
    /// lists around it.
    fn add(&self, value: Option<&Value>, definition: i16, repetition: i16, depth: i16, leaves: &mut [Leaf]) {
        let mut missing = |definition| {
            for leaf in leaves.iter_mut() {
                leaf.definition.push(definition);
                leaf.repetition.push(repetition);
            }
        };
        let Some(value) = value.filter(|value| !value.is_null()) else { return missing(definition) };
        match self {
            Self::List(item) => {
                let items = value.as_array().expect("a list");
                if items.is_empty() {
                    missing(definition + 1);
                }
                for (position, value) in items.iter().enumerate() {
                    let repetition = if position == 0 { repetition } else { depth + 1 };
                    item.add(Some(value), definition + 2, repetition, depth + 1, leaves);
                }
            }
            Self::Fields(fields) => {
                let mut rest = leaves;
                for (name, kind) in fields {
                    let (own, others) = rest.split_at_mut(kind.count());
                    kind.add(value.get(name), definition + 1, repetition, depth, own);
                    rest = others;
                }
            }
            _ => {
                missing(definition + 1);
                leaves[0].values.push(value.clone());
            }
        }
    }
}
