//! Where the time of one message goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Times of one message, gathered from several threads.
#[derive(Debug)]
pub struct Times {
    begun: Instant,
    writing: AtomicU64,
    netlink: AtomicU64,
}

impl Times {
    /// Begins now.
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), writing: AtomicU64::new(0), netlink: AtomicU64::new(0) }
    }

    pub(super) fn wrote(&self, time: Duration) {
        self.writing.fetch_add(microseconds(time).into(), Ordering::Relaxed);
    }

    pub(super) fn used_netlink(&self, time: Duration) {
        self.netlink.fetch_add(microseconds(time).into(), Ordering::Relaxed);
    }

    /// Microseconds spent on table writes and on attaching programs.
    #[must_use]
    pub fn dataplane_us(&self) -> u32 {
        u32::try_from(self.writing.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    /// Microseconds spent on netlink.
    #[must_use]
    pub fn network_us(&self) -> u32 {
        u32::try_from(self.netlink.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    /// Microseconds since the message was begun.
    #[must_use]
    pub fn elapsed_us(&self) -> u32 {
        microseconds(self.begun.elapsed())
    }
}

fn microseconds(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
