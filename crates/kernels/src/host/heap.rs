//! The allocator's settings for a long-running server.

/// Makes the allocator return freed memory to the system from one megabyte on. By default glibc raises that limit to twice the
/// largest block ever freed; reading an adapter frees tens of megabytes, which would then stay with the process. Other allocators
/// need no setting. Call it before threads start.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes two integers and says whether it liked them; an older glibc that does not know the setting
        // keeps its own.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20) };
    }
}

/// Returns the freed memory of all threads to the system. It takes milliseconds and holds up allocations meanwhile, so it is for quiet
/// moments. Without it, what a burst of requests took stays with the process.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim takes a number of bytes to leave and locks the heaps that it trims.
        unsafe { libc::malloc_trim(0) };
    }
}
