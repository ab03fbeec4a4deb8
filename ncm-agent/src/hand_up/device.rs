//! The pair of veth devices by which guests' questions come up and the answers go down. It is private: both ends are in the
//! agent's own network namespace, without addresses, and nothing but our programs and our packet socket uses them.

use crate::netlink::link::{
    self, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, Link,
};
use crate::netlink::message::{Request, flags};
use crate::netlink::{Kernel, NetlinkError, relay, sysctl};

/// Any frame that a guest's interface passes on, put together or not.
const MTU: u32 = 65_535;
const VETH_INFO_PEER: u16 = 1;

/// Names of the end that is used, and of its peer.
#[must_use]
pub fn device_names(instance: &str) -> (String, String) {
    // As long as the relay's, which fits.
    let name = relay::device_name(instance);
    let rest = name.strip_prefix("ncm-").unwrap_or(&name);
    (format!("ncu-{rest}"), format!("ncv-{rest}"))
}

/// Makes sure that the pair is there, closed and up, and returns the end that is used. One that is there is taken over.
///
/// # Errors
/// Fails if the names belong to something else, or if the kernel refuses.
pub async fn ensure(kernel: &mut Kernel, instance: &str) -> Result<Link, NetlinkError> {
    let (name, peer) = device_names(instance);
    let found = (kernel.link(&name).await?, kernel.link(&peer).await?);
    match found {
        (Some(one), Some(other)) if is_veth(&one) && one.lower == Some(other.index) => {}
        (None, None) => create(kernel, &name, &peer).await?,
        (Some(one), None) if is_veth(&one) => {
            remove(kernel, one.index).await?;
            create(kernel, &name, &peer).await?;
        }
        (Some(link), _) | (None, Some(link)) => {
            return Err(NetlinkError::HandUp(format!(
                "the interface {link} exists and is not the agent's: rename or delete it, or choose another instance name"
            )));
        }
    }
    for name in [&name, &peer] {
        sysctl::close_interface(name).map_err(|error| NetlinkError::HandUp(error.to_string()))?;
        let link = kernel.link(name).await?.ok_or_else(|| NetlinkError::NoInterface(name.clone()))?;
        kernel.set_up(link.index).await?;
    }
    kernel.link(&name).await?.ok_or(NetlinkError::NoInterface(name))
}

/// Removes the pair, if it is there. Says whether it was.
///
/// # Errors
/// Fails if the kernel refuses.
pub async fn remove_pair(kernel: &mut Kernel, instance: &str) -> Result<bool, NetlinkError> {
    let (name, _) = device_names(instance);
    match kernel.link(&name).await? {
        Some(link) if is_veth(&link) => remove(kernel, link.index).await.map(|()| true),
        _ => Ok(false),
    }
}

fn is_veth(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth")
}

async fn remove(kernel: &mut Kernel, index: u32) -> Result<(), NetlinkError> {
    kernel.call(link::change_request(link::RTM_DELLINK, 0, index, 0, 0), |_| {}).await
}

async fn create(kernel: &mut Kernel, name: &str, peer: &str) -> Result<(), NetlinkError> {
    kernel.call(create_request(name, peer), |_| {}).await
}

fn create_request(name: &str, peer: &str) -> Request {
    // The peer is described as a link is: a header, then attributes.
    let mut described = vec![0; link::HEADER];
    attribute(&mut described, IFLA_IFNAME, &[peer.as_bytes(), &[0]].concat());
    attribute(&mut described, IFLA_MTU, &MTU.to_ne_bytes());
    link::change_request(link::RTM_NEWLINK, flags::CREATE | flags::EXCLUSIVE, 0, 0, 0)
        .string(IFLA_IFNAME, name)
        .attribute(IFLA_MTU, &MTU.to_ne_bytes())
        .nested(IFLA_LINKINFO, |information| {
            information
                .string(IFLA_INFO_KIND, "veth")
                .nested(IFLA_INFO_DATA, |data| data.attribute(VETH_INFO_PEER, &described))
        })
}

/// Appends a netlink attribute, padded to four bytes.
fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_differ() {
        for instance in ["default", "a-very-long-instance-name", "ä/b c", ""] {
            let (name, peer) = device_names(instance);
            assert!(name.len() <= 15 && peer.len() <= 15 && name != peer, "{name} {peer}");
        }
        assert_eq!(device_names("default").0, "ncu-default");
    }
}
