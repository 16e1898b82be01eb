//! The allocator's setting that a server wants.

/// Has freed memory go back to the system when it comes to a megabyte. glibc, left alone, raises that limit to twice the
/// largest block that was ever freed, and reading an adapter frees tens of megabytes: they would stay with the process for
/// good. Other allocators have no such habit, and are left alone. To be called before threads start.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes two integers and says whether it liked them; an older glibc that does not know the setting
        // keeps its own.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20) };
    }
}
