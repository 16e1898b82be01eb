//! Data files of other layouts: tables, JSON lists, compressed files and folders.

use std::io::Write;
use std::path::Path;

use dataset::holds_pairs;
use dataset::stop::NEVER;
use dataset::{Columns, DataRow, Dataset, MAX_BYTES, MAX_COLUMNS, MAX_LINE, RowRange, read_range};
use flate2::Compression;
use flate2::write::GzEncoder;

const JSONL: &str = "{\"prompt\":\"p1\",\"completion\":\"c1\"}\n{\"prompt\":\"p2\",\"completion\":\"c, \\\"2\\\"\"}\n";

fn written(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn read(path: &Path) -> Vec<(usize, String, String)> {
    let data = Dataset::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let row = |row: &DataRow| (row.location.line, row.input(), row.output().to_owned());
    data.rows.iter().map(row).collect()
}

fn error(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), name, bytes);
    let error = Dataset::read(&path).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn every_layout_and_compression_gives_the_same_rows() {
    let layouts = [
        ("rows.jsonl", JSONL.to_owned(), [1, 2]),
        (
            "rows.json",
            format!("[{}]", JSONL.trim().replace('\n', ",")),
            [1, 2],
        ),
        (
            "rows.json",
            format!("\u{feff} [\n{}\n]\n", JSONL.trim().replace('\n', ",\n")),
            [1, 2],
        ),
        (
            "rows.csv",
            "prompt,completion\np1,c1\np2,\"c, \"\"2\"\"\"\n".to_owned(),
            [2, 3],
        ),
        (
            "ROWS.CSV",
            "\u{feff}prompt;completion\r\np1;c1\r\n\r\np2;\"c, \"\"2\"\"\"".to_owned(),
            [2, 4],
        ),
        (
            "rows.tsv",
            "prompt\tcompletion\np1\tc1\np2\t\"c, \"\"2\"\"\"\n".to_owned(),
            [2, 3],
        ),
        (
            "rows.csv",
            "prompt|completion\np1|c1\np2|\"c, \"\"2\"\"\"\n".to_owned(),
            [2, 3],
        ),
        (
            "rows.csv",
            "prompt\tcompletion\np1\tc1\np2\t\"c, \"\"2\"\"\"\n".to_owned(),
            [2, 3],
        ),
        // The name does not make a table of lines of JSON.
        ("rows.csv", JSONL.to_owned(), [1, 2]),
    ];
    for (name, text, lines) in layouts {
        let expected = [
            (lines[0], "p1".to_owned(), "c1".to_owned()),
            (lines[1], "p2".to_owned(), "c, \"2\"".to_owned()),
        ];
        let (first, second) = text.as_bytes().split_at(text.len() / 2);
        let files = [
            (name.to_owned(), text.clone().into_bytes()),
            (format!("{name}.gz"), gzip(text.as_bytes())),
            (format!("{name}.zst"), zstd(text.as_bytes())),
            // Files that were compressed in parts.
            (format!("{name}.gz"), [gzip(first), gzip(second)].concat()),
            (format!("{name}.zst"), [zstd(first), zstd(second)].concat()),
        ];
        let mut hash = None;
        for (name, bytes) in files {
            let folder = tempfile::tempdir().unwrap();
            let path = written(folder.path(), &name, &bytes);
            assert_eq!(read(&path), expected, "{name} {text}");
            // The hash is that of the content.
            let data = Dataset::read(&path).unwrap();
            assert_eq!(*hash.get_or_insert(data.hash.clone()), data.hash);
            let range = RowRange {
                first: 1,
                limit: 5,
                max_bytes: 1000,
            };
            let rows = read_range(&path, &Columns::default(), range, &NEVER).unwrap();
            assert_eq!(rows, data.rows[1..]);
        }
    }
}

