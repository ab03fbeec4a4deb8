//! What has changed of late, so that who has seen one version is told of what came after it.
//!
//! Every change has a version of its own. The latest changes are kept in their order, and apart from them the latest deletions:
//! what is held and has changed since some version can be found by looking at everything, and only what has gone leaves nothing.

use std::collections::VecDeque;

use crate::model::Model;
use crate::resources::neighbour_flags;
use crate::state::{Cursor, Filter, Gone, StateView};
use crate::wire::ResourceType;

/// Changes that are kept.
const CHANGES: usize = 16_384;

/// Deletions that are kept, and the bytes of their ids.
const DELETIONS: usize = 32_768;
const DELETED_BYTES: usize = 4 << 20;

/// What is told at once at most, in bytes of states: one that is larger comes alone.
const PART: usize = 1 << 20;

/// Times that sixteen resources are listed while the model is locked.
const LOOKS: usize = 16;

/// What has changed.
#[derive(Debug)]
enum What {
    /// Its slot: there are many.
    Neighbour(u32),
    Other(ResourceType, Box<str>),
}

/// The latest changes.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    changes: VecDeque<(u64, What)>,
    /// All changes after that version are in `changes`, but for deletions.
    since: u64,
    gone: VecDeque<(u64, Gone)>,
    /// All deletions after that version are in `gone`.
    gone_since: u64,
    gone_bytes: usize,
}

impl Recent {
    pub(crate) fn neighbour(&mut self, version: u64, slot: u32) {
        self.change(version, What::Neighbour(slot));
    }

    pub(crate) fn other(&mut self, version: u64, resource: ResourceType, id: &str) {
        self.change(version, What::Other(resource, id.into()));
    }

    fn change(&mut self, version: u64, what: What) {
        if self.changes.len() == CHANGES
            && let Some((oldest, _)) = self.changes.pop_front()
        {
            self.since = oldest;
        }
        self.changes.push_back((version, what));
    }

    pub(crate) fn gone(&mut self, version: u64, gone: Gone) {
        self.gone_bytes += gone.id.len();
        self.gone.push_back((version, gone));
        while self.gone.len() > DELETIONS || self.gone_bytes > DELETED_BYTES {
            let Some((oldest, gone)) = self.gone.pop_front() else { break };
            self.gone_since = oldest;
            self.gone_bytes -= gone.id.len();
        }
    }

    /// Of what came up to a version nothing is known.
    pub(crate) fn begin(&mut self, version: u64) {
        *self = Self { since: version, gone_since: version, ..Self::default() };
    }
}

/// How far somebody has been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Everything up to this version.
    version: u64,
    /// What is held is being looked at, for what came after `version`.
    walk: Option<Walk>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Walk {
    /// When it began: what comes after is told after it.
    until: u64,
    /// Version of the last deletion that was told.
    gone: u64,
    cursor: Option<Cursor>,
}

impl Told {
    /// Told of everything up to a version; 0: of nothing.
    #[must_use]
    pub fn up_to(version: u64) -> Self {
        Self { version, walk: None }
    }

    /// Everything up to this version has been told.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What is told.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// It is held, and this is how.
    Held(StateView),
    /// It is not held any more.
    Gone {
        /// The deletion's version.
        version: u64,
        /// What has gone.
        gone: Gone,
    },
}

/// What came after a version is not known any more: who was told up to there has to begin anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what changed after version {asked} is not known any more: only from version {oldest} on")]
pub struct Forgotten {
    /// The version that was asked for.
    pub asked: u64,
    /// The oldest one that can be gone on from.
    pub oldest: u64,
}

impl Model {
    /// Rises with whatever may change how something stands.
    #[must_use]
    pub fn stirred(&self) -> u64 {
        self.stirred
    }

