//! Bounds the bytes of messages that are being received and applied, over all streams together.
//!
//! A message reserves its whole length before more than its beginning is read, first come, first served. Until then the
//! stream's flow-control window stays closed, so that waiting costs the sender's memory and not ours. Small messages have
//! a share of their own: the daily changes of a node do not wait for a few senders of everything, or for one that stalls.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One part in so many of the budget is for small messages only.
const SHARE: u64 = 16;

/// A message is small if it needs no more than one part in so many of the budget: 1 MiB of the default 2 GiB.
const SMALL: u64 = 2048;

/// What all streams share.
#[derive(Clone, Debug)]
pub struct Budget {
    /// What is free of it.
    free: Arc<Semaphore>,
    /// What is free of the small messages' share, which is no part of `free`.
    free_for_small: Arc<Semaphore>,
    share: u32,
    total: u64,
}

/// Bytes reserved for one message; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Budget {
    /// A budget of that many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let total = bytes.min(Semaphore::MAX_PERMITS as u64);
        let share = u32::try_from(total / SHARE).unwrap_or(u32::MAX);
        let free = usize::try_from(total - u64::from(share)).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(free)),
            free_for_small: Arc::new(Semaphore::new(share as usize)),
            share,
            total,
        }
    }

    /// Reserves `bytes`, waiting until that many are free; `None` if there are never so many.
    pub async fn reserve(&self, bytes: u32) -> Option<Reserved> {
        if u64::from(bytes) > self.total {
            return None;
        }
        if u64::from(bytes) <= self.total / SMALL {
            let permit = Arc::clone(&self.free_for_small).acquire_many_owned(bytes).await.ok()?;
            return Some(Reserved { _permits: (permit, None) });
        }
        // One that needs more than all but the share takes that too, always last.
        let most = u32::try_from(self.total - u64::from(self.share)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.free).acquire_many_owned(bytes.min(most)).await.ok()?;
        let rest = match bytes.saturating_sub(most) {
            0 => None,
            rest => Some(Arc::clone(&self.free_for_small).acquire_many_owned(rest).await.ok()?),
        };
        Some(Reserved { _permits: (permit, rest) })
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used(&self) -> u64 {
        let free = self.free.available_permits() + self.free_for_small.available_permits();
        self.total.saturating_sub(free as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_message_waits_until_enough_is_given_back() {
        let budget = Budget::new(100);
        let first = budget.reserve(60).await.expect("fits");
        assert_eq!(budget.used(), 60);
        assert!(timeout(SHORT, budget.reserve(50)).await.is_err(), "reserved more than there is");
        drop(first);
        let second = timeout(SHORT, budget.reserve(50)).await.expect("does not wait");
        assert!(second.is_some());
    }

    #[tokio::test]
    async fn a_small_message_does_not_overtake_a_large_one_that_waits() {
        let budget = Budget::new(100);
        let first = budget.reserve(60).await;
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(80).await }
        });
        tokio::task::yield_now().await;
        assert!(timeout(SHORT, budget.reserve(10)).await.is_err(), "a small message overtook");
        drop(first);
        assert!(timeout(SHORT, waiting).await.expect("is served").expect("does not fail").is_some());
    }

    #[tokio::test]
    async fn small_messages_do_not_wait_for_large_ones() {
        let budget = Budget::new(1 << 20);
        let all_but_the_share = (1 << 20) - (1 << 16);
        let first = timeout(SHORT, budget.reserve(all_but_the_share)).await.expect("does not wait");
        assert!(timeout(SHORT, budget.reserve(1 << 14)).await.is_err(), "reserved more than there is");
        let small = timeout(SHORT, budget.reserve(512)).await.expect("does not wait");
        assert_eq!(budget.used(), u64::from(all_but_the_share) + 512);
        // One that needs everything gets it when all others are done, small ones too.
        drop(first);
        assert!(timeout(SHORT, budget.reserve(1 << 20)).await.is_err(), "reserved more than there is");
        drop(small);
        let whole = timeout(SHORT, budget.reserve(1 << 20)).await.expect("does not wait");
        assert_eq!(budget.used(), 1 << 20);
        drop(whole);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn what_never_fits_is_refused_at_once() {
        assert!(Budget::new(100).reserve(101).await.is_none());
    }
}
