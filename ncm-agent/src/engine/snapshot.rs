//! Snapshots: now and then all that is held is written into a file, which takes the place of the messages it came from.
//!
//! Messages go on being applied while that is done. Only at the end, for what has changed meanwhile, the next ones wait: as long as
//! the ones under way take, and some milliseconds more.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::sleep;

use super::{MESSAGES_AT_ONCE, Shared};
use crate::fault;
use crate::store::{Cause, FrameKind, SnapshotFile, Store};
use crate::telemetry::own;

/// How often is looked whether it is time.
const LOOK: Duration = Duration::from_secs(1);

/// After a failure the next attempt comes so much later, and after each further one twice as much, up to this.
const AGAIN: Duration = Duration::from_secs(3);
const AT_MOST: Duration = Duration::from_secs(60);

/// The log may be so many times as long as the last snapshot.
const TIMES: u64 = 2;

/// Places of neighbours that are looked at while the model is locked.
const PLACES: u32 = 4096;

/// So many changes are few enough for messages to wait for.
const FEW: usize = 20_000;

/// Passages over the neighbours before messages have to wait whatever has changed.
const PASSAGES: usize = 5;

/// Bytes of other resources in one frame.
const PART: usize = 1 << 20;

/// Starts the task; it ends when the engine does.
pub(super) fn start(shared: &Arc<Shared>) {
    if shared.store.is_some() {
        fault::supervise("the journal's snapshots", look(Arc::downgrade(shared)));
    }
}

async fn look(shared: Weak<Shared>) {
    let (mut pause, mut failed) = (LOOK, AGAIN);
    loop {
        sleep(pause).await;
        pause = LOOK;
        let Some(shared) = shared.upgrade() else { return };
        let Some(store) = shared.store.clone() else { return };
        own::NOT_KEPT.set(u64::from(store.failure().is_some()));
        let (log, snapshot) = store.size();
        let due = log > shared.config.store.snapshot_bytes.max(snapshot * TIMES);
        if !due && store.failure().is_none() {
            continue;
        }
        let runtime = Handle::current();
        let begun = Instant::now();
        match tokio::task::spawn_blocking(move || shared.snapshot(&store, &runtime)).await {
            Ok(Ok(bytes)) => {
                failed = AGAIN;
                tracing::info!(bytes, ms = begun.elapsed().as_millis(), "the journal has a new snapshot");
            }
            Ok(Err(cause)) => {
                tracing::warn!("the journal gets no snapshot: {cause}");
                pause = failed;
                failed = AT_MOST.min(failed * 2);
            }
            Err(error) if error.is_panic() => fault::end("the journal's snapshots"),
            // The runtime is going.
            Err(_) => return,
        }
    }
}

impl Shared {
    fn snapshot(&self, store: &Store, runtime: &Handle) -> Result<u64, Cause> {
        let written = self.write_snapshot(store, runtime);
        self.model().end_snapshot();
        written
    }

    fn write_snapshot(&self, store: &Store, runtime: &Handle) -> Result<u64, Cause> {
        let failed = |error: std::io::Error| Cause::from(error.to_string());
        let mut file = SnapshotFile::begin(store, store.next_segment()).map_err(failed)?;
        let mut passage = self.model().begin_snapshot();
        for _ in 0..PASSAGES {
            let changed = self.write_neighbours(&mut file, &mut passage).map_err(failed)?;
            if changed <= FEW {
                break;
            }
            passage = passage.next(&self.model());
        }
        // Nobody applies anything, so that what is kept is what was held when the next segment began.
        let alone = runtime.block_on(self.turns.acquire_many(MESSAGES_AT_ONCE as u32));
        let alone = alone.map_err(|_| Cause::from("the agent is stopping"))?;
        passage = passage.next(&self.model());
        self.write_neighbours(&mut file, &mut passage).map_err(failed)?;
        let (mut others, version, told) = (
            Vec::new(),
            {
                let model = self.model();
                model.held_version()
            },
            self.model().version(),
        );
        self.model().held_others(PART, |part| others.push(part));
        for part in others {
            file.append(FrameKind::Others, &part).map_err(failed)?;
        }
        file.append(FrameKind::End, &version).map_err(failed)?;
        if store.failure().is_some() {
            // What was not kept is in the snapshot alone: nothing may be appended before that is durable.
            let bytes = file.publish()?;
            store.cut()?;
            drop(alone);
            self.following.tell(told);
            tracing::info!("what is accepted is kept again");
            return Ok(bytes);
        }
        store.cut()?;
        drop(alone);
        file.publish()
    }

    /// One passage over the neighbours; how many were written.
    fn write_neighbours(
        &self,
        file: &mut SnapshotFile,
        passage: &mut ncm_model::Passage,
    ) -> std::io::Result<usize> {
        let gone = self.model().gone_neighbours();
        if !gone.is_empty() {
            file.append(FrameKind::Gone, &gone)?;
        }
        let (mut changed, mut bytes) = (0, Vec::new());
        loop {
            bytes.clear();
            let (added, more) = self.model().held_neighbours(passage, PLACES, &mut bytes);
            changed += added;
            if added > 0 {
                file.append(FrameKind::Neighbours, &bytes)?;
            }
            if !more {
                return Ok(changed);
            }
        }
    }
}
