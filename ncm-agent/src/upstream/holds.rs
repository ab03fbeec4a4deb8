//! What is held and what is asked for: nothing here knows of sockets or threads, and time comes from outside.
//!
//! There is one request for each destination of a VNI, whoever sends there. It is queued, asked, and answered: with FAILURE, or with
//! SUCCESS, after which what it is for has some time left to appear. Whenever that is in the tables, what is held goes on, in order.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ncm_common::asks::Ask;
use ncm_common::drops::DropReason;
use ncm_common::tables::{IpKey, endpoint_flags};
use ncm_model::wire::OperationStatus;
use ncm_model::wire::host_request::ResourceStateRequest;

use super::outstanding::Outstanding;
use super::refusals::Refusals;
use super::request::{Ids, request};
use super::room::{Amount, Room};
use crate::config;
use crate::hand_up::socket::Offload;

/// Most requests that are not answered: those without packets that wait are kept until they are, too.
const MOST_REQUESTS: usize = 1 << 16;

/// What one request is for: the VNI of who sends, and the destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) vni: u32,
    pub(super) target: [u8; 16],
}

/// A packet that is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) port: u32,
    /// What the kernel has still to do with it.
    pub(super) offload: Offload,
    pub(super) frame: Vec<u8>,
    /// When it came.
    pub(super) since: Instant,
    /// `endpoint_flags` of which its target has to have one.
    pub(super) needs: u16,
}

impl Held {
    fn is_served_by(&self, flags: u16) -> bool {
        self.needs == 0 || flags & (self.needs | endpoint_flags::LOCAL) != 0
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It goes on.
    Release,
    /// It is dropped.
    End(DropReason),
}

/// Packets, and what becomes of them.
pub(super) type Fates = Vec<(Held, Fate)>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Queued,
    /// By the call of that number.
    Asked(u64),
    /// Upstream says that it can be reached.
    Promised,
}

#[derive(Debug)]
struct Request {
    id: String,
    ask: Ask,
    target: IpKey,
    /// The port that it was begun for.
    port: u32,
    state: State,
    deadline: Instant,
    held: VecDeque<Held>,
}

/// What an answer was good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Answered {
    pub(super) success: u64,
    pub(super) failure: u64,
    /// For nothing: of no request of that call, given twice, or no status that the contract has for it.
    pub(super) garbage: u64,
}

/// Everything that waits.
#[derive(Debug)]
pub(super) struct Holds {
    request_timeout: Duration,
    settle: Duration,
    requests: HashMap<Key, Request>,
    by_target: HashMap<IpKey, Vec<Key>>,
    by_id: HashMap<String, Key>,
    deadlines: BTreeSet<(Instant, Key)>,
    /// Requests that are to be asked, by port; ports take turns. Some may be gone.
    queued: HashMap<u32, VecDeque<Key>>,
    turns: VecDeque<u32>,
    room: Room,
    refusals: Refusals,
    ids: Ids,
    outstanding: Arc<Outstanding>,
}

impl Holds {
    pub(super) fn new(config: &config::Upstream, outstanding: Arc<Outstanding>) -> Self {
        Self {
            request_timeout: config.request_timeout,
            settle: config.settle,
            requests: HashMap::new(),
            by_target: HashMap::new(),
            by_id: HashMap::new(),
            deadlines: BTreeSet::new(),
            queued: HashMap::new(),
            turns: VecDeque::new(),
            room: Room::new(config),
            refusals: Refusals::new(config.retry_after),
            ids: Ids::new(),
            outstanding,
        }
    }

