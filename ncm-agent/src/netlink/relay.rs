//! The relay: a flow-based (`external`) vxlan device of our own, by which the kernel decapsulates what XDP cannot take.
//! Frames reach it on a UDP port of its own, so that another overlay may hold the usual one.

use super::link::{self, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, Link};
use super::message::{Attributes, Request, flags, text, u16_at};
use super::{Kernel, NetlinkError, stable_hash, sysctl};

/// MTU of the device in bytes: as large as the kernel lets a vxlan device be, for frames that it has put together.
pub const MTU: u32 = 65_485;
/// Longest name of an interface, in bytes.
const NAME_BYTES: usize = 15;

const RTM_DELLINK: u16 = link::RTM_DELLINK;
const IFF_UP: u32 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_VXLAN_RESERVED_BITS: u16 = 33;
/// No bit of VXLAN's header: of those that the kernel does not know, it is to refuse none, as they are ignored on receipt
/// (RFC 7348, section 5). Kernels before Linux 6.14 do not know the setting and refuse such frames.
const NO_BITS: [u8; 8] = [0; 8];

/// The relay device as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relay {
    /// The device.
    pub link: Link,
    /// Its UDP port, host order.
    pub port: u16,
    /// Whether it was there already.
    pub adopted: bool,
}

/// The relay's name for an instance: short instances by name, longer ones by the start of it and a hash.
#[must_use]
pub fn device_name(instance: &str) -> String {
    let plain = format!("ncm-{instance}");
    if plain.len() <= NAME_BYTES
        && plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        return plain;
    }
    let hash = stable_hash(instance) as u32;
    let start: String = instance.chars().filter(char::is_ascii_alphanumeric).take(2).collect();
    format!("ncm-{start}.{hash:08x}")
}

/// Makes sure that the device of that name is there, on that UDP port, and closed: takes over a fitting one, and replaces
/// one that is a vxlan device with other settings. A new one is down until [`bring_up`], so that no frame comes by it
/// before its program is attached.
///
/// # Errors
/// Fails if the name belongs to something else, if the port is taken, or if the kernel refuses.
pub async fn ensure(kernel: &mut Kernel, name: &str, port: u16) -> Result<Relay, NetlinkError> {
    let adopted = match find(kernel, name).await? {
        Some(Found { fits: true, port: held, .. }) if held == port => true,
        Some(Found { is_vxlan: true, link, .. }) => {
            kernel.call(link::change_request(RTM_DELLINK, 0, link.index, 0, 0), |_| {}).await?;
            false
        }
        Some(found) => {
            return Err(NetlinkError::Relay(format!(
                "the interface {} exists and is not the agent's relay device: rename or delete it, or choose another instance name",
                found.link
            )));
        }
        None => false,
    };
    if !adopted {
        kernel.call(create_request(name, port), |_| {}).await.map_err(|error| explain(error, name, port))?;
    }
    let link = kernel.link(name).await?.ok_or_else(|| NetlinkError::NoInterface(name.to_owned()))?;
    if !adopted {
        sysctl::close_interface(name).map_err(|error| NetlinkError::Relay(error.to_string()))?;
    }
    Ok(Relay { link, port, adopted })
}

/// Brings the device up, once its program is attached. The programs ask the kernel for routes in its name, which it
/// answers only where forwarding is on; frames never go on to the stack there, as the program passes none.
///
/// # Errors
/// Fails if another socket holds the port, or if the kernel refuses.
pub async fn bring_up(kernel: &mut Kernel, relay: &mut Relay) -> Result<(), NetlinkError> {
    let name = relay.link.name.clone();
    let request = link::change_request(link::RTM_NEWLINK, 0, relay.link.index, IFF_UP, IFF_UP);
    let request = request.attribute(IFLA_MTU, &MTU.to_ne_bytes());
    kernel.call(request, |_| {}).await.map_err(|error| explain(error, &name, relay.port))?;
    sysctl::forward(&name).map_err(|error| NetlinkError::Relay(error.to_string()))?;
    relay.link = kernel.link(&name).await?.ok_or(NetlinkError::NoInterface(name))?;
    Ok(())
}

