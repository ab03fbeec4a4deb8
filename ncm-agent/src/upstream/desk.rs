//! The thread that has everything that waits: it reads what the packet path hands up, asks, and sends on what may go on.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ncm_common::asks::Ask;
use ncm_common::tables::{Endpoint, IpKey};
use ncm_common::{Plain, marks};
use ncm_dataplane::Table;
use ncm_model::wire::host_request::ResourceStateRequest;
use ncm_model::wire::{HostRequest, HostRequestReply};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyMutGuard};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::connection::{Link, keep};
use super::holds::{Answered, Fate, Fates, Held, Holds};
use super::outstanding::Outstanding;
use super::request::{Ids, restarted};
use crate::alcor::goal_state_provisioner_client::GoalStateProvisionerClient;
use crate::config::{self, UpstreamAddress};
use crate::fault;
use crate::hand_up::socket::{Received, Socket, Wanted};
use crate::telemetry::own;

/// Frames that are read before anything else is done.
const READ_AHEAD: usize = 256;
/// Frames that are read before others go on.
const DRAINED: usize = 4_096;
/// Bytes of frames that may wait in the kernel, either way.
const WAITING: usize = 16 << 20;
/// Calls up to which each request is asked at once; with more under way, requests gather for a moment.
const FREE_CALLS: usize = 16;
/// That moment.
const GATHER: Duration = Duration::from_millis(1);
/// Most calls under way.
const MOST_CALLS: usize = 512;
/// Pause after a call that failed for upstream's sake.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the device is there, and whether anybody still wants this.
const LOOK: Duration = Duration::from_secs(1);
/// How long a frame may wait for room to be sent, in milliseconds.
const SEND_WAIT_MS: u16 = 10;
/// Largest reply, in bytes: an answer has some fifty.
const LARGEST_REPLY: usize = 4 << 20;
/// Version of the format, as senders of goal states have it.
const FORMAT_VERSION: u32 = 1;

/// What the thread is told.
pub(super) struct Setup {
    pub(super) config: config::Upstream,
    pub(super) address: UpstreamAddress,
    pub(super) source: Vec<IpAddr>,
    /// The interface that hands packets up.
    pub(super) device: String,
    /// What is known.
    pub(super) known: Table<IpKey, Endpoint>,
    pub(super) outstanding: Weak<Outstanding>,
}

/// A call that has ended: its number, the requests in it, and the reply.
type Ended = (u64, Vec<String>, Result<HostRequestReply, Status>);

pub(super) fn start(setup: Setup) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    fault::supervise_thread("ncm-upstream", "asking upstream", move || runtime.block_on(run(setup)))
}

/// The call that says that the agent has started.
const RESTARTED: u64 = 0;

async fn run(setup: Setup) {
    let Some(outstanding) = setup.outstanding.upgrade() else { return };
    let Some(mut programmed) = outstanding.take_receiver() else { return };
    let (link, mut links) = unbounded_channel();
    let (ended, mut ends) = unbounded_channel();
    tokio::spawn(keep(setup.address.clone(), setup.source.clone(), link));
    let holds = Holds::new(&setup.config, Arc::clone(&outstanding));
    let mut desk = Desk {
        setup,
        holds,
        outstanding,
        fates: Fates::new(),
        channel: None,
        calls: HashMap::new(),
        number: RESTARTED,
        last_call: None,
        paused: None,
        announced: false,
        ended,
    };
    let mut inbox = desk.open();
    let mut looked = Instant::now();
    loop {
        let wake = desk.wake(looked + LOOK);
        tokio::select! {
            biased;
            Some(entries) = programmed.recv() => {
                desk.drain(&mut inbox);
                desk.programmed(&entries, &mut programmed);
            }
            Some(link) = links.recv() => desk.linked(link),
            Some(end) = ends.recv() => desk.ended(end),
            ready = readable(&mut inbox) => {
                if !desk.read(ready) {
                    inbox = None;
                }
            }
            () = sleep_until(wake.into()) => {}
        }
        desk.holds.expire(Instant::now(), &mut desk.fates);
        desk.send(&mut inbox);
        desk.ask();
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            // Ours, and that of what is held.
            if Arc::strong_count(&desk.outstanding) == 2 {
                return;
            }
            match &inbox {
                Some(socket) => own::ASKS_SHED.add(socket.get_ref().shed()),
                None => inbox = desk.open(),
            }
        }
        desk.publish();
    }
}

/// Waits until there are frames.
async fn readable(inbox: &mut Option<AsyncFd<Socket>>) -> io::Result<AsyncFdReadyMutGuard<'_, Socket>> {
    match inbox {
        Some(socket) => socket.readable_mut().await,
        None => std::future::pending().await,
    }
}

