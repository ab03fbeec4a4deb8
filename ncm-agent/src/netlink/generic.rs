//! Generic netlink: the families `netdev` (what XDP can do with a device) and `ethtool` (offloads).

use std::collections::HashMap;

use netlink_sys::protocols::NETLINK_GENERIC;

use super::NetlinkError;
use super::message::{Attributes, Message, Request, text, u32_at};
use super::socket::{EventSocket, RequestSocket};

/// Bytes of `struct genlmsghdr`.
const HEADER: usize = 4;
/// The family that knows the families.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const CONTROL_MULTICAST_GROUPS: u16 = 7;
const CONTROL_GROUP_NAME: u16 = 1;
const CONTROL_GROUP_ID: u16 = 2;

const NETDEV_GET: u8 = 1;
const NETDEV_ADDED: u8 = 2;
const NETDEV_CHANGED: u8 = 4;
const NETDEV_IFINDEX: u16 = 1;
const NETDEV_XDP_FEATURES: u16 = 3;

const ETHTOOL_FEATURES_GET: u8 = 11;
const ETHTOOL_FEATURES_SET: u8 = 12;
const ETHTOOL_FEATURES_WANTED: u16 = 3;
const ETHTOOL_BITSET_BIT: u16 = 1;
const ETHTOOL_FEATURES_HEADER: u16 = 1;
const ETHTOOL_HEADER_INDEX: u16 = 1;
const ETHTOOL_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_BITSET_BITS: u16 = 3;
const ETHTOOL_BIT_NAME: u16 = 2;

/// A family's number and its multicast groups, both given out by the running kernel.
struct Family {
    id: u16,
    groups: HashMap<String, u32>,
}

fn request(family: u16, command: u8) -> Request {
    Request::new(family, 0, &[command, 1, 0, 0])
}

async fn family(socket: &mut RequestSocket, name: &'static str) -> Result<Family, NetlinkError> {
    let mut found = None;
    let asked = request(CONTROL, CONTROL_GET_FAMILY).string(CONTROL_FAMILY_NAME, name);
    let answer = socket.call(asked, |message| {
        let attributes = Attributes::after(message.payload, HEADER);
        let Some(id) = attributes.find(CONTROL_FAMILY_ID).and_then(|id| super::message::u16_at(id, 0)) else {
            return;
        };
        let groups = Attributes(attributes.find(CONTROL_MULTICAST_GROUPS).unwrap_or_default())
            .filter_map(|(_, group)| {
                let group = Attributes(group);
                Some((text(group.find(CONTROL_GROUP_NAME)?), u32_at(group.find(CONTROL_GROUP_ID)?, 0)?))
            })
            .collect();
        found = Some(Family { id, groups });
    });
    match answer.await {
        Err(error) if error.errno() == Some(libc::ENOENT) => Err(NetlinkError::NoFamily(name)),
        Err(error) => Err(error),
        Ok(()) => found.ok_or(NetlinkError::NoFamily(name)),
    }
}

/// What XDP can do with the devices, followed. Empty where the kernel does not tell (before Linux 6.3).
pub(crate) struct XdpFeatures {
    known: Option<Netdev>,
}

struct Netdev {
    requests: RequestSocket,
    events: EventSocket,
    family: u16,
}

impl XdpFeatures {
    pub(crate) async fn open(receive_buffer: usize) -> Result<Self, NetlinkError> {
        let mut requests = RequestSocket::open(NETLINK_GENERIC)?;
        let netdev = match family(&mut requests, "netdev").await {
            Ok(netdev) => netdev,
            Err(NetlinkError::NoFamily(_)) => return Ok(Self { known: None }),
            Err(error) => return Err(error),
        };
        let groups: Vec<u32> = netdev.groups.get("mgmt").copied().into_iter().collect();
        let events = EventSocket::open(NETLINK_GENERIC, &groups, receive_buffer)?;
        Ok(Self { known: Some(Netdev { requests, events, family: netdev.id }) })
    }

