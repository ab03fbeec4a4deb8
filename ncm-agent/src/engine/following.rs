//! Following what is held: each follower is told of every change that is durable, and of every change of status.
//!
//! A follower pulls: nothing is queued for it, and one that is slow is behind, until what it would have to be told next is
//! forgotten. Statuses follow from what is held and are stored nowhere. While anybody follows, and something has stirred, one look
//! is taken at what does not stand well, and followers are told of the difference to the look before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ncm_model::wire::{OperationStatus, ResourceType};
use ncm_model::{Change, Cursor, Digest, Filter, Forgotten, StateView, Told};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;

use super::{Engine, Shared};
use crate::fault;

/// How many may follow at a time.
const FOLLOWERS: usize = 32;

/// Changes that are told at once.
const PART: usize = 256;

/// After a change others are waited for so long, so that many small messages cost a follower little.
const GATHER: Duration = Duration::from_millis(10);

/// How often is looked whether something has stirred.
const LOOK: Duration = Duration::from_millis(200);

/// Looking takes at most this part of the time.
const SHARE: u32 = 20;

/// Of so many resources that do not stand well is told.
const MOST: usize = 16_384;

/// Resources that are looked at while the model is locked.
const AT_ONCE: usize = 256;

/// Type, id and variant of a resource.
type Key = (i32, Box<str>, &'static str);

/// What does not stand well, and how and why.
#[derive(Debug, Default)]
struct Look {
    /// What the model said of itself before; `None`: nobody has looked yet.
    stirred: Option<u64>,
    unsettled: BTreeMap<Key, (OperationStatus, Box<str>)>,
    cut: bool,
    took: Duration,
}

/// What followers share.
#[derive(Debug)]
pub(super) struct Following {
    history: u64,
    /// Everything up to this version is durable.
    durable: watch::Sender<u64>,
    slots: Arc<Semaphore>,
    looks: watch::Sender<Arc<Look>>,
    /// One looks at a time.
    looking: tokio::sync::Mutex<()>,
}

impl Following {
    pub(super) fn new(history: u64, version: u64) -> Self {
        Self {
            history,
            durable: watch::Sender::new(version),
            slots: Arc::new(Semaphore::new(FOLLOWERS)),
            looks: watch::Sender::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    /// Everything up to this version is durable.
    pub(super) fn tell(&self, version: u64) {
        self.durable.send_if_modified(|durable| {
            let more = version > *durable;
            *durable = version.max(*durable);
            more
        });
    }
}

/// Starts the task that looks; it ends when the engine does.
pub(super) fn start(shared: &Arc<Shared>) {
    fault::supervise("the statuses that followers are told", watch(Arc::downgrade(shared)));
}

async fn watch(shared: Weak<Shared>) {
    loop {
        let pause = {
            let Some(shared) = shared.upgrade() else { return };
            if shared.following.slots.available_permits() == FOLLOWERS {
                LOOK
            } else {
                LOOK.max(shared.look().await.took * SHARE)
            }
        };
        sleep(pause).await;
    }
}

impl Shared {
    /// The look at what there is now.
    async fn look(self: &Arc<Self>) -> Arc<Look> {
        let looking = self.following.looking.lock().await;
        let last = Arc::clone(&self.following.looks.borrow());
        let stirred = self.model().stirred();
        if last.stirred == Some(stirred) {
            return last;
        }
        let this = Arc::clone(self);
        let taken = tokio::task::spawn_blocking(move || this.take_look(stirred)).await;
        // A panic while looking is a fault as any other: the process ends with the task that looks.
        let look = Arc::new(taken.unwrap_or_else(|_| fault::end("a look at statuses")));
        self.following.looks.send_replace(Arc::clone(&look));
        drop(looking);
        look
    }

    fn take_look(&self, stirred: u64) -> Look {
        let begun = Instant::now();
        let filter = Filter { unsettled: true, ..Filter::default() };
        let mut look = Look { stirred: Some(stirred), ..Look::default() };
        let mut next = Some(Cursor::default());
        while let Some(from) = next {
            let (views, then) = self.model().list(&filter, from, AT_ONCE);
            next = then;
            for view in views {
                look.unsettled.insert(key(&view), (view.status, view.cause.into()));
            }
            if look.unsettled.len() >= MOST {
                look.cut = next.is_some();
                break;
            }
        }
        look.took = begun.elapsed();
        look
    }
}

fn key(view: &StateView) -> Key {
    (view.resource_type as i32, view.id.as_str().into(), view.variant)
}

/// From where on somebody follows, and what.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Followed {
    /// The history that the version is of.
    pub history: u64,
    /// Up to where all is known; 0: nothing is.
    pub version: u64,
    /// Only these types; empty: all.
    pub types: Vec<i32>,
    /// With the resources' states.
    pub with_state: bool,
}

/// Why somebody cannot follow, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// What came next is not known.
    #[error("{0}: begin anew, with version 0")]
    Forgotten(#[from] Forgotten),
    /// It is another history.
    #[error("version {0} is of another history than this agent's: begin anew, with version 0")]
    OtherHistory(u64),
    /// It is ahead.
    #[error(
        "version {0} is ahead of this agent's: what was told there was lost in a crash; begin anew, with version 0"
    )]
    Ahead(u64),
    /// Too many follow.
    #[error("{FOLLOWERS} follow already")]
    TooMany,
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// What a follower is told.
#[derive(Debug, Default)]
pub struct Part {
    /// Changes of what is held.
    pub changes: Vec<Change>,
    /// What stands in another way than before, or at the beginning in another than SUCCESS.
    pub statuses: Vec<StateView>,
    /// All up to this version has been told.
    pub version: u64,
    /// All that was there at the beginning has been told.
    pub synchronised: bool,
    /// There are more statuses than are told.
    pub cut: bool,
}

/// Somebody who is told of changes.
pub struct Follower {
    shared: Arc<Shared>,
    followed: Followed,
    told: Told,
    durable: watch::Receiver<u64>,
    looks: watch::Receiver<Arc<Look>>,
    /// Of which statuses it was told; `None` before the first.
    look: Option<Arc<Look>>,
    /// What was told not to stand well since the last look: that may have changed before anybody looked.
    doubtful: BTreeSet<Key>,
    /// Whose statuses are to be told.
    pending: VecDeque<Key>,
    synchronised: bool,
    _slot: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Follower").field("followed", &self.followed).finish_non_exhaustive()
    }
}