/// Removes the device, if it is there and is a relay. Says whether it was.
///
/// # Errors
/// Fails if the kernel refuses.
pub async fn remove(kernel: &mut Kernel, name: &str) -> Result<bool, NetlinkError> {
    match find(kernel, name).await? {
        Some(Found { fits: true, link, .. }) => {
            kernel.call(link::change_request(RTM_DELLINK, 0, link.index, 0, 0), |_| {}).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

struct Found {
    link: Link,
    is_vxlan: bool,
    /// It is a vxlan device as [`create_request`] makes them, whatever its port.
    fits: bool,
    port: u16,
}

async fn find(kernel: &mut Kernel, name: &str) -> Result<Option<Found>, NetlinkError> {
    let Some(link) = kernel.link(name).await? else { return Ok(None) };
    let mut found = Found { link, is_vxlan: false, fits: false, port: 0 };
    let read = |message: super::message::Message<'_>| {
        let attributes = Attributes::after(message.payload, link::HEADER);
        let information = Attributes(attributes.find(IFLA_LINKINFO).unwrap_or_default());
        let data = Attributes(information.find(IFLA_INFO_DATA).unwrap_or_default());
        let set = |kind| data.find(kind).is_some_and(|value| value.first() == Some(&1));
        let port = data.find(IFLA_VXLAN_PORT).and_then(|value| u16_at(value, 0));
        found.is_vxlan = information.find(IFLA_INFO_KIND).map(text).as_deref() == Some("vxlan");
        found.fits = found.is_vxlan && set(IFLA_VXLAN_COLLECT_METADATA) && !set(IFLA_VXLAN_LEARNING);
        found.port = port.map(u16::from_be).unwrap_or_default();
    };
    kernel.call(link::by_name_request(name), read).await?;
    Ok(Some(found))
}

fn create_request(name: &str, port: u16) -> Request {
    link::change_request(link::RTM_NEWLINK, flags::CREATE | flags::EXCLUSIVE, 0, 0, 0)
        .string(IFLA_IFNAME, name)
        .nested(IFLA_LINKINFO, |information| {
            information.string(IFLA_INFO_KIND, "vxlan").nested(IFLA_INFO_DATA, |data| {
                data.attribute(IFLA_VXLAN_COLLECT_METADATA, &[1])
                    .attribute(IFLA_VXLAN_LEARNING, &[0])
                    .attribute(IFLA_VXLAN_PORT, &port.to_be_bytes())
                    .attribute(IFLA_VXLAN_UDP_CSUM, &[0])
                    .attribute(IFLA_VXLAN_UDP_ZERO_CSUM6_TX, &[1])
                    .attribute(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, &[1])
                    .attribute(IFLA_VXLAN_RESERVED_BITS, &NO_BITS)
            })
        })
}

fn explain(error: NetlinkError, name: &str, port: u16) -> NetlinkError {
    match error.errno() {
        Some(libc::EADDRINUSE | libc::EEXIST) => NetlinkError::Relay(format!(
            "the relay device {name} cannot have UDP port {port}: another socket or vxlan device holds it; \
             set another [underlay] relay_port, the same on no other agent of this host"
        )),
        Some(libc::EOPNOTSUPP) => NetlinkError::Relay(format!(
            "the relay device {name} cannot be created: {error}; is the kernel's vxlan module there?"
        )),
        _ => NetlinkError::Relay(format!(
            "the relay device {name} cannot be brought up on UDP port {port}: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_differ() {
        assert_eq!(device_name("default"), "ncm-default");
        for instance in ["a-very-long-instance-name", "a-very-long-instance-name2", "ä/b c", ""] {
            assert!(device_name(instance).len() <= NAME_BYTES, "{} is too long", device_name(instance));
        }
        assert_ne!(device_name("a-very-long-instance-name"), device_name("a-very-long-instance-name2"));
    }
}
