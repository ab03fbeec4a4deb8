//! Frees what is over in the table of flows. The packet path decides by itself, and at once, that a flow is over: here only
//! its memory comes back, some minutes later, at a pace that leaves the machine to others.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use ncm_common::tables::{Flow, FlowKey, PortFlows, ticks};
use ncm_dataplane::{Error, Position, Tables};

use super::Shared;
use super::ageing::Ageing;
use super::leftover_sets::LeftoverSets;
use super::status::monotonic_ns;
use crate::fault;
use crate::inspect::idle_ticks;
use crate::telemetry::flows::{self, Tally};
use crate::telemetry::own;

/// One slice of the table is looked at in so much time.
const SLICE_EVERY: Duration = Duration::from_secs(1);
/// Entries of a slice: a million takes two minutes, and one in two hundred of a processor.
const SLICE: usize = 8192;
/// Least time from one walk's begin to the next: even an empty table has a million buckets.
const WALK_EVERY: Duration = Duration::from_secs(15);
/// Ports whose half-open flows are counted in a slice.
const PORTS: usize = 64;
/// How long a flow has to be over before it goes, in ticks: a packet that comes between our look and its removal, some
/// milliseconds, would begin it anew. No longer, as until then it counts for its port.
const GRACE: u32 = ticks(5_000_000_000);

/// Starts the sweep; it ends when the engine does.
pub(super) fn start(shared: &Arc<Shared>, leftover: LeftoverSets) -> io::Result<()> {
    let ageing = shared.config.upstream.learned_idle.filter(|_| shared.upstream.is_some()).map(Ageing::new);
    let (tables, shared) = (shared.dataplane.tables().clone(), Arc::downgrade(shared));
    fault::supervise_thread("ncm-sweep", "the sweep of flows", move || {
        run(&tables, &shared, leftover, ageing);
    })?;
    Ok(())
}

