//! One set of tables takes the place of another: of another layout, or of other sizes.
//!
//! | stage | what is there | whoever starts after a crash |
//! |---|---|---|
//! | filling | the new set is filled; the old programs run on the old one | removes the new set, and begins again |
//! | swapping | programs are exchanged hook by hook; flows are in the old tables for all of them | the same: all flows are in the old set |
//! | in use | all hooks use the new set; flows that are not there yet are brought from the old one | carries the rest over, then goes on from the new set |
//! | done | programs that know the new tables alone; the old set is gone | |
//!
//! One word is the difference between *swapping* and *in use*, for programs and for who starts: [`phases`].

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use ncm_common::conversion::phases;
use ncm_common::tables::TableKind;

use crate::carry::{self, KnownSet};
use crate::load::Takeover;
use crate::pin::{PinPaths, Set, path_error};
use crate::sys::{self, NewMap};
use crate::tables::{Capacities, Tables};
use crate::{Error, raw, shapes};

/// Longer than any program runs: what one of the programs before has written is there by then.
const SETTLED: Duration = Duration::from_millis(50);

/// How far one set has taken the place of another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// The new set is filled. Nobody uses it.
    Filled,
    /// All hooks have the new programs, and flows are in the old tables.
    Swapped,
    /// Flows are in the new tables, or are brought there by their next packet.
    InUse,
    /// All flows are in the new tables.
    Carried,
    /// There is nothing left of the old set.
    Done,
}

/// A set that is to take the place of another.
#[derive(Debug)]
pub(crate) struct Transition {
    pub(crate) from: KnownSet,
    pub(crate) to: KnownSet,
    pub(crate) stage: Stage,
    phase: OwnedFd,
    /// Whether programs have to carry flows over.
    pub(crate) has_flows: bool,
}

impl Transition {
    /// Begins: makes the new set's directories, and pins in them what both sets have alike.
    pub(crate) fn begin(from: KnownSet, paths: &PinPaths, capacities: &Capacities) -> Result<Self, Error> {
        let set = paths.new_set()?;
        set.create()?;
        let phase = keep_phase(&set, phases::FILLING)?;
        let has_flows = from.share(&set, capacities)?;
        let to = KnownSet::own(set);
        shapes::keep(&to.shapes, &to.set.fields())?;
        Ok(Self { from, to, stage: Stage::Filled, phase, has_flows })
    }

    /// How programs are to take over the flows, if they have to.
    pub(crate) fn takeover(&self, instance: &str) -> Result<Option<Takeover>, Error> {
        if !self.has_flows {
            return Ok(None);
        }
        let conversion = carry::conversion(&self.from).ok_or_else(|| Error::OtherLayout {
            instance: instance.to_owned(),
            found: self.from.set.layout,
            reason: "their flows lack what flows have here".to_owned(),
        })?;
        Ok(Some(Takeover { old: self.from.set.maps(), phase: self.to.set.phase(), conversion }))
    }

    /// Fills the new tables from the old ones.
    pub(crate) fn fill(&self, tables: &Tables) -> Result<(), Error> {
        self.from.expect_room(tables)?;
        self.from.fill(&self.to)?;
        self.from.share_half_open(tables)
    }

    /// Says how far the new set has come: to programs, and to who starts next.
    pub(crate) fn say(&self, phase: u32) -> Result<(), Error> {
        let path = self.to.set.phase();
        sys::update(self.phase.as_fd(), &[0; 4], &phase.to_ne_bytes()).map_err(path_error("write", &path))
    }

    /// Carries over what programs have not; how many flows there were.
    pub(crate) fn carry(&self) -> Result<u64, Error> {
        if !self.has_flows {
            return Ok(0);
        }
        thread::sleep(SETTLED);
        self.from.flows(&self.to)
    }
}

/// Makes the word that says how far a set has come.
fn keep_phase(set: &Set, phase: u32) -> Result<OwnedFd, Error> {
    let path = set.phase();
    let failed = path_error("pin a word at", &path);
    let map = sys::create_map(&NewMap {
        kind: raw::map_type(TableKind::Array),
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        inner: None,
    })
    .map_err(&failed)?;
    sys::update(map.as_fd(), &[0; 4], &phase.to_ne_bytes()).map_err(&failed)?;
    sys::pin(map.as_fd(), &path).map_err(&failed)?;
    Ok(map)
}

/// The set by which packets are forwarded, after what earlier runs have left half done is finished or taken back; a new one if there
/// is none. And whether it is new.
pub(crate) fn current(paths: &PinPaths, instance: &str) -> Result<(KnownSet, bool), Error> {
    let sets = paths.sets()?;
    let Some(current) = paths.current()? else {
        // What was begun here was never used.
        for set in sets {
            set.remove()?;
        }
        let set = paths.new_set()?;
        set.create()?;
        let known = KnownSet::own(set);
        shapes::keep(&known.shapes, &known.set.fields())?;
        return Ok((known, true));
    };
    let known = KnownSet::open(current, instance)?;
    for other in sets.into_iter().filter(|set| *set != known.set) {
        if other.is_in_use()? {
            let old = KnownSet::open(other, instance)?;
            thread::sleep(SETTLED);
            let flows = old.flows(&known)?;
            tracing::info!(flows, "finished what an earlier run had begun: its tables are in use");
            move_links(&old.set, &known.set)?;
            old.set.remove()?;
        } else {
            tracing::info!("took back what an earlier run had begun: its tables were not in use yet");
            move_links(&other, &known.set)?;
            other.remove()?;
        }
    }
    if known.set.layout == ncm_common::tables::LAYOUT_VERSION && !known.set.fields().exists() {
        shapes::keep(&known.shapes, &known.set.fields())?;
    }
    Ok((known, false))
}

/// Takes back what was begun and is not in use: after an error.
pub(crate) fn take_back(paths: &PinPaths) {
    for set in paths.sets().unwrap_or_default() {
        if matches!(set.is_in_use(), Ok(false))
            && let Err(error) = set.remove()
        {
            tracing::warn!(%error, "cannot remove the tables that were begun");
        }
    }
}

/// Where a test may have this process pause, or killed.
#[cfg(feature = "layout-test")]
pub(crate) fn reached(place: &str) {
    if let Some(pause) = std::env::var("NCM_PAUSE_MS").ok().and_then(|text| text.parse().ok()) {
        thread::sleep(Duration::from_millis(pause));
    }
    if std::env::var("NCM_KILLED_AT").is_ok_and(|at| at == place) {
        let _never = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Only tests have anything here.
#[cfg(not(feature = "layout-test"))]
pub(crate) const fn reached(_: &str) {}

/// Moves pinned links from one set to another.
fn move_links(from: &Set, to: &Set) -> Result<(), Error> {
    for name in crate::pin::names(&from.links())? {
        let (old, new) = (from.links().join(&name), to.links().join(&name));
        if new.exists() {
            // Of an interface that had the same index; the newer one counts.
            std::fs::remove_file(&new).map_err(path_error("remove", &new))?;
        }
        std::fs::rename(&old, &new).map_err(path_error("move a link's pin to", &new))?;
    }
    Ok(())
}
