//! What the engine does by itself: follows interfaces, tells the packet path that it is alive, retries what was refused,
//! hands on the programs' log, and gives memory back.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ncm_dataplane::ProgramLog;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::status::monotonic_ns;
use super::writer::Job;
use super::{Engine, Shared};
use crate::fault;
use crate::netlink::Links;
use crate::supervisor;
use crate::telemetry::own;

/// Well below the age at which the packet path ceases to trust the heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Least pause between retries.
const RETRY: Duration = Duration::from_secs(3);

/// A retry is followed by a pause of so many times its own length: millions may be refused for good.
const RETRY_PAUSES: u32 = 20;

/// How often the log's thread looks whether it is still needed.
const LOG_POLL_MS: u16 = 500;

/// Resources retried in one step.
const RETRIED: usize = 8192;

/// How long there are no messages before memory is given back: others often follow at once.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// How long after a message it is given back, also if there are others all the time; and the least pause between two times.
const TRIM_WITHIN: Duration = Duration::from_secs(5);
const TRIM_PAUSE: Duration = Duration::from_secs(5);

/// Starts the tasks; each ends when the engine is gone.
pub(super) fn start(shared: &Arc<Shared>, links: Links) {
    fault::supervise("following the interfaces", follow(Arc::downgrade(shared), links));
    fault::supervise("the heartbeat", heartbeat(Arc::downgrade(shared)));
    fault::supervise("the retry of refused entries", retry(Arc::downgrade(shared)));
    if let Some(period) = supervisor::watchdog_period() {
        fault::supervise("feeding the watchdog", feed(Arc::downgrade(shared), period));
    }
    fault::supervise("giving memory back", trim(Arc::clone(&shared.trim), Arc::downgrade(shared)));
    if let Some(log) = shared.dataplane.take_log() {
        let shared = Arc::downgrade(shared);
        let forward = move || forward_log(&shared, log);
        if let Err(error) = fault::supervise_thread("ncm-log", "handing on the programs' log", forward) {
            tracing::warn!(%error, "the programs' log cannot be read");
        }
    }
}

async fn follow(shared: Weak<Shared>, mut links: Links) {
    while let Some(event) = links.next().await {
        let Some(shared) = shared.upgrade() else { return };
        shared.follow(event).await;
    }
}

async fn heartbeat(shared: Weak<Shared>) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        // Whoever does not follow the underlay keeps silent, and the packet path asks the kernel.
        if shared.underlay.as_ref().is_some_and(|underlay| !underlay.is_following()) {
            continue;
        }
        if let Err(error) = shared.dataplane.set_heartbeat(monotonic_ns()) {
            tracing::error!(%error, "cannot tell the packet path that the underlay is followed");
        }
    }
}

/// The supervisor hears that the work goes on from the writer, the last of the work loop, and only if the round went through the model
/// too: an agent that hangs anywhere there is ended and started again.
async fn feed(shared: Weak<Shared>, period: Duration) {
    loop {
        sleep(period).await;
        let Some(shared) = shared.upgrade() else { return };
        let round = tokio::task::spawn_blocking(move || {
            let model = shared.model();
            // The writer goes only when the engine does.
            drop(shared.writer.send(Job::Alive));
            drop(model);
        });
        if round.await.is_err() {
            // The runtime is going.
            return;
        }
    }
}

async fn retry(shared: Weak<Shared>) {
    let mut took = Duration::ZERO;
    loop {
        sleep(RETRY.max(took * RETRY_PAUSES)).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.retry_interfaces().await;
        if shared.is_settled() {
            took = Duration::ZERO;
            continue;
        }
        let begun = Instant::now();
        let retried = tokio::task::spawn_blocking(move || shared.retry_entries()).await;
        if let Err(error) = retried {
            if error.is_panic() {
                fault::end("the retry of refused entries");
            }
            // The runtime is going.
            return;
        }
        took = begun.elapsed();
    }
}

impl Shared {
    /// Nothing is to be tried again, as far as is known without waiting.
    fn is_settled(&self) -> bool {
        let settled = self.undeleted.load(Ordering::Relaxed) == 0
            && self.model.try_lock().is_ok_and(|model| model.failed() == 0);
        if settled {
            own::UNWRITTEN.set(0);
        }
        settled
    }

    /// Writes once more what the kernel refused: there may be room by now.
    fn retry_entries(&self) {
        if self.undeleted.load(Ordering::Relaxed) > 0 {
            own::RETRIES.increment();
            // The writer goes only when the engine does. First: what cannot be deleted keeps others from being written.
            drop(self.writer.send(Job::Delete));
        }
        let mut left = self.model().failed();
        if left == 0 {
            own::UNWRITTEN.set(0);
            return;
        }
        own::RETRIES.increment();
        while left > 0 {
            let Ok(slot) = futures::executor::block_on(Arc::clone(&self.slots).acquire_owned()) else {
                return;
            };
            let (retried, _) = self.change(None, Some(slot), |model, changes| model.retry(RETRIED, changes));
            if retried == 0 {
                break;
            }
            left = left.saturating_sub(retried);
        }
        let (written, wait) = tokio::sync::oneshot::channel();
        if self.writer.send(Job::Flush(written)).is_ok() && wait.blocking_recv().is_ok() {
            own::UNWRITTEN.set(self.model().failed() as u64);
        }
    }
}

/// Gives memory back when messages have come and come no more. What the allocator keeps is in pieces between others, and of thousands
/// of small messages as much as of a large one.
async fn trim(wanted: Arc<Notify>, shared: Weak<Shared>) {
    while shared.strong_count() > 0 {
        wanted.notified().await;
        let begun = Instant::now();
        while begun.elapsed() < TRIM_WITHIN && timeout(TRIM_AFTER, wanted.notified()).await.is_ok() {
            // Not for each of many.
            sleep(TRIM_AFTER).await;
        }
        drop(tokio::task::spawn_blocking(ncm_dataplane::release_memory).await);
        sleep(TRIM_PAUSE).await;
    }
}

/// A thread of its own: records come in bursts, and only while debugging.
fn forward_log(shared: &Weak<Shared>, mut log: ProgramLog) {
    while shared.strong_count() > 0 {
        let ready = poll(&mut [PollFd::new(log.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOG_POLL_MS));
        match ready {
            Ok(_) | Err(Errno::EINTR) => log.forward(),
            Err(error) => {
                tracing::warn!(%error, "the programs' log cannot be read");
                return;
            }
        }
    }
}

impl Engine {
    /// Waits until everything that was asked for so far is written.
    pub async fn flush(&self) {
        let (written, wait) = tokio::sync::oneshot::channel();
        if self.shared.writer.send(Job::Flush(written)).is_ok() {
            // The writer goes only when the engine does.
            drop(wait.await);
        }
    }
}
