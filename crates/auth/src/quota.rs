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

    /// What a request for bytes of it has or needs, to follow a number; `None` if the resource is counted one by one.
    fn request(self) -> Option<&'static str> {
        match self {
            // Bytes are checked while they arrive, so there may be more.
            Resource::FileBytes => Some("this file has at least"),
            Resource::UploadBytes => Some("this upload needs at least"),
            Resource::AdapterBytes => Some("this job needs"),
            _ => None,
        }
    }

    /// What a key with a quota of 0 cannot do.
    fn action(self) -> &'static str {
        match self {
            Resource::OpenJobs | Resource::StoredJobs | Resource::AdapterBytes => "train",
            Resource::OpenEvaluations | Resource::StoredEvaluations => "run evaluations",
            Resource::Files | Resource::FileBytes => "upload files",
            Resource::Votes | Resource::VotePairs => "vote",
            Resource::UploadBytes => "upload adapters",
        }
    }

    /// What makes a request fit that is larger than all that its owner may have.
    fn advice_if_too_large(self) -> &'static str {
        match self {
            Resource::FileBytes => "split the file",
            Resource::UploadBytes => "upload a smaller adapter",
            _ => "train a smaller rank or fewer modules, or continue a smaller adapter",
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
                "the server keeps all votes: ask its operator for a larger quota, or to remove old votes"
            }
            Resource::AdapterBytes => {
                "cancel a job, publish the adapter of a finished one, or delete a finished one"
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
        self.check_growth(resource, usage, 0, more)
    }

    /// Checks that a request of which `usage` already includes `counted` may have `more`. A refusal names the whole request apart from what
    /// is stored.
    ///
    /// # Errors
    /// [`QuotaExceeded`].
    pub fn check_growth(
        &self,
        resource: Resource,
        usage: Usage,
        counted: u64,
        more: u64,
    ) -> Result<(), QuotaExceeded> {
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
            own: usage.own.saturating_sub(counted),
            all: usage.all.saturating_sub(counted),
            wanted: counted.saturating_add(more),
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
    /// What the owner has, except for this request.
    own: u64,
    /// What all owners have, except for this request.
    all: u64,
    /// What this request needs, as far as it is known.
    wanted: u64,
    quota: u64,
    limit: u64,
    bound: Bound,
}

