//! The epochs of remote addresses: what makes a flow be decided anew when the other side has changed.

use ncm_common::tables::EPOCH_SLOTS;
use ncm_dataplane::Tables;

use crate::telemetry::own;

/// What the table of remote epochs holds: only the writer changes it.
pub(super) struct Epochs(Vec<u32>);

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
        Self(epochs)
    }

    /// Has the flows with what has these slots decided anew.
    pub(super) fn rise(&mut self, tables: &Tables, slots: &[u32]) {
        if slots.is_empty() {
            return;
        }
        let raised = slots.iter().filter_map(|slot| {
            let epoch = self.0.get_mut(*slot as usize)?;
            *epoch = epoch.wrapping_add(1);
            Some((*slot, *epoch))
        });
        let outcome = tables.remote_epochs.put_batch(raised);
        if let Some((_, error)) = outcome.failed.first() {
            tracing::error!(slots = outcome.failed.len(), %error, "cannot raise the epochs of remote addresses");
            own::ENTRIES_FAILED.add(outcome.failed.len() as u64);
        }
    }
}
