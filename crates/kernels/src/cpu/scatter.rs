//! One mutable slice that the tasks of a region write in disjoint places.

use std::marker::PhantomData;

/// A mutable slice that tasks of one region write in disjoint places. Debug builds check that they are disjoint.
pub(crate) struct Scatter<'a, T> {
    data: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
    #[cfg(debug_assertions)]
    claims: claims::Claims,
}

// SAFETY: it hands out disjoint parts only, by the contract of `part`.
unsafe impl<T: Send> Sync for Scatter<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Scatter<'_, T> {}

impl<'a, T> Scatter<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Scatter {
            data: data.as_mut_ptr(),
            len: data.len(),
            life: PhantomData,
            #[cfg(debug_assertions)]
            claims: claims::Claims::default(),
        }
    }

    /// The part that starts at `from`.
    ///
    /// # Safety
    /// No two live parts overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from);
        self.claim(from, len);
        // SAFETY: inside the slice by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), len) }
    }

    /// The pointer to element `from`; for strided writes of disjoint elements.
    pub(crate) fn pointer(&self, from: usize) -> *mut T {
        assert!(from <= self.len);
        // SAFETY: inside the slice, or one past its end.
        unsafe { self.data.add(from) }
    }

    /// Debug builds: records that the current task writes `len` elements from `from` on.
    ///
    /// # Panics
    /// In debug builds, if another task of the region writes some of them.
    #[inline(always)]
    pub(crate) fn claim(&self, from: usize, len: usize) {
        #[cfg(debug_assertions)]
        self.claims.add(from, len);
        let _ = (from, len);
    }
}

/// Which task writes which elements.
#[cfg(debug_assertions)]
mod claims {
    use crate::cpu::pool::{TaskId, current_task};
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    #[derive(Default)]
    pub(super) struct Claims(Mutex<Ranges>);

    /// The ranges that tasks of one region claimed: by their start, the end and the task.
    #[derive(Default)]
    struct Ranges {
        region: u64,
        ranges: BTreeMap<usize, (usize, usize)>,
    }

    impl Claims {
        pub(super) fn add(&self, from: usize, len: usize) {
            // Outside a region there is one thread.
            let Some(TaskId { region, task }) = current_task() else {
                return;
            };
            if len == 0 {
                return;
            }
            let end = from + len;
            let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if claims.region != region {
                *claims = Ranges {
                    region,
                    ..Ranges::default()
                };
            }
            let ranges = &mut claims.ranges;
            // Stored ranges are disjoint, so their ends are in the order of their starts.
            let overlapping: Vec<(usize, usize)> = ranges
                .range(..end)
                .rev()
                .take_while(|(_, (to, _))| *to > from)
                .map(|(&at, &(to, other))| {
                    assert!(
                        other == task,
                        "task {task} writes elements {from}..{end}, and task {other} writes {at}..{to}"
                    );
                    (at, to)
                })
                .collect();
            // A task may write the same elements again. Its ranges are merged, so that there are few.
            let (mut start, mut end) = (from, end);
            for (at, to) in overlapping {
                ranges.remove(&at);
                (start, end) = (start.min(at), end.max(to));
            }
            match ranges.range_mut(..start).next_back() {
                Some((_, (to, other))) if *to == start && *other == task => *to = end,
                _ => {
                    ranges.insert(start, (end, task));
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::cpu::pool::Pool;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn tasks_write_disjoint_parts() {
        let mut values = vec![0usize; 1000];
        let parts = Scatter::new(&mut values);
        Pool::new(3).run(100, &|task| {
            // SAFETY: each task writes its own ten.
            let part = unsafe { parts.part(task * 10, 10) };
            for value in part {
                *value += task;
            }
            // SAFETY: strided writes, disjoint, after the part's last use.
            unsafe { *parts.pointer(task * 10 + 3) += 1 };
        });
        for (i, value) in values.iter().enumerate() {
            assert_eq!(*value, i / 10 + usize::from(i % 10 == 3));
        }
    }

    #[test]
    fn part_past_the_end_panics() {
        let mut values = [0u8; 8];
        let parts = Scatter::new(&mut values);
        for (from, len) in [(0, 9), (9, 0), (8, 1), (1, usize::MAX)] {
            // SAFETY: none is handed out.
            let part = AssertUnwindSafe(|| unsafe { parts.part(from, len).len() });
            assert!(catch_unwind(part).is_err(), "{from} {len}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    fn debug_builds_panic_when_tasks_overlap() {
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            let mut values = [0u8; 64];
            let mut run = |width: usize| {
                let parts = Scatter::new(&mut values);
                let tasks = || pool.run(6, &|task| parts.claim(task * 10, width));
                catch_unwind(AssertUnwindSafe(tasks))
            };
            assert!(run(10).is_ok());
            let panic = run(11).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.contains("writes elements"), "{message}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    fn one_task_may_write_the_same_elements_again() {
        let mut values = [0u8; 64];
        let parts = Scatter::new(&mut values);
        let pool = Pool::new(2);
        for _ in 0..2 {
            // The second region has other tasks.
            pool.run(2, &|task| {
                for (from, len) in [(4, 4), (0, 2), (2, 2), (1, 6), (0, 16)] {
                    parts.claim(32 * task + from, len);
                }
            });
            pool.run(4, &|task| parts.claim(16 * task, 16));
        }
    }
}
