//! The thread that writes goal states into the kernel's tables, in the order in which the model yielded them.
//!
//! Additions go first, what is referred to before what refers, then deletions in reverse. Where a table is full, its
//! deletions of the same step go before what did not fit, but for policy: there ports keep what they have. What the kernel refuses is told to the model, which answers for it.
//! Epochs rise when all that they are about is written, so that a flow decided by what was there before is decided anew.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ncm_common::Plain;
use ncm_common::tables::{Endpoint, IpKey, MacKey, epoch_slot, mac_slot};
use ncm_dataplane::{Table, Tables};
use ncm_model::{Changes, Delta, Handle, Put};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Shared;
use super::beside::Beside;
use super::epochs::Epochs;
use super::hosts::RemoteHosts;
use super::leftovers::{Occupants, Undeleted, take_of};
use super::tenants::{begin_ports, end_ports};
use super::times::Times;
use super::withheld::Withheld;
use crate::fault;
use crate::netlink::underlay::Underlay;
use crate::supervisor;
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
    /// Try once more to delete what the kernel has refused to.
    Delete,
    /// Say when everything before is written.
    Flush(oneshot::Sender<()>),
    /// Tell the supervisor that the work goes on.
    Alive,
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
pub(super) fn start(jobs: Receiver<Job>, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let tables = shared.dataplane.tables().clone();
    let writer = Writer::of(tables, Arc::clone(shared.own.epochs()))?;
    let shared = Arc::downgrade(shared);
    fault::supervise_thread("ncm-writer", "the writer of table entries", move || {
        run(&jobs, writer, &shared)
    })?;
    Ok(())
}

/// What the writer goes on from.
struct Writer {
    tables: Tables,
    /// Writes the other table of endpoints at the same time.
    beside: Beside<MacKey, Endpoint>,
    remote: RemoteHosts,
    undeleted: Undeleted,
    occupants: Occupants,
    epochs: Arc<Epochs>,
    withheld: Withheld,
}

fn run(jobs: &Receiver<Job>, mut writer: Writer, shared: &Weak<Shared>) {
    let mut logged = Logged::new();
    for job in jobs {
        let undeleted = writer.undeleted.len();
        match job {
            Job::Write { mut changes, times, slot } => {
                let Some(shared) = shared.upgrade() else { return };
                let begun = Instant::now();
                writer.undeleted.supersede(&mut changes);
                let marked = !changes.port_epochs.put.is_empty() || !changes.epochs.is_empty();
                if marked {
                    mark(&shared, true);
                }
                let (refused, waited, reached) = writer.write(shared.underlay.as_ref(), *changes);
                if let Some(outstanding) = &shared.upstream {
                    outstanding.written(&reached);
                }
                if marked {
                    mark(&shared, false);
                }
                let elapsed = begun.elapsed().saturating_sub(waited);
                own::WRITE_MICROSECONDS.add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
                if let Some(times) = times {
                    times.wrote(elapsed);
                    times.used_netlink(waited);
                }
                if writer.withheld.take_crowded() {
                    shared.crowded.store(true, Ordering::Relaxed);
                }
                if !refused.is_empty() {
                    report(&shared, refused, &mut logged);
                }
                shared.undeleted.store(writer.undeleted.len(), Ordering::Relaxed);
                drop(slot);
            }
            Job::Delete => {
                let Some(shared) = shared.upgrade() else { return };
                if writer.delete_again(shared.underlay.as_ref()) {
                    // It goes through this thread's own queue.
                    shared.change(None, None, |model, changes| model.decide_anew(changes));
                }
                shared.undeleted.store(writer.undeleted.len(), Ordering::Relaxed);
            }
            // The asker may have gone.
            Job::Flush(done) => drop(done.send(())),
            Job::Alive => supervisor::notify(supervisor::ALIVE),
        }
        let left = writer.undeleted.len();
        if left > undeleted {
            tracing::error!(entries = left, "table entries stay that should go: it will be tried again");
        }
    }
}