impl Engine {
    /// The name of this agent's history, and the version up to which it can be followed from.
    #[must_use]
    pub fn history(&self) -> (u64, u64) {
        let following = &self.shared.following;
        (following.history, *following.durable.borrow())
    }

    /// The digests of all that is held, with [`Engine::history`] of before.
    #[must_use]
    pub fn digests(&self) -> (Vec<Digest>, (u64, u64)) {
        let history = self.history();
        (self.with_model(ncm_model::Model::digests), history)
    }

    /// Begins to follow.
    ///
    /// # Errors
    ///
    /// It cannot be gone on from there, or too many follow.
    pub fn follow(&self, followed: Followed) -> Result<Follower, FollowError> {
        let following = &self.shared.following;
        let version = followed.version;
        if version != 0 && followed.history != following.history {
            return Err(FollowError::OtherHistory(version));
        }
        if version > *following.durable.borrow() {
            return Err(FollowError::Ahead(version));
        }
        let slot = Arc::clone(&following.slots).try_acquire_owned().map_err(|_| FollowError::TooMany)?;
        Ok(Follower {
            told: Told::up_to(version),
            durable: following.durable.subscribe(),
            looks: following.looks.subscribe(),
            look: None,
            doubtful: BTreeSet::new(),
            pending: VecDeque::new(),
            synchronised: false,
            shared: Arc::clone(&self.shared),
            followed,
            _slot: slot,
        })
    }
}

