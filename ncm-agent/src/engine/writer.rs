//! The one thread that writes goal states into the kernel's tables, in the order in which the model yielded them.
//!
//! Additions go first, what is referred to before what refers, then deletions in reverse. Where a table is full, its
//! deletions of the same step go before what did not fit. What the kernel refuses is told to the model, which answers for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ncm_common::Plain;
use ncm_common::tables::PortDropKey;
use ncm_dataplane::{Table, Tables};
use ncm_model::{Changes, Delta, Handle, Put};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Shared;
use super::hosts::RemoteHosts;
use super::times::Times;
use crate::fault;
use crate::netlink::underlay::Underlay;
use crate::telemetry::own;

/// What the writer is asked to do.
pub(super) enum Job {
    /// Write what one step changed.
    Write {
        /// What changed.
        changes: Box<Changes>,
        /// Whose time it is.
        times: Option<Arc<Times>>,
        /// Bounds how far the model runs ahead.
        slot: Option<OwnedSemaphorePermit>,
    },
    /// Say when everything before is written.
    Flush(oneshot::Sender<()>),
}

/// An entry that the kernel refused.
pub(super) struct Refusal {
    /// The resource that it comes from.
    pub(super) cause: Handle,
    /// The table.
    pub(super) table: &'static str,
    /// Why, and what helps.
    pub(super) text: Arc<str>,
}

/// What of a step the kernel refused.
pub(super) type Refused = Vec<Refusal>;

/// How long a refusal that goes on is not logged again: it is retried, and each retry refused.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// When which refusal was logged.
type Logged = HashMap<Arc<str>, Instant>;

/// Starts the writer; it ends when the engine does. A fault in it ends the process: without a writer no message would
/// ever be answered again, while the next process goes on from the tables.
pub(super) fn start(jobs: Receiver<Job>, shared: &Arc<Shared>) -> std::io::Result<()> {
    let (tables, shared) = (shared.dataplane.tables().clone(), Arc::downgrade(shared));
    fault::supervise_thread("ncm-writer", "the writer of table entries", move || run(&jobs, &tables, &shared))
}

fn run(jobs: &Receiver<Job>, tables: &Tables, shared: &Weak<Shared>) {
    let (mut remote, mut logged) = (RemoteHosts::default(), Logged::new());
    for job in jobs {
        match job {
            Job::Write { changes, times, slot } => {
                let Some(shared) = shared.upgrade() else { return };
                let begun = Instant::now();
                let (refused, waited) = write(tables, shared.underlay.as_ref(), &mut remote, *changes);
                let elapsed = begun.elapsed().saturating_sub(waited);
                own::WRITE_MICROSECONDS.add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
                if let Some(times) = times {
                    times.wrote(elapsed);
                    times.used_netlink(waited);
                }
                if !refused.is_empty() {
                    report(&shared, refused, &mut logged);
                }
                drop(slot);
            }
            // The asker may have gone.
            Job::Flush(done) => drop(done.send(())),
        }
    }
}

fn report(shared: &Shared, refused: Refused, logged: &mut Logged) {
    let mut texts: HashMap<Arc<str>, u64> = HashMap::new();
    let mut model = shared.model();
    for refusal in refused {
        model.write_failed(refusal.cause, refusal.table, &refusal.text);
        *texts.entry(refusal.text).or_default() += 1;
    }
    drop(model);
    logged.retain(|_, when| when.elapsed() < LOGGED_EVERY);
    for (cause, entries) in texts {
        own::ENTRIES_FAILED.add(entries);
        match logged.entry(cause) {
            Entry::Occupied(known) => {
                tracing::debug!(entries, "table entries were refused again: {}", known.key());
            }
            Entry::Vacant(new) => {
                tracing::error!(entries, "table entries were refused: {}", new.key());
                new.insert(Instant::now());
            }
        }
    }
}