    /// A packet to what is not known. `known` gives the flags of the target's entry, if it is in the tables by now.
    pub(super) fn hold(
        &mut self,
        ask: Ask,
        held: Held,
        now: Instant,
        known: impl Fn(&IpKey) -> Option<u16>,
        fates: &mut Fates,
    ) {
        let key = Key { vni: ask.vni, target: ask.target };
        let target = IpKey { vni: ask.target_vni, ip: ask.target };
        let waiting = self.requests.get(&key).is_some_and(|request| !request.held.is_empty());
        if waiting {
            return self.join(key, held, fates);
        }
        let is_known = || known(&target).is_some_and(|flags| held.is_served_by(flags));
        if let Some(reason) = self.refusals.get(key, now) {
            let fate = if is_known() { Fate::Release } else { Fate::End(reason) };
            return fates.push((held, fate));
        }
        // In this order: either the writer sees that it is asked for, or the entry is there.
        let is_new = !self.requests.contains_key(&key);
        if is_new && self.requests.len() == MOST_REQUESTS {
            return fates.push((held, Fate::End(DropReason::AskFull)));
        }
        if is_new {
            self.outstanding.add(target);
        }
        if is_known() {
            if is_new {
                self.outstanding.remove(target);
            }
            return fates.push((held, Fate::Release));
        }
        if is_new {
            self.begin(key, ask, target, &held, now);
        }
        self.join(key, held, fates);
    }

    /// One more packet for a request that there is.
    fn join(&mut self, key: Key, held: Held, fates: &mut Fates) {
        if !self.room.take(held.port, held.frame.len()) {
            fates.push((held, Fate::End(DropReason::AskFull)));
            // A request that nobody waits for is not asked.
            if self.requests.get(&key).is_some_and(|of| of.held.is_empty() && of.state == State::Queued) {
                self.remove(key);
            }
        } else if let Some(request) = self.requests.get_mut(&key) {
            request.held.push_back(held);
        }
    }

    fn begin(&mut self, key: Key, ask: Ask, target: IpKey, held: &Held, now: Instant) {
        let id = self.ids.next();
        let deadline = now + self.request_timeout;
        self.by_id.insert(id.clone(), key);
        self.by_target.entry(target).or_default().push(key);
        self.deadlines.insert((deadline, key));
        let port = held.port;
        let request =
            Request { id, ask, target, port, state: State::Queued, deadline, held: VecDeque::new() };
        self.requests.insert(key, request);
        self.queue(port, key);
    }

    fn queue(&mut self, port: u32, key: Key) {
        let queued = self.queued.entry(port).or_default();
        if queued.is_empty() {
            self.turns.push_back(port);
        }
        queued.push_back(key);
    }

