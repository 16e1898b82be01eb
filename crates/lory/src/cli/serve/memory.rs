//! Returns memory to the system after bursts of requests. The allocator keeps what threads have freed, and each thread has its own heap.

use std::time::Duration;

/// The time between two looks while memory can be returned.
const SHORTEST: Duration = Duration::from_secs(5);
/// The time between two looks of a quiet server.
const LONGEST: Duration = Duration::from_secs(80);
/// Returning fewer bytes is not worth another look soon.
const WORTHWHILE: u64 = 8 << 20;

/// Starts the thread that returns memory, for as long as the process runs.
pub(super) fn return_memory_regularly() {
    let run = || {
        let mut wait = SHORTEST;
        loop {
            std::thread::sleep(wait);
            let before = resident();
            kernels::trim_heap();
            wait = next_wait(wait, before.saturating_sub(resident()));
        }
    };
    let started = std::thread::Builder::new().name("lory-memory".to_owned());
    if let Err(error) = started.spawn(run) {
        tracing::warn!("memory stays with the process after bursts: {error}");
    }
}

/// The time until the next look, after one that returned this many bytes.
fn next_wait(wait: Duration, returned: u64) -> Duration {
    match returned >= WORTHWHILE {
        true => SHORTEST,
        false => (wait * 2).min(LONGEST),
    }
}

/// The resident memory of this process, in bytes; 0 if the system does not report it.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_server_looks_less_often() {
        assert_eq!(next_wait(SHORTEST, 0), SHORTEST * 2);
        assert_eq!(next_wait(LONGEST, 0), LONGEST);
        assert_eq!(next_wait(LONGEST, WORTHWHILE), SHORTEST);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn freed_memory_of_other_threads_is_returned() {
        // Small pieces, of which a long-lived one between them keeps the heap from shrinking by itself.
        let burst = || {
            let pieces: Vec<Box<[u8; 4000]>> = (0..50_000).map(|_| Box::new([1; 4000])).collect();
            let kept = Box::new([2u8; 4000]);
            drop(pieces);
            kept
        };
        let (sender, kept) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(burst()).unwrap();
            let _ = stopped.recv();
        });
        let kept = kept.recv().unwrap();
        let before = resident();
        kernels::trim_heap();
        let returned = before.saturating_sub(resident());
        drop((kept, stop));
        thread.join().unwrap();
        assert!(returned > 100 << 20, "{returned} of {before} bytes");
    }
}
