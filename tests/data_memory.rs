//! Memory of reading rows lazily. A process of its own, so that its peak is that of the index alone.

use std::io::Write;

use promptmix::data::RowIndex;

/// Rows of the file; `PROMPTMIX_TEST_ROWS=10000000` makes it the size users ask about.
fn rows() -> usize {
    std::env::var("PROMPTMIX_TEST_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(2_000_000)
}

/// The most memory this process has held, in bytes; `None` where the system does not tell.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

#[test]
fn an_index_takes_at_most_sixteen_bytes_a_row() {
    let rows = rows();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for row in 0..rows {
        writeln!(file, "{{\"sentence\": \"row {row}\", \"label\": {}}}", row % 2).unwrap();
    }
    drop(file);

    let Some(before) = peak() else {
        println!("skipped: no /proc/self/status here");
        return;
    };
    let start = std::time::Instant::now();
    let mut index = RowIndex::build(&path).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let after = peak().unwrap();
    assert_eq!(index.len(), rows);
    assert_eq!(index.row(rows - 1).unwrap().fields()["label"], serde_json::json!((rows - 1) % 2));
    // One block of the file, one block of offsets, and what the allocator keeps.
    let fixed = 4 << 20;
    let grown = after - before;
    println!("{rows} rows: {:.2} bytes a row, {seconds:.2} s", grown as f64 / rows as f64);
    assert!(
        grown >= 8 * rows,
        "the offsets alone take 8 bytes a row, {grown} were seen: the measurement is wrong"
    );
    assert!(grown <= 16 * rows + fixed, "{grown} bytes for {rows} rows");
}
