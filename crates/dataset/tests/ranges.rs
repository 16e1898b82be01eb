//! Reads some rows of a file without the others.

use std::sync::atomic::AtomicBool;

use dataset::stop::NEVER;
use dataset::{Columns, DataRow, DatasetError, RowRange, read_range};

#[test]
fn marks_leave_rows_out_of_ranges_too() {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: usize, label: bool| {
        format!("{{\"prompt\":\"p{i}\",\"completion\":\"c\",\"label\":{label}}}\n")
    };
    let text: String = (0..10).map(|i| row(i, i % 2 == 0)).collect();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    let range = RowRange {
        first: 2,
        limit: 2,
        max_bytes: 1000,
    };
    let rows = read_range(&path, &Columns::default(), range, &NEVER).unwrap();
    let inputs: Vec<String> = rows.iter().map(DataRow::input).collect();
    assert_eq!(inputs, ["p4", "p6"]);
}

#[test]
fn range_of_rows_is_read_without_parsing_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = |i: usize| format!("{{\"prompt\":\"{i}\",\"completion\":\"a\"}}\n");
    // Lines outside the range are never parsed: these would be errors.
    let text = format!(
        "\u{feff}no row\n\n \u{a0}\n{}{}{}no row\n",
        row(1),
        row(2),
        row(3)
    );
    std::fs::write(&path, text).unwrap();
    let read = |first, limit, max_bytes| {
        let range = RowRange {
            first,
            limit,
            max_bytes,
        };
        let rows = read_range(&path, &Columns::default(), range, &NEVER).unwrap();
        rows.iter()
            .map(|row| (row.input(), row.location.line))
            .collect::<Vec<_>>()
    };
    let all = [
        ("1".to_owned(), 4),
        ("2".to_owned(), 5),
        ("3".to_owned(), 6),
    ];
    assert_eq!(read(1, 3, 1000), all);
    assert_eq!(read(2, 1, 1000), all[1..2]);
    // One row, however long it is, and then as many as fit.
    assert_eq!(read(1, 3, 1), all[..1]);
    assert_eq!(read(1, 3, 2 * row(1).len()), all[..2]);
    assert_eq!(read(9, 1, 1000), []);
    let stop = AtomicBool::new(true);
    let range = RowRange {
        first: 1,
        limit: 1,
        max_bytes: 1,
    };
    let stopped = read_range(&path, &Columns::default(), range, &stop);
    assert!(matches!(stopped, Err(DatasetError::Stopped)));
}
