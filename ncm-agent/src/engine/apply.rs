//! One message on its way through: decoded, applied step by step while earlier steps are being written, answered when
//! the last is.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ncm_model::wire::OperationStatus;
use ncm_model::{DecodeError, Kind, Message, Model, Origin, Progress, Row, Run};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::times::Times;
use super::writer::Job;
use super::{Engine, Shared};
use crate::store::{Cause, Ticket};
use crate::telemetry::own;

/// States applied in one step at most: enough to fill the kernel's batches, few enough that no one waits long.
const STEP: usize = 8192;
/// States applied in a message's first step; each has twice as many as the one before, so that writing begins early.
const FIRST_STEP: usize = 128;

/// From this size on, where a message's time went is logged.
const LARGE: usize = 1 << 20;

/// A message that was applied, and the model that answers for it.
pub struct Applied<'a> {
    /// The model.
    pub model: &'a Model,
    /// The message.
    pub run: &'a Run,
    /// Where its time went.
    pub times: &'a Arc<Times>,
}

impl Applied<'_> {
    /// The outcome of each state, in the order of a reply.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.model.rows(self.run)
    }
}

/// Why a message was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It cannot be decoded; nothing of it was applied.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
    /// It is programmed, and not kept: a restart may take it back. Sent again, it is kept when it can be.
    #[error("programmed, but not kept: {0}")]
    NotKept(Cause),
    /// A fault of the agent's own, which is in its log.
    #[error("internal error while the message was applied: {0}")]
    Internal(String),
}

impl Engine {
    /// Applies a message, and when all of it is in the kernel's tables, gives what `answer` makes of the outcome.
    /// Goes on to the end even if the returned future is dropped.
    ///
    /// # Errors
    ///
    /// The message cannot be decoded, or the agent is stopping.
    pub async fn apply<T: Send + 'static>(
        &self,
        bytes: Bytes,
        kind: Kind,
        origin: Origin,
        answer: impl FnOnce(&Applied<'_>) -> T + Send + 'static,
    ) -> Result<T, ApplyError> {
        let shared = Arc::clone(&self.shared);
        let turn = Arc::clone(&shared.turns).acquire_owned().await.map_err(|_| ApplyError::Stopping)?;
        let (runtime, applied) = (Handle::current(), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let programmed = tokio::task::spawn_blocking(move || {
                let programmed = applied.apply(&runtime, bytes, kind, origin, answer);
                // The next message need not wait until this one is durable.
                drop(turn);
                programmed
            });
            programmed.await.map_err(|error| ApplyError::Internal(error.to_string()))??.kept(&shared).await
        });
        task.await.map_err(|error| ApplyError::Internal(error.to_string()))?
    }
}

/// What came of a message that is in the kernel's tables, and has still to be durable.
pub(super) struct Programmed<T> {
    answer: T,
    ticket: Option<Ticket>,
    version: u64,
}

impl<T> Programmed<T> {
    /// The answer, once the message is kept.
    ///
    /// # Errors
    ///
    /// It is not kept.
    pub(super) async fn kept(self, shared: &Shared) -> Result<T, ApplyError> {
        if let Some(ticket) = self.ticket {
            ticket.await.map_err(|_| ApplyError::Stopping)?.map_err(ApplyError::NotKept)?;
        }
        shared.following.tell(self.version);
        Ok(self.answer)
    }
}