#[test]
fn folder_of_files_is_read_in_the_order_of_names() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), "b.jsonl", JSONL.as_bytes());
    written(
        folder.path(),
        "a.csv.gz",
        &gzip(b"prompt,completion\np0,c0\n"),
    );
    written(folder.path(), ".hidden.jsonl", b"no row");
    written(folder.path(), "README.md", b"no row");
    std::fs::create_dir(folder.path().join("c.jsonl")).unwrap();
    let inputs: Vec<String> = read(folder.path()).into_iter().map(|row| row.1).collect();
    assert_eq!(inputs, ["p0", "p1", "p2"]);
    let data = Dataset::read(folder.path()).unwrap();
    assert!(data.rows[0].location.file.ends_with("a.csv.gz"));
    written(folder.path(), "b.jsonl", b"no row\n");
    let broken = Dataset::read(folder.path()).unwrap_err().to_string();
    assert!(broken.contains("/b.jsonl:1: not valid JSON"), "{broken}");
    let empty = tempfile::tempdir().unwrap();
    let message = Dataset::read(empty.path()).unwrap_err().to_string();
    assert!(
        message.contains("the folder and the folders in it have no data files"),
        "{message}"
    );
}

#[test]
fn training_split_of_a_published_data_set_is_read_and_the_others_are_counted() {
    let row = |text: &str| format!("{{\"prompt\":\"{text}\",\"completion\":\"c\"}}\n");
    let scan = |names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, row(name)).unwrap();
        }
        let scan = Dataset::scan(folder.path(), &Columns::default()).unwrap();
        let read: Vec<String> = scan.data.rows.iter().map(DataRow::input).collect();
        (read, scan.fields.lines())
    };
    for (names, read, line) in [
        (
            &["train.jsonl", "test.jsonl", "validation.jsonl"][..],
            &["train.jsonl"][..],
            "files read: 1; files of other splits, which are not read: test (1), validation (1)",
        ),
        (
            &[
                "data/train-00000-of-00002.jsonl",
                "data/train-00001-of-00002.jsonl",
                "data/test-00000-of-00001.jsonl",
            ],
            &[
                "data/train-00000-of-00002.jsonl",
                "data/train-00001-of-00002.jsonl",
            ],
            "files read: 2; files of other splits, which are not read: test (1)",
        ),
        (
            &[
                "train/a.jsonl",
                "test/a.jsonl",
                "dev/a.jsonl",
                ".git/b.jsonl",
                "train/.c.jsonl",
            ],
            &["train/a.jsonl"],
            "files read: 1; files of other splits, which are not read: test (1), validation (1)",
        ),
        (
            &[
                "rows.jsonl",
                "my_test.jsonl",
                "latest.jsonl",
                "checkpoint/train.jsonl",
            ],
            &["latest.jsonl", "rows.jsonl"],
            "files read: 2; files of other splits, which are not read: test (1)",
        ),
        (
            &["dataset_infos.json", "state.json", "a.jsonl"],
            &["a.jsonl"],
            "files read: 1",
        ),
        (
            &["en/part.jsonl", "de/part.jsonl"],
            &["de/part.jsonl", "en/part.jsonl"],
            "files read: 2",
        ),
        // Nothing else is there to be meant.
        (
            &["test-1.jsonl", "test-2.jsonl"],
            &["test-1.jsonl", "test-2.jsonl"],
            "files read: 2",
        ),
    ] {
        let (found, lines) = scan(names);
        assert_eq!(found, read, "{names:?}");
        assert_eq!(lines, [line], "{names:?}");
    }
    let deep = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(deep.path().join("a/b")).unwrap();
    std::fs::write(deep.path().join("a/b/rows.jsonl"), row("r")).unwrap();
    let message = Dataset::read(deep.path()).unwrap_err().to_string();
    assert!(
        message.contains("the folder and the folders in it have no data files"),
        "{message}"
    );
}

