//! Entries that came on demand and are not used leave again, where the configuration says so: what a guest speaks with once is
//! asked for once more when it is spoken with again.
//!
//! Used is what has a flow with a packet in that time. The sweep sees all flows; each tells by its slot of the other side's epochs
//! whom it is with. Another address may have the same slot: then an entry stays longer than it had to. What leaves does so by a
//! message of the node's own, which goes the way of all messages, the journal included.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ncm_common::tables::{EPOCH_SLOTS, Flow, flow_state, ticks};
use ncm_model::wire::NeighborRulesRequest;
use ncm_model::{Kind, Learned, Origin};
use prost::Message as _;
use tokio::runtime::Handle;

use super::Shared;
use crate::inspect::idle_ticks;
use crate::telemetry::own;

/// Neighbours that are looked at while the model is locked.
const LOOKED_AT: u32 = 4_096;
/// Neighbours that leave by one message.
const AT_ONCE: usize = 1_024;
/// Longest and shortest time between two walks through the flows.
const WALK_EVERY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// Id and type of a neighbour.
type Name = (String, i32);

/// What is known of the use of entries.
pub(super) struct Ageing {
    idle: Duration,
    runtime: Handle,
    /// When a slot's flows last had a packet, in ticks; 0: never seen.
    used: Vec<u32>,
    /// Entries that were not used when it was looked last. A flow may have begun where that walk had passed already.
    suspects: HashSet<Name>,
}

impl Ageing {
    /// Entries leave after that time without use. Needs a tokio runtime.
    pub(super) fn new(idle: Duration) -> Self {
        Self {
            idle,
            runtime: Handle::current(),
            used: vec![0; EPOCH_SLOTS as usize],
            suspects: HashSet::new(),
        }
    }

    /// How often flows are to be looked through.
    pub(super) fn walk_every(&self) -> Duration {
        (self.idle / 4).clamp(WALK_EVERY[0], WALK_EVERY[1])
    }

    /// There is such a flow.
    pub(super) fn saw(&mut self, flow: &Flow, now: u32) {
        let last = now.wrapping_sub(idle_ticks(flow, now)).max(1);
        if let Some(used) = self.used.get_mut(flow.remote_slot as usize)
            && flow.state & flow_state::DENIED == 0
        {
            *used = last.max(*used);
        }
    }

    /// All flows were looked through: takes away what was not used now and when it was looked before.
    pub(super) fn walked(&mut self, shared: &Arc<Shared>, now: u32) {
        let unused = self.unused(shared, now);
        let before = std::mem::take(&mut self.suspects);
        let (go, stay): (Vec<_>, Vec<_>) = unused.into_iter().partition(|(name, _)| before.contains(name));
        self.suspects = stay.into_iter().map(|(name, _)| name).collect();
        let mut states: Vec<_> = go.into_iter().map(|(_, learned)| learned.delete).collect();
        while !states.is_empty() {
            let rest = states.split_off(states.len().min(AT_ONCE));
            let leaving = std::mem::replace(&mut states, rest);
            let count = leaving.len();
            let message = NeighborRulesRequest { neigborstates: leaving, ..NeighborRulesRequest::default() };
            match self.apply(shared, &message) {
                Ok(()) => {
                    own::LEARNED_LEFT.add(count as u64);
                    tracing::debug!(
                        neighbours = count,
                        "neighbours that came on demand left, as they were not used"
                    );
                }
                Err(error) => tracing::warn!(%error, "neighbours that came on demand and are not used stay"),
            }
        }
    }

    /// Entries that came on demand a while ago and are not used.
    fn unused(&self, shared: &Arc<Shared>, now: u32) -> HashMap<Name, Learned> {
        let idle = ticks(u64::try_from(self.idle.as_nanos()).unwrap_or(u64::MAX));
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let is_used = |slot: &u32| {
            let last = self.used.get(*slot as usize).copied().unwrap_or_default();
            last != 0 && now.wrapping_sub(last) <= idle
        };
        let (mut unused, mut at, mut learned) = (HashMap::new(), 0, 0);
        loop {
            let Some(part) = shared.model().learned(&mut at, LOOKED_AT) else { break };
            learned += part.len();
            for one in part {
                let is_new = clock.saturating_sub(one.time) <= self.idle.as_secs();
                if is_new || one.slots.iter().any(is_used) {
                    continue;
                }
                let configuration = one.delete.configuration.as_ref();
                let l3 = configuration.and_then(|of| of.fixed_ips.first()).map_or(0, |ip| ip.neighbor_type);
                let id = configuration.map(|of| of.id.clone()).unwrap_or_default();
                unused.insert((id, l3), one);
            }
        }
        own::LEARNED.set(learned as u64);
        unused
    }

    fn apply(&self, shared: &Arc<Shared>, message: &NeighborRulesRequest) -> anyhow::Result<()> {
        let turn = self.runtime.block_on(Arc::clone(&shared.turns).acquire_owned())?;
        let bytes = message.encode_to_vec().into();
        let programmed = shared.apply(&self.runtime, bytes, Kind::Rules, Origin::OnDemand, |_| ())?;
        drop(turn);
        Ok(self.runtime.block_on(programmed.kept(shared))?)
    }
}
