//! Feeds the state of the underlay: notifications and dumps in one task, requests to resolve and keep next hops in
//! another.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::super::generic::XdpFeatures;
use super::super::link::{self, Link, LinkMessage};
use super::super::message::{Attributes, Message, Request};
use super::super::socket::{EventSocket, RequestSocket};
use super::super::{NetlinkError, links, sysctl};
use super::Shared;
use super::neighbours::{self, Care, NeighbourMessage};
use super::routes::{self, RouteMessage};
use super::state::{Event, Snapshot};

/// Pause after a write: a program that began before one flip of a slot has long ended before the next.
const BETWEEN_WRITES: Duration = Duration::from_millis(2);
/// How often next hops are looked after and failed writes tried again.
const TICK: Duration = Duration::from_secs(2);
/// Pause before sockets that failed are opened anew.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Most events taken in before what they change is written.
const EVENTS_AT_ONCE: usize = 512;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`.
const GROUP_IPV4_ADDRESS: u32 = 5;
const GROUP_IPV6_ADDRESS: u32 = 9;
/// Bytes of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// The sockets by which the underlay is followed.
pub(super) struct Follower {
    requests: RequestSocket,
    events: EventSocket,
    features: XdpFeatures,
}

impl Follower {
    pub(super) async fn open(receive_buffer: usize) -> Result<Self, NetlinkError> {
        let groups = [
            link::GROUP_LINK,
            neighbours::GROUP_NEIGH,
            GROUP_IPV4_ADDRESS,
            GROUP_IPV6_ADDRESS,
            routes::GROUP_IPV4_ROUTE,
            routes::GROUP_IPV6_ROUTE,
            routes::GROUP_NEXTHOP,
        ];
        Ok(Self {
            requests: RequestSocket::open(NETLINK_ROUTE)?,
            events: EventSocket::open(NETLINK_ROUTE, &groups, receive_buffer)?,
            features: XdpFeatures::open(receive_buffer).await?,
        })
    }

    /// All that there is. Notifications of what changes meanwhile are waiting on the other socket.
    pub(super) async fn snapshot(&mut self) -> Result<Snapshot, NetlinkError> {
        let features = self.features.dump().await?;
        let mut links = links::dump(&mut self.requests).await?;
        for link in &mut links {
            link.xdp_features = features.get(&link.index).copied();
        }
        let mut snapshot = Snapshot { links, ..Snapshot::default() };
        let mut header = [0; ADDRESS_HEADER];
        header[0] = libc::AF_UNSPEC.to_ne_bytes()[0];
        snapshot.addresses = self.dump(&Request::new(RTM_GETADDR, 0, &header), address).await?;
        for request in routes::dump_requests() {
            match self.dump(&request, routes::parse).await {
                Ok(found) => snapshot.routes.extend::<Vec<RouteMessage>>(found),
                // Next-hop objects are from Linux 5.3; before its first route the table does not exist.
                Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::ENOENT)) => {}
                Err(error) => return Err(error),
            }
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            let found: Vec<NeighbourMessage> =
                self.dump(&neighbours::dump_request(family), neighbours::parse).await?;
            snapshot.neighbours.extend(found);
        }
        Ok(snapshot)
    }

    async fn dump<T>(
        &mut self,
        request: &Request,
        parse: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.requests.dump(request, Vec::new, |all, message| all.extend(parse(&message))).await
    }

    /// Awaits the next notifications, and takes those that wait behind them: what they change is written once.
    async fn next(&mut self) -> Result<Vec<Event>, NetlinkError> {
        let mut events = Vec::new();
        tokio::select! {
            received = self.events.receive() => events.extend(received?.filter_map(|message| parse(&message))),
            changed = self.features.changed() => {
                let event = |(interface, features)| Event::XdpFeatures { interface, features };
                events.extend(changed?.into_iter().map(event));
            }
        }
        while events.len() < EVENTS_AT_ONCE {
            tokio::select! {
                biased;
                received = self.events.receive() => events.extend(received?.filter_map(|message| parse(&message))),
                () = std::future::ready(()) => break,
            }
        }
        for event in &mut events {
            if let Event::Link(LinkMessage::New(Link { index, xdp_features, .. })) = event {
                *xdp_features = self.features.get(*index).await;
            }
        }
        Ok(events)
    }
}

/// An address of an interface of ours. An IPv6 one has `IFA_LOCAL` only where there is a peer.
fn address(message: &Message<'_>) -> Option<IpAddr> {
    let attributes = Attributes::after(message.payload, ADDRESS_HEADER);
    let local = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?;
    match i32::from(*message.payload.first()?) {
        libc::AF_INET => Some(IpAddr::from(*local.first_chunk::<4>()?)),
        libc::AF_INET6 => Some(IpAddr::from(*local.first_chunk::<16>()?)),
        _ => None,
    }
}

fn parse(message: &Message<'_>) -> Option<Event> {
    match message.kind {
        RTM_NEWADDR => Some(Event::Address { address: address(message)?, present: true }),
        RTM_DELADDR => Some(Event::Address { address: address(message)?, present: false }),
        link::RTM_NEWLINK | link::RTM_DELLINK => link::parse(message).map(Event::Link),
        neighbours::RTM_NEWNEIGH | neighbours::RTM_DELNEIGH => {
            neighbours::parse(message).map(Event::Neighbour)
        }
        _ => routes::parse(message).map(Event::Route),
    }
}

/// Follows for ever.
pub(super) async fn follow(mut follower: Follower, shared: Arc<Shared>, receive_buffer: usize) {
    loop {
        let outcome = match follower.next().await {
            Ok(events) => match take(&shared, events).await {
                true => follower.snapshot().await.map(Some),
                false => Ok(None),
            },
            Err(NetlinkError::Overrun) => {
                tracing::warn!("notifications of the underlay were lost: asking for everything");
                follower.snapshot().await.map(Some)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(snapshot)) => {
                take(&shared, vec![Event::Complete(snapshot)]).await;
            }
            Err(error) => {
                shared.following.store(false, Ordering::Release);
                tracing::error!(%error, "the underlay cannot be followed: trying again");
                tokio::time::sleep(REOPEN_AFTER).await;
                if let Some(anew) = reopen(&shared, receive_buffer).await {
                    follower = anew;
                }
            }
        }
    }
}

/// Takes events in and writes what follows. True if only a dump tells all that has happened.
async fn take(shared: &Shared, events: Vec<Event>) -> bool {
    let (wrote, unknown, new_uplinks) = {
        let mut inner = shared.lock();
        for event in events {
            inner.state.apply(event);
        }
        (inner.flush().wrote, inner.state.take_unknown(), inner.state.take_new_uplinks())
    };
    open_uplinks(new_uplinks);
    shared.care.notify_one();
    if wrote {
        tokio::time::sleep(BETWEEN_WRITES).await;
    }
    unknown
}

/// Opens interfaces of the underlay that came up closed, as all new ones do.
pub(super) fn open_uplinks(names: Vec<String>) {
    for name in names {
        match sysctl::open_interface(&name) {
            Ok(false) => {}
            Ok(true) => tracing::info!(interface = name, "a new interface of the underlay is opened"),
            Err(error) => {
                tracing::warn!(interface = name, %error, "an interface of the underlay stays closed")
            }
        }
    }
}

/// Releases every neighbour that an agent had the kernel keep.
pub(super) async fn release_neighbours() -> Result<(), NetlinkError> {
    let mut requests = RequestSocket::open(NETLINK_ROUTE)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = neighbours::dump_request(family);
        let collect = |all: &mut Vec<_>, message: Message<'_>| all.extend(neighbours::parse(&message));
        for NeighbourMessage { hop, entry } in requests.dump(&request, Vec::new, collect).await? {
            if entry.is_some_and(|entry| entry.is_kept_for_us()) {
                // It may have gone meanwhile.
                let _ = requests.call(neighbours::care_request(hop, Care::Release), |_| {}).await;
            }
        }
    }
    Ok(())
}

async fn reopen(shared: &Shared, receive_buffer: usize) -> Option<Follower> {
    let mut follower = Follower::open(receive_buffer).await.ok()?;
    let snapshot = follower.snapshot().await.ok()?;
    take(shared, vec![Event::Complete(snapshot)]).await;
    shared.following.store(true, Ordering::Release);
    tracing::info!("the underlay is followed again");
    Some(follower)
}

/// Has the kernel resolve and keep the next hops that are needed, for ever.
pub(super) async fn care(shared: Arc<Shared>) {
    let mut socket = None;
    let mut refuses_to_keep = false;
    loop {
        if tokio::time::timeout(TICK, shared.care.notified()).await.is_err() {
            let failed = {
                let mut inner = shared.lock();
                inner.state.tick();
                inner.flush().failed
            };
            if let Some((_, error)) = failed.first() {
                tracing::warn!(hosts = failed.len(), error, "remote hosts cannot be written: trying again");
            }
        }
        loop {
            let Some((hop, care)) = shared.lock().state.next_care() else { break };
            if socket.is_none() {
                socket = RequestSocket::open(NETLINK_ROUTE).ok();
            }
            let Some(requests) = socket.as_mut() else { break };
            let care = if refuses_to_keep && care == Care::Keep { Care::Probe } else { care };
            let Err(error) = requests.call(neighbours::care_request(hop, care), |_| {}).await else {
                continue;
            };
            match (care, error.errno()) {
                (Care::Keep, Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    tracing::info!(%error, "this kernel does not keep neighbours: they are probed");
                    refuses_to_keep = true;
                }
                // The interface or the entry went meanwhile.
                (_, Some(libc::ENODEV | libc::ENOENT | libc::ENETDOWN)) => {}
                (_, Some(_)) => tracing::warn!(hop = %hop.address, %error, "a next hop cannot be resolved"),
                (_, None) => socket = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::message::Messages;
    use super::*;

    proptest! {
        /// Whatever stands in a message of any type that we read: no panic, and nothing read beyond its end.
        #[test]
        fn any_bytes_are_read_or_refused(kind in 16u16..110, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Request::new(kind, 0, &body).finish(1, 0);
            for message in Messages(&bytes) {
                let _ = parse(&message);
            }
            for _ in Messages(&body) {}
        }
    }
}
