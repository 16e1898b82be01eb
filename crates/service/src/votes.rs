//! Blind votes between two speakers, one JSON object a line of `votes.jsonl`, and how they add up.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::VoteError;

/// The most votes that are kept.
pub const MAX_VOTES: usize = 100_000;
/// The longest prompt that is kept with a vote, in bytes.
pub const MAX_PROMPT: usize = 4 << 10;

/// Who was better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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
    /// A speaker, in its version.
    pub a: String,
    /// Another one.
    pub b: String,
    /// Who was better.
    pub winner: Winner,
    /// What both were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// How the votes on two speakers add up; `a` comes before `b` in the alphabet.
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

/// The file of votes. One process writes it.
#[derive(Debug)]
pub struct Votes {
    path: PathBuf,
    /// Read once it is needed.
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    count: usize,
    tallies: BTreeMap<(String, String), Tally>,
}

impl Known {
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
            .tallies
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
    /// The votes in a folder, which need not be there yet.
    #[must_use]
    pub fn new(folder: &Path) -> Votes {
        Votes {
            path: folder.join("votes.jsonl"),
            known: Mutex::default(),
        }
    }

    /// Keeps a vote; how the two stand then.
    ///
    /// # Errors
    /// [`VoteError`]; the vote is then not counted.
    pub fn add(&self, vote: &Vote) -> Result<Tally, VoteError> {
        self.with(|known| {
            if known.count >= MAX_VOTES {
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
            Ok(known.add(vote).clone())
        })
    }

    /// How all pairs stand.
    ///
    /// # Errors
    /// [`VoteError`].
    pub fn tallies(&self) -> Result<Vec<Tally>, VoteError> {
        self.with(|known| Ok(known.tallies.values().cloned().collect()))
    }

    fn io(&self, source: std::io::Error) -> VoteError {
        let path = self.path.clone();
        VoteError::Io { path, source }
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Known) -> Result<T, VoteError>,
    ) -> Result<T, VoteError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *known {
            Some(known) => work(known),
            none => work(none.insert(self.read()?)),
        }
    }

    /// All votes of the file. A last line without an end is a vote whose writer was killed: it was never confirmed, and is cut off.
    fn read(&self) -> Result<Known, VoteError> {
        let mut known = Known::default();
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(known),
            Err(error) => return Err(self.io(error)),
        };
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        for (at, line) in text[..whole].lines().enumerate() {
            let vote = serde_json::from_str(line).map_err(|error| VoteError::Broken {
                path: self.path.clone(),
                line: at + 1,
                message: error.to_string(),
            })?;
            known.add(&vote);
        }
        if whole < text.len() {
            let file = File::options().write(true).open(&self.path);
            let cut = file.and_then(|file| file.set_len(whole as u64));
            cut.map_err(|error| self.io(error))?;
        }
        Ok(known)
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
    fn votes_add_up_whichever_way_round_and_outlive_the_process() {
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

        // A writer that was killed within a line.
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
