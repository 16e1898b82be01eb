//! A stranger's file of training rows, plain or compressed; the first byte chooses the ending of its name.

#![no_main]

use dataset::data_file::{DataFile, Records};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 3] = ["rows.jsonl", "rows.csv", "rows.tsv"];
/// The most content after decompression, in bytes.
const MOST: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((first, content)) = data.split_first() else {
        return;
    };
    let name = NAMES[usize::from(*first) % NAMES.len()];
    let Ok(file) = DataFile::of(content, name, MOST) else {
        return;
    };
    let mut records = Records::new(file.content, file.layout);
    while let Ok(Some((line, record))) = records.next_record() {
        assert!(line > 0);
        assert!(!record.is_blank() || record.content_bytes() as u64 <= MOST);
    }
});
