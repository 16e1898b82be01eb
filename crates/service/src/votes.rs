//! Blind votes between two personas, versions or blends: one JSON object a line in `votes.jsonl`, and their tallies. A damaged line
//! affects only itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use auth::{Owner, QuotaExceeded, Resource, Usage};
use formats::append_log::{AppendLog, Flush};
use formats::disk::{self, LastingFolder};
use serde::{Deserialize, Serialize};

/// The most votes of all keys.
pub const MAX_VOTES: usize = 100_000;
/// The most pairs of models with votes: their names and counts are in memory.
pub const MAX_PAIRS: usize = 10_000;
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
    /// The key's quota or the server's limit is reached.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The folder was removed.
    #[error(transparent)]
    Removed(std::io::Error),
    /// The file of votes cannot be read.
    #[error(
        "the server cannot read votes.jsonl, its file of votes, so it neither stores nor shows votes; everything else works; try again when \
         its operator has repaired the file, whose path is in the server's log"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
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
    /// The API key that voted; `None` on a server without keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
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
    folder: LastingFolder,
    /// Loaded on first use.
    tallies: Mutex<Option<Tallies>>,
}

#[derive(Debug, Default)]
struct Tallies {
    count: usize,
    /// Lines that are not votes.
    damaged: u64,
    /// Votes that are counted and have no tally, because there are [`MAX_PAIRS`] pairs.
    untallied: u64,
    by_pair: BTreeMap<(String, String), Counts>,
    by_key: BTreeMap<Option<String>, KeyUsage>,
}

/// The votes on one pair.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    a_wins: u64,
    b_wins: u64,
    ties: u64,
}

/// What a key has.
#[derive(Debug, Default, Clone, Copy)]
struct KeyUsage {
    votes: u64,
    /// Pairs whose first vote was the key's.
    pairs: u64,
}

/// The models of a vote in the order of the alphabet, and whether they were swapped for it.
fn pair(vote: &Vote) -> ((String, String), bool) {
    match vote.a > vote.b {
        true => ((vote.b.clone(), vote.a.clone()), true),
        false => ((vote.a.clone(), vote.b.clone()), false),
    }
}

impl Tallies {
    /// Checks that `owner` may store `vote`.
    fn check(&self, owner: &Owner, vote: &Vote) -> Result<(), QuotaExceeded> {
        let own = match owner.name() {
            Some(name) => self.by_key.get(&Some(name.to_owned())).copied(),
            None => Some(KeyUsage {
                votes: self.count as u64,
                pairs: self.by_pair.len() as u64,
            }),
        };
        let own = own.unwrap_or_default();
        let votes = Usage {
            own: own.votes,
            all: self.count as u64,
            limit: MAX_VOTES as u64,
        };
        owner.check(Resource::Votes, votes, 1)?;
        if self.by_pair.contains_key(&pair(vote).0) {
            return Ok(());
        }
        let pairs = Usage {
            own: own.pairs,
            all: self.by_pair.len() as u64,
            limit: MAX_PAIRS as u64,
        };
        owner.check(Resource::VotePairs, pairs, 1)
    }

    fn add(&mut self, vote: &Vote) -> Tally {
        let ((a, b), swapped) = pair(vote);
        self.count += 1;
        let of_key = self.by_key.entry(vote.key.clone()).or_default();
        of_key.votes += 1;
        let mut counts = Counts::default();
        let key = (a.clone(), b.clone());
        let is_new = !self.by_pair.contains_key(&key);
        let counts = if is_new && self.by_pair.len() >= MAX_PAIRS {
            self.untallied += 1;
            &mut counts
        } else {
            of_key.pairs += u64::from(is_new);
            self.by_pair.entry(key).or_default()
        };
        match (vote.winner, swapped) {
            (Winner::Tie, _) => counts.ties += 1,
            (Winner::A, false) | (Winner::B, true) => counts.a_wins += 1,
            (Winner::A, true) | (Winner::B, false) => counts.b_wins += 1,
        }
        counts.tally(a, b)
    }
}

impl Counts {
    fn tally(self, a: String, b: String) -> Tally {
        Tally {
            a,
            b,
            a_wins: self.a_wins,
            b_wins: self.b_wins,
            ties: self.ties,
        }
    }
}

