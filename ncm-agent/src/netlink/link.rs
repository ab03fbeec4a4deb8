//! Network interfaces as the kernel describes them, and the table of those that there are.

use std::collections::HashMap;
use std::fmt;

use super::links::LinkEvent;
use super::message::{Attributes, Message, Request, text, u32_at};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
/// Multicast group of link notifications (`RTNLGRP_LINK`).
pub(crate) const GROUP_LINK: u32 = 1;

/// Bytes of `struct ifinfomsg`.
pub(crate) const HEADER: usize = 16;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
/// The program that runs natively, by its id.
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
/// Ethertype of an 802.1Q tag, network order.
const DOT1Q: [u8; 2] = [0x81, 0x00];
/// `NETDEV_XDP_ACT_NDO_XMIT`: the device takes frames redirected by XDP.
const NDO_XMIT: u64 = 4;

/// A MAC address, in the order of the wire.
pub type MacAddress = [u8; 6];

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Interface index: another one each time an interface is created, also under the same name.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind of virtual interface (`veth`, `tun`, `vlan`, `vxlan`…); `None` for a physical one.
    pub kind: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// MAC, if it is an Ethernet interface.
    pub mac: Option<MacAddress>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// Index of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// Index of the interface it is built upon (the peer, for a veth), if that is in the same namespace.
    pub lower: Option<u32>,
    /// 802.1Q tag, for a VLAN interface.
    pub vlan: Option<u16>,
    /// What XDP can do with it (`xdp-features`); `None` before Linux 6.3.
    pub xdp_features: Option<u64>,
}

impl Link {
    /// Whether frames that an XDP program redirects to it are delivered. For a veth that depends on its peer, and
    /// where the kernel does not say (before Linux 6.3), only taps surely do.
    #[must_use]
    pub fn takes_xdp(&self) -> bool {
        match self.xdp_features {
            Some(features) => features & NDO_XMIT != 0,
            None => self.kind.as_deref() == Some("tun"),
        }
    }

    /// Whether it is a virtual Ethernet pair's end.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

impl fmt::Display for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (index {})", self.name, self.index)
    }
}

/// What a link message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum LinkMessage {
    New(Link),
    Gone(u32),
}

/// Reads a link message; `None` for others, and for those about a bridge's or a radio's inner matters.
pub(crate) fn parse(message: &Message<'_>) -> Option<LinkMessage> {
    // A family other than AF_UNSPEC (a bridge port's) tells of a role of the interface, not of the interface.
    if *message.payload.first()? != 0 {
        return None;
    }
    let index = u32_at(message.payload, 4)?;
    let flags = u32_at(message.payload, 8)?;
    let attributes = Attributes::after(message.payload, HEADER);
    match message.kind {
        RTM_DELLINK => Some(LinkMessage::Gone(index)),
        RTM_NEWLINK => {
            let number = |kind| attributes.find(kind).and_then(|value| u32_at(value, 0));
            let information = Attributes(attributes.find(IFLA_LINKINFO).unwrap_or_default());
            let kind = information.find(IFLA_INFO_KIND).map(text);
            let foreign = attributes.find(IFLA_LINK_NETNSID).is_some();
            Some(LinkMessage::New(Link {
                index,
                name: text(attributes.find(IFLA_IFNAME)?),
                mtu: number(IFLA_MTU).unwrap_or_default(),
                mac: attributes.find(IFLA_ADDRESS).and_then(|value| value.try_into().ok()),
                up: flags & IFF_UP != 0,
                running: flags & (IFF_UP | IFF_RUNNING) == (IFF_UP | IFF_RUNNING),
                master: number(IFLA_MASTER).filter(|index| *index != 0),
                lower: number(IFLA_LINK).filter(|lower| !foreign && *lower != 0 && *lower != index),
                vlan: if kind.as_deref() == Some("vlan") { dot1q(information) } else { None },
                kind,
                xdp_features: None,
            }))
        }
        _ => None,
    }
}

/// The id of the XDP program that the link of a message runs natively.
pub(crate) fn native_xdp(message: &Message<'_>) -> Option<u32> {
    let attributes = Attributes::after(message.payload, HEADER);
    let xdp = Attributes(attributes.find(IFLA_XDP).filter(|_| message.kind == RTM_NEWLINK)?);
    xdp.find(IFLA_XDP_DRV_PROG_ID).and_then(|value| u32_at(value, 0))
}

/// The tag of a VLAN interface, if it is an 802.1Q one.
fn dot1q(information: Attributes<'_>) -> Option<u16> {
    let data = Attributes(information.find(IFLA_INFO_DATA)?);
    if data.find(IFLA_VLAN_PROTOCOL).is_some_and(|protocol| protocol != DOT1Q) {
        return None;
    }
    super::message::u16_at(data.find(IFLA_VLAN_ID)?, 0)
}

/// A request for all links.
pub(crate) fn dump_request() -> Request {
    Request::new(RTM_GETLINK, 0, &[0; HEADER])
}

/// A request for the link of that name.
pub(crate) fn by_name_request(name: &str) -> Request {
    Request::new(RTM_GETLINK, 0, &[0; HEADER]).string(IFLA_IFNAME, name)
}

