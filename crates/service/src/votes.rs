//! Blind votes between two personas, versions or blends: one JSON object a line in `votes.jsonl`, and their tallies. A damaged line
//! affects only itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use formats::append_log::{AppendLog, Flush};
use formats::disk;
use serde::{Deserialize, Serialize};

/// The most votes that are stored.
pub const MAX_VOTES: usize = 100_000;
/// The most damaged lines that are logged one by one.
const MAX_LOGGED: u64 = 5;
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
    log: AppendLog,
    /// Loaded on first use.
    tallies: Mutex<Option<Tallies>>,
}

#[derive(Debug, Default)]
struct Tallies {
    count: usize,
    /// Lines that are not votes.
    damaged: u64,
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
            log: AppendLog::new(folder.join("votes.jsonl")),
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
                let path = self.log.path().to_owned();
                return Err(VoteError::Full { path });
            }
            let io = |source| self.io(source);
            if let Some(folder) = self.log.path().parent() {
                disk::create_folders(folder).map_err(io)?;
            }
            let line = serde_json::to_string(vote).map_err(|error| io(error.into()))?;
            self.log.append(line.as_bytes(), Flush::Now).map_err(io)?;
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

    /// The number of damaged lines; 0 before the file is read.
    pub fn damaged(&self) -> u64 {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.as_ref().map_or(0, |tallies| tallies.damaged)
    }

    fn io(&self, source: std::io::Error) -> VoteError {
        let path = self.log.path().to_owned();
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

    /// Reads the file. A damaged line is logged and stays in it.
    fn read(&self) -> Result<Tallies, VoteError> {
        let mut tallies = Tallies::default();
        let path = self.log.path().display();
        let read = self.log.read(|number, line| {
            if line.is_empty() {
                return;
            }
            match serde_json::from_slice(line) {
                Ok(vote) => {
                    tallies.add(&vote);
                }
                Err(error) => {
                    tallies.damaged += 1;
                    if tallies.damaged <= MAX_LOGGED {
                        tracing::error!("{path}:{number}: not a vote, skipped: {error}");
                    }
                }
            }
        });
        read.map_err(|error| self.io(error))?;
        if tallies.damaged > MAX_LOGGED {
            let damaged = tallies.damaged;
            tracing::error!("{path}: {damaged} lines are not votes and were skipped");
        }
        Ok(tallies)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use formats::disk::faults::for_each_fault;

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

        // Damaged lines affect only themselves.
        let damaged = format!("nonsense\n{text}\u{fffd}\n\n{{\"time\":1}}\n{{\"time\":");
        fs::write(&path, damaged).unwrap();
        let again = Votes::new(folder.path());
        assert_eq!(again.tallies().unwrap(), before);
        assert_eq!(again.damaged(), 4);
    }

    #[test]
    fn confirmed_votes_are_kept_after_every_fault() {
        for_each_fault(|injection| {
            let folder = tempfile::tempdir().unwrap();
            let new = || Votes::new(&folder.path().join("judgements"));
            let votes = new();
            let mut confirmed = 0;
            let mut add = |votes: &Votes| {
                let added = votes.add(&vote("x@1", "x@2", Winner::A));
                confirmed += u64::from(added.is_ok());
            };
            injection.run(|| {
                add(&votes);
                add(&votes);
            });
            // Either this process goes on, or the next one.
            match injection.fault.ends_the_process() {
                true => add(&new()),
                false => add(&votes),
            }
            let wins = new().tallies().unwrap()[0].a_wins;
            assert!(wins >= confirmed, "{injection:?}: {wins} of {confirmed}");
            if !injection.fault.ends_the_process() {
                assert_eq!(wins, confirmed, "{injection:?}");
                assert_eq!(votes.tallies().unwrap()[0].a_wins, confirmed);
            }
        });
    }

    #[test]
    fn vote_after_an_incomplete_line_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let votes = Votes::new(folder.path());
        votes.add(&vote("x@1", "x@2", Winner::A)).unwrap();
        // A full disk left half of a line, and the next vote fits again.
        let path = folder.path().join("votes.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"time\":")).unwrap();
        votes.add(&vote("x@1", "x@2", Winner::A)).unwrap();
        let again = Votes::new(folder.path()).tallies().unwrap();
        assert_eq!(again[0].a_wins, 2);
    }
}
