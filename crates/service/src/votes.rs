//! Blind votes between two personas, versions or blends: one JSON object a line in `votes.jsonl`, and their tallies.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// The most votes that are stored.
pub const MAX_VOTES: usize = 100_000;
/// The longest prompt that is stored with a vote, in bytes.
pub const MAX_PROMPT: usize = 4 << 10;

/// Why a vote is not stored, or votes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// No folder is set.
    #[error(
        "there is nowhere to keep votes and evaluations; set LORY_HOME to a folder and start the server again"
    )]
    Off,
    /// The limit of stored votes is reached.
    #[error("the limit of {MAX_VOTES} stored votes is reached; move {} away to start again", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// A line of the file is not a vote.
    #[error("{}:{line}: {message}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The folder cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
}

/// The result of a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    /// The first.
    A,
    /// The second.
    B,
    /// Neither.
    Tie,
}

/// One vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// Seconds since 1970.
    pub time: u64,
    /// A persona with its version, a blend, or the base.
    pub a: String,
    /// The other one.
    pub b: String,
    /// Which was better.
    pub winner: Winner,
    /// The prompt of both answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// The votes on one pair; `a` comes before `b` in the alphabet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// The first.
    pub a: String,
    /// The second.
    pub b: String,
    /// Votes for the first.
    pub a_wins: u64,
    /// Votes for the second.
    pub b_wins: u64,
    /// Votes for neither.
    pub ties: u64,
}

/// The file of votes, which only one process writes.
#[derive(Debug)]
pub struct Votes {
    path: PathBuf,
    /// Loaded on first use.
    tallies: Mutex<Option<Tallies>>,
}

#[derive(Debug, Default)]
struct Tallies {
    count: usize,
    by_pair: BTreeMap<(String, String), Tally>,
}

impl Tallies {
    fn add(&mut self, vote: &Vote) -> &Tally {
        let swapped = vote.a > vote.b;
        let (a, b) = match swapped {
            true => (&vote.b, &vote.a),
            false => (&vote.a, &vote.b),
        };
        self.count += 1;
        let empty = || Tally {
            a: a.clone(),
            b: b.clone(),
            a_wins: 0,
            b_wins: 0,
            ties: 0,
        };
        let tally = self
            .by_pair
            .entry((a.clone(), b.clone()))
            .or_insert_with(empty);
        match (vote.winner, swapped) {
            (Winner::Tie, _) => tally.ties += 1,
            (Winner::A, false) | (Winner::B, true) => tally.a_wins += 1,
            (Winner::A, true) | (Winner::B, false) => tally.b_wins += 1,
        }
        tally
    }
}

impl Votes {
    /// The votes in a folder, which need not exist yet.
    #[must_use]
    pub fn new(folder: &Path) -> Votes {
        Votes {
            path: folder.join("votes.jsonl"),
            tallies: Mutex::default(),
        }
    }

    /// Stores a vote and returns the new tally of its pair.
    ///
    /// # Errors
    /// [`VoteError`]; the vote is then not counted.
    pub fn add(&self, vote: &Vote) -> Result<Tally, VoteError> {
        self.with(|tallies| {
            if tallies.count >= MAX_VOTES {
                let path = self.path.clone();
                return Err(VoteError::Full { path });
            }
            let io = |source| self.io(source);
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder).map_err(io)?;
            }
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path);
            let mut file = file.map_err(io)?;
            let line = serde_json::to_string(vote).map_err(|error| io(error.into()))?;
            file.write_all(format!("{line}\n").as_bytes()).map_err(io)?;
            file.sync_data().map_err(io)?;
            Ok(tallies.add(vote).clone())
        })
    }

    /// The tallies of all pairs.
    ///
    /// # Errors
    /// [`VoteError`].
    pub fn tallies(&self) -> Result<Vec<Tally>, VoteError> {
        self.with(|tallies| Ok(tallies.by_pair.values().cloned().collect()))
    }

    fn io(&self, source: std::io::Error) -> VoteError {
        let path = self.path.clone();
        VoteError::Io { path, source }
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Tallies) -> Result<T, VoteError>,
    ) -> Result<T, VoteError> {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *tallies {
            Some(tallies) => work(tallies),
            none => work(none.insert(self.read()?)),
        }
    }

    /// Reads the file. An incomplete last line is a vote whose writer was killed: it was never confirmed, and is cut off.
    fn read(&self) -> Result<Tallies, VoteError> {
        let mut tallies = Tallies::default();
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(tallies),
            Err(error) => return Err(self.io(error)),
        };
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        for (at, line) in text[..whole].lines().enumerate() {
            let vote = serde_json::from_str(line).map_err(|error| VoteError::Broken {
                path: self.path.clone(),
                line: at + 1,
                message: error.to_string(),
            })?;
            tallies.add(&vote);
        }
        if whole < text.len() {
            let file = File::options().write(true).open(&self.path);
            let cut = file.and_then(|file| file.set_len(whole as u64));
            cut.map_err(|error| self.io(error))?;
        }
        Ok(tallies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(a: &str, b: &str, winner: Winner) -> Vote {
        Vote {
            time: 1,
            a: a.to_owned(),
            b: b.to_owned(),
            winner,
            prompt: Some("Hi".to_owned()),
        }
    }

    #[test]
    fn votes_are_tallied_by_pair_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let votes = Votes::new(folder.path());
        assert!(votes.tallies().unwrap().is_empty());
        votes.add(&vote("x@1", "x@2", Winner::A)).unwrap();
        votes.add(&vote("x@2", "x@1", Winner::A)).unwrap();
        votes.add(&vote("x@2", "x@1", Winner::B)).unwrap();
        let tally = votes.add(&vote("x@1", "x@2", Winner::Tie)).unwrap();
        assert_eq!((tally.a_wins, tally.b_wins, tally.ties), (2, 1, 1));
        votes.add(&vote("x@1", "y@1", Winner::B)).unwrap();
        let before = votes.tallies().unwrap();
        assert_eq!(before.len(), 2);

        // A writer that was killed in the middle of a line.
        let path = folder.path().join("votes.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"time\":")).unwrap();
        let again = Votes::new(folder.path());
        assert_eq!(again.tallies().unwrap(), before);
        again.add(&vote("x@1", "y@1", Winner::B)).unwrap();
        assert_eq!(Votes::new(folder.path()).tallies().unwrap()[1].b_wins, 2);

        fs::write(&path, format!("{text}nonsense\n")).unwrap();
        let error = Votes::new(folder.path()).tallies().unwrap_err().to_string();
        assert!(error.contains("votes.jsonl:6: "), "{error}");
    }
}
