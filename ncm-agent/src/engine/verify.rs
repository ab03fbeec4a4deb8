//! Reading back: what the kernel's tables and hooks hold, against what they should.
//!
//! Messages go on while all is compared; what was on its way differs then as well. So where anything differs, it is looked at once
//! more with no message under way, and that counts.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use ncm_common::Plain;
use ncm_dataplane::{Foreign, Hook, Table};
use ncm_model::{Changes, Delta, Seen};
use tokio::time::sleep;

use super::own_tables::Differences;
use super::reconcile::{Repaired, find};
use super::status::Role;
use super::{Engine, MESSAGES_AT_ONCE, Shared};
use crate::fault;
use crate::hand_up::device_names;
use crate::inspect::{Description, Names, describe};
use crate::netlink::Kernel;
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
    /// Programs that were attached again.
    pub attached: u64,
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
                Err(error) => {
                    tracing::warn!("the kernel's tables cannot be compared: {}", crate::explained(&error));
                }
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
        let wrong = if remedy.repair { 0 } else { missing + different };
        own::DEVIATIONS.set(wrong + detached - verified.attached + foreign);
        own::UNCLAIMED.set(if remedy.prune { 0 } else { unclaimed });
        Ok(verified)
    }

    async fn compare(&self, remedy: Remedy) -> anyhow::Result<Verified> {
        let shared = &self.shared;
        let uplinks = shared.uplinks().await;
        let mut verified = Verified::default();
        let lost = shared.verify_hooks(&mut verified).await;
        if remedy.repair {
            verified.attached = shared.attach_again(&lost).await;
        }
        let (own, looked) = (Arc::clone(shared), uplinks.clone());
        let mut verified = tokio::task::spawn_blocking(move || -> anyhow::Result<Verified> {
            let mut told = own.told(&mut verified);
            verified.repaired = own.own.compare(&looked, &mut told, remedy.repair, remedy.prune)?;
            Ok(verified)
        })
        .await??;
        let (own, looked) = (Arc::clone(shared), uplinks.clone());
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
                verified.repaired.0 += written as u64;
                verified.repaired.1 += removed as u64;
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

    /// Who tells of deviations, by the names that tables have for things.
    fn told<'a>(&self, verified: &'a mut Verified) -> Told<'a> {
        let interfaces: Vec<(u32, String)> =
            self.status().values().map(|status| (status.ifindex, status.name.clone())).collect();
        let names = self.dataplane.tables().names.entries().unwrap_or_default();
        Told { names: Names::new(names, interfaces), verified }
    }

    fn tell(&self, changes: &Changes, verified: &mut Verified) {
        let tables = self.dataplane.tables();
        let mut told = self.told(verified);
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

    /// Where our programs should run.
    fn expected_hooks(&self) -> Vec<(Hook, u32, String)> {
        let mut expected: Vec<(Hook, u32, String)> = Vec::new();
        for status in self.status().values() {
            let Some(hook) = status.hook else { continue };
            expected.push((hook, status.ifindex, status.name.clone()));
            if status.role == Role::Guest && hook != Hook::GuestTc {
                expected.push((Hook::GuestTc, status.ifindex, status.name.clone()));
            }
        }
        let hand_up = self.own.node().hand_up_ifindex;
        if hand_up != 0 {
            let (name, _) = device_names(&self.config.instance);
            expected.push((Hook::HandUpTc, hand_up, name.clone()));
            expected.push((Hook::HandDownTc, hand_up, name));
        }
        expected
    }

    /// Compares what runs where our programs should, and gives the places where they do not.
    async fn verify_hooks(&self, verified: &mut Verified) -> Vec<(Hook, u32, String)> {
        let attached = self.dataplane.attachments();
        let mut lost = Vec::new();
        for (hook, ifindex, name) in self.expected_hooks() {
            let ours = attached.iter().find(|other| other.hook == hook && other.ifindex == ifindex);
            let others: Vec<String> = match (hook.is_xdp(), ours) {
                // An interface has one native XDP program.
                (true, Some(_)) => Vec::new(),
                (true, None) => self.native_xdp(&name).await.into_iter().collect(),
                (false, ours) => {
                    let on_hook = self.dataplane.on_hook(hook, ifindex).unwrap_or_default();
                    let before =
                        on_hook.iter().take_while(|other| ours.is_none_or(|ours| other.link != ours.link));
                    let shown = |other: &Foreign| {
                        format!("{} (program {}, link {})", other.name, other.program, other.link)
                    };
                    before.map(shown).collect()
                }
            };
            let kind = match ours {
                Some(_) if others.is_empty() => continue,
                Some(_) => DeviationKind::Foreign,
                None => DeviationKind::Detached,
            };
            verified.add(Deviation {
                kind,
                place: hook.to_string(),
                key: format!("{name} ({ifindex})"),
                expected: hook.program().to_owned(),
                found: others.join(", "),
            });
            if ours.is_none() {
                lost.push((hook, ifindex, name));
            }
        }
        lost
    }

    /// What runs natively at XDP on an interface.
    async fn native_xdp(&self, name: &str) -> Option<String> {
        let id = Kernel::open().ok()?.native_xdp(name).await.ok()??;
        Some(format!("{} (program {id})", self.dataplane.program_name(id)))
    }

    /// Puts programs back where they were detached, and says how many.
    async fn attach_again(&self, lost: &[(Hook, u32, String)]) -> u64 {
        // Interfaces may be taken over at the same time.
        let _alone = self.interfaces.lock().await;
        let mut attached = 0;
        for (hook, ifindex, name) in lost {
            match self.dataplane.attach(*hook, *ifindex) {
                Ok(_) => {
                    tracing::warn!(interface = name, %hook, "a program that was detached is back");
                    attached += 1;
                }
                Err(error) => {
                    tracing::error!(interface = name, "a program cannot be attached again: {error}");
                }
            }
        }
        attached
    }
}

