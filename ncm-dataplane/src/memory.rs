//! Memory of this process.

/// Has all threads allocate from one place. What each has a place of its own for stays there, also where the others could use it: after
/// thousands of messages, which different threads apply, a process would be a tenth larger than what it holds is. To be called before
/// there are other threads.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a number that later allocations go by; no other thread allocates yet.
    unsafe {
        // Who is refused has more places, as before.
        let _shared = libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that the allocator holds free back to the system: after a message of many megabytes it would keep it.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes its own locks, touches only free memory, and may be called at any time.
    unsafe {
        // Whether there was something to give back does not matter.
        let _released = libc::malloc_trim(0);
    }
}
