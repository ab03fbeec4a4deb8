//! Making the kernel's tables what the model says, entry by entry, touching nothing else: at start, and when the operator asks.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use ncm_common::tables::{NameKey, name_kinds};
use ncm_dataplane::Tables;
use ncm_model::{Changes, Found, Model, Seen};

use super::Shared;
use super::writer::Job;

/// Endpoints compared while the model is locked, and places looked at for missing ones.
const PART: usize = 8192;
const PLACES: u32 = 65_536;

/// So many changed endpoints are written at once.
const BATCH: usize = 8192;

/// What of the small tables there is. `uplinks`: interfaces whose place in the table of devices is not the model's.
pub(super) fn find(tables: &Tables, uplinks: &HashSet<u32>) -> anyhow::Result<Found> {
    let mut found = Found {
        rules: tables.rules.entries()?,
        classes: tables.classes.entries()?,
        subnets: tables.subnets.entries()?,
        ports: tables.ports.entries()?,
        vnis: tables.vnis.entries()?,
        subnet_prefixes: tables.subnet_prefixes.entries()?,
        vteps: tables.vteps.entries()?,
        routes: tables.routes.entries()?,
        sources: tables.sources.entries()?,
        source_prefixes: tables.source_prefixes.entries()?,
        devices: tables.devices.entries()?,
        port_by_interface: tables.port_by_interface.entries()?,
        ..Found::default()
    };
    found.devices.retain(|(ifindex, _)| !uplinks.contains(ifindex));
    let mut addresses: HashMap<u32, IpAddr> = HashMap::new();
    tables.names.for_each(|key, name| {
        if key.kind == name_kinds::HOST
            && let Ok(address) = name.as_str().parse()
        {
            addresses.insert(key.index, address);
        }
        // Names of next-hop groups are the underlay's.
        if key.kind != name_kinds::GROUP {
            found.names.push((NameKey { ..key }, name));
        }
    })?;
    tables.hosts.for_each(|index, host| {
        if let Some(address) = addresses.get(&index).filter(|_| host.generation != 0) {
            found.hosts.push((index, host.generation, *address));
        }
    })?;
    Ok(found)
}

/// What was different.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Repaired {
    pub(super) written: usize,
    pub(super) removed: usize,
}

impl Shared {
    /// Writes what differs in the kernel's tables from what the model says, and nothing else: additions, then deletions (`remove`), then
    /// epochs. Nobody else may change the model meanwhile. `begins`: the model has not written anything yet.
    pub(super) async fn repair(self: &Arc<Self>, begins: bool, remove: bool) -> anyhow::Result<Repaired> {
        let shared = Arc::clone(self);
        let uplinks = self.uplinks().await;
        tokio::task::spawn_blocking(move || shared.repair_all(&uplinks, begins, remove)).await?
    }

    /// Interfaces whose place in the table of devices is not the model's.
    pub(super) async fn uplinks(&self) -> HashSet<u32> {
        self.interfaces.lock().await.uplinks.values().copied().collect()
    }

    pub(super) fn repair_all(
        &self,
        uplinks: &HashSet<u32>,
        begins: bool,
        remove: bool,
    ) -> anyhow::Result<Repaired> {
        let tables = self.dataplane.tables();
        let found = find(tables, uplinks)?;
        let mut repaired = Repaired::default();
        let (mut first, mut last) = (Changes::default(), Changes::default());
        {
            let mut model = self.model();
            if begins && remove {
                model.adopt_sets(&found);
            }
            if begins {
                model.adopt_epochs(&found.ports);
            }
            model.reconcile(&found, remove, &mut first);
            if begins && self.dataplane.is_changing() {
                tracing::info!("the last run ended amid a change: all flows are decided anew");
                model.decide_anew(&mut first);
            }
        }
        // What is written first has its epochs risen at the end.
        self.dataplane.set_changing(!first.is_empty())?;
        drop(found);
        hold_back(&mut first, &mut last);
        self.send(first, &mut repaired);

        let mut changes = Changes::default();
        let seen = self.compare_endpoints(remove, &mut changes)?;
        self.send_endpoints(&mut changes, &mut last, &mut repaired);
        let mut at = 0;
        loop {
            let more = self.model().reconcile_missing(&seen, &mut at, PLACES, &mut changes);
            self.send_endpoints(&mut changes, &mut last, &mut repaired);
            if !more {
                break;
            }
        }
        last.epochs.sort_unstable();
        last.epochs.dedup();
        self.send(last, &mut repaired);
        self.wait_for_writer();
        self.dataplane.set_changing(false)?;
        Ok(repaired)
    }

    /// Waits until all that was sent has been written.
    fn wait_for_writer(&self) {
        let (written, wait) = tokio::sync::oneshot::channel();
        if self.writer.send(Job::Flush(written)).is_ok() {
            // The writer goes only when the engine does.
            drop(wait.blocking_recv());
        }
    }

    /// Has the new tables take the place of those that forward, now that they are what they should be.
    pub(super) fn take_over(&self) -> anyhow::Result<()> {
        // Until now flows were decided by the old tables, under epochs that both may have in common.
        self.dataplane.set_changing(true)?;
        self.dataplane.take_over().context("cannot exchange the programs")?;
        let (mut repaired, mut changes) = (Repaired::default(), Changes::default());
        self.model().decide_anew(&mut changes);
        self.send(changes, &mut repaired);
        self.wait_for_writer();
        Ok(self.dataplane.set_changing(false)?)
    }