/// What is told of deviations.
struct Told<'a> {
    names: Names,
    verified: &'a mut Verified,
}

impl Told<'_> {
    fn table<K: Plain + Eq + Hash, V: Plain>(&mut self, table: &Table<K, V>, delta: &Delta<K, V>) {
        let described = describe(&table.spec().name.to_ascii_lowercase());
        for put in &delta.put {
            self.put(table, described.as_ref(), &put.key, &put.value);
        }
        for key in &delta.del {
            self.gone(table, described.as_ref(), key);
        }
    }

    fn put<K: Plain, V: Plain>(
        &mut self,
        table: &Table<K, V>,
        described: Option<&Description>,
        key: &K,
        value: &V,
    ) {
        let found = table.get(key).ok().flatten();
        let found = found.filter(|found| found.as_bytes() != V::zeroed().as_bytes());
        let kind = if found.is_some() { DeviationKind::Different } else { DeviationKind::Missing };
        let deviation = Deviation {
            kind,
            place: table.spec().name.to_ascii_lowercase(),
            key: self.key(described, key),
            expected: self.value(described, key, value),
            found: found.map(|found| self.value(described, key, &found)).unwrap_or_default(),
        };
        self.verified.add(deviation);
    }

    fn gone<K: Plain, V: Plain>(&mut self, table: &Table<K, V>, described: Option<&Description>, key: &K) {
        let Some(found) = table.get(key).ok().flatten() else { return };
        let deviation = Deviation {
            kind: DeviationKind::Unclaimed,
            place: table.spec().name.to_ascii_lowercase(),
            key: self.key(described, key),
            expected: String::new(),
            found: self.value(described, key, &found),
        };
        self.verified.add(deviation);
    }

    fn key<K: Plain>(&self, described: Option<&Description>, key: &K) -> String {
        described.and_then(|table| table.key_text(key.as_bytes(), &self.names)).unwrap_or_default()
    }

    fn value<K: Plain, V: Plain>(&self, described: Option<&Description>, key: &K, value: &V) -> String {
        let row = described.and_then(|table| table.row(key.as_bytes(), value.as_bytes(), &self.names));
        let row = row.unwrap_or_default();
        let columns = described.map(|table| table.value_columns).unwrap_or_default();
        let values = row.len().saturating_sub(columns.len());
        let values = columns.iter().zip(&row[values..]).map(|(column, value)| format!("{column}={value}"));
        values.collect::<Vec<_>>().join(" ")
    }
}

impl Differences for Told<'_> {
    fn wrong<V: Plain + PartialEq>(&mut self, table: &Table<u32, V>, key: u32, expected: &V) {
        let described = describe(&table.spec().name.to_ascii_lowercase());
        self.put(table, described.as_ref(), &key, expected);
    }

    fn unclaimed<V: Plain + PartialEq>(&mut self, table: &Table<u32, V>, key: u32) {
        let described = describe(&table.spec().name.to_ascii_lowercase());
        self.gone(table, described.as_ref(), &key);
    }
}
