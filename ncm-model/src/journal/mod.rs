//! What a journal needs of the model: all that is held as bytes, and a model that is as it was from such bytes.
//!
//! A snapshot is made in parts, while messages go on changing the model: first the many (neighbours), as often as too many of them
//! have changed meanwhile; at the end, with no message under way, what has changed since, what has gone, and everything else, which
//! is little. The parts in that order make the model of the end.
//!
//! A restored model has the same resources with the same revisions, versions, times and origins, and the same memory of what was
//! deleted. Indices are not part of it: those are read from the kernel's tables.

mod held;
mod restore;

pub use held::Passage;
pub use restore::RestoreError;

use crate::model::Model;
use crate::run::Run;
use crate::settings::{Limits, Settings};
use crate::state::Progress;
use crate::{Changes, Slots};

/// What the outcome of a message depends on besides the messages before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Which entries of `host_resources` are this node's.
    pub addresses: Vec<std::net::IpAddr>,
    /// What is refused for its number.
    pub limits: Limits,
    /// Entries of the table of classes, and of rules: what is refused for its size.
    pub policy_room: (u32, u32),
}

impl Facts {
    /// Those of a node with these settings.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        Self {
            addresses: settings.addresses.clone(),
            limits: settings.limits,
            policy_room: (settings.slots.classes, settings.slots.rules),
        }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in self.numbers() {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for address in &self.addresses {
            bytes.extend_from_slice(&crate::compile::mapped::address(*address));
        }
        bytes
    }

    fn numbers(&self) -> [u64; 11] {
        let limits = &self.limits;
        [
            limits.tombstones as u64,
            limits.tombstone_age_s,
            limits.parked as u64,
            limits.neighbours as u64,
            limits.resources as u64,
            limits.set_entries as u64,
            limits.rules as u64,
            limits.kept_bytes as u64,
            self.policy_room.0.into(),
            self.policy_room.1.into(),
            self.addresses.len() as u64,
        ]
    }

    /// From [`Facts::encode`]'s bytes; `None` if they are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, addresses) = bytes.split_at_checked(11 * 8)?;
        let number = |at: usize| numbers.get(at * 8..at * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
        let size = |at| usize::try_from(number(at)?).ok();
        let addresses = addresses.chunks_exact(16).map(|bytes| {
            let bytes: [u8; 16] = bytes.try_into().unwrap_or_default();
            std::net::Ipv6Addr::from(bytes).to_canonical()
        });
        let addresses: Vec<std::net::IpAddr> = addresses.collect();
        (addresses.len() == size(10)?).then_some(())?;
        Some(Self {
            addresses,
            limits: Limits {
                tombstones: size(0)?,
                tombstone_age_s: number(1)?,
                parked: size(2)?,
                neighbours: size(3)?,
                resources: size(4)?,
                set_entries: size(5)?,
                rules: size(6)?,
                kept_bytes: size(7)?,
            },
            policy_room: (u32::try_from(number(8)?).ok()?, u32::try_from(number(9)?).ok()?),
        })
    }

    /// Without bounds: what is restored was held.
    fn unbounded() -> Self {
        let most = usize::MAX / 4;
        Self {
            addresses: Vec::new(),
            limits: Limits {
                tombstones: most,
                tombstone_age_s: u64::MAX,
                parked: most,
                neighbours: most,
                resources: most,
                set_entries: most,
                rules: most,
                kept_bytes: most,
            },
            policy_room: (u32::MAX, u32::MAX),
        }
    }
}

impl Model {
    /// Begins a replay: until [`Model::end_replay`], what steps change in the tables is not told.
    pub fn begin_replay(&mut self) {
        self.replaying = Some(Box::new(self.settings.clone()));
        self.port_indices.begin_replay();
        self.subnet_indices.begin_replay();
        self.hosts.indices.begin_replay();
        self.live_by(&Facts::unbounded());
    }

    /// From here on, messages are applied as a node with these facts did.
    pub fn replay_by(&mut self, facts: &Facts) {
        if self.replaying.is_some() {
            self.live_by(facts);
        }
    }

    fn live_by(&mut self, facts: &Facts) {
        self.settings.addresses.clone_from(&facts.addresses);
        self.settings.limits = facts.limits;
        let slots = Slots { classes: facts.policy_room.0, rules: facts.policy_room.1, ..self.settings.slots };
        self.policy.bound_by(&Settings { slots, ..self.settings.clone() });
    }

    /// Applies a message's step again.
    pub fn replay_step(&mut self, run: &mut Run, max: usize) -> Progress {
        self.step(run, max, &mut Changes::default())
    }

    /// Ends a replay: the node's own settings count again. What the tables should hold is then to be compared with what they do
    /// ([`Model::reconcile`]). `claims_all`: what was not replayed is not there any more, and its indices are free.
    pub fn end_replay(&mut self, claims_all: bool) {
        let Some(settings) = self.replaying.take() else { return };
        self.live_by(&Facts::of(&settings));
        self.settings = *settings;
        self.settle_replayed();
        self.flush(&mut Changes::default());
        for indices in [&mut self.port_indices, &mut self.subnet_indices, &mut self.hosts.indices] {
            indices.end_replay(claims_all);
        }
        self.fresh_ports.clear();
        self.reborn_ports.clear();
    }

    /// Has done what a restored resource has put off.
    pub(crate) fn settle_replayed(&mut self) {
        while self.work_off(usize::MAX) > 0 {}
        self.dirty_ip.clear();
        self.dirty_mac.clear();
    }
}