impl Follower {
    /// Waits for what comes next.
    ///
    /// # Errors
    ///
    /// It is not known any more: the follower was too slow.
    pub async fn next(&mut self) -> Result<Part, FollowError> {
        loop {
            let until = *self.durable.borrow_and_update();
            if self.told.version() < until {
                let changes = self.changes(until).await?;
                if changes.is_empty() && self.told.version() < until {
                    continue;
                }
                return Ok(Part { changes, version: self.told.version(), ..Part::default() });
            }
            if !self.pending.is_empty() || (self.look.is_some() && !self.synchronised) {
                return Ok(self.statuses());
            }
            if self.look.is_none() {
                let look = self.shared.look().await;
                self.looks.mark_unchanged();
                self.take(look);
                continue;
            }
            let changed = tokio::select! {
                changed = self.durable.changed() => {
                    sleep(GATHER).await;
                    changed
                }
                changed = self.looks.changed() => {
                    let look = Arc::clone(&self.looks.borrow_and_update());
                    self.take(look);
                    changed
                }
            };
            changed.map_err(|_| FollowError::Stopping)?;
        }
    }

    async fn changes(&mut self, until: u64) -> Result<Vec<Change>, FollowError> {
        let (shared, mut told, with_state) = (Arc::clone(&self.shared), self.told, self.followed.with_state);
        let asked = tokio::task::spawn_blocking(move || {
            let changes = shared.model().changes(&mut told, until, with_state, PART);
            (changes, told)
        });
        let (changes, told) = asked.await.map_err(|_| FollowError::Stopping)?;
        let mut changes = changes?;
        self.told = told;
        changes.retain(|change| match change {
            Change::Held(view) => self.follows(view.resource_type),
            Change::Gone { gone, .. } => self.follows(gone.resource_type),
        });
        for change in &changes {
            if let Change::Held(view) = change
                && view.status != OperationStatus::Success
                && self.doubtful.len() < MOST
            {
                self.doubtful.insert(key(view));
            }
        }
        Ok(changes)
    }

    fn follows(&self, resource: ResourceType) -> bool {
        self.followed.types.is_empty() || self.followed.types.contains(&(resource as i32))
    }

    /// Notes what stands in another way than it was told.
    fn take(&mut self, look: Arc<Look>) {
        let none = Arc::default();
        let before = self.look.as_ref().unwrap_or(&none);
        let other = look.unsettled.iter().filter(|(key, stands)| before.unsettled.get(*key) != Some(*stands));
        let doubtful = std::mem::take(&mut self.doubtful);
        let told =
            before.unsettled.keys().chain(doubtful.iter().filter(|key| !before.unsettled.contains_key(*key)));
        let well = told.filter(|key| !look.unsettled.contains_key(*key));
        let types = &self.followed.types;
        let keys =
            other.map(|(key, _)| key).chain(well).filter(|key| types.is_empty() || types.contains(&key.0));
        self.pending.extend(keys.cloned());
        self.look = Some(look);
    }

    /// The next statuses.
    fn statuses(&mut self) -> Part {
        let keys: Vec<Key> = self.pending.drain(..self.pending.len().min(PART)).collect();
        let filter = Filter { with_state: self.followed.with_state, ..Filter::default() };
        let statuses = {
            let model = self.shared.model();
            let views = keys.iter().filter_map(|(resource, id, variant)| {
                model.view_named(ResourceType::try_from(*resource).ok()?, id, variant, &filter)
            });
            views.collect()
        };
        self.synchronised |= self.pending.is_empty();
        Part {
            statuses,
            version: self.told.version(),
            synchronised: self.synchronised,
            cut: self.look.as_ref().is_some_and(|look| look.cut),
            ..Part::default()
        }
    }

    /// The history that it follows.
    #[must_use]
    pub fn history(&self) -> u64 {
        self.shared.following.history
    }
}