fn run(tables: &Tables, shared: &Weak<Shared>, mut leftover: LeftoverSets, ageing: Option<Ageing>) {
    let mut sweep = Sweep { ageing, ..Sweep::default() };
    while shared.strong_count() > 0 {
        thread::sleep(SLICE_EVERY);
        let begun = Instant::now();
        if let Err(error) = sweep.step(tables, ticks(monotonic_ns())) {
            tracing::warn!(%error, "cannot free the flows that are over");
            sweep = Sweep { begun: Some(begun), ageing: sweep.ageing.take(), ..Sweep::default() };
        }
        let Some(shared) = shared.upgrade() else { return };
        if std::mem::take(&mut sweep.walked)
            && let Some(ageing) = &mut sweep.ageing
        {
            ageing.walked(&shared, ticks(monotonic_ns()));
        }
        if let Err(error) = leftover.look(&shared) {
            tracing::warn!(%error, "cannot free the entries of policy sets of an earlier run");
        }
        own::SWEEP_MICROSECONDS.add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}

/// A walk through the table.
#[derive(Default)]
struct Sweep {
    /// When it began; `None`: before the first.
    begun: Option<Instant>,
    /// Whether it is under way.
    walking: bool,
    position: Position,
    ports: HashMap<u32, Seen>,
    tally: Tally,
    /// Ports whose half-open flows are still to be counted.
    half_open: Option<Vec<u32>>,
    /// A walk has come to its end.
    walked: bool,
    /// Which entries are used, if that matters.
    ageing: Option<Ageing>,
}

/// What a walk has seen of a port's flows.
#[derive(Default, Clone, Copy)]
struct Seen {
    /// The port's generation.
    generation: u32,
    /// The port's count when the walk began.
    counted: u32,
    /// Flows that stay.
    live: u32,
    /// Flows that were removed.
    removed: u32,
}

impl Sweep {
    /// The next slice of the walk that is under way, or of the next one when it is time.
    fn step(&mut self, tables: &Tables, now: u32) -> Result<(), Error> {
        if let Some(ports) = &mut self.half_open {
            let rest = ports.split_off(ports.len().min(PORTS));
            for port in std::mem::replace(ports, rest) {
                if let Some(table) = tables.half_open.of(port)? {
                    let (tally, ageing) = (&mut self.tally, &mut self.ageing);
                    table.for_each(|_, flow| {
                        tally.count_half_open(&flow, now);
                        if let Some(ageing) = ageing {
                            ageing.saw(&flow, now);
                        }
                    })?;
                }
            }
            if ports.is_empty() {
                self.half_open = None;
                self.walked = true;
                flows::publish(&std::mem::take(&mut self.tally));
            }
            return Ok(());
        }
        if !self.walking {
            let every = self.ageing.as_ref().map_or(WALK_EVERY, Ageing::walk_every);
            if self.begun.is_some_and(|begun| begun.elapsed() < every) {
                return Ok(());
            }
            self.begin(tables)?;
        }
        if self.slice(tables, now)? {
            self.walking = false;
            self.correct(tables)?;
            own::FLOW_WALKS.increment();
            self.half_open = Some(tables.half_open.ports()?);
        }
        Ok(())
    }

    fn begin(&mut self, tables: &Tables) -> Result<(), Error> {
        (self.begun, self.walking) = (Some(Instant::now()), true);
        (self.ports, self.tally) = (HashMap::new(), Tally::default());
        tables.port_flows.for_each(|port, flows| {
            if flows.established > 0 {
                self.ports.insert(port, Seen { counted: flows.established, ..Seen::default() });
            }
        })?;
        for (port, seen) in &mut self.ports {
            seen.generation = generation(tables, *port)?;
        }
        Ok(())
    }

    /// What is seen of a port. Another port under the same index has a count of its own, that begins at zero.
    fn seen(&mut self, port: u32, generation: u32) -> &mut Seen {
        let seen = self.ports.entry(port).or_default();
        if seen.generation != generation {
            *seen = Seen { generation, ..Seen::default() };
        }
        seen
    }

    /// Whether the walk has come to its end.
    fn slice(&mut self, tables: &Tables, now: u32) -> Result<bool, Error> {
        let mut flows: Vec<(FlowKey, Flow)> = Vec::new();
        let end = tables.flows.for_some(&mut self.position, SLICE, |key, flow| flows.push((key, flow)))?;
        // Read after the flows: a flow of a port that has come meanwhile must not pass for one of a port that is gone.
        let mut generations: HashMap<u32, u32> = HashMap::new();
        let (mut over, mut gone) = (Vec::new(), Vec::new());
        for (key, flow) in &flows {
            let generation = match generations.get(&key.port) {
                Some(generation) => *generation,
                None => {
                    let generation = generation(tables, key.port)?;
                    generations.insert(key.port, generation);
                    generation
                }
            };
            if flow.port_generation != generation {
                gone.push(*key);
            } else if idle_ticks(flow, now) > flow.timeout.saturating_add(GRACE) {
                over.push(*key);
            } else {
                self.seen(key.port, generation).live += 1;
                self.tally.count(key, flow, now);
                if let Some(ageing) = &mut self.ageing {
                    ageing.saw(flow, now);
                }
            }
        }
        remove(tables, &gone);
        let mut removed: HashMap<u32, u32> = HashMap::new();
        for port in remove(tables, &over) {
            *removed.entry(port).or_default() += 1;
        }
        for (port, removed) in removed {
            let generation = generations.get(&port).copied().unwrap_or_default();
            self.seen(port, generation).removed += removed;
            lower(tables, port, removed)?;
        }
        Ok(end)
    }

    /// Puts right the counts that are wrong for certain. They rise by single additions of the packet path, and what is lost
    /// when one of them falls between our reading and writing adds up otherwise; so does what a crash leaves.
    fn correct(&self, tables: &Tables) -> Result<(), Error> {
        for (port, seen) in &self.ports {
            if seen.generation != generation(tables, *port)? {
                continue;
            }
            let now = established(tables, *port)?;
            // Whatever came meanwhile: of what was counted at the begin, all that was not removed has been seen.
            let too_many = seen.counted.saturating_sub(seen.removed).saturating_sub(seen.live);
            if too_many > 0 {
                lower(tables, *port, too_many)?;
            } else if now < seen.live {
                tables.port_flows.put(port, &PortFlows { established: seen.live, ..PortFlows::default() })?;
            }
        }
        Ok(())
    }
}

/// Removes flows; gives the port of each that is gone.
fn remove(tables: &Tables, keys: &[FlowKey]) -> Vec<u32> {
    if keys.is_empty() {
        return Vec::new();
    }
    let outcome = tables.flows.delete_batch(keys.iter().copied());
    if let Some((_, error)) = outcome.failed.first() {
        tracing::warn!(flows = outcome.failed.len(), %error, "cannot free flows that are over");
    }
    own::FLOWS_SWEPT.add(outcome.done as u64);
    let failed: Vec<usize> = outcome.failed.iter().map(|(position, _)| *position).collect();
    let gone = keys.iter().enumerate().filter(|(position, _)| !failed.contains(position));
    gone.map(|(_, key)| key.port).collect()
}

/// The port's generation; 0 if there is none.
fn generation(tables: &Tables, port: u32) -> Result<u32, Error> {
    Ok(tables.ports.get(&port)?.map_or(0, |port| port.generation))
}

fn established(tables: &Tables, port: u32) -> Result<u32, Error> {
    Ok(tables.port_flows.get(&port)?.map_or(0, |flows| flows.established))
}

fn lower(tables: &Tables, port: u32, by: u32) -> Result<(), Error> {
    let established = established(tables, port)?.saturating_sub(by);
    tables.port_flows.put(&port, &PortFlows { established, ..PortFlows::default() })
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