    /// Compares both tables of endpoints, side by side: there may be millions. Nobody else asks for the model meanwhile but the writer,
    /// if the kernel refuses something, and nobody waits for that.
    fn compare_endpoints(&self, remove: bool, changes: &mut Changes) -> anyhow::Result<Seen> {
        let tables = self.dataplane.tables();
        let model = self.model();
        let model: &Model = &model;
        let mut by_mac = Changes::default();
        let (ip, mac) = std::thread::scope(|threads| {
            let other = threads.spawn(|| {
                let (mut seen, mut part) = (Seen::default(), Vec::with_capacity(PART));
                tables.endpoints_mac.for_each(|key, value| {
                    part.push((key, value));
                    if part.len() == PART {
                        model.reconcile_by_mac(&part, &mut seen, remove, &mut by_mac);
                        part.clear();
                    }
                })?;
                model.reconcile_by_mac(&part, &mut seen, remove, &mut by_mac);
                anyhow::Ok(seen)
            });
            let (mut seen, mut part) = (Seen::default(), Vec::with_capacity(PART));
            let read = tables.endpoints_ip.for_each(|key, value| {
                part.push((key, value));
                if part.len() == PART {
                    model.reconcile_by_ip(&part, &mut seen, remove, changes);
                    part.clear();
                }
            });
            model.reconcile_by_ip(&part, &mut seen, remove, changes);
            (read.map(|()| seen), other.join())
        });
        let mac = mac.map_err(|_| anyhow::anyhow!("the comparison of endpoints by MAC has failed"))??;
        changes.endpoints_mac = by_mac.endpoints_mac;
        changes.epochs.append(&mut by_mac.epochs);
        Ok(Seen::of(ip?, mac))
    }

    /// Sends on what is to be written of endpoints; what is to go, and epochs, wait for the end.
    fn send_endpoints(&self, changes: &mut Changes, last: &mut Changes, repaired: &mut Repaired) {
        last.endpoints_ip.del.append(&mut changes.endpoints_ip.del);
        last.endpoints_mac.del.append(&mut changes.endpoints_mac.del);
        last.epochs.append(&mut changes.epochs);
        while !changes.endpoints_ip.put.is_empty() || !changes.endpoints_mac.put.is_empty() {
            let mut batch = Changes::default();
            batch.endpoints_ip.put = take(&mut changes.endpoints_ip.put);
            batch.endpoints_mac.put = take(&mut changes.endpoints_mac.put);
            self.send(batch, repaired);
        }
    }

    fn send(&self, changes: Changes, repaired: &mut Repaired) {
        if changes.is_empty() {
            return;
        }
        repaired.removed += removals(&changes);
        repaired.written += changes.len() - removals(&changes);
        let slot = futures::executor::block_on(Arc::clone(&self.slots).acquire_owned()).ok();
        drop(self.writer.send(Job::Write { changes: Box::new(changes), times: None, slot }));
    }
}

fn take<T>(from: &mut Vec<T>) -> Vec<T> {
    let rest = from.split_off(from.len().min(BATCH));
    std::mem::replace(from, rest)
}

/// How many entries are to go.
pub(super) fn removals(changes: &Changes) -> usize {
    changes.names.del.len()
        + changes.rules.del.len()
        + changes.classes.del.len()
        + changes.subnets.del.len()
        + changes.ports.del.len()
        + changes.vnis.del.len()
        + changes.subnet_prefixes.del.len()
        + changes.vteps.del.len()
        + changes.endpoints_mac.del.len()
        + changes.endpoints_ip.del.len()
        + changes.routes.del.len()
        + changes.sources.del.len()
        + changes.source_prefixes.del.len()
        + changes.devices.del.len()
        + changes.port_by_interface.del.len()
}

/// What refers is written before what is referred to goes, and epochs rise at the very end. What a port may send from is different:
/// what an index's last port had goes before the next has it.
fn hold_back(first: &mut Changes, last: &mut Changes) {
    use std::mem::take;
    last.names.del = take(&mut first.names.del);
    last.rules.del = take(&mut first.rules.del);
    last.classes.del = take(&mut first.classes.del);
    last.subnets.del = take(&mut first.subnets.del);
    last.ports.del = take(&mut first.ports.del);
    last.vnis.del = take(&mut first.vnis.del);
    last.subnet_prefixes.del = take(&mut first.subnet_prefixes.del);
    last.vteps.del = take(&mut first.vteps.del);
    last.routes.del = take(&mut first.routes.del);
    last.devices.del = take(&mut first.devices.del);
    last.port_by_interface.del = take(&mut first.port_by_interface.del);
    last.port_epochs = take(&mut first.port_epochs);
    last.epochs = take(&mut first.epochs);
    let given: HashSet<u32> = first
        .hosts
        .iter()
        .filter_map(|change| match change {
            ncm_model::HostChange::Add { index, .. } => Some(*index),
            ncm_model::HostChange::Remove { .. } => None,
        })
        .collect();
    let (now, later): (Vec<_>, Vec<_>) =
        take(&mut first.hosts).into_iter().partition(|change| match change {
            ncm_model::HostChange::Add { .. } => true,
            ncm_model::HostChange::Remove { index, .. } => given.contains(index),
        });
    (first.hosts, last.hosts) = (now, later);
}
