//! Bounds the bytes of messages that are being received and applied, over all streams together.
//!
//! A message reserves its whole length before any of it is read, first come, first served. Until then the stream's
//! flow-control window stays closed, so that waiting costs the sender's memory and not ours.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What all streams share.
#[derive(Clone, Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    total: u64,
}

/// Bytes reserved for one message; given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of that many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let total = bytes.min(Semaphore::MAX_PERMITS as u64);
        Self {
            free: Arc::new(Semaphore::new(usize::try_from(total).unwrap_or(Semaphore::MAX_PERMITS))),
            total,
        }
    }

    /// Reserves `bytes`, waiting until that many are free; `None` if there are never so many.
    pub async fn reserve(&self, bytes: u32) -> Option<Reserved> {
        if u64::from(bytes) > self.total {
            return None;
        }
        let permit = Arc::clone(&self.free).acquire_many_owned(bytes).await.ok()?;
        Some(Reserved { _permit: permit })
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.total.saturating_sub(self.free.available_permits() as u64)
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
    async fn what_never_fits_is_refused_at_once() {
        assert!(Budget::new(100).reserve(101).await.is_none());
    }
}
