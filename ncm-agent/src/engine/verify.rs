//! Reading back: what the kernel's tables and hooks hold, against what they should.
//!
//! Messages go on while all is compared; what was on its way differs then as well. So where anything differs, it is looked at once
//! more with no message under way, and that counts.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use ncm_common::Plain;
use ncm_dataplane::{Hook, Table};
use ncm_model::{Changes, Delta, Seen};
use tokio::time::sleep;

use super::reconcile::{Repaired, find};
use super::status::Role;
use super::{Engine, MESSAGES_AT_ONCE, Shared};
use crate::fault;
use crate::inspect::{Names, describe};
use crate::telemetry::own;

/// Endpoints compared while the model is locked.
const PART: usize = 16_384;
const PLACES: u32 = 16_384;

/// So many deviations are told; all are counted.
const MOST_TOLD: usize = 1000;

/// So many are logged of a comparison that nobody has asked for.
const LOGGED: usize = 20;

/// In what way something is not as it should be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DeviationKind {
    /// An entry that should be there is not.
    Missing,
    /// An entry is another than it should be.
    Different,
    /// An entry that nothing held claims.
    Unclaimed,
    /// A program of ours does not run where it should.
    Detached,
    /// A program of somebody else's runs before ours, or in its place.
    Foreign,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deviation {
    /// In what way.
    pub kind: DeviationKind,
    /// Table or hook.
    pub place: String,
    /// Key of the entry, or the interface.
    pub key: String,
    /// What should be there; empty if nothing should.
    pub expected: String,
    /// What is there; empty if nothing is.
    pub found: String,
}

/// What was found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Verified {
    /// The first of what is not as it should be.
    pub deviations: Vec<Deviation>,
    /// How much of it there is, by kind in the order of [`DeviationKind`].
    pub counts: [u64; 5],
    /// Entries that were written, and removed.
    pub repaired: (u64, u64),
}

impl Verified {
    fn add(&mut self, deviation: Deviation) {
        self.counts[deviation.kind as usize] += 1;
        if self.deviations.len() < MOST_TOLD {
            self.deviations.push(deviation);
        }
    }
}

/// What is to be done about what is found.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Remedy {
    /// What is missing or different is written, programs are attached.
    pub repair: bool,
    /// What nothing held claims is removed.
    pub prune: bool,
}

/// How often everything is compared without being asked.
const SWEEP: Duration = Duration::from_secs(600);

/// Starts the slow comparison in the background; it ends when the engine does.
pub(super) fn start(engine: &Engine) {
    let shared = Arc::downgrade(&engine.shared);
    fault::supervise("the comparison with the kernel", async move {
        loop {
            sleep(SWEEP).await;
            let Some(shared) = shared.upgrade() else { return };
            match (Engine { shared }).verify(Remedy::default()).await {
                Ok(verified) => log(&verified),
                Err(error) => tracing::warn!("the kernel's tables cannot be compared: {error:#}"),
            }
        }
    });
}

fn log(verified: &Verified) {
    for deviation in verified.deviations.iter().take(LOGGED) {
        let Deviation { kind, place, key, expected, found } = deviation;
        tracing::error!(?kind, place, key, expected, found, "not as it should be: see `ncmctl verify`");
    }
}

impl Engine {
    /// Compares everything, and does what is asked about it.
    ///
    /// # Errors
    ///
    /// A table cannot be read.
    pub async fn verify(&self, remedy: Remedy) -> anyhow::Result<Verified> {
        let verified = self.compare(remedy).await?;
        let [missing, different, unclaimed, detached, foreign] = verified.counts;
        let mended = if remedy.repair { 0 } else { missing + different + detached };
        own::DEVIATIONS.set(mended + foreign);
        own::UNCLAIMED.set(if remedy.prune { 0 } else { unclaimed });
        Ok(verified)
    }