impl Shared {
    /// Applies a message on this thread, which has its turn, until all of it is in the kernel's tables.
    pub(super) fn apply<T>(
        self: &Arc<Self>,
        runtime: &Handle,
        bytes: Bytes,
        kind: Kind,
        origin: Origin,
        answer: impl FnOnce(&Applied<'_>) -> T,
    ) -> Result<Programmed<T>, ApplyError> {
        let times = Arc::new(Times::begin());
        let size = bytes.len();
        let received = bytes.clone();
        let message = match kind {
            Kind::V1 => Message::decode_v1(bytes),
            Kind::V2 => Message::decode_v2(bytes),
            Kind::Rules => Message::decode_rules(bytes),
        }?;
        let decoded_us = times.elapsed_us();
        let now = unix_seconds();
        let asked = self.upstream.iter().flat_map(|upstream| upstream.targets());
        let asked = asked.map(|target| (target.vni, Ipv6Addr::from(target.ip).to_canonical())).collect();
        let mut run = Run::new(message, origin, now).while_asked(asked);
        let journaled = self.store.as_ref().map(|store| {
            let number = store.begin(&super::journal::head(kind, origin, now, run.asked()), received);
            (store, number)
        });
        let mut model_time = Duration::ZERO;
        let mut step = FIRST_STEP;
        let mut version = 0;
        loop {
            let slot = runtime.block_on(Arc::clone(&self.slots).acquire_owned());
            let slot = slot.map_err(|_| ApplyError::Stopping)?;
            let (progress, wanted) = self.change(Some(&times), Some(slot), |model, changes| {
                let begun = Instant::now();
                let progress = model.step(&mut run, step, changes);
                if let Some((store, number)) = journaled {
                    store.step(number, step);
                }
                model_time += begun.elapsed();
                version = model.version();
                progress
            });
            if !wanted.is_empty() {
                runtime.block_on(self.take_guests(&wanted, &times));
            }
            if progress == Progress::Done {
                break;
            }
            step = STEP.min(step * 2);
        }
        let ticket = journaled.map(|(store, _)| store.commit());
        let (written, wait) = oneshot::channel();
        self.writer.send(Job::Flush(written)).map_err(|_| ApplyError::Stopping)?;
        wait.blocking_recv().map_err(|_| ApplyError::Stopping)?;
        let written_us = times.elapsed_us();
        for warning in run.take_warnings() {
            tracing::warn!("{warning}");
        }
        if run.is_for_others() {
            own::FOREIGN_MESSAGES.increment();
        }
        own::MESSAGES.increment();
        own::MESSAGE_BYTES.add(size as u64);
        let model = self.model();
        own::UNWRITTEN.set(model.failed() as u64);
        let applied = Applied { model: &model, run: &run, times: &times };
        count_rows(&applied);
        let answer = answer(&applied);
        drop(model);
        drop(run);
        if size >= LARGE {
            tracing::info!(
                bytes = size,
                decoded_us,
                model_us = model_time.as_micros(),
                write_us = times.dataplane_us(),
                written_us,
                answered_us = times.elapsed_us(),
                "a large message was applied"
            );
        }
        self.trim.notify_one();
        Ok(Programmed { answer, ticket, version })
    }
}

/// Counts and logs what is not SUCCESS. Rows of that kind come first.
fn count_rows(applied: &Applied<'_>) {
    let mut shown = 0;
    for row in applied.rows().take_while(|row| row.status != OperationStatus::Success) {
        match row.status {
            OperationStatus::Success => {}
            OperationStatus::Failure => own::ROWS_FAILED.increment(),
            OperationStatus::Pending => own::ROWS_PENDING.increment(),
            OperationStatus::InvalidArg | OperationStatus::OutOfOrder => own::ROWS_REFUSED.increment(),
        }
        // A message can hold a million of them.
        shown += 1;
        let (kind, id, status) = (row.resource_type.as_str_name(), &row.id, row.status.as_str_name());
        match row.status {
            OperationStatus::Pending if shown <= 20 => tracing::info!(kind, %id, status, "{}", row.cause),
            _ if shown <= 20 => tracing::warn!(kind, %id, status, "{}", row.cause),
            _ => tracing::debug!(kind, %id, status, "{}", row.cause),
        }
    }
    if shown > 20 {
        tracing::warn!(
            rows = shown,
            "only the first 20 of these are logged: `ncmctl get` lists what is held"
        );
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
