//! Pages of lists, and the records that a caller may see.

use std::collections::VecDeque;
use std::ops::ControlFlow;

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
        all: Vec<T>,
        id: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, bool), JobError> {
        let mut part = PagePart::new(self);
        for item in all {
            let is_named = self.after.as_deref() == Some(id(&item));
            if part.add(item, is_named).is_break() {
                break;
            }
        }
        part.finish()
    }
}

/// A page of items that come one by one in the order of arrival: a long list is never in memory as a whole.
pub(crate) struct PagePart<'p, T> {
    page: &'p Page,
    items: VecDeque<T>,
    /// Whether the item before the page was found, or is not asked for.
    is_found: bool,
}

impl<'p, T> PagePart<'p, T> {
    pub(crate) fn new(page: &'p Page) -> PagePart<'p, T> {
        PagePart {
            page,
            items: VecDeque::new(),
            is_found: page.after.is_none(),
        }
    }

    /// Adds the next item; `is_named` is whether [`Page::after`] names it. Breaks once the page is complete.
    pub(crate) fn add(&mut self, item: T, is_named: bool) -> ControlFlow<()> {
        if self.page.newest_first {
            // The page ends before the named item, or at the end of the list.
            if is_named {
                self.is_found = true;
                return ControlFlow::Break(());
            }
            if self.items.len() > self.page.limit {
                self.items.pop_front();
            }
            self.items.push_back(item);
            return ControlFlow::Continue(());
        }
        if is_named {
            self.is_found = true;
        } else if self.is_found {
            self.items.push_back(item);
        }
        match self.items.len() > self.page.limit {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// The page, and whether there are more items after it.
    ///
    /// # Errors
    /// [`JobError::NoPage`] if the item before the page is not in the list.
    pub(crate) fn finish(self) -> Result<(Vec<T>, bool), JobError> {
        if let (false, Some(after)) = (self.is_found, &self.page.after) {
            return Err(JobError::NoPage {
                id: after.chars().take(80).collect(),
            });
        }
        let more = self.items.len() > self.page.limit;
        let mut items: Vec<T> = self.items.into();
        if self.page.newest_first {
            items.reverse();
        }
        items.truncate(self.page.limit);
        Ok((items, more))
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
        assert_eq!(page(None, 2, false).unwrap(), ("ab".to_owned(), true));
        assert_eq!(page(Some("d"), 2, false).unwrap(), (String::new(), false));
        assert_eq!(page(Some("a"), 2, true).unwrap(), (String::new(), false));
        assert_eq!(page(Some("d"), 3, true).unwrap(), ("cba".to_owned(), false));
        for newest_first in [true, false] {
            assert!(matches!(
                page(Some("x"), 1, newest_first),
                Err(JobError::NoPage { .. })
            ));
        }
    }

    #[test]
    fn a_page_of_a_long_list_keeps_few_items() {
        let page = Page {
            limit: 3,
            ..Page::default()
        };
        let mut part = PagePart::new(&page);
        for item in 0..1000 {
            assert!(part.add(item, false).is_continue());
            assert!(part.items.len() <= 4);
        }
        assert_eq!(part.finish().unwrap(), (vec![999, 998, 997], true));
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
