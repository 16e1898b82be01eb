//! Quotas: how much of what a server stores and queues one key may have. Must not know what is stored.
//!
//! A resource has a limit in total. A key may have a quarter of it, or what the file of keys sets for it. It also may never have more than
//! is still free, so that one key leaves room for the next, and two keys leave room for a third. A server without keys has one owner, who
//! may have everything.

use std::fmt;

/// What a key may have a limited number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Training jobs that wait or run.
    OpenJobs,
    /// Records of training jobs.
    StoredJobs,
    /// Evaluations that wait or run.
    OpenEvaluations,
    /// Records of evaluations, with their results.
    StoredEvaluations,
    /// Uploaded files.
    Files,
    /// Bytes of uploaded files.
    FileBytes,
    /// Stored votes.
    Votes,
    /// Pairs of models with votes.
    VotePairs,
    /// Bytes of the checkpoints and adapters of jobs, except published adapters.
    AdapterBytes,
    /// Bytes of adapters that were uploaded and not published yet.
    UploadBytes,
}

impl Resource {
    /// Every resource, in the order of their declaration.
    pub const ALL: [Resource; 10] = [
        Resource::OpenJobs,
        Resource::StoredJobs,
        Resource::OpenEvaluations,
        Resource::StoredEvaluations,
        Resource::Files,
        Resource::FileBytes,
        Resource::Votes,
        Resource::VotePairs,
        Resource::AdapterBytes,
        Resource::UploadBytes,
    ];

    /// Its key in the file of keys.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Resource::OpenJobs => "open_jobs",
            Resource::StoredJobs => "stored_jobs",
            Resource::OpenEvaluations => "open_evaluations",
            Resource::StoredEvaluations => "stored_evaluations",
            Resource::Files => "files",
            Resource::FileBytes => "file_bytes",
            Resource::Votes => "votes",
            Resource::VotePairs => "vote_pairs",
            Resource::AdapterBytes => "adapter_bytes",
            Resource::UploadBytes => "upload_bytes",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Resource::OpenJobs => "unfinished jobs",
            Resource::StoredJobs => "stored jobs",
            Resource::OpenEvaluations => "unfinished evaluations",
            Resource::StoredEvaluations => "stored evaluations",
            Resource::Files => "files",
            Resource::FileBytes => "bytes of files",
            Resource::Votes => "stored votes",
            Resource::VotePairs => "pairs of models with votes",
            Resource::AdapterBytes => "bytes of checkpoints and unpublished adapters of jobs",
            Resource::UploadBytes => "bytes of uploaded adapters",
        }
    }

    /// What makes room.
    fn advice(self) -> &'static str {
        match self {
            Resource::OpenJobs | Resource::OpenEvaluations => {
                "cancel one, or try again when one finishes"
            }
            Resource::StoredJobs | Resource::StoredEvaluations => {
                "try again when one finishes: the oldest finished ones make room"
            }
            Resource::Files | Resource::FileBytes => "delete some",
            Resource::Votes | Resource::VotePairs => {
                "ask the operator to move the file of votes away"
            }
            Resource::AdapterBytes => {
                "cancel a job, publish the adapter of a finished one, delete a finished one, or train a smaller rank or fewer modules"
            }
            Resource::UploadBytes => {
                "publish or delete an uploaded adapter, or try again in an hour, when they expire"
            }
        }
    }
}

/// The quotas that the file of keys sets for a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas([Option<u64>; Resource::ALL.len()]);

impl Quotas {
    /// The quota of a resource; `None` for the default.
    #[must_use]
    pub fn get(&self, resource: Resource) -> Option<u64> {
        self.0[resource as usize]
    }

    /// Sets the quota of a resource.
    pub fn set(&mut self, resource: Resource, quota: Option<u64>) {
        self.0[resource as usize] = quota;
    }
}

/// How much of a resource there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What the owner has.
    pub own: u64,
    /// What all owners have.
    pub all: u64,
    /// The limit in total.
    pub limit: u64,
}

/// Who has records: a key, or everyone on a server without keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The key's name and quotas; `None` on a server without keys.
    key: Option<(String, Quotas)>,
}

impl Owner {
    /// The one owner of a server without keys.
    #[must_use]
    pub fn everyone() -> Owner {
        Owner { key: None }
    }

    /// The owner of a key's records.
    #[must_use]
    pub fn key(name: &str, quotas: Quotas) -> Owner {
        Owner {
            key: Some((name.to_owned(), quotas)),
        }
    }