/// Writes the changes of one step. Also returns the time spent on waiting for netlink.
fn write(
    tables: &Tables,
    underlay: Option<&Underlay>,
    remote: &mut RemoteHosts,
    mut changes: Changes,
) -> (Refused, Duration) {
    let mut refused = Refused::new();
    own::ENTRIES_WRITTEN.add(changes.len() as u64);

    // Names are for people: without one nothing forwards differently, so that failures are only logged.
    unnamed(tables.names.put_batch(changes.names.put.iter().map(|put| (put.key, put.value))));
    let begun = Instant::now();
    let gone = remote.add(underlay, std::mem::take(&mut changes.hosts));
    remote.check(underlay, "HOSTS", &changes.endpoints_mac.put, &mut refused);
    remote.check(underlay, "HOSTS", &changes.endpoints_ipv4.put, &mut refused);
    let waited = begun.elapsed();

    put(&tables.subnets, &mut changes.subnets, &mut refused);
    put(&tables.ports, &mut changes.ports, &mut refused);
    put(&tables.vnis, &mut changes.vnis, &mut refused);
    put(&tables.subnet_prefixes, &mut changes.subnet_prefixes, &mut refused);
    put(&tables.vteps, &mut changes.vteps, &mut refused);
    put(&tables.endpoints_mac, &mut changes.endpoints_mac, &mut refused);
    put(&tables.endpoints_ipv4, &mut changes.endpoints_ipv4, &mut refused);
    put(&tables.routes, &mut changes.routes, &mut refused);
    put(&tables.sources, &mut changes.sources, &mut refused);
    put(&tables.source_prefixes, &mut changes.source_prefixes, &mut refused);
    put(&tables.devices, &mut changes.devices, &mut refused);
    put(&tables.port_by_interface, &mut changes.port_by_interface, &mut refused);

    delete(&tables.port_by_interface, &changes.port_by_interface.del);
    delete(&tables.devices, &changes.devices.del);
    delete(&tables.source_prefixes, &changes.source_prefixes.del);
    delete(&tables.sources, &changes.sources.del);
    delete(&tables.routes, &changes.routes.del);
    delete(&tables.endpoints_ipv4, &changes.endpoints_ipv4.del);
    delete(&tables.endpoints_mac, &changes.endpoints_mac.del);
    delete(&tables.vteps, &changes.vteps.del);
    delete(&tables.subnet_prefixes, &changes.subnet_prefixes.del);
    delete(&tables.vnis, &changes.vnis.del);
    delete(&tables.ports, &changes.ports.del);
    delete(&tables.subnets, &changes.subnets.del);
    remote.change(underlay, &gone);
    delete(&tables.names, &changes.names.del);
    forget_counts(tables, &changes.ports.del);
    (refused, waited)
}

fn put<K: Plain, V: Plain>(table: &Table<K, V>, delta: &mut Delta<K, V>, refused: &mut Refused) {
    if delta.put.is_empty() {
        return;
    }
    let pair = |put: &Put<K, V>| (put.key, put.value);
    let mut outcome = table.put_batch(delta.put.iter().map(pair));
    let mut failed: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    if outcome.is_full() && !delta.del.is_empty() {
        delete(table, &std::mem::take(&mut delta.del));
        outcome = table.put_batch(failed.iter().map(|position| pair(&delta.put[*position])));
        failed = outcome.failed.iter().map(|(position, _)| failed[*position]).collect();
    }
    // Refusals come in large numbers with the same few errors: one text for each run of them.
    let mut last: Option<(Option<i32>, Arc<str>)> = None;
    for (position, (_, error)) in failed.into_iter().zip(outcome.failed) {
        let number = error.raw_os_error();
        let text = match &last {
            Some((same, text)) if *same == number => Arc::clone(text),
            _ => Arc::from(explained(table, &error)),
        };
        last = Some((number, Arc::clone(&text)));
        refused.push(Refusal { cause: delta.put[position].cause, table: table.spec().name, text });
    }
}

/// Why an entry was refused, and what helps.
fn explained<K: Plain, V: Plain>(table: &Table<K, V>, error: &std::io::Error) -> String {
    let name = table.spec().name.to_ascii_lowercase();
    match (error.raw_os_error(), table.spec().capacity_key) {
        (Some(nix::libc::E2BIG | nix::libc::ENOSPC), Some(key)) => {
            format!("the table {name} is full ({} entries): raise capacity.{key}", table.capacity())
        }
        _ => format!("the kernel refused an entry of the table {name}: {error}"),
    }
}

fn delete<K: Plain, V: Plain>(table: &Table<K, V>, keys: &[K]) {
    if keys.is_empty() {
        return;
    }
    let outcome = table.delete_batch(keys.iter().copied());
    if let Some((_, error)) = outcome.failed.first() {
        let table = table.spec().name.to_ascii_lowercase();
        tracing::error!(table, entries = outcome.failed.len(), %error, "cannot delete table entries");
        own::ENTRIES_FAILED.add(outcome.failed.len() as u64);
    }
}

fn unnamed(outcome: ncm_dataplane::Outcome) {
    if let Some((_, error)) = outcome.failed.first() {
        tracing::warn!(
            entries = outcome.failed.len(), %error,
            "cannot write names: tools will show numbers instead, and a restart renumbers; raise capacity.names"
        );
    }
}

/// A port's counts go with it: its index will be another's.
fn forget_counts(tables: &Tables, ports: &[u32]) {
    if ports.is_empty() {
        return;
    }
    let reasons = ncm_common::drops::DropReason::ALL;
    let keys = ports
        .iter()
        .flat_map(|port| reasons.iter().map(|reason| PortDropKey { port: *port, reason: *reason as u32 }));
    // Counts that stay are wrong, not harmful.
    let _kept = tables.port_drops.reset(keys);
    let _kept = tables.port_traffic.reset(ports.iter().copied());
}