struct Desk {
    setup: Setup,
    holds: Holds,
    outstanding: Arc<Outstanding>,
    fates: Fates,
    channel: Option<Channel>,
    /// Calls under way.
    calls: HashMap<u64, Instant>,
    number: u64,
    last_call: Option<Instant>,
    /// Nothing is asked until then.
    paused: Option<Instant>,
    /// Upstream was told that the agent has started.
    announced: bool,
    ended: UnboundedSender<Ended>,
}

impl Desk {
    /// The socket, if the device is there.
    fn open(&self) -> Option<AsyncFd<Socket>> {
        const ASKS: Wanted = Wanted { first: marks::ASK, last: marks::ASK, waiting: WAITING };
        let ifindex = nix::net::if_::if_nametoindex(self.setup.device.as_str()).ok()?;
        let opened = Socket::open(ifindex, ASKS).and_then(|socket| {
            // SAFETY: the socket owns its descriptor, and keeps it until it is dropped.
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
        });
        opened
            .inspect_err(|error| tracing::error!(%error, "packets to unknown destinations cannot be read"))
            .ok()
    }

    /// When something is to be done, whatever happens.
    fn wake(&self, latest: Instant) -> Instant {
        let gathered = self.last_call.map(|last| last + GATHER).max(self.paused);
        let gathered = gathered.filter(|_| self.channel.is_some() && self.holds.is_asking());
        [self.holds.next_deadline(), gathered].into_iter().flatten().fold(latest, Instant::min)
    }