    async fn compare(&self, remedy: Remedy) -> anyhow::Result<Verified> {
        let shared = &self.shared;
        let uplinks = shared.uplinks().await;
        let mut verified = Verified::default();
        shared.verify_hooks(&mut verified);
        if remedy.repair && verified.counts.iter().sum::<u64>() > 0 {
            shared.attach_again().await;
        }
        let own = Arc::clone(shared);
        let looked = uplinks.clone();
        let suspicious =
            tokio::task::spawn_blocking(move || own.differences(&looked).map(|changes| changes.len()))
                .await??;
        if suspicious == 0 && !remedy.prune {
            return Ok(verified);
        }
        let alone = shared.turns.acquire_many(MESSAGES_AT_ONCE as u32).await?;
        self.flush().await;
        let own = Arc::clone(shared);
        let verified = tokio::task::spawn_blocking(move || -> anyhow::Result<Verified> {
            let differences = own.differences(&uplinks)?;
            own.tell(&differences, &mut verified);
            if remedy.repair || remedy.prune {
                // Without the one, the other alone has nothing to write: what is held is as it should be, or stays as it is.
                let Repaired { written, removed } = own.repair_all(&uplinks, false, remedy.prune)?;
                verified.repaired = (written as u64, removed as u64);
            }
            if remedy.prune
                && let Some(store) = &own.store
            {
                // From now on what the journal does not tell of should not be.
                store.complete();
            }
            Ok(verified)
        });
        let verified = verified.await??;
        if remedy.prune
            && let Some(store) = &shared.store
            && let Err(cause) = store.commit().await?
        {
            anyhow::bail!("pruned, but not kept: {cause}");
        }
        drop(alone);
        Ok(verified)
    }
}

impl Shared {
    /// What would have to be written and removed.
    fn differences(&self, uplinks: &HashSet<u32>) -> anyhow::Result<Changes> {
        let tables = self.dataplane.tables();
        let mut changes = Changes::default();
        let found = find(tables, uplinks)?;
        self.model().compare(&found, true, &mut changes);
        // The underlay's own affair: it keeps them right by itself.
        changes.hosts.clear();
        let (mut seen, mut part) = (Seen::default(), Vec::new());
        tables.endpoints_ip.for_each(|key, value| {
            part.push((key, value));
            if part.len() == PART {
                self.model().reconcile_by_ip(&part, &mut seen, true, &mut changes);
                part.clear();
            }
        })?;
        self.model().reconcile_by_ip(&part, &mut seen, true, &mut changes);
        let mut part = Vec::new();
        tables.endpoints_mac.for_each(|key, value| {
            part.push((key, value));
            if part.len() == PART {
                self.model().reconcile_by_mac(&part, &mut seen, true, &mut changes);
                part.clear();
            }
        })?;
        self.model().reconcile_by_mac(&part, &mut seen, true, &mut changes);
        let mut at = 0;
        while self.model().reconcile_missing(&seen, &mut at, PLACES, &mut changes) {}
        Ok(changes)
    }

    fn tell(&self, changes: &Changes, verified: &mut Verified) {
        let tables = self.dataplane.tables();
        let interfaces =
            self.status().values().map(|status| (status.ifindex, status.name.clone())).collect::<Vec<_>>();
        let names = Names::new(tables.names.entries().unwrap_or_default(), interfaces);
        let mut told = Told { names, verified };
        told.table(&tables.names, &changes.names);
        told.table(&tables.rules, &changes.rules);
        told.table(&tables.classes, &changes.classes);
        told.table(&tables.subnets, &changes.subnets);
        told.table(&tables.ports, &changes.ports);
        told.table(&tables.vnis, &changes.vnis);
        told.table(&tables.subnet_prefixes, &changes.subnet_prefixes);
        told.table(&tables.vteps, &changes.vteps);
        told.table(&tables.endpoints_mac, &changes.endpoints_mac);
        told.table(&tables.endpoints_ip, &changes.endpoints_ip);
        told.table(&tables.routes, &changes.routes);
        told.table(&tables.sources, &changes.sources);
        told.table(&tables.source_prefixes, &changes.source_prefixes);
        told.table(&tables.devices, &changes.devices);
        told.table(&tables.port_by_interface, &changes.port_by_interface);
    }

