//! Memory for values that are written once and read at every step: slices that start at cache lines, in huge pages if the system
//! has them. With 4 KiB pages, prefetching and address translation take longer than the products.
//!
//! Under Miri, and with `--cfg exact_slabs` (for AddressSanitizer), each slab is an allocation of exactly its own size, so that an
//! access past a slab's end is an error and not a read of its neighbour.

use crate::error::KernelError;
use bytemuck::Pod;
use chunk::Chunk;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

const LINE: usize = 64;
/// The least that is requested from the system at once. Pages take memory only once they are touched.
const CHUNK: usize = 32 << 20;
/// Whether slabs are parts of larger chunks.
const SHARED_CHUNKS: bool = cfg!(not(any(miri, exact_slabs)));

/// Hands out [`Slab`]s. A chunk goes back to the system when its last slab does.
#[derive(Default)]
pub(crate) struct Arena {
    open: Mutex<Option<Open>>,
}

/// The chunk that has room, and how much of it is taken.
struct Open {
    chunk: Arc<Chunk>,
    next: NonNull<u8>,
    left: usize,
}

// SAFETY: the pointer is into the chunk, which is memory like any other.
unsafe impl Send for Open {}

impl Arena {
    /// An arena whose first chunk holds `bytes` bytes, and not much more.
    ///
    /// # Errors
    /// The system has no memory.
    pub(crate) fn with_capacity(bytes: usize) -> Result<Arena, KernelError> {
        Ok(Arena {
            open: Mutex::new(Some(Open::new(bytes)?)),
        })
    }

    /// Bytes that `len` values take, the room up to the next cache line included.
    pub(crate) fn bytes_for<T: Pod>(len: usize) -> usize {
        len.saturating_mul(size_of::<T>()).saturating_add(LINE - 1) / LINE * LINE
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// The system has no memory.
    pub(crate) fn zeros<T: Pod>(&self, len: usize) -> Result<Slab<T>, KernelError> {
        const { assert!(align_of::<T>() <= LINE) };
        let too_much = || KernelError::Memory {
            bytes: len.saturating_mul(size_of::<T>()),
            source: std::io::ErrorKind::OutOfMemory.into(),
        };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(too_much)?;
        let (chunk, start) = if SHARED_CHUNKS {
            let bytes = bytes.checked_next_multiple_of(LINE).ok_or_else(too_much)?;
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let mut from = match open.take() {
                Some(open) if open.left >= bytes => open,
                _ => Open::new(bytes.max(CHUNK))?,
            };
            let start = from.next;
            // SAFETY: `left` says that so many bytes follow.
            from.next = unsafe { start.add(bytes) };
            from.left -= bytes;
            let chunk = from.chunk.clone();
            *open = Some(from);
            (chunk, start)
        } else {
            let own = Open::new(bytes)?;
            (own.chunk, own.next)
        };
        Ok(Slab {
            _chunk: chunk,
            start,
            len,
            of: PhantomData,
        })
    }
}

impl Open {
    fn new(bytes: usize) -> Result<Open, KernelError> {
        let (chunk, next, left) =
            Chunk::zeroed(bytes).map_err(|source| KernelError::Memory { bytes, source })?;
        Ok(Open {
            chunk: Arc::new(chunk),
            next,
            left,
        })
    }
}

/// Chunks mapped from the system, aligned to huge pages.
#[cfg(not(any(miri, exact_slabs)))]
mod chunk {
    use memmap2::{MmapMut, MmapOptions};
    use std::io;
    use std::ptr::NonNull;

    const HUGE_PAGE: usize = 2 << 20;

    pub(super) struct Chunk {
        _map: MmapMut,
    }

    impl Chunk {
        /// At least `bytes` zeros: the chunk, its first usable byte, and how many bytes can be used.
        pub(super) fn zeroed(bytes: usize) -> io::Result<(Chunk, NonNull<u8>, usize)> {
            let len = bytes.max(1).checked_add(HUGE_PAGE);
            let mut map = MmapOptions::new()
                .len(len.ok_or(io::ErrorKind::OutOfMemory)?)
                .map_anon()?;
            let skipped = map.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
            // If it fails, small pages are slower but correct. The rest that does not fill a huge page is better in small ones.
            #[cfg(target_os = "linux")]
            let _ = map.advise_range(
                memmap2::Advice::HugePage,
                skipped,
                bytes / HUGE_PAGE * HUGE_PAGE,
            );
            let left = map.len() - skipped;
            // SAFETY: `skipped` is at most a huge page, and the map is longer. The pointer comes from the whole map, because
            // slabs reach to its end.
            let start = unsafe { NonNull::new_unchecked(map.as_mut_ptr().add(skipped)) };
            Ok((Chunk { _map: map }, start, left))
        }
    }
}

/// Chunks from the allocator, as long as requested, which Miri and AddressSanitizer check.
#[cfg(any(miri, exact_slabs))]
mod chunk {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;
    use std::ptr::NonNull;

    pub(super) struct Chunk {
        start: NonNull<u8>,
        layout: Layout,
    }

    // SAFETY: a chunk owns its bytes as a `Vec` does.
    unsafe impl Send for Chunk {}
    // SAFETY: as above.
    unsafe impl Sync for Chunk {}

    impl Chunk {
        /// `bytes` zeros: the chunk, its first byte, and how many bytes can be used.
        pub(super) fn zeroed(bytes: usize) -> io::Result<(Chunk, NonNull<u8>, usize)> {
            let layout = Layout::from_size_align(bytes.max(1), super::LINE)
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            // SAFETY: the layout has a size.
            let start = NonNull::new(unsafe { alloc_zeroed(layout) });
            let start = start.ok_or(io::ErrorKind::OutOfMemory)?;
            Ok((Chunk { start, layout }, start, bytes))
        }
    }

    impl Drop for Chunk {
        fn drop(&mut self) {
            // SAFETY: allocated with this layout, and the last slab is gone.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// A slice of an [`Arena`], its only owner.
pub(crate) struct Slab<T> {
    _chunk: Arc<Chunk>,
    start: NonNull<u8>,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: a slab owns its bytes as a `Vec` does.
unsafe impl<T: Send> Send for Slab<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Slab<T> {}

impl<T: Pod> Deref for Slab<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the bytes are the slab's own, aligned to a line, zeroed at first, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Slab<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and no other slab has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast().as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_zeroed_aligned_and_disjoint() {
        let arena = Arena::default();
        // Under Miri a slab is its own allocation, and chunks are not used.
        let large = if cfg!(miri) { 100 } else { CHUNK / 4 };
        let sizes = [1, 100, 0, large, 3, 2 * large, 7];
        let mut slabs: Vec<Slab<u32>> = sizes.map(|n| arena.zeros(n).unwrap()).into();
        for (i, slab) in slabs.iter_mut().enumerate() {
            assert_eq!((slab.len(), slab.as_ptr() as usize % LINE), (sizes[i], 0));
            assert!(slab.iter().all(|&x| x == 0));
            slab.fill(i as u32 + 1);
        }
        drop(arena);
        for (i, slab) in slabs.iter().enumerate() {
            assert!(slab.iter().all(|&x| x == i as u32 + 1));
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let arena = Arena::default();
        assert!(arena.zeros::<f32>(usize::MAX / 2).is_err());
        // Miri ends the test at an allocation that its machine cannot hold.
        assert!(cfg!(miri) || arena.zeros::<u8>(1 << 60).is_err());
        assert_eq!(arena.zeros::<u8>(3).unwrap().len(), 3);
    }
}