/// A request of that type about the interface with that index (0: a new one) that sets its flags under `mask`.
pub(crate) fn change_request(kind: u16, request_flags: u16, index: u32, flags: u32, mask: u32) -> Request {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    Request::new(kind, request_flags, &header)
}

/// A request that brings the interface up.
pub(crate) fn set_up_request(index: u32) -> Request {
    change_request(RTM_NEWLINK, 0, index, IFF_UP, IFF_UP)
}

/// A request that sets the interface down.
pub(crate) fn set_down_request(index: u32) -> Request {
    change_request(RTM_NEWLINK, 0, index, 0, IFF_UP)
}

/// The interfaces that there are, and what changes about them.
#[derive(Default, Debug)]
pub(crate) struct LinkTable {
    links: HashMap<u32, Link>,
}

impl LinkTable {
    pub(crate) fn get(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Takes a link as it is now. Another name is another interface to whoever knows it by name.
    pub(crate) fn put(&mut self, link: Link, events: &mut Vec<LinkEvent>) {
        match self.links.insert(link.index, link.clone()) {
            None => events.push(LinkEvent::Appeared(link)),
            Some(before) if before == link => {}
            Some(before) if before.name == link.name => events.push(LinkEvent::Changed(link)),
            Some(before) => {
                events.push(LinkEvent::Gone(before));
                events.push(LinkEvent::Appeared(link));
            }
        }
    }

    /// Forgets a link.
    pub(crate) fn remove(&mut self, index: u32, events: &mut Vec<LinkEvent>) {
        events.extend(self.links.remove(&index).map(LinkEvent::Gone));
    }

    /// Takes what XDP can do with a link now.
    pub(crate) fn put_features(&mut self, index: u32, features: u64, events: &mut Vec<LinkEvent>) {
        if let Some(link) = self.links.get_mut(&index).filter(|link| link.xdp_features != Some(features)) {
            link.xdp_features = Some(features);
            events.push(LinkEvent::Changed(link.clone()));
        }
    }

    /// Takes a complete list of links: whoever is not in it is gone, and that is said before a namesake appears.
    pub(crate) fn replace(&mut self, links: Vec<Link>, events: &mut Vec<LinkEvent>) {
        let names: HashMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let mut gone: Vec<u32> = (self.links.values())
            .filter(|link| names.get(&link.index) != Some(&link.name.as_str()))
            .map(|link| link.index)
            .collect();
        gone.sort_unstable();
        for index in gone {
            self.remove(index, events);
        }
        for link in links {
            self.put(link, events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: Some("veth".to_owned()),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            up: true,
            running: true,
            master: None,
            lower: None,
            vlan: None,
            xdp_features: Some(0),
        }
    }

    fn told(events: &[LinkEvent]) -> Vec<String> {
        let tell = |event: &LinkEvent| match event {
            LinkEvent::Appeared(link) => format!("+{}:{}", link.index, link.name),
            LinkEvent::Changed(link) => format!("~{}:{}", link.index, link.name),
            LinkEvent::Gone(link) => format!("-{}:{}", link.index, link.name),
            LinkEvent::Synchronised => "=".to_owned(),
        };
        events.iter().map(tell).collect()
    }

    #[test]
    fn the_same_description_again_is_no_event() {
        let (mut table, mut events) = (LinkTable::default(), Vec::new());
        table.put(link(3, "tap3"), &mut events);
        table.put(link(3, "tap3"), &mut events);
        table.put(Link { mtu: 9000, ..link(3, "tap3") }, &mut events);
        assert_eq!(told(&events), ["+3:tap3", "~3:tap3"]);
    }

    #[test]
    fn a_rename_is_a_going_and_an_appearing() {
        let (mut table, mut events) = (LinkTable::default(), Vec::new());
        table.put(link(3, "eth7"), &mut events);
        table.put(link(3, "tap3"), &mut events);
        assert_eq!(told(&events), ["+3:eth7", "-3:eth7", "+3:tap3"]);
    }

    #[test]
    fn a_complete_list_tells_of_what_was_missed_the_gone_first() {
        let (mut table, mut events) = (LinkTable::default(), Vec::new());
        table.replace(vec![link(1, "lo"), link(3, "tap3"), link(4, "tap4")], &mut events);
        events.clear();
        table.replace(
            vec![link(1, "lo"), link(9, "tap3"), Link { up: false, ..link(4, "tap4") }],
            &mut events,
        );
        assert_eq!(told(&events), ["-3:tap3", "+9:tap3", "~4:tap4"]);
    }

    #[test]
    fn xdp_delivery_is_what_the_kernel_says_and_else_only_a_taps() {
        assert!(!link(1, "a").takes_xdp());
        assert!(Link { xdp_features: Some(NDO_XMIT | 1), ..link(1, "a") }.takes_xdp());
        assert!(!Link { xdp_features: None, ..link(1, "a") }.takes_xdp());
        assert!(Link { xdp_features: None, kind: Some("tun".to_owned()), ..link(1, "a") }.takes_xdp());
    }
}
