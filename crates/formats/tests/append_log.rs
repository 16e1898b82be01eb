//! Appended lines are complete or left out, whatever fails.

use formats::append_log::{AppendLog, Flush, MAX_LINE};
use formats::disk::faults::for_each_fault;

fn lines(log: &AppendLog) -> Vec<String> {
    let mut lines = Vec::new();
    log.read(|_, line| lines.push(String::from_utf8_lossy(line).into_owned()))
        .unwrap();
    lines
}

#[test]
fn failed_append_affects_only_its_own_line() {
    for flush in [Flush::Now, Flush::Later] {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let log = AppendLog::new(folder.path().join("log"));
            log.append(b"one", Flush::Now).unwrap();
            let appended = injection.run(|| log.append(b"second line", flush));
            log.append(b"three", flush).unwrap();
            let found = lines(&log);
            let name = format!("{injection:?} {flush:?}: {found:?}");
            assert_eq!(found[0], "one", "{name}");
            assert_eq!(found[found.len() - 1], "three", "{name}");
            let second = &found[1..found.len() - 1];
            match appended {
                Ok(()) => assert_eq!(second, ["second line"], "{name}"),
                Err(_) => assert!(
                    second.iter().all(|line| "second line".starts_with(line)),
                    "{name}"
                ),
            }
            if !injection.fault.ends_the_process() && appended.is_err() {
                assert!(second.is_empty(), "{name}");
            }
        });
    }
}

#[test]
fn line_after_an_incomplete_one_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let log = AppendLog::new(folder.path().join("log"));
    assert!(lines(&log).is_empty());
    std::fs::write(log.path(), "one\nhal").unwrap();
    assert_eq!(lines(&log), ["one", "hal"]);
    log.append(b"two", Flush::Later).unwrap();
    assert_eq!(lines(&log), ["one", "hal", "two"]);
    assert!(log.append(b"a\nb", Flush::Later).is_err());
    assert_eq!(lines(&log).len(), 3);
}

#[test]
fn overlong_line_is_cut_and_the_next_one_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let log = AppendLog::new(folder.path().join("log"));
    log.append(&vec![b'a'; MAX_LINE + 7], Flush::Later).unwrap();
    log.append(&vec![b'b'; MAX_LINE], Flush::Later).unwrap();
    log.append(b"next", Flush::Later).unwrap();
    let found: Vec<(usize, u8)> = lines(&log)
        .iter()
        .map(|line| (line.len(), line.as_bytes()[0]))
        .collect();
    assert_eq!(found, [(MAX_LINE, b'a'), (MAX_LINE, b'b'), (4, b'n')]);
}

#[test]
fn lines_of_many_writers_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let log = AppendLog::new(folder.path().join("log"));
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let log = &log;
            scope.spawn(move || {
                for _ in 0..50 {
                    log.append(&[b'a' + writer; 100], Flush::Later).unwrap();
                }
            });
        }
    });
    let found = lines(&log);
    assert_eq!(found.len(), 200);
    assert!(
        found
            .iter()
            .all(|line| line.len() == 100 && line.bytes().all(|byte| byte == line.as_bytes()[0]))
    );
}