impl Votes {
    /// The votes in a folder, which need not exist yet.
    #[must_use]
    pub fn new(folder: &Path) -> Votes {
        Votes {
            log: AppendLog::new(folder.join("votes.jsonl")),
            folder: LastingFolder::new(folder),
            tallies: Mutex::default(),
        }
    }

    /// Stores a vote of `owner`, whose key it gets, and returns the new tally of its pair.
    ///
    /// # Errors
    /// [`VoteError`]; the vote is then not counted.
    pub fn add(&self, owner: &Owner, mut vote: Vote) -> Result<Tally, VoteError> {
        vote.key = owner.name().map(str::to_owned);
        self.with(|tallies| {
            tallies.check(owner, &vote)?;
            let io = |source| self.io(source);
            self.folder.create().map_err(io)?;
            let line = serde_json::to_string(&vote).map_err(|error| io(error.into()))?;
            self.log.append(line.as_bytes(), Flush::Now).map_err(io)?;
            Ok(tallies.add(&vote))
        })
    }

    /// The tallies of all pairs.
    ///
    /// # Errors
    /// [`VoteError`].
    pub fn tallies(&self) -> Result<Vec<Tally>, VoteError> {
        self.with(|tallies| {
            let tally =
                |((a, b), counts): (&(String, String), &Counts)| counts.tally(a.clone(), b.clone());
            Ok(tallies.by_pair.iter().map(tally).collect())
        })
    }

    /// Why votes cannot be stored or read at present.
    ///
    /// # Errors
    /// [`VoteError::Removed`], [`VoteError::Unreadable`].
    pub fn check(&self) -> Result<(), VoteError> {
        self.folder.check().map_err(VoteError::Removed)?;
        match disk::open(self.log.path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            opened => opened.map(drop).map_err(|source| self.unreadable(source)),
        }
    }

    /// The number of damaged lines; 0 before the file is read, and 1 if it cannot be read.
    pub fn damaged(&self) -> u64 {
        if let Err(VoteError::Unreadable { .. }) = self.check() {
            return 1;
        }
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.as_ref().map_or(0, |tallies| tallies.damaged)
    }

    fn unreadable(&self, source: std::io::Error) -> VoteError {
        let path = self.log.path().to_owned();
        VoteError::Unreadable { path, source }
    }