#[test]
fn broken_records_of_other_layouts_are_reported_by_line() {
    for (name, text, expected) in [
        (
            "rows.csv",
            "prompt,completion\np,c\np,c,d\n",
            "rows.csv:3: has 3 cells, but the header has 2 columns",
        ),
        (
            "rows.csv",
            "prompt,completion\np,\n",
            "rows.csv:2: field `completion`: is missing",
        ),
        (
            "rows.csv",
            "question,answer\np,c\n",
            "rows.csv:2: none of the known shapes: found `question`, `answer`",
        ),
        (
            "rows.csv",
            "prompt,completion\n",
            "rows.csv: the file holds no rows: it has only the line of the columns' names; write a row",
        ),
        (
            "rows.csv",
            "",
            "rows.csv: the file holds no rows: it is empty; write the names of the columns",
        ),
        (
            "rows.json",
            "[{\"text\":\"a\"},{\"text\":7}]",
            "rows.json:2: field `text`: must be a string",
        ),
        (
            "rows.json",
            "[{\"text\":\"a\"},7,]",
            "rows.json:2: a row must be a JSON object, this is a number",
        ),
        (
            "rows.json",
            "[{\"text\":\"a\"},{\"te",
            "rows.json:2: the file ends before the list does",
        ),
        (
            "rows.json",
            "[{\"text\":\"a\"}] {",
            "rows.json:2: there is text after the end of the list",
        ),
    ] {
        let message = error(name, text.as_bytes());
        assert!(message.starts_with(expected), "{message} lacks {expected}");
    }
    let message = error("rows.jsonl", b"{\"question\":\"p\",\"answer\":\"c\"}");
    assert!(
        message.contains(
            "rename columns, or map them in `columns`: instruction=question output=answer"
        ),
        "{message}"
    );
    let message = error("rows.csv", b"prompt,completion\np,\xff\n");
    assert!(
        message.starts_with("rows.csv:2: not UTF-8 text at byte 1"),
        "{message}"
    );
}