    /// Takes the frames that wait; says whether the device is still there.
    fn read(&mut self, ready: io::Result<AsyncFdReadyMutGuard<'_, Socket>>) -> bool {
        let Ok(mut ready) = ready else { return false };
        for _ in 0..READ_AHEAD {
            match ready.get_inner_mut().receive() {
                Ok(Some(received)) => self.take(received),
                Ok(None) => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "packets to unknown destinations cannot be read");
                    return false;
                }
            }
        }
        true
    }

    /// Takes what was handed up before something became known: it waits behind what is held, and goes on with it, in order.
    fn drain(&mut self, inbox: &mut Option<AsyncFd<Socket>>) {
        let Some(socket) = inbox else { return };
        for _ in 0..DRAINED {
            // What is wrong with the device shows when it is read the next time.
            let Ok(Some(received)) = socket.get_mut().receive() else { return };
            self.take(received);
        }
    }

    fn take(&mut self, received: Received) {
        const DESCRIPTION: usize = size_of::<Ask>();
        own::ASKS.increment();
        let Received { mark, offload, mut frame } = received;
        let Some(ask) = frame.get(..DESCRIPTION).and_then(Ask::from_bytes) else { return };
        frame.drain(..DESCRIPTION);
        let Some(offload) = super::holds::behind(offload, DESCRIPTION) else { return };
        let (port, now) = (mark & ((1 << marks::PORT_BITS) - 1), Instant::now());
        let held = Held { port, offload, frame, since: now, needs: ask.needs };
        let known = &self.setup.known;
        let flags = |key: &IpKey| known.get(key).ok().flatten().map(|endpoint| endpoint.flags);
        self.holds.hold(ask, held, now, flags, &mut self.fates);
    }

    fn programmed(&mut self, entries: &[(IpKey, u16)], more: &mut UnboundedReceiver<Vec<(IpKey, u16)>>) {
        self.holds.programmed(entries, &mut self.fates);
        while let Ok(entries) = more.try_recv() {
            self.holds.programmed(&entries, &mut self.fates);
        }
    }

    fn linked(&mut self, link: Link) {
        match link {
            Link::Up(channel) => {
                tracing::info!(upstream = %self.setup.address, "upstream is connected");
                own::UPSTREAM_CONNECTIONS.increment();
                self.outstanding
                    .stands(|standing| (standing.connected, standing.problem) = (true, String::new()));
                self.channel = Some(channel);
                self.paused = None;
                self.holds.reconnected();
                if !std::mem::replace(&mut self.announced, true) {
                    let id = Ids::new().next();
                    self.call(RESTARTED, vec![restarted(&id)]);
                }
            }
            Link::Down(problem) => {
                let was = self.outstanding.standing();
                if was.connected || was.problem.is_empty() {
                    tracing::warn!(
                        "{problem}: packets to destinations that are not known wait, and are dropped in the end"
                    );
                }
                self.outstanding.stands(|standing| (standing.connected, standing.problem) = (false, problem));
                self.channel = None;
            }
        }
    }

    /// Asks for what is to be asked.
    fn ask(&mut self) {
        let now = Instant::now();
        if self.paused.is_some_and(|until| now < until) {
            return;
        }
        while self.channel.is_some() && self.holds.is_asking() && self.calls.len() < MOST_CALLS {
            let gathers = self.last_call.is_some_and(|last| now.duration_since(last) < GATHER);
            if self.calls.len() >= FREE_CALLS && gathers {
                return;
            }
            self.number += 1;
            let batch = self.holds.batch(self.setup.config.batch, self.number);
            if !batch.is_empty() {
                own::UPSTREAM_REQUESTS.add(batch.len() as u64);
                self.last_call = Some(now);
                self.call(self.number, batch);
            }
        }
    }

    fn call(&mut self, number: u64, batch: Vec<ResourceStateRequest>) {
        let Some(channel) = self.channel.clone() else { return };
        own::UPSTREAM_CALLS.increment();
        self.calls.insert(number, Instant::now());
        let ids = batch.iter().map(|request| request.request_id.clone()).collect();
        let (limit, ended) = (self.setup.config.request_timeout, self.ended.clone());
        tokio::spawn(async move {
            let request = HostRequest { format_version: FORMAT_VERSION, state_requests: batch };
            let mut client =
                GoalStateProvisionerClient::new(channel).max_decoding_message_size(LARGEST_REPLY);
            let reply = match timeout(limit, client.request_goal_states(request)).await {
                Ok(reply) => reply.map(tonic::Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded("upstream did not answer in time")),
            };
            // The thread is ending.
            drop(ended.send((number, ids, reply)));
        });
    }

    fn ended(&mut self, (number, ids, reply): Ended) {
        let now = Instant::now();
        self.calls.remove(&number);
        match reply {
            Ok(reply) if number == RESTARTED => tracing::debug!(?reply, "upstream knows of the start"),
            Ok(reply) => {
                let mut all = Answered::default();
                for answer in reply.operation_statuses {
                    let of = self.holds.answer(
                        number,
                        &answer.request_id,
                        answer.operation_status,
                        now,
                        &mut self.fates,
                    );
                    all.success += of.success;
                    all.failure += of.failure;
                    all.garbage += of.garbage;
                }
                own::UPSTREAM_SUCCESSES.add(all.success);
                own::UPSTREAM_FAILURES.add(all.failure);
                own::UPSTREAM_GARBAGE.add(all.garbage);
            }
            Err(status) => {
                own::UPSTREAM_CALLS_FAILED.increment();
                tracing::debug!(%status, requests = ids.len(), "a call to upstream has failed");
                // What may be a matter of the connection, or of the moment.
                let again = matches!(
                    status.code(),
                    Code::Unavailable | Code::Cancelled | Code::Aborted | Code::Unknown | Code::Internal
                );
                if again {
                    self.paused = Some(now + PAUSE);
                }
                if number == RESTARTED {
                    self.announced = !again;
                }
                self.holds.fail(number, &ids, again, now, &mut self.fates);
            }
        }
    }

    /// Sends what goes on, and what is to be dropped where drops are counted.
    fn send(&mut self, inbox: &mut Option<AsyncFd<Socket>>) {
        for (held, fate) in std::mem::take(&mut self.fates) {
            let why = match fate {
                Fate::Release => {
                    own::HELD_RELEASED.increment();
                    own::HELD_MICROSECONDS.add(held.since.elapsed().as_micros() as u64);
                    marks::RELEASE
                }
                Fate::End(reason) => marks::END | reason as u32,
            };
            let Some(socket) = inbox else { continue };
            if let Err(error) = send(socket.get_mut(), marks::mark(why, held.port), &held) {
                own::HELD_LOST.increment();
                tracing::debug!(%error, "a packet that was held could not be sent");
            }
        }
    }

    fn publish(&self) {
        let held = self.holds.held();
        own::UPSTREAM_OUTSTANDING.set(self.holds.requests() as u64);
        own::HELD_PACKETS.set(held.packets as u64);
        own::HELD_BYTES.set(held.bytes as u64);
        own::UPSTREAM_CONNECTED.set(u64::from(self.channel.is_some()));
        self.outstanding.stands(|standing| {
            standing.requests = self.holds.requests();
            (standing.held_packets, standing.held_bytes) = (held.packets, held.bytes);
        });
    }
}

/// Sends a frame; where there is no room it waits a moment.
fn send(socket: &mut Socket, mark: u32, held: &Held) -> io::Result<()> {
    match socket.send_with(mark, &held.offload, &held.frame) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => {
            let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            poll(&mut polled, PollTimeout::from(SEND_WAIT_MS))?;
            socket.send_with(mark, &held.offload, &held.frame)
        }
        sent => sent,
    }
}
