//! TensorBoard event files: the curves of a run, readable while it goes.
//!
//! A file is a chain of records: length, its checksum, an `Event` message of TensorFlow's `event.proto`, its checksum.
//! Messages here have the fields that a scalar needs. A run that goes on begins a file of its own, whose first event
//! tells TensorBoard to forget what earlier files say of that step and later ones.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1: start.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// An event file that is being written.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a file in `folder` for steps from `step` on.
    pub(super) fn create(folder: &Path, step: u64) -> Result<Self> {
        let seconds = wall_time() as u64;
        // A number of its own for each file of a second; the name's order is the files' order.
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.{number}.promptmix"));
            match OpenOptions::new().create_new(true).append(true).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(source) => return Err(Error::file("create", path, source)),
            }
        };
        let mut events = Self { path, file };
        events.write(Event { file_version: Some("brain.Event:2".into()), ..Event::default() })?;
        let start = Some(SessionLog { status: 1 });
        events.write(Event { step: step as i64, session_log: start, ..Event::default() })?;
        Ok(events)
    }

    /// Appends values of `step` by their tags.
    pub(super) fn scalars(&mut self, step: u64, values: impl Iterator<Item = (String, f64)>) -> Result<()> {
        let value = values.map(|(tag, value)| Value { tag, simple_value: Some(value as f32) }).collect();
        self.write(Event { step: step as i64, summary: Some(Summary { value }), ..Event::default() })
    }

    fn write(&mut self, mut event: Event) -> Result<()> {
        event.wall_time = wall_time();
        let message = event.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(message.len() + 16);
        record.extend(length);
        record.extend(masked_checksum(&length));
        record.extend(&message);
        record.extend(masked_checksum(&message));
        self.file.write_all(&record).map_err(|source| Error::file("append to", &self.path, source))
    }
}

/// CRC-32C, rotated and shifted, so that a checksum of data that holds checksums is still one.
fn masked_checksum(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