    /// The key's name; `None` on a server without keys.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.key.as_ref().map(|(name, _)| name.as_str())
    }

    /// Whether it has a record of the key `owner`. On a server without keys everyone has every record.
    #[must_use]
    pub fn owns(&self, owner: Option<&str>) -> bool {
        self.key.is_none() || self.name() == owner
    }

    /// Checks that it may have `more` of a resource.
    ///
    /// # Errors
    /// [`QuotaExceeded`].
    pub fn check(&self, resource: Resource, usage: Usage, more: u64) -> Result<(), QuotaExceeded> {
        let own = usage.own.saturating_add(more);
        let free = usage.limit.saturating_sub(usage.all);
        let quota = match &self.key {
            None => usage.limit,
            Some((_, quotas)) => quotas
                .get(resource)
                .unwrap_or((usage.limit / 4).max(1))
                .min(usage.limit),
        };
        let (bound, why) = if self.key.is_none() {
            (free.saturating_add(usage.own), Bound::Total)
        } else if own > quota {
            (quota, Bound::Quota)
        } else {
            (free, Bound::Free)
        };
        if own <= bound {
            return Ok(());
        }
        Err(QuotaExceeded {
            resource,
            key: self.name().map(str::to_owned),
            own: usage.own,
            quota,
            limit: usage.limit,
            bound: why,
        })
    }
}

/// What refused the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// The limit in total.
    Total,
    /// The key's quota.
    Quota,
    /// What is still free.
    Free,
}

/// A request would exceed a quota or a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaExceeded {
    /// Of which resource.
    pub resource: Resource,
    key: Option<String>,
    own: u64,
    quota: u64,
    limit: u64,
    bound: Bound,
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (noun, advice) = (self.resource.noun(), self.resource.advice());
        let (own, quota, limit) = (self.own, self.quota, self.limit);
        let key = self.key.as_deref().unwrap_or_default();
        match self.bound {
            Bound::Total => write!(f, "the limit of {limit} {noun} is reached; {advice}"),
            Bound::Quota => write!(
                f,
                "key {key} has {own} of its {quota} {noun} (`{}` in the file of keys); {advice}",
                self.resource.key()
            ),
            Bound::Free => write!(
                f,
                "key {key} has {own} {noun}, and may not have more than are free of the server's {limit}; {advice}"
            ),
        }
    }
}

impl std::error::Error for QuotaExceeded {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds jobs of `owner` one by one until one is refused.
    fn fill(owner: &Owner, all: &mut u64, own: &mut u64) -> QuotaExceeded {
        loop {
            let usage = Usage {
                own: *own,
                all: *all,
                limit: 64,
            };
            if let Err(error) = owner.check(Resource::OpenJobs, usage, 1) {
                return error;
            }
            *own += 1;
            *all += 1;
        }
    }

    #[test]
    fn greedy_keys_leave_room_for_the_next() {
        let mut all = 0;
        for (key, expected) in [16, 16, 16, 8, 4, 2, 1].into_iter().enumerate() {
            let mut own = 0;
            let owner = Owner::key(&key.to_string(), Quotas::default());
            fill(&owner, &mut all, &mut own);
            assert_eq!(own, expected, "key {key}");
        }
        assert!(all < 64);
    }

    #[test]
    fn quota_of_the_file_replaces_the_default_and_leaves_room() {
        let mut quotas = Quotas::default();
        quotas.set(Resource::OpenJobs, Some(2));
        let (mut all, mut own) = (0, 0);
        let message = fill(&Owner::key("acme", quotas), &mut all, &mut own).to_string();
        assert_eq!(own, 2);
        assert_eq!(
            message,
            "key acme has 2 of its 2 unfinished jobs (`open_jobs` in the file of keys); cancel one, or try again when one finishes"
        );
        quotas.set(Resource::OpenJobs, Some(1000));
        let (mut all, mut own) = (0, 0);
        let message = fill(&Owner::key("acme", quotas), &mut all, &mut own).to_string();
        assert_eq!(own, 32);
        assert!(
            message.contains("than are free of the server's 64"),
            "{message}"
        );
    }

    #[test]
    fn server_without_keys_has_one_owner_of_everything() {
        let (mut all, mut own) = (0, 0);
        let message = fill(&Owner::everyone(), &mut all, &mut own).to_string();
        assert_eq!(own, 64);
        assert!(message.starts_with("the limit of 64 unfinished jobs is reached"));
        assert!(Owner::everyone().owns(Some("acme")) && Owner::everyone().owns(None));
        let acme = Owner::key("acme", Quotas::default());
        assert!(acme.owns(Some("acme")) && !acme.owns(Some("other")) && !acme.owns(None));
    }
}