    /// Where our programs should run, and what runs there.
    fn verify_hooks(&self, verified: &mut Verified) {
        let attached = self.dataplane.attachments();
        let mut expected: Vec<(Hook, u32, String)> = Vec::new();
        for status in self.status().values() {
            let Some(hook) = status.hook else { continue };
            expected.push((hook, status.ifindex, status.name.clone()));
            if status.role == Role::Guest && hook != Hook::GuestTc {
                expected.push((Hook::GuestTc, status.ifindex, status.name.clone()));
            }
        }
        for (hook, ifindex, name) in expected {
            let ours = attached.iter().find(|other| other.hook == hook && other.ifindex == ifindex);
            // An interface has one native XDP program, and the kernel lists those of all namespaces.
            let on_hook = match hook.is_xdp() {
                true => Vec::new(),
                false => self.dataplane.on_hook(hook, ifindex).unwrap_or_default(),
            };
            let first = on_hook.first();
            let place = hook.to_string();
            let key = format!("{name} ({ifindex})");
            let expected = hook.program().to_owned();
            let others = on_hook.iter().take_while(|other| ours.is_none_or(|ours| other.link != ours.link));
            let found: Vec<String> = others
                .map(|other| format!("{} (program {}, link {})", other.name, other.program, other.link))
                .collect();
            let found = found.join(", ");
            if ours.is_none() {
                verified.add(Deviation { kind: DeviationKind::Detached, place, key, expected, found });
            } else if first.is_some_and(|first| ours.is_some_and(|ours| first.link != ours.link)) {
                verified.add(Deviation { kind: DeviationKind::Foreign, place, key, expected, found });
            }
        }
    }

    /// Puts programs back where they were detached.
    async fn attach_again(&self) {
        let attached = self.dataplane.attachments();
        let lost: Vec<(Hook, u32, String)> = self
            .status()
            .values()
            .filter_map(|status| Some((status.hook?, status.ifindex, status.role, status.name.clone())))
            .flat_map(|(hook, ifindex, role, name)| {
                let second = (role == Role::Guest && hook != Hook::GuestTc).then_some(Hook::GuestTc);
                [Some(hook), second].into_iter().flatten().map(move |hook| (hook, ifindex, name.clone()))
            })
            .filter(|(hook, ifindex, _)| {
                !attached.iter().any(|other| other.hook == *hook && other.ifindex == *ifindex)
            })
            .collect();
        for (hook, ifindex, name) in lost {
            match self.dataplane.attach(hook, ifindex) {
                Ok(_) => tracing::warn!(interface = name, %hook, "a program that was detached is back"),
                Err(error) => {
                    tracing::error!(interface = name, "a program cannot be attached again: {error}")
                }
            }
        }
    }
}

/// What is told of deviations.
struct Told<'a> {
    names: Names,
    verified: &'a mut Verified,
}

impl Told<'_> {
    fn table<K: Plain + Eq + Hash, V: Plain>(&mut self, table: &Table<K, V>, delta: &Delta<K, V>) {
        let name = table.spec().name.to_ascii_lowercase();
        let described = describe(&name);
        let names = &self.names;
        let shown = |key: &K, value: &V| {
            let row = described.as_ref().and_then(|table| table.row(key.as_bytes(), value.as_bytes(), names));
            let row = row.unwrap_or_default();
            let columns = described.as_ref().map(|table| table.value_columns).unwrap_or_default();
            let values = row.len().saturating_sub(columns.len());
            let values =
                columns.iter().zip(&row[values..]).map(|(column, value)| format!("{column}={value}"));
            values.collect::<Vec<_>>().join(" ")
        };
        let key_text = |key: &K| {
            described.as_ref().and_then(|table| table.key_text(key.as_bytes(), names)).unwrap_or_default()
        };
        for put in &delta.put {
            let found = table.get(&put.key).ok().flatten().filter(|found| *found != V::zeroed());
            let kind = if found.is_some() { DeviationKind::Different } else { DeviationKind::Missing };
            let deviation = Deviation {
                kind,
                place: name.clone(),
                key: key_text(&put.key),
                expected: shown(&put.key, &put.value),
                found: found.map(|found| shown(&put.key, &found)).unwrap_or_default(),
            };
            self.verified.add(deviation);
        }
        for key in &delta.del {
            let Some(found) = table.get(key).ok().flatten() else { continue };
            let deviation = Deviation {
                kind: DeviationKind::Unclaimed,
                place: name.clone(),
                key: key_text(key),
                expected: String::new(),
                found: shown(key, &found),
            };
            self.verified.add(deviation);
        }
    }
}
