//! The model of what should be on this host.

use crate::compile::{Changes, Handle};
use crate::goalstate::Message;
use crate::run::Run;
use crate::settings::{Seed, Settings};
use crate::state::{Cursor, Difference, Filter, InterfaceFacts, Progress, Row, StateCount, StateView};

/// The model of what should be on this host.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
}

impl Model {
    /// An empty model that gives known identities the indices they had.
    #[must_use]
    pub fn new(settings: Settings, _seed: &Seed) -> Self {
        Self { settings }
    }

    /// What the model was told at start.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Applies up to about `max` states and adds to `changes` what they change. Until it says [`Progress::Done`], call it
    /// again; other runs may take steps in between.
    pub fn step(&mut self, _run: &mut Run, _max: usize, _changes: &mut Changes) -> Progress {
        Progress::Done
    }

    /// The outcomes of a run that is done: those other than SUCCESS first, then those of few kinds, then neighbours'.
    pub fn rows<'a>(&'a self, _run: &'a Run) -> impl Iterator<Item = Row<'a>> + 'a {
        std::iter::empty()
    }

    /// How many states the message holds that apply to this node: the number of rows.
    #[must_use]
    pub fn row_count(&self, _run: &Run) -> usize {
        0
    }

    /// Tells that an interface has appeared or changed (and its programs are attached), or has gone.
    pub fn set_interface(&mut self, _name: &str, _facts: Option<InterfaceFacts>, _changes: &mut Changes) {}

    /// Tells that a port's interface is there but its program could not be attached.
    pub fn attach_failed(&mut self, _name: &str, _cause: &str, _changes: &mut Changes) {}

    /// A port names that interface.
    #[must_use]
    pub fn wanted_interface(&self, _name: &str) -> bool {
        false
    }

    /// Tells that the kernel refused an entry of `table`: the resource it comes from is FAILURE until a retry succeeds.
    pub fn write_failed(&mut self, _handle: Handle, _table: &'static str, _cause: &str) {}

    /// How many resources wait for a retry because the kernel refused an entry of theirs.
    #[must_use]
    pub fn failed(&self) -> usize {
        0
    }

    /// Emits the entries of up to `max` failed resources again; their failure is forgotten until the kernel refuses anew.
    pub fn retry(&mut self, _max: usize, _changes: &mut Changes) -> usize {
        0
    }

    /// Held resources, up to `limit` a call: go on with the returned cursor until there is none.
    #[must_use]
    pub fn list(&self, _filter: &Filter, _from: Cursor, _limit: usize) -> (Vec<StateView>, Option<Cursor>) {
        (Vec::new(), None)
    }

    /// How many resources are held, by type and status (a walk over all of them).
    #[must_use]
    pub fn counts(&self) -> Vec<StateCount> {
        Vec::new()
    }

    /// What a message would change, without changing anything: up to `limit` differences.
    #[must_use]
    pub fn preview(&self, _message: &Message, _limit: usize) -> Vec<Difference> {
        Vec::new()
    }
}
