//! Recognises files that are not files of rows by their first bytes, so that the error names their format.

use std::path::Path;

use super::Unusable;

/// Bytes that a format begins with, its name, and what to do with it.
type Signature = (&'static [u8], &'static str, &'static str);

const CONVERT: &str = "convert it to JSON Lines, such as with pandas: read_parquet(...).to_json(..., orient=\"records\", lines=True)";
const EXTRACT: &str = "extract it and name the file or the folder in it";
const DECOMPRESS: &str = "decompress it, or compress it with gzip or Zstandard";
const SAVE_AS_CSV: &str = "save the sheet as CSV (UTF-8)";

/// As [`SIGNATURES`], of formats whose first bytes are letters, with which a table may begin too. Binary data follows them.
const BINARY: [Signature; 4] = [
    (b"PAR1", "Parquet", CONVERT),
    (b"PARE", "encrypted Parquet", CONVERT),
    (b"ARROW1", "Arrow", "convert it to JSON Lines"),
    (b"FEA1", "Feather", "convert it to JSON Lines"),
];
/// Bytes after those of [`BINARY`] of which one is not text.
const LOOKED_AT: usize = 64;

const SIGNATURES: [Signature; 8] = [
    (
        b"version https://git-lfs.github.com/spec/v",
        "a pointer of Git LFS",
        "fetch the file that it stands for: git lfs pull",
    ),
    (b"\xff\xff\xff\xff", "Arrow", "convert it to JSON Lines"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", SAVE_AS_CSV),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", EXTRACT),
    (b"Rar!\x1a\x07", "a RAR archive", EXTRACT),
    (b"\xfd7zXZ\0", "compressed with xz", DECOMPRESS),
    (
        b"SQLite format 3\0",
        "a SQLite database",
        "export its rows as JSON Lines or CSV",
    ),
    (
        b"%PDF-",
        "a PDF document",
        "write its rows as JSON Lines or CSV",
    ),
];

/// The error of a file that begins with `start` in a format that is not read; `None` if it may be a file of rows.
pub(super) fn other_format(start: &[u8], name: &str) -> Option<Unusable> {
    let format = |name, advice| Some(Unusable::Format { name, advice });
    let begins = |(bytes, ..): &&Signature| start.starts_with(bytes);
    let is_binary = |(bytes, ..): &&Signature| !is_text(&start[bytes.len()..]);
    let binary = BINARY.iter().filter(begins).find(is_binary);
    let known = binary.or_else(|| SIGNATURES.iter().find(begins));
    if let Some((_, name, advice)) = known {
        return format(name, advice);
    }
    if start.starts_with(b"PK\x03\x04") {
        return match is_sheet(start, name) {
            true => format("an Excel or OpenDocument workbook", SAVE_AS_CSV),
            false => format("a zip archive", EXTRACT),
        };
    }
    // The level, and the mark of the first block.
    if start.starts_with(b"BZh") && start.get(4..10) == Some(b"1AY&SY") {
        return format("compressed with bzip2", DECOMPRESS);
    }
    if start.get(257..262) == Some(b"ustar") {
        return format("a tar archive", EXTRACT);
    }
    None
}

/// Whether the first bytes of `rest` are text.
fn is_text(rest: &[u8]) -> bool {
    let looked_at = &rest[..rest.len().min(LOOKED_AT)];
    let is_utf8 = match std::str::from_utf8(looked_at) {
        Ok(_) => true,
        // A character may go on after the bytes that are looked at.
        Err(error) => error.error_len().is_none(),
    };
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    is_utf8 && !looked_at.iter().any(is_control)
}

/// Whether a zip archive is a workbook.
fn is_sheet(start: &[u8], name: &str) -> bool {
    let ending = Path::new(name).extension();
    let named = ending.is_some_and(|ending| {
        ["xlsx", "xlsm", "ods"]
            .iter()
            .any(|sheet| ending.eq_ignore_ascii_case(sheet))
    });
    // The first entry's name begins at byte 30.
    let first = start.get(30..).unwrap_or_default();
    named || first.starts_with(b"[Content_Types].xml") || first.starts_with(b"xl/")
}

#[cfg(test)]
mod tests {
    use super::super::DataFile;

    fn message(content: &[u8], name: &str) -> String {
        match DataFile::of(content, name, 1 << 20) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn files_in_other_formats_are_named_with_what_to_do() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let zip = b"PK\x03\x04";
        let mut sheet = zip.to_vec();
        sheet.resize(30, 0);
        sheet.extend_from_slice(b"[Content_Types].xml");
        for (content, name, expected) in [
            (
                &b"PAR1\x15\x04"[..],
                "rows.parquet",
                "rows.parquet: the file is Parquet, which is not read; convert it",
            ),
            (b"PAR1\x15\x04", "rows.jsonl", "Parquet"),
            (b"PAR1\0\0", "rows.jsonl", "Parquet"),
            (b"PAR1 \x80", "rows.jsonl", "Parquet"),
            (b"PARE\x15\x04", "rows.parquet", "Parquet"),
            (b"ARROW1\0\0", "rows.arrow", "Arrow"),
            (b"FEA1\0\0", "rows.feather", "Feather"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n",
                "rows.csv",
                "rows.csv: the file is a pointer of Git LFS, which is not read; fetch the file that it stands for: git lfs pull",
            ),
            (b"SQLite format 3\0", "rows.jsonl", "a SQLite database"),
            (b"%PDF-1.7", "rows.jsonl", "a PDF document"),
            (
                zip,
                "rows.zip",
                "a zip archive, which is not read; extract it",
            ),
            (
                zip,
                "rows.XLSX",
                "workbook, which is not read; save the sheet as CSV",
            ),
            (&sheet, "rows.csv", "workbook"),
            (b"\xd0\xcf\x11\xe0\xa1", "rows.xls", "workbook"),
            (
                b"BZh91AY&SY",
                "rows.jsonl.bz2",
                "compressed with bzip2, which is not read; decompress it",
            ),
            (b"\xfd7zXZ\0", "rows.jsonl.xz", "compressed with xz"),
            (b"7z\xbc\xaf\x27\x1c", "rows.7z", "a 7z archive"),
            (&tar, "rows.tar", "a tar archive"),
        ] {
            let message = message(content, name);
            assert!(message.contains(expected), "{name}: {message}");
        }
    }

    #[test]
    fn tables_and_lines_that_begin_alike_are_read() {
        for content in [
            &b"PAR1,prompt\n"[..],
            b"BZh9,prompt\n",
            b"PK,prompt\n",
            b"{}",
            b"",
        ] {
            assert_eq!(message(content, "rows.csv"), "");
        }
    }
}