impl QuotaExceeded {
    /// Whether the key's quota is 0, so that no such request can succeed.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.bound == Bound::Quota && self.quota == 0
    }

    /// Whether this request alone needs more bytes than its owner may ever have.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        let most = match self.bound {
            Bound::Quota => self.quota,
            Bound::Free | Bound::Total => self.limit,
        };
        !self.is_forbidden() && self.resource.request().is_some() && self.wanted > most
    }
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (noun, advice) = (self.resource.noun(), self.resource.advice());
        let (own, wanted) = (self.own, self.wanted);
        let (quota, limit) = (self.quota, self.limit);
        let key = self.key.as_deref().unwrap_or_default();
        let name = self.resource.key();
        if self.is_forbidden() {
            let action = self.resource.action();
            return write!(
                f,
                "key {key} may not {action}: its `{name}` is 0 in the file of keys; ask the operator"
            );
        }
        let Some(request) = self.resource.request() else {
            return match self.bound {
                Bound::Total => write!(f, "the limit of {limit} {noun} is reached; {advice}"),
                Bound::Quota => write!(
                    f,
                    "key {key} has {own} of its {quota} {noun} (`{name}` in the file of keys); {advice}"
                ),
                Bound::Free => write!(
                    f,
                    "key {key} has {own} {noun}, and may not have more than are free of the server's {limit}; {advice}"
                ),
            };
        };
        if self.is_too_large() {
            let smaller = self.resource.advice_if_too_large();
            return match self.bound {
                Bound::Quota => write!(
                    f,
                    "{request} {wanted} bytes, which is more than the {quota} {noun} that key {key} may have (`{name}` in the file of \
                     keys); {smaller}, or ask the operator for a larger quota"
                ),
                Bound::Free | Bound::Total => write!(
                    f,
                    "{request} {wanted} bytes, which is more than the {limit} {noun} that the server may have; {smaller}"
                ),
            };
        }
        match self.bound {
            Bound::Total => write!(
                f,
                "the server has {} of its {limit} {noun}, and {request} {wanted}; {advice}",
                self.all
            ),
            Bound::Quota => write!(
                f,
                "key {key} has {own} {noun}, and {request} {wanted}; it may have {quota} (`{name}` in the file of keys); {advice}"
            ),
            Bound::Free => write!(
                f,
                "key {key} has {own} {noun}, and {request} {wanted}; a key may not have more than are free of the server's {limit}; \
                 {advice}"
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
    fn message_separates_the_request_from_what_is_stored() {
        let mut quotas = Quotas::default();
        quotas.set(Resource::FileBytes, Some(100));
        quotas.set(Resource::AdapterBytes, Some(100));
        let owner = Owner::key("acme", quotas);
        let usage = |own| Usage {
            own,
            all: own,
            limit: 1000,
        };
        // 38 are stored, and 30 of the upload are counted.
        let refused = owner.check_growth(Resource::FileBytes, usage(68), 30, 40);
        let refused = refused.unwrap_err();
        assert!(!refused.is_too_large() && !refused.is_forbidden());
        assert_eq!(
            refused.to_string(),
            "key acme has 38 bytes of files, and this file has at least 70; it may have 100 (`file_bytes` in the file of keys); delete some"
        );
        let refused = owner.check_growth(Resource::FileBytes, usage(60), 60, 41);
        let refused = refused.unwrap_err();
        assert!(refused.is_too_large());
        assert_eq!(
            refused.to_string(),
            "this file has at least 101 bytes, which is more than the 100 bytes of files that key acme may have (`file_bytes` in the file of \
             keys); split the file, or ask the operator for a larger quota"
        );
        let refused = owner.check(Resource::AdapterBytes, usage(20), 90);
        let message = refused.unwrap_err().to_string();
        assert!(
            message.starts_with(
                "key acme has 20 bytes of checkpoints and unpublished adapters of jobs, and this job needs 90; it may have 100 ("
            ),
            "{message}"
        );
        // A job that continues an adapter cannot choose another rank.
        let refused = owner.check(Resource::AdapterBytes, usage(20), 190);
        let message = refused.unwrap_err().to_string();
        assert!(
            message.ends_with(
                "; train a smaller rank or fewer modules, or continue a smaller adapter, or ask the operator for a larger quota"
            ),
            "{message}"
        );
        let everyone = Owner::everyone().check_growth(Resource::FileBytes, usage(990), 5, 20);
        assert_eq!(
            everyone.unwrap_err().to_string(),
            "the server has 985 of its 1000 bytes of files, and this file has at least 25; delete some"
        );
        let other = Owner::key("other", Quotas::default());
        let crowded = Usage {
            own: 0,
            all: 900,
            limit: 1000,
        };
        let refused = other.check(Resource::FileBytes, crowded, 101).unwrap_err();
        assert!(!refused.is_too_large());
        assert_eq!(
            refused.to_string(),
            "key other has 0 bytes of files, and this file has at least 101; a key may not have more than are free of the server's 1000; \
             delete some"
        );
    }

    #[test]
    fn quota_of_zero_forbids() {
        for resource in Resource::ALL {
            let mut quotas = Quotas::default();
            quotas.set(resource, Some(0));
            let usage = Usage {
                own: 0,
                all: 0,
                limit: 64,
            };
            let refused = Owner::key("acme", quotas).check(resource, usage, 1);
            let refused = refused.unwrap_err();
            assert!(refused.is_forbidden() && !refused.is_too_large());
            let message = refused.to_string();
            assert!(message.starts_with("key acme may not "), "{message}");
            let name = format!("`{}` is 0", resource.key());
            assert!(message.contains(&name), "{message}");
        }
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
