//! The epochs of remote addresses: what makes a flow be decided anew when the other side has changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ncm_common::tables::EPOCH_SLOTS;
use ncm_dataplane::{Error, Tables};

use super::own_tables::Differences;
use crate::telemetry::own;

/// What the table of remote epochs holds: nobody else changes it.
pub(super) struct Epochs(Mutex<Vec<u32>>);

impl Epochs {
    /// Reads what an earlier run left: flows have epochs up to it.
    pub(super) fn read(tables: &Tables) -> Self {
        let mut epochs = vec![0; EPOCH_SLOTS as usize];
        let read = tables.remote_epochs.for_each(|slot, epoch| {
            if let Some(known) = epochs.get_mut(slot as usize) {
                *known = epoch;
            }
        });
        if let Err(error) = read {
            // Flows have epochs up to what is there: one that comes again may let a flow keep an old decision.
            tracing::error!(%error, "cannot read the epochs of remote addresses");
        }
        Self(Mutex::new(epochs))
    }

    fn known(&self) -> MutexGuard<'_, Vec<u32>> {
        // A panic elsewhere leaves them as good as they were.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the flows with what has these slots decided anew.
    pub(super) fn rise(&self, tables: &Tables, slots: &[u32]) {
        if slots.is_empty() {
            return;
        }
        let mut known = self.known();
        let raised = slots.iter().filter_map(|slot| {
            let epoch = known.get_mut(*slot as usize)?;
            *epoch = epoch.wrapping_add(1);
            Some((*slot, *epoch))
        });
        let outcome = tables.remote_epochs.put_batch(raised);
        if let Some((_, error)) = outcome.failed.first() {
            tracing::error!(slots = outcome.failed.len(), %error, "cannot raise the epochs of remote addresses");
            own::ENTRIES_FAILED.add(outcome.failed.len() as u64);
        }
    }

    /// Tells which are not as they were last written. `repair` has the flows with these slots decided anew, whichever of the two
    /// epochs they were decided under. Says how many were written.
    pub(super) fn compare(
        &self,
        tables: &Tables,
        to: &mut impl Differences,
        repair: bool,
    ) -> Result<u64, Error> {
        // Nobody writes meanwhile.
        let mut known = self.known();
        let mut altered = Vec::new();
        tables.remote_epochs.for_each(|slot, found| {
            if known.get(slot as usize).is_some_and(|epoch| *epoch != found) {
                altered.push((slot, found));
            }
        })?;
        let mut written = 0;
        for (slot, found) in altered {
            let Some(epoch) = known.get_mut(slot as usize) else { continue };
            to.wrong(&tables.remote_epochs, slot, epoch);
            if repair {
                let next = found.max(*epoch).wrapping_add(1);
                tables.remote_epochs.put(&slot, &next)?;
                *epoch = next;
                written += 1;
            }
        }
        Ok(written)
    }
}