#[test]
fn oversized_records_do_not_hide_the_records_after_them() {
    let long = "x".repeat(MAX_LINE + 1);
    let rest = "{\"prompt\":\"p\",\"completion\":\"c\"}";
    let wide = vec!["x"; MAX_COLUMNS + 1].join(",");
    let too_long = "the line is longer than 1048576 bytes";
    let too_wide = "has more than 1000 cells, but the header has 2 columns";
    for (name, text, expected) in [
        (
            "rows.json",
            format!("[{{\"text\":\"{long}\"}},{rest}]"),
            too_long,
        ),
        (
            "rows.csv",
            format!("prompt,completion\n{long},c\np,c\n"),
            too_long,
        ),
        (
            "rows.csv",
            format!("prompt,completion\n{wide}\np,c\n"),
            too_wide,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), name, text.as_bytes());
        let scan = Dataset::scan(&path, &Columns::default()).unwrap();
        assert_eq!((scan.data.rows.len(), scan.broken_lines), (1, 1), "{name}");
        let message = scan.broken[0].to_string();
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn line_of_excel_that_names_the_delimiter_is_not_the_header() {
    let folder = tempfile::tempdir().unwrap();
    for (start, delimiter) in [
        ("\u{feff}sep=;\r\n", ";"),
        ("SEP=,\n", ","),
        ("sep=^\n", "^"),
        ("sep=\t\n", "\t"),
    ] {
        let table = format!("{start}prompt{delimiter}completion\nq{delimiter}a\n");
        let path = written(folder.path(), "rows.csv", table.as_bytes());
        assert_eq!(
            read(&path),
            [(3, "q".to_owned(), "a".to_owned())],
            "{start:?}"
        );
    }
    // A table of one column may have this name.
    let path = written(folder.path(), "rows.csv", b"sep=long,text\nq,a\n");
    assert_eq!(read(&path), [(2, String::new(), "a".to_owned())]);
}

#[test]
fn lists_of_turns_are_conversations() {
    let folder = tempfile::tempdir().unwrap();
    let list = |from: &str| {
        format!(r#"[{{"role":"user","content":"{from}"}},{{"from":"gpt","value":"a"}}]"#)
    };
    let (one, two) = (list("q"), list("r"));
    for (name, text, lines) in [
        ("rows.jsonl", format!("{one}\n{two}\n"), [1, 2]),
        ("rows.jsonl", format!("{one}\n\n{two}"), [1, 3]),
        ("rows.json", format!("[{one},\n{two}]"), [1, 2]),
    ] {
        let path = written(folder.path(), name, text.as_bytes());
        let [first, second] = [(lines[0], "q"), (lines[1], "r")]
            .map(|(line, question)| (line, question.to_owned(), "a".to_owned()));
        assert_eq!(read(&path), [first, second], "{text}");
    }
    let long = "q ".repeat(5000);
    for question in ["q", &long] {
        let path = written(folder.path(), "rows.jsonl", list(question).as_bytes());
        assert_eq!(read(&path), [(1, question.to_owned(), "a".to_owned())]);
    }
    // Longer than what is looked at.
    let turns = vec![r#"{"role":"assistant","content":"a"}"#; 900].join(",");
    let path = written(folder.path(), "rows.jsonl", format!("[{turns}]").as_bytes());
    assert_eq!(read(&path).len(), 1);
}

#[test]
fn object_on_several_lines_is_one_error() {
    for (text, expected) in [
        (
            "{\n \"data\": [\n  {\n   \"text\": \"a\"\n  }\n ]\n}\n",
            "rows.json: ",
        ),
        (
            "{\"rows\": [\n{\"text\": \"a\"},\n{\"text\": \"b\"}\n]}\n",
            "rows.json: ",
        ),
        (
            "\u{feff}{\r\n \"text\": \"a\"\r\n}\r\n{\r\n \"text\": \"b\"\r\n}\r\n",
            "rows.json: ",
        ),
        ("{\"text\": \"a\",\n \"intent\": \"b\"}\n", "rows.json: "),
        // A line that is cut off does not hide the others.
        (
            "{\"text\": \"a\n{\"text\": 7}\n{\"text\": \"c\"}\n",
            "rows.json: 2 lines are broken",
        ),
    ] {
        let message = error("rows.json", text.as_bytes());
        assert!(message.starts_with(expected), "{message} lacks {expected}");
        let is_one =
            message.contains("a JSON object is on several lines; write each row on one line");
        assert_eq!(is_one, !expected.contains("broken"), "{message}");
    }
}

#[test]
fn broken_header_of_a_table_is_the_only_error() {
    let columns = |count: usize| {
        let names: Vec<String> = (0..count).map(|i| format!("c{i}")).collect();
        names.join(",")
    };
    let long = "x".repeat(MAX_LINE + 1);
    for (name, header, expected) in [
        (
            "rows.csv",
            columns(1001),
            "rows.csv:1: the header has more than 1000 columns; remove those",
        ),
        (
            "rows.csv",
            format!("prompt,{long}"),
            "rows.csv:1: the header is longer than 1048576 bytes; shorten",
        ),
        (
            "rows.csv",
            "prompt,completion, prompt".to_owned(),
            "rows.csv:1: the header has the column `prompt` twice; rename or remove one",
        ),
        (
            "rows.tsv",
            "prompt\tcompletion\tcompletion".to_owned(),
            "rows.tsv:1: the header has the column `completion` twice",
        ),
    ] {
        let text = format!("{header}\na,b\nprompt,completion\np,c\n");
        let message = error(name, text.as_bytes());
        assert!(message.starts_with(expected), "{message} lacks {expected}");
    }
    let message = error("rows.csv", b"prompt,completion,caf\xe9\np,c,d\n");
    assert!(message.starts_with("rows.csv:1: the header is not UTF-8"));
    // Columns without a name are not used, and the limit itself is allowed.
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "a.csv", b",prompt,completion,,\n0,p,c,,\n");
    assert_eq!(read(&path), [(2, "p".to_owned(), "c".to_owned())]);
    let text = format!(
        "prompt,completion,{}\np,c{}\n",
        columns(998),
        ",".repeat(998)
    );
    let path = written(folder.path(), "b.csv", text.as_bytes());
    assert_eq!(read(&path), [(2, "p".to_owned(), "c".to_owned())]);
}

#[test]
fn field_that_a_row_has_twice_is_refused_by_name() {
    for (name, row) in [
        (
            "rows.jsonl",
            r#"{"prompt":"p","completion":"c","prompt":"q"}"#,
        ),
        (
            "rows.json",
            r#"[{"prompt":"p","completion":"c","prompt":null}]"#,
        ),
    ] {
        let message = error(name, row.as_bytes());
        let expected = format!("{name}:1: field `prompt`: is given twice; remove one of them");
        assert_eq!(message, expected);
    }
}

#[test]
fn records_that_are_not_rows_are_limited() {
    let lines = 1_000_001;
    for (line, more) in [
        ("\n", ""),
        (
            "7\n",
            ". The first broken line is 1: a row must be a JSON object",
        ),
        ("{\"text\":\"a\",\"label\":false}\n", ""),
    ] {
        let bytes = gzip(line.repeat(lines).as_bytes());
        let message = error("rows.jsonl.gz", &bytes);
        let expected = format!(
            "rows.jsonl.gz: more than 1000000 lines are blank, broken, or left out by their marks; remove them{more}"
        );
        assert!(message.starts_with(&expected), "{message}");
    }
    // Before the first record, which shows whether a file has pairs, and in ranges of older files.
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "rows.jsonl.gz", &gzip(&vec![b'\n'; lines]));
    let message = holds_pairs(&path, &Columns::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("more than 1000000 lines"), "{message}");
    let range = RowRange {
        first: 0,
        limit: 1,
        max_bytes: 1000,
    };
    let message = read_range(&path, &Columns::default(), range, &NEVER)
        .unwrap_err()
        .to_string();
    assert!(message.contains("more than 1000000 lines"), "{message}");
}

#[test]
fn file_that_decompresses_to_too_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let most = 1 << 20;
    let content = b"               \n".repeat((most as usize >> 4) + 1);
    for (name, bytes) in [
        ("bomb.jsonl.gz", gzip(&content)),
        ("bomb.csv.zst", zstd(&content)),
    ] {
        assert!(bytes.len() < 1 << 16);
        let path = written(folder.path(), name, &bytes);
        let checked = Dataset::check(&path, &Columns::default(), most, &NEVER);
        let message = checked.unwrap_err().to_string();
        let expected = "the content of the file is larger than 1048576 bytes; split it";
        assert!(message.ends_with(expected), "{message}");
        let checked = Dataset::check(&path, &Columns::default(), MAX_BYTES, &NEVER);
        assert!(checked.unwrap_err().to_string().contains("no rows"));
    }
    // A window of 2 GiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let message = error("rows.zst", &window);
    assert!(
        message.contains("2147483648 bytes, more than 8388608; compress it without --long"),
        "{message}"
    );
}

