//! Pages of lists, and the records that a caller may see.

use service::Caller;

use crate::error::JobError;

/// The longest page of a list.
pub const MAX_PAGE: usize = 100;

/// A caller as lists see it: which records it may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewer {
    name: Option<String>,
    all: bool,
}

impl Viewer {
    /// A viewer that sees everything: an admin, or any caller of a server without keys.
    #[must_use]
    pub fn everybody() -> Viewer {
        Viewer {
            name: None,
            all: true,
        }
    }

    /// The viewer of a caller: with a key, its own records; with admin rights or on a server without keys, all records.
    #[must_use]
    pub fn of(caller: &Caller) -> Viewer {
        match caller.key() {
            None => Viewer::everybody(),
            Some(key) => Viewer {
                name: Some(key.name().to_owned()),
                all: key.check_admin().is_ok(),
            },
        }
    }

    /// Whether it may read the settings of personas.
    pub(crate) fn sees_settings(&self) -> bool {
        self.all
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(crate) fn sees(&self, owner: Option<&str>) -> bool {
        self.all || (owner.is_some() && owner == self.name())
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The id of the item before the page.
    pub after: Option<String>,
    /// The most items.
    pub limit: usize,
    /// Whether the newest item comes first.
    pub newest_first: bool,
}

impl Default for Page {
    fn default() -> Self {
        Page {
            after: None,
            limit: MAX_PAGE,
            newest_first: true,
        }
    }
}

impl Page {
    /// The page of `all`, which are in the order of arrival, and whether there are more after it.
    ///
    /// # Errors
    /// [`JobError::NoPage`] if `after` is not among them.
    pub(crate) fn of<T>(
        &self,
        mut all: Vec<T>,
        id: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, bool), JobError> {
        if self.newest_first {
            all.reverse();
        }
        if let Some(after) = &self.after {
            let found = all.iter().position(|item| id(item) == after);
            let found = found.ok_or_else(|| JobError::NoPage {
                id: after.chars().take(80).collect(),
            })?;
            all.drain(..=found);
        }
        let more = all.len() > self.limit;
        all.truncate(self.limit);
        Ok((all, more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_starts_after_the_item_that_it_names() {
        let all = || ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let page = |after: Option<&str>, limit, newest_first| {
            let page = Page {
                after: after.map(str::to_owned),
                limit,
                newest_first,
            };
            page.of(all(), |item| item)
                .map(|(items, more)| (items.concat(), more))
        };
        assert_eq!(page(None, 3, true).unwrap(), ("dcb".to_owned(), true));
        assert_eq!(page(Some("c"), 3, true).unwrap(), ("ba".to_owned(), false));
        assert_eq!(page(Some("b"), 1, false).unwrap(), ("c".to_owned(), true));
        assert!(matches!(
            page(Some("x"), 1, true),
            Err(JobError::NoPage { .. })
        ));
    }

    #[test]
    fn a_key_sees_its_own_records_and_an_admin_sees_all() {
        let one = Viewer {
            name: Some("one".to_owned()),
            all: false,
        };
        assert!(one.sees(Some("one")) && !one.sees(Some("two")) && !one.sees(None));
        assert!(Viewer::everybody().sees(Some("two")) && Viewer::everybody().sees(None));
    }
}