    /// The next changes for somebody who has been `told` so much, up to the version `until`, at most `limit`; each resource comes as
    /// it is by now, after its last change. Call again until [`Told::version`] has reached `until`.
    ///
    /// # Errors
    ///
    /// It is not known any more what came next.
    pub fn changes(
        &self,
        told: &mut Told,
        until: u64,
        with_state: bool,
        limit: usize,
    ) -> Result<Vec<Change>, Forgotten> {
        let filter = Filter { with_state, ..Filter::default() };
        if told.walk.is_none() && told.version >= until {
            return Ok(Vec::new());
        }
        // The empty model has no version, and nobody who was told of nothing misses a deletion.
        if told.version != 0 && told.version < self.recent.gone_since {
            return Err(Forgotten { asked: told.version, oldest: self.recent.gone_since });
        }
        if told.walk.is_none() && (told.version == 0 || told.version < self.recent.since) {
            let gone = if told.version == 0 { until } else { told.version };
            told.walk = Some(Walk { until, gone, cursor: Some(Cursor::default()) });
        }
        Ok(match told.walk {
            Some(walk) => self.walk_on(told, walk, &filter, limit),
            None => self.play(told, until, &filter, limit),
        })
    }

    /// Goes on looking at what is held. Deletions come first: what was made again after one is held.
    fn walk_on(&self, told: &mut Told, mut walk: Walk, filter: &Filter, limit: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        let from = self.recent.gone.partition_point(|(version, _)| *version <= walk.gone);
        let deletions = self.recent.gone.range(from..).take_while(|(version, _)| *version <= walk.until);
        for (version, gone) in deletions.take(limit) {
            walk.gone = *version;
            changes.push(Change::Gone { version: *version, gone: gone.clone() });
        }
        if changes.len() < limit
            && let Some(cursor) = walk.cursor
        {
            let filter = Filter { since: told.version, ..filter.clone() };
            let (mut bytes, mut next) = (0, Some(cursor));
            // A part ends by what it has looked at too: nobody waits for long.
            for _ in 0..LOOKS {
                let Some(from) = next.filter(|_| changes.len() < limit && bytes < PART) else { break };
                let (views, then) = self.list(&filter, from, (limit - changes.len()).min(16));
                next = then;
                bytes += views.iter().map(|view| view.state.len()).sum::<usize>();
                // What is newer than the walk comes again after it.
                changes.extend(views.into_iter().map(Change::Held));
            }
            walk.cursor = next;
        }
        told.walk = walk.cursor.map(|_| walk);
        if told.walk.is_none() {
            told.version = walk.until;
        }
        changes
    }

    /// The kept changes after a version, in their order.
    fn play(&self, told: &mut Told, until: u64, filter: &Filter, limit: usize) -> Vec<Change> {
        let recent = &self.recent;
        let from = recent.changes.partition_point(|(version, _)| *version <= told.version);
        let mut changed = recent.changes.range(from..).peekable();
        let from = recent.gone.partition_point(|(version, _)| *version <= told.version);
        let mut gone = recent.gone.range(from..).peekable();
        let (mut changes, mut looked, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let next =
                [changed.peek().map(|(version, _)| *version), gone.peek().map(|(version, _)| *version)];
            let Some(version) = next.into_iter().flatten().min().filter(|version| *version <= until) else {
                told.version = until;
                return changes;
            };
            // A part ends by what it has looked at too: nobody waits for long.
            if changes.len() >= limit || looked >= limit.saturating_mul(16) || bytes >= PART {
                return changes;
            }
            looked += 1;
            told.version = version;
            if next[0] == Some(version) {
                let Some((_, what)) = changed.next() else { continue };
                if let Some(view) = self.changed_view(version, what, filter) {
                    bytes += view.state.len();
                    changes.push(Change::Held(view));
                }
            } else if let Some((_, what)) = gone.next() {
                changes.push(Change::Gone { version, gone: what.clone() });
            }
        }
    }

    /// The resource that a change was of, if it was its last one.
    fn changed_view(&self, version: u64, what: &What, filter: &Filter) -> Option<StateView> {
        match what {
            What::Neighbour(slot) => {
                let neighbour = self.neighbours.get(*slot)?;
                (neighbour.flags & neighbour_flags::HELD != 0 && neighbour.version() == version)
                    .then_some(())?;
                self.view(ResourceType::Neighbor, *slot, filter)
            }
            What::Other(resource, id) => {
                self.view_named(*resource, id, "", filter).filter(|view| view.version == version)
            }
        }
    }
}