    /// Ends a request; gives what was held for it.
    fn remove(&mut self, key: Key) -> VecDeque<Held> {
        let Some(request) = self.requests.remove(&key) else { return VecDeque::new() };
        self.by_id.remove(&request.id);
        if let Some(keys) = self.by_target.get_mut(&request.target) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_target.remove(&request.target);
            }
        }
        self.deadlines.remove(&(request.deadline, key));
        self.outstanding.remove(request.target);
        for held in &request.held {
            self.room.give_back(held.port, held.frame.len());
        }
        request.held
    }

    /// Whether something is to be asked.
    pub(super) fn is_asking(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The next requests to ask, of each port in turn, as of the call of that number.
    pub(super) fn batch(&mut self, most: usize, call: u64) -> Vec<ResourceStateRequest> {
        let mut batch = Vec::new();
        while batch.len() < most
            && let Some(port) = self.turns.pop_front()
        {
            let Some(queued) = self.queued.get_mut(&port) else { continue };
            let key = queued.pop_front();
            if queued.is_empty() {
                self.queued.remove(&port);
            } else {
                self.turns.push_back(port);
            }
            if let Some(request) = key.and_then(|key| self.requests.get_mut(&key))
                && request.state == State::Queued
            {
                request.state = State::Asked(call);
                batch.push(self::request(&request.ask, &request.id));
            }
        }
        batch
    }

    /// Upstream has answered a request of that call.
    pub(super) fn answer(
        &mut self,
        call: u64,
        id: &str,
        status: i32,
        now: Instant,
        fates: &mut Fates,
    ) -> Answered {
        const GARBAGE: Answered = Answered { success: 0, failure: 0, garbage: 1 };
        let Some(key) = self.by_id.get(id).copied() else { return GARBAGE };
        let Some(request) = self.requests.get_mut(&key).filter(|of| of.state == State::Asked(call)) else {
            return GARBAGE;
        };
        match OperationStatus::try_from(status) {
            Ok(OperationStatus::Success) => {
                if request.held.is_empty() {
                    self.remove(key);
                } else {
                    request.state = State::Promised;
                    self.deadlines.remove(&(request.deadline, key));
                    request.deadline = now + self.settle;
                    self.deadlines.insert((request.deadline, key));
                }
                Answered { success: 1, ..Answered::default() }
            }
            Ok(OperationStatus::Failure) => {
                self.give_up(key, DropReason::AskRefused, now, fates);
                Answered { failure: 1, ..Answered::default() }
            }
            _ => GARBAGE,
        }
    }

    /// A call has ended without an answer. With `again` its requests are asked once more, while there is time; else that was it.
    pub(super) fn fail(&mut self, call: u64, ids: &[String], again: bool, now: Instant, fates: &mut Fates) {
        for id in ids {
            let Some(key) = self.by_id.get(id).copied() else { continue };
            let Some(request) = self.requests.get_mut(&key) else { continue };
            if request.state != State::Asked(call) {
                continue;
            }
            if request.held.is_empty() {
                self.remove(key);
            } else if again {
                request.state = State::Queued;
                let port = request.port;
                self.queue(port, key);
            } else {
                self.give_up(key, DropReason::AskUnanswered, now, fates);
            }
        }
    }

    /// Entries are in the tables: what waits for them goes on.
    pub(super) fn programmed(&mut self, entries: &[(IpKey, u16)], fates: &mut Fates) {
        for (target, flags) in entries {
            for key in self.by_target.get(target).cloned().unwrap_or_default() {
                let Some(request) = self.requests.get_mut(&key) else { continue };
                let mut left = VecDeque::new();
                for held in std::mem::take(&mut request.held) {
                    if held.is_served_by(*flags) {
                        self.room.give_back(held.port, held.frame.len());
                        fates.push((held, Fate::Release));
                    } else {
                        left.push_back(held);
                    }
                }
                request.held = left;
                // One that is being asked is kept until it is answered: what is pushed until then was asked for.
                if request.held.is_empty() && !matches!(request.state, State::Asked(_)) {
                    self.remove(key);
                }
            }
        }
    }

    /// Drops what has waited too long.
    pub(super) fn expire(&mut self, now: Instant, fates: &mut Fates) {
        while let Some((deadline, key)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.give_up(key, DropReason::AskUnanswered, now, fates);
        }
    }

    fn give_up(&mut self, key: Key, reason: DropReason, now: Instant, fates: &mut Fates) {
        let held = self.remove(key);
        if !held.is_empty() {
            self.refusals.note(key, reason, now);
        }
        fates.extend(held.into_iter().map(|held| (held, Fate::End(reason))));
    }

    /// Upstream can be reached again: what it did not answer for may be asked for anew.
    pub(super) fn reconnected(&mut self) {
        self.refusals.forget_unanswered();
    }

    /// When the next request is to be given up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many requests there are.
    pub(super) fn requests(&self) -> usize {
        self.requests.len()
    }

    /// What is held.
    pub(super) fn held(&self) -> Amount {
        self.room.held()
    }

    #[cfg(test)]
    pub(super) fn refuse(&mut self, key: Key, now: Instant) {
        self.refusals.note(key, DropReason::AskRefused, now);
    }

    #[cfg(test)]
    pub(super) fn refused(&self) -> usize {
        self.refusals.len()
    }
}

/// What the kernel has still to do with a frame when so many bytes before it are gone. `None` if it would be something with them.
pub(super) fn behind(mut offload: Offload, bytes: usize) -> Option<Offload> {
    /// Where `struct virtio_net_hdr` has the length of the headers, and where a checksum begins.
    const PLACES: [usize; 2] = [2, 6];
    for at in PLACES {
        let place = u16::from_le_bytes([offload[at], offload[at + 1]]);
        if place != 0 {
            let moved = usize::from(place).checked_sub(bytes)?;
            [offload[at], offload[at + 1]] = u16::try_from(moved).ok()?.to_le_bytes();
        }
    }
    Some(offload)
}