#[test]
fn damaged_compression_is_reported_in_plain_words() {
    let (gz, zst) = (gzip(JSONL.as_bytes()), zstd(JSONL.as_bytes()));
    let ends =
        |format: &str| format!("the file ends before its {format} data does; is it cut off?");
    for (name, bytes, format) in [("rows.gz", &gz, "gzip"), ("rows.zst", &zst, "Zstandard")] {
        for cut in 4..bytes.len() {
            let message = error(name, &bytes[..cut]);
            assert_eq!(
                message,
                format!("cannot read {name}: {}", ends(format)),
                "{cut}"
            );
        }
    }
    let mut damaged_gz = gz.clone();
    // A bit of the checksum.
    let checksum = gz.len() - 8;
    damaged_gz[checksum] ^= 1;
    // A block of the type that the format reserves.
    let damaged_zst = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38, 7, 0, 0];
    for (name, bytes, format) in [
        ("rows.gz", &damaged_gz[..], "gzip"),
        ("rows.zst", &damaged_zst, "Zstandard"),
    ] {
        let message = error(name, bytes);
        let expected = "data is damaged; compress the file again";
        assert_eq!(
            message,
            format!("cannot read {name}: its {format} {expected}")
        );
    }
    // A skippable frame that is cut off, after the content.
    let cut = [&zst[..], &[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]].concat();
    assert!(error("rows.zst", &cut).ends_with(&ends("Zstandard")));
}

#[test]
fn zstandard_file_may_begin_with_a_skippable_frame() {
    let folder = tempfile::tempdir().unwrap();
    for magic in [0x50, 0x5f] {
        let skippable = [magic, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'a', b'b', b'c'];
        let bytes = [&skippable[..], &zstd(JSONL.as_bytes()), &skippable].concat();
        let path = written(folder.path(), "rows.jsonl.zst", &bytes);
        assert_eq!(read(&path).len(), 2);
    }
}