/// Notes for the next run whether epochs have still to rise.
fn mark(shared: &Shared, changing: bool) {
    if let Err(error) = shared.dataplane.set_changing(changing) {
        tracing::error!(%error, "a kill now would leave flows as they were decided");
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

impl Writer {
    fn of(tables: Tables, epochs: Arc<Epochs>) -> anyhow::Result<Self> {
        Ok(Self {
            beside: Beside::start(&tables.endpoints_mac)?,
            remote: RemoteHosts::default(),
            undeleted: Undeleted::default(),
            occupants: Occupants::new(tables.ports.entries()?),
            epochs,
            withheld: Withheld::default(),
            tables,
        })
    }

    /// Deletes what the kernel has refused to; says whether ports' flows may have been decided by it in the meantime.
    fn delete_again(&mut self, underlay: Option<&Underlay>) -> bool {
        let changes = self.undeleted.take();
        let before = decisive(&changes);
        let by_ip = changes.endpoints_ip.del.iter().map(|key| epoch_slot(key.vni, &key.ip));
        let by_mac = changes.endpoints_mac.del.iter().map(|key| mac_slot(key.vni, &key.mac));
        let slots: BTreeSet<u32> = by_ip.chain(by_mac).collect();
        // Nothing is added, and nothing refused but deletions.
        let _ = self.write(underlay, changes);
        self.epochs.rise(&self.tables, &slots.into_iter().collect::<Vec<_>>());
        decisive(self.undeleted.tables()) < before
    }

    /// Writes the changes of one step. Also returns the time spent on waiting for netlink, and the endpoints that were written.
    fn write(
        &mut self,
        underlay: Option<&Underlay>,
        mut changes: Changes,
    ) -> (Refused, Duration, Vec<Put<IpKey, Endpoint>>) {
        let mut refused = Refused::new();
        own::ENTRIES_WRITTEN.add(changes.len() as u64);
        let reused = self.clear_predecessors(&mut changes, &mut refused);
        let (tables, left) = (&self.tables, self.undeleted.tables());

        // Names are for people: without one nothing forwards differently, so that failures are only logged.
        unnamed(tables.names.put_batch(changes.names.put.iter().map(|put| (put.key, put.value))));
        let begun = Instant::now();
        let gone = self.remote.add(underlay, std::mem::take(&mut changes.hosts));
        self.remote.check(underlay, "HOSTS", &changes.endpoints_mac.put, &mut refused);
        self.remote.check(underlay, "HOSTS", &changes.endpoints_ip.put, &mut refused);
        let waited = begun.elapsed();

        self.withheld.begin(&changes);
        self.withheld.put(tables, &changes, &mut refused);
        put(&tables.subnets, &mut changes.subnets, &mut refused, &mut left.subnets.del);
        // Nothing leads to the new ones yet, and nothing to the old ones any more.
        end_ports(tables, &reused);
        refused.append(&mut begin_ports(tables, &changes.ports.put));
        self.withheld.hold_back(tables, &mut changes.ports, &mut refused);
        put(&tables.ports, &mut changes.ports, &mut refused, &mut left.ports.del);
        put(&tables.vnis, &mut changes.vnis, &mut refused, &mut left.vnis.del);
        let (delta, undeleted) = (&mut changes.subnet_prefixes, &mut left.subnet_prefixes.del);
        put(&tables.subnet_prefixes, delta, &mut refused, undeleted);
        put(&tables.vteps, &mut changes.vteps, &mut refused, &mut left.vteps.del);
        let (by_mac, by_ip) = (&mut changes.endpoints_mac, &mut changes.endpoints_ip);
        self.beside.put(by_mac, &mut refused, &mut left.endpoints_mac.del, |refused| {
            put(&tables.endpoints_ip, by_ip, refused, &mut left.endpoints_ip.del);
        });
        put(&tables.routes, &mut changes.routes, &mut refused, &mut left.routes.del);
        put(&tables.sources, &mut changes.sources, &mut refused, &mut left.sources.del);
        let (delta, undeleted) = (&mut changes.source_prefixes, &mut left.source_prefixes.del);
        put(&tables.source_prefixes, delta, &mut refused, undeleted);
        put(&tables.devices, &mut changes.devices, &mut refused, &mut left.devices.del);
        let (delta, undeleted) = (&mut changes.port_by_interface, &mut left.port_by_interface.del);
        put(&tables.port_by_interface, delta, &mut refused, undeleted);

        delete(&tables.port_by_interface, &changes.port_by_interface.del, &mut left.port_by_interface.del);
        delete(&tables.devices, &changes.devices.del, &mut left.devices.del);
        delete(&tables.source_prefixes, &changes.source_prefixes.del, &mut left.source_prefixes.del);
        delete(&tables.sources, &changes.sources.del, &mut left.sources.del);
        delete(&tables.routes, &changes.routes.del, &mut left.routes.del);
        delete(&tables.endpoints_ip, &changes.endpoints_ip.del, &mut left.endpoints_ip.del);
        delete(&tables.endpoints_mac, &changes.endpoints_mac.del, &mut left.endpoints_mac.del);
        delete(&tables.vteps, &changes.vteps.del, &mut left.vteps.del);
        delete(&tables.subnet_prefixes, &changes.subnet_prefixes.del, &mut left.subnet_prefixes.del);
        delete(&tables.vnis, &changes.vnis.del, &mut left.vnis.del);
        delete(&tables.ports, &changes.ports.del, &mut left.ports.del);
        delete(&tables.subnets, &changes.subnets.del, &mut left.subnets.del);
        let classes = self.withheld.take(&mut changes.classes.del, &mut left.classes.del);
        delete(&tables.classes, &classes, &mut left.classes.del);
        let rules = self.withheld.take(&mut changes.rules.del, &mut left.rules.del);
        delete(&tables.rules, &rules, &mut left.rules.del);
        self.remote.change(underlay, &gone);
        delete(&tables.names, &changes.names.del, &mut left.names.del);
        end_ports(tables, &changes.ports.del);
        self.occupants.written(&changes.ports);

        self.withheld.hold_back(tables, &mut changes.port_epochs, &mut refused);
        put(&tables.ports, &mut changes.port_epochs, &mut refused, &mut left.ports.del);
        self.epochs.rise(tables, &changes.epochs);
        (refused, waited, changes.endpoints_ip.put)
    }

    /// What a port may send from has no generation: where an index is given to a port, what the last one there had goes
    /// first. Where it cannot, the new port is not written. Returns the indices that pass from one port to another.
    fn clear_predecessors(&mut self, changes: &mut Changes, refused: &mut Refused) -> Vec<u32> {
        let moves = self.occupants.moves(&changes.ports);
        let (tables, left) = (&self.tables, self.undeleted.tables());
        let sources = take_of(&mut changes.sources.del, &moves.new, |key| key.port);
        let prefixes = take_of(&mut changes.source_prefixes.del, &moves.new, |key| key.port);
        delete(&tables.sources, &sources, &mut left.sources.del);
        delete(&tables.source_prefixes, &prefixes, &mut left.source_prefixes.del);
        let haunted: HashSet<u32> = (left.sources.del.iter().map(|key| key.port))
            .chain(left.source_prefixes.del.iter().map(|key| key.port))
            .filter(|index| moves.new.contains(index))
            .collect();
        if !haunted.is_empty() {
            let text: Arc<str> = "what the last port under its index may send from cannot be deleted".into();
            let (kept_out, rest) =
                changes.ports.put.drain(..).partition::<Vec<_>, _>(|put| haunted.contains(&put.key));
            changes.ports.put = rest;
            for put in kept_out {
                changes.ports.del.push(put.key);
                refused.push(Refusal { cause: put.cause, table: "PORTS", text: Arc::clone(&text) });
            }
        }
        moves.reused
    }
}

/// Writes a table's additions; if it is full, its deletions before those that did not fit. Those of the deletions that are
/// refused go to `undeleted`.
pub(super) fn put<K: Plain, V: Plain>(
    table: &Table<K, V>,
    delta: &mut Delta<K, V>,
    refused: &mut Refused,
    undeleted: &mut Vec<K>,
) {
    if delta.put.is_empty() {
        return;
    }
    let pair = |put: &Put<K, V>| (put.key, put.value);
    let mut outcome = table.put_batch(delta.put.iter().map(pair));
    let mut failed: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    if outcome.is_full() && !delta.del.is_empty() {
        delete(table, &std::mem::take(&mut delta.del), undeleted);
        outcome = table.put_batch(failed.iter().map(|position| pair(&delta.put[*position])));
        failed = outcome.failed.iter().map(|(position, _)| failed[*position]).collect();
    }
    let failed = failed.into_iter().zip(outcome.failed).map(|(position, (_, error))| (position, error));
    note_refused(table, delta, failed, refused);
}

/// Notes what the kernel has refused of a table's additions, by position.
pub(super) fn note_refused<K: Plain, V: Plain>(
    table: &Table<K, V>,
    delta: &Delta<K, V>,
    failed: impl IntoIterator<Item = (usize, std::io::Error)>,
    refused: &mut Refused,
) {
    // Refusals come in large numbers with the same few errors: one text for each run of them.
    let mut last: Option<(Option<i32>, Arc<str>)> = None;
    for (position, error) in failed {
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

fn delete<K: Plain, V: Plain>(table: &Table<K, V>, keys: &[K], undeleted: &mut Vec<K>) {
    if keys.is_empty() {
        return;
    }
    let outcome = table.delete_batch(keys.iter().copied());
    if let Some((_, error)) = outcome.failed.first() {
        let table = table.spec().name.to_ascii_lowercase();
        let entries = outcome.failed.len();
        tracing::debug!(table, entries, %error, "cannot delete table entries");
        own::ENTRIES_FAILED.add(entries as u64);
    }
    undeleted.extend(outcome.failed.iter().map(|(position, _)| keys[*position]));
}

/// How many deletions there are of what ports' flows are decided by.
fn decisive(changes: &Changes) -> usize {
    changes.rules.del.len()
        + changes.classes.del.len()
        + changes.subnets.del.len()
        + changes.subnet_prefixes.del.len()
        + changes.vteps.del.len()
        + changes.routes.del.len()
        + changes.sources.del.len()
        + changes.source_prefixes.del.len()
}

fn unnamed(outcome: ncm_dataplane::Outcome) {
    if let Some((_, error)) = outcome.failed.first() {
        tracing::warn!(
            entries = outcome.failed.len(), %error,
            "cannot write names: tools will show numbers instead, and a restart renumbers; raise capacity.names"
        );
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
