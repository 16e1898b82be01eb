//! The memory that this process may use: what is free on the machine, and what its control groups (containers) allow.
//!
//! Read from Linux's files. On other systems it is unknown, and no plan is refused for its size.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The available memory, and what limits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AvailableMemory {
    /// Bytes.
    pub bytes: u64,
    /// What sets the limit.
    pub limit: MemoryLimit,
}

/// What sets the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryLimit {
    /// The machine's free memory.
    Machine,
    /// The limit of a control group: a container's, a service's or a job's.
    Cgroup,
    /// The command line.
    Flag,
    /// What the server's plan has for training.
    #[serde(rename = "train_memory")]
    TrainMemory,
}

impl MemoryLimit {
    /// The limit in words, after a number of bytes.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            MemoryLimit::Machine => "free on this machine",
            MemoryLimit::Cgroup => "left under the control group's limit",
            MemoryLimit::Flag => "allowed by --memory",
            MemoryLimit::TrainMemory => "allowed by --train-memory",
        }
    }
}

/// The memory left for this process; `None` if the system does not report it.
#[must_use]
pub fn available() -> Option<AvailableMemory> {
    available_under(Path::new("/"))
}

/// The most memory that this process can get, in bytes: the machine's memory, or the lowest limit of its control groups.
/// `None` if the system does not report it.
#[must_use]
pub fn total() -> Option<u64> {
    total_under(Path::new("/"))
}

fn total_under(root: &Path) -> Option<u64> {
    let machine = fs::read_to_string(root.join("proc/meminfo"))
        .ok()
        .and_then(|text| kibibytes(&text, "MemTotal:"));
    let limit = |group: PathBuf| -> Option<u64> {
        let names = ["memory.max", "memory.limit_in_bytes"];
        let text = names
            .iter()
            .find_map(|name| fs::read_to_string(group.join(name)).ok())?;
        text.trim().parse().ok()
    };
    let groups = groups(root).into_iter().filter_map(limit);
    groups.chain(machine).min()
}

/// The memory that this process uses now, in bytes; `None` if the system does not report it.
#[must_use]
pub fn in_use() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn available_under(root: &Path) -> Option<AvailableMemory> {
    let machine = fs::read_to_string(root.join("proc/meminfo"))
        .ok()
        .and_then(|text| kibibytes(&text, "MemAvailable:"))
        .map(|bytes| AvailableMemory {
            bytes,
            limit: MemoryLimit::Machine,
        });
    let of_group = groups(root)
        .into_iter()
        .filter_map(|group| left(&group))
        .min();
    let group = of_group.map(|bytes| AvailableMemory {
        bytes,
        limit: MemoryLimit::Cgroup,
    });
    match (machine, group) {
        (Some(machine), Some(group)) if group.bytes < machine.bytes => Some(group),
        (machine, group) => machine.or(group),
    }
}

/// The folders of this process's control groups, from its own up to the root, in cgroups version 1 and 2.
fn groups(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mount = match controllers {
            "" => root.join("sys/fs/cgroup"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                root.join("sys/fs/cgroup/memory")
            }
            _ => continue,
        };
        // Inside a container the path may be the host's and its folder missing. Then the mount itself is the group.
        let own = mount.join(path.trim_start_matches('/'));
        groups.extend(
            own.ancestors()
                .take_while(|folder| folder.starts_with(&mount))
                .map(Path::to_owned),
        );
    }
    groups
}

/// A group's limit minus its use. Pages of files, which the system can drop, do not count as used.
fn left(group: &Path) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let (limit, used) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?),
        None => (
            number("memory.limit_in_bytes")?,
            number("memory.usage_in_bytes")?,
        ),
    };
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let of = |names: [&str; 2]| -> u64 {
        let lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
            .sum()
    };
    // Version 1 also has totals that include the groups below.
    let files = match of(["total_inactive_file", "total_active_file"]) {
        0 => of(["inactive_file", "active_file"]),
        total => total,
    };
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Option<AvailableMemory> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        available_under(root.path())
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n",
    );

    #[test]
    fn free_memory_is_available_if_no_group_has_a_limit() {
        let found = machine(&[MEMINFO]).unwrap();
        assert_eq!(
            (found.bytes, found.limit),
            (8_000_000 << 10, MemoryLimit::Machine)
        );
        assert_eq!(machine(&[]), None);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "1000\n"),
        ];
        assert_eq!(machine(&unlimited).unwrap().limit, MemoryLimit::Machine);
    }

    #[test]
    fn lowest_limit_of_all_groups_counts_and_file_pages_do_not() {
        let found = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/jobs/mine\n"),
            ("sys/fs/cgroup/jobs/mine/memory.max", "2000000000\n"),
            ("sys/fs/cgroup/jobs/mine/memory.current", "500000000\n"),
            ("sys/fs/cgroup/jobs/memory.max", "1000000000\n"),
            ("sys/fs/cgroup/jobs/memory.current", "900000000\n"),
            (
                "sys/fs/cgroup/jobs/memory.stat",
                "anon 5\ninactive_file 300000000\nactive_file 200000000\n",
            ),
        ]);
        assert_eq!(
            found,
            Some(AvailableMemory {
                bytes: 600_000_000,
                limit: MemoryLimit::Cgroup
            })
        );
    }

    #[test]
    fn total_is_the_machines_memory_or_the_lowest_limit() {
        let total = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            total_under(root.path())
        };
        assert_eq!(total(&[]), None);
        assert_eq!(total(&[MEMINFO]), Some(16_000_000 << 10));
        let own = ("proc/self/cgroup", "0::/jobs/mine\n");
        let unlimited = ("sys/fs/cgroup/jobs/mine/memory.max", "max\n");
        assert_eq!(total(&[MEMINFO, own, unlimited]), Some(16_000_000 << 10));
        let above = ("sys/fs/cgroup/jobs/memory.max", "3000000\n");
        assert_eq!(total(&[MEMINFO, own, unlimited, above]), Some(3_000_000));
    }

    #[test]
    fn cgroup_version_1_is_read_and_a_host_path_falls_back_to_the_mount() {
        let found = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/docker/abc\n1:cpu:/\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "700000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 100000\ntotal_active_file 0\n",
            ),
        ]);
        assert_eq!(found.unwrap().bytes, 400_000);
    }

    #[test]
    fn memory_of_this_process_is_read() {
        if cfg!(target_os = "linux") {
            assert!(in_use().unwrap() > 1 << 20 && available().unwrap().bytes > 0);
        }
    }
}
