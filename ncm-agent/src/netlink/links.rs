//! The stream of what happens to the host's interfaces. After an overrun it asks for all of them and reports the
//! difference, so that nothing is ever missed.

use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::generic::XdpFeatures;
use super::link::{self, Link, LinkMessage, LinkTable};
use super::socket::{EventSocket, RequestSocket};
use super::{NetlinkError, RECEIVE_BUFFER};
use crate::fault;

/// Events that wait for whoever reads them, before the socket's own buffer fills.
const WAITING_EVENTS: usize = 1024;
/// Pause before sockets that failed are opened anew.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// What happened to an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// It is there: just created, renamed to this name, or found at start.
    Appeared(Link),
    /// Something about it is different: it is as told here now.
    Changed(Link),
    /// It is gone, or goes by another name now; this is how it last was.
    Gone(Link),
    /// All interfaces that there are have been told of.
    Synchronised,
}

/// The stream of events of the interfaces of one network namespace.
pub struct Links {
    events: mpsc::Receiver<LinkEvent>,
    task: JoinHandle<()>,
}

impl Links {
    /// Starts following the interfaces in the calling thread's network namespace: first every interface appears, then
    /// comes [`LinkEvent::Synchronised`], then what happens.
    ///
    /// # Errors
    /// Fails if no sockets can be had or the kernel does not list the interfaces.
    pub async fn open() -> Result<Self, NetlinkError> {
        Self::with_buffer(RECEIVE_BUFFER).await
    }

    /// Like [`Links::open`], with another size of the sockets' receive buffers in bytes.
    ///
    /// # Errors
    /// As [`Links::open`].
    pub async fn with_buffer(receive_buffer: usize) -> Result<Self, NetlinkError> {
        let mut follower = Follower::open(receive_buffer).await?;
        let mut first = Vec::new();
        follower.synchronise(&mut first).await?;
        first.push(LinkEvent::Synchronised);
        let (sender, events) = mpsc::channel(WAITING_EVENTS);
        let task = fault::supervise("following the host's interfaces", async move {
            if send(&sender, &mut first).await {
                follower.run(&sender, receive_buffer).await;
            }
        });
        Ok(Self { events, task })
    }

    /// The next event. Dropping the future loses nothing. `None` only if the runtime is shutting down.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends all events; false when nobody listens any more.
async fn send(sender: &mpsc::Sender<LinkEvent>, events: &mut Vec<LinkEvent>) -> bool {
    for event in events.drain(..) {
        if sender.send(event).await.is_err() {
            return false;
        }
    }
    true
}

struct Follower {
    requests: RequestSocket,
    events: EventSocket,
    features: XdpFeatures,
    table: LinkTable,
}

impl Follower {
    async fn open(receive_buffer: usize) -> Result<Self, NetlinkError> {
        Ok(Self {
            requests: RequestSocket::open(NETLINK_ROUTE)?,
            events: EventSocket::open(NETLINK_ROUTE, &[link::GROUP_LINK], receive_buffer)?,
            features: XdpFeatures::open(receive_buffer).await?,
            table: LinkTable::default(),
        })
    }

    async fn run(&mut self, sender: &mpsc::Sender<LinkEvent>, receive_buffer: usize) {
        let mut events = Vec::new();
        loop {
            let mut outcome = self.step(&mut events).await;
            if matches!(outcome, Err(NetlinkError::Overrun)) {
                tracing::warn!("notifications of interfaces were lost: asking for all of them");
                outcome = self.synchronise(&mut events).await;
            }
            if let Err(error) = outcome {
                tracing::error!(%error, "interfaces cannot be followed: trying again");
                tokio::time::sleep(REOPEN_AFTER).await;
                if let Ok(mut anew) = Self::open(receive_buffer).await {
                    anew.table = std::mem::take(&mut self.table);
                    *self = anew;
                    if let Err(error) = self.synchronise(&mut events).await {
                        tracing::error!(%error, "interfaces cannot be listed");
                    }
                }
            }
            if !send(sender, &mut events).await {
                return;
            }
        }
    }

    /// Awaits the next notifications and takes them in.
    async fn step(&mut self, events: &mut Vec<LinkEvent>) -> Result<(), NetlinkError> {
        tokio::select! {
            received = self.events.receive() => {
                let messages: Vec<LinkMessage> = received?.filter_map(|message| link::parse(&message)).collect();
                for message in messages {
                    self.take(message, events).await;
                }
            }
            changed = self.features.changed() => {
                for (index, features) in changed? {
                    self.table.put_features(index, features, events);
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: LinkMessage, events: &mut Vec<LinkEvent>) {
        match message {
            LinkMessage::Gone(index) => self.table.remove(index, events),
            LinkMessage::New(mut link) => {
                link.xdp_features = match self.table.get(link.index) {
                    Some(known) => known.xdp_features,
                    None => self.features.get(link.index).await,
                };
                self.table.put(link, events);
            }
        }
    }

    /// Asks for all interfaces and takes the difference.
    async fn synchronise(&mut self, events: &mut Vec<LinkEvent>) -> Result<(), NetlinkError> {
        let mut links = dump(&mut self.requests).await?;
        let features = self.features.dump().await?;
        for link in &mut links {
            link.xdp_features = features.get(&link.index).copied();
        }
        self.table.replace(links, events);
        Ok(())
    }
}

/// All interfaces of the namespace, without what XDP can do with them.
pub(crate) async fn dump(requests: &mut RequestSocket) -> Result<Vec<Link>, NetlinkError> {
    let collect = |links: &mut Vec<Link>, message: super::message::Message<'_>| {
        if let Some(LinkMessage::New(link)) = link::parse(&message) {
            links.push(link);
        }
    };
    requests.dump(&link::dump_request(), Vec::new, collect).await
}