    fn io(&self, source: std::io::Error) -> VoteError {
        if disk::is_removed(&source) {
            return VoteError::Removed(source);
        }
        let path = self.log.path().to_owned();
        VoteError::Io { path, source }
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Tallies) -> Result<T, VoteError>,
    ) -> Result<T, VoteError> {
        self.check()?;
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
        read.map_err(|source| self.unreadable(source))?;
        if tallies.damaged > MAX_LOGGED {
            let damaged = tallies.damaged;
            tracing::error!("{path}: {damaged} lines are not votes and were skipped");
        }
        if tallies.untallied > 0 {
            let untallied = tallies.untallied;
            tracing::error!(
                "{path}: {untallied} votes are on more than {MAX_PAIRS} pairs and are not shown"
            );
        }
        Ok(tallies)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use auth::Quotas;
    use formats::disk::faults::for_each_fault;

    use super::*;

    fn vote(a: &str, b: &str, winner: Winner) -> Vote {
        Vote {
            time: 1,
            a: a.to_owned(),
            b: b.to_owned(),
            winner,
            prompt: Some("Hi".to_owned()),
            key: None,
        }
    }

    #[test]
    fn votes_are_tallied_by_pair_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let votes = Votes::new(folder.path());
        assert!(votes.tallies().unwrap().is_empty());
        votes
            .add(&Owner::everyone(), vote("x@1", "x@2", Winner::A))
            .unwrap();
        votes
            .add(&Owner::everyone(), vote("x@2", "x@1", Winner::A))
            .unwrap();
        votes
            .add(&Owner::everyone(), vote("x@2", "x@1", Winner::B))
            .unwrap();
        let tally = votes
            .add(&Owner::everyone(), vote("x@1", "x@2", Winner::Tie))
            .unwrap();
        assert_eq!((tally.a_wins, tally.b_wins, tally.ties), (2, 1, 1));
        votes
            .add(&Owner::everyone(), vote("x@1", "y@1", Winner::B))
            .unwrap();
        let before = votes.tallies().unwrap();
        assert_eq!(before.len(), 2);

        // A writer that was killed in the middle of a line.
        let path = folder.path().join("votes.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"time\":")).unwrap();
        let again = Votes::new(folder.path());
        assert_eq!(again.tallies().unwrap(), before);
        again
            .add(&Owner::everyone(), vote("x@1", "y@1", Winner::B))
            .unwrap();
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
                let added = votes.add(&Owner::everyone(), vote("x@1", "x@2", Winner::A));
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
    fn removed_folder_and_unreadable_file_are_reported() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("judgements");
        let votes = Votes::new(&folder);
        let add = || votes.add(&Owner::everyone(), vote("x@1", "x@2", Winner::A));
        add().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let error = add().unwrap_err();
        assert!(matches!(error, VoteError::Removed(_)), "{error}");
        assert!(error.to_string().contains("judgements") && !folder.exists());
        fs::create_dir_all(folder.join("votes.jsonl")).unwrap();
        let votes = Votes::new(&folder);
        let error = votes.tallies().unwrap_err();
        assert!(matches!(error, VoteError::Unreadable { .. }), "{error}");
        let message = error.to_string();
        let folder_name = folder.display().to_string();
        assert!(
            message.contains("votes.jsonl") && message.contains("try again when its operator"),
            "{message}"
        );
        assert!(!message.contains(&folder_name), "{message}");
        assert_eq!(votes.damaged(), 1);
        // It works again as soon as the file does.
        fs::remove_dir(folder.join("votes.jsonl")).unwrap();
        votes.tallies().unwrap();
        assert_eq!(votes.damaged(), 0);
    }

    #[test]
    fn vote_after_an_incomplete_line_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let votes = Votes::new(folder.path());
        votes
            .add(&Owner::everyone(), vote("x@1", "x@2", Winner::A))
            .unwrap();
        // A full disk left half of a line, and the next vote fits again.
        let path = folder.path().join("votes.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"time\":")).unwrap();
        votes
            .add(&Owner::everyone(), vote("x@1", "x@2", Winner::A))
            .unwrap();
        let again = Votes::new(folder.path()).tallies().unwrap();
        assert_eq!(again[0].a_wins, 2);
    }

    #[test]
    fn a_key_cannot_take_the_room_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut quotas = Quotas::default();
        quotas.set(Resource::Votes, Some(3));
        quotas.set(Resource::VotePairs, Some(2));
        let one = Owner::key("one", quotas);
        let two = Owner::key("two", Quotas::default());
        let votes = Votes::new(folder.path());
        votes.add(&one, vote("x@1", "x@2", Winner::A)).unwrap();
        votes.add(&one, vote("x@1", "x@3", Winner::A)).unwrap();
        let refused = |votes: &Votes, b: &str| {
            let refused = votes.add(&one, vote("x@1", b, Winner::A));
            refused.unwrap_err().to_string()
        };
        let message = refused(&votes, "x@4");
        assert!(
            message.starts_with("key one has 2 of its 2 pairs"),
            "{message}"
        );
        votes.add(&two, vote("x@1", "x@4", Winner::A)).unwrap();
        // The pair is there now, and the first two votes are still the key's after a restart.
        let again = Votes::new(folder.path());
        again.add(&one, vote("x@4", "x@1", Winner::B)).unwrap();
        let message = refused(&again, "x@4");
        assert!(
            message.starts_with("key one has 3 of its 3 stored votes"),
            "{message}"
        );
        again.add(&two, vote("x@1", "x@4", Winner::Tie)).unwrap();
        assert_eq!(again.tallies().unwrap()[2].a_wins, 2);
    }

    #[test]
    fn pairs_in_memory_are_bounded() {
        let mut tallies = Tallies::default();
        for number in 0..MAX_PAIRS + 5 {
            tallies.add(&vote("x@1", &format!("y@{number}"), Winner::A));
        }
        assert_eq!((tallies.by_pair.len(), tallies.untallied), (MAX_PAIRS, 5));
        let next = vote("x@1", "z@1", Winner::A);
        assert!(tallies.check(&Owner::everyone(), &next).is_err());
        tallies
            .check(&Owner::everyone(), &vote("x@1", "y@1", Winner::A))
            .unwrap();
    }
}
