//! What upstream is being asked for, as others see it: the writer tells when it is in the tables, and pushes of it are known to have
//! been asked for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ncm_common::tables::{Endpoint, IpKey};
use ncm_model::Put;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Entries that are in the tables now, with their `endpoint_flags`.
pub(super) type Programmed = Vec<(IpKey, u16)>;

/// What upstream is being asked for.
#[derive(Debug)]
pub struct Outstanding {
    /// How many targets there are: who writes a million entries looks no further while there are none.
    count: AtomicUsize,
    /// How many requests there are for each.
    targets: Mutex<HashMap<IpKey, u32>>,
    programmed: UnboundedSender<Programmed>,
    /// For whoever serves the requests.
    receiver: Mutex<Option<UnboundedReceiver<Programmed>>>,
    standing: Mutex<Standing>,
}

/// How things stand with upstream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// It is connected.
    pub connected: bool,
    /// Why not, if it is not.
    pub problem: String,
    /// Requests that are not answered.
    pub requests: usize,
    /// Packets that are held.
    pub held_packets: usize,
    /// Their bytes.
    pub held_bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves it as good as it was.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Outstanding {
    fn default() -> Self {
        let (programmed, receiver) = unbounded_channel();
        Self {
            count: AtomicUsize::new(0),
            targets: Mutex::default(),
            programmed,
            receiver: Mutex::new(Some(receiver)),
            standing: Mutex::default(),
        }
    }
}

impl Outstanding {
    /// Nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Says that entries were written. To be called when they are in the tables: whoever begins to ask for one is told, or finds it
    /// there.
    pub fn written(&self, entries: &[Put<IpKey, Endpoint>]) {
        if self.is_empty() || entries.is_empty() {
            return;
        }
        let targets = lock(&self.targets);
        let reached = entries.iter().filter(|put| targets.contains_key(&put.key));
        let reached: Programmed = reached.map(|put| (put.key, put.value.flags)).collect();
        drop(targets);
        if !reached.is_empty() {
            // Nobody serves requests while the agent stops.
            drop(self.programmed.send(reached));
        }
    }

    /// Everything that is being asked for: VNI and address.
    #[must_use]
    pub fn targets(&self) -> Vec<IpKey> {
        if self.is_empty() { Vec::new() } else { lock(&self.targets).keys().copied().collect() }
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self) -> Standing {
        lock(&self.standing).clone()
    }

    /// Notes how things stand.
    pub(super) fn stands(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut lock(&self.standing));
    }

    /// Where the writer's word comes in; once.
    pub(super) fn take_receiver(&self) -> Option<UnboundedReceiver<Programmed>> {
        lock(&self.receiver).take()
    }

    /// One more request for a target.
    pub(super) fn add(&self, target: IpKey) {
        let mut targets = lock(&self.targets);
        *targets.entry(target).or_default() += 1;
        self.count.store(targets.len(), Ordering::SeqCst);
    }

    /// One request less.
    pub(super) fn remove(&self, target: IpKey) {
        let mut targets = lock(&self.targets);
        if let Some(requests) = targets.get_mut(&target) {
            *requests -= 1;
            if *requests == 0 {
                targets.remove(&target);
            }
        }
        self.count.store(targets.len(), Ordering::SeqCst);
    }
}