    /// The features of one device; `None` if it has gone or the kernel does not tell.
    pub(crate) async fn get(&mut self, index: u32) -> Option<u64> {
        let known = self.known.as_mut()?;
        let asked = request(known.family, NETDEV_GET).attribute(NETDEV_IFINDEX, &index.to_ne_bytes());
        let mut features = None;
        let answer = known.requests.call(asked, |message| {
            features = parse(&message).map(|(_, features)| features).or(features);
        });
        answer.await.ok().and(features)
    }

    /// The features of all devices.
    pub(crate) async fn dump(&mut self) -> Result<HashMap<u32, u64>, NetlinkError> {
        let Some(known) = self.known.as_mut() else { return Ok(HashMap::new()) };
        let asked = request(known.family, NETDEV_GET);
        known.requests.dump(&asked, HashMap::new, |all, message| all.extend(parse(&message))).await
    }

    /// The next devices whose features are new or changed. Never ends where the kernel does not tell.
    pub(crate) async fn changed(&mut self) -> Result<Vec<(u32, u64)>, NetlinkError> {
        match self.known.as_mut() {
            None => std::future::pending().await,
            Some(known) => Ok(known.events.receive().await?.filter_map(|message| parse(&message)).collect()),
        }
    }
}

fn parse(message: &Message<'_>) -> Option<(u32, u64)> {
    if !matches!(*message.payload.first()?, NETDEV_GET | NETDEV_ADDED | NETDEV_CHANGED) {
        return None;
    }
    let attributes = Attributes::after(message.payload, HEADER);
    let features = attributes.find(NETDEV_XDP_FEATURES)?.first_chunk()?;
    Some((u32_at(attributes.find(NETDEV_IFINDEX)?, 0)?, u64::from_ne_bytes(*features)))
}

/// The names of the offloads that are active on a device, as `ethtool -k` names them in the kernel.
pub(crate) async fn active_offloads(index: u32) -> Result<Vec<String>, NetlinkError> {
    let mut socket = RequestSocket::open(NETLINK_GENERIC)?;
    let ethtool = family(&mut socket, "ethtool").await?;
    let asked = request(ethtool.id, ETHTOOL_FEATURES_GET).nested(ETHTOOL_FEATURES_HEADER, |header| {
        header.attribute(ETHTOOL_HEADER_INDEX, &index.to_ne_bytes())
    });
    let mut names = Vec::new();
    let answer = socket.call(asked, |message| {
        let attributes = Attributes::after(message.payload, HEADER);
        let active = Attributes(attributes.find(ETHTOOL_FEATURES_ACTIVE).unwrap_or_default());
        let bits = Attributes(active.find(ETHTOOL_BITSET_BITS).unwrap_or_default());
        names.extend(bits.filter_map(|(_, bit)| Attributes(bit).find(ETHTOOL_BIT_NAME).map(text)));
    });
    answer.await?;
    Ok(names)
}

/// Turns an offload of a device off, by the kernel's name for it.
pub(crate) async fn turn_off(index: u32, offload: &str) -> Result<(), NetlinkError> {
    let mut socket = RequestSocket::open(NETLINK_GENERIC)?;
    let ethtool = family(&mut socket, "ethtool").await?;
    // A bit without a value is to be cleared.
    let asked = request(ethtool.id, ETHTOOL_FEATURES_SET)
        .nested(ETHTOOL_FEATURES_HEADER, |header| {
            header.attribute(ETHTOOL_HEADER_INDEX, &index.to_ne_bytes())
        })
        .nested(ETHTOOL_FEATURES_WANTED, |wanted| {
            wanted.nested(ETHTOOL_BITSET_BITS, |bits| {
                bits.nested(ETHTOOL_BITSET_BIT, |bit| bit.string(ETHTOOL_BIT_NAME, offload))
            })
        });
    socket.call(asked, |_| {}).await
}
