//! Memory of this process.

/// Gives memory that the allocator holds free back to the system: after a message of many megabytes it would keep it.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes its own locks, touches only free memory, and may be called at any time.
    unsafe {
        // Whether there was something to give back does not matter.
        let _released = libc::malloc_trim(0);
    }
}
