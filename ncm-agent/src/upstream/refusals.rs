//! What upstream does not know, or has not answered for: for a short time nobody asks for it again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use ncm_common::drops::DropReason;

use super::holds::Key;

/// Most that are remembered; of more, the oldest are forgotten.
const MOST: usize = 1 << 16;

/// What was refused, until when, and why.
#[derive(Debug)]
pub(super) struct Refusals {
    keep: Duration,
    refused: HashMap<Key, (Instant, DropReason)>,
    /// In the order of time; some may have been forgotten meanwhile.
    order: VecDeque<(Instant, Key)>,
}

impl Refusals {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, refused: HashMap::new(), order: VecDeque::new() }
    }

    /// Remembers that there is no answer, or a bad one.
    pub(super) fn note(&mut self, key: Key, reason: DropReason, now: Instant) {
        if self.keep.is_zero() {
            return;
        }
        let until = now + self.keep;
        self.refused.insert(key, (until, reason));
        self.order.push_back((until, key));
        while self.order.len() > MOST || self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((until, key)) = self.order.pop_front() else { break };
            if self.refused.get(&key).is_some_and(|(newer, _)| *newer == until) {
                self.refused.remove(&key);
            }
        }
    }

    /// Why a packet there is dropped now, if it is.
    pub(super) fn get(&self, key: Key, now: Instant) -> Option<DropReason> {
        self.refused.get(&key).filter(|(until, _)| now < *until).map(|(_, reason)| *reason)
    }

    /// Forgets what upstream did not answer for: it can be asked again.
    pub(super) fn forget_unanswered(&mut self) {
        self.refused.retain(|_, (_, reason)| *reason != DropReason::AskUnanswered);
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.refused.len()
    }
}
