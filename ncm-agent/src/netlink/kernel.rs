//! One question to the kernel at a time: an interface by its name, its offloads, bringing it up.

use netlink_sys::protocols::NETLINK_ROUTE;

use super::link::{self, Link, LinkMessage};
use super::message::{Message, Request};
use super::socket::RequestSocket;
use super::{NetlinkError, generic};

/// A connection to the kernel for single requests.
pub struct Kernel {
    socket: RequestSocket,
}

impl Kernel {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// Fails if no socket can be had.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: RequestSocket::open(NETLINK_ROUTE)? })
    }

    /// The interface of that name, or `None`. Its `xdp_features` are left unknown.
    ///
    /// # Errors
    /// Fails if the kernel cannot be asked.
    pub async fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut found = None;
        let answer = self.socket.call(link::by_name_request(name), |message| {
            if let Some(LinkMessage::New(link)) = link::parse(&message) {
                found = Some(link);
            }
        });
        match answer.await {
            Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EINVAL | libc::ERANGE)) => {
                Ok(None)
            }
            Err(error) => Err(error),
            Ok(()) => Ok(found),
        }
    }

    /// The kernel's id of the XDP program that runs natively on the interface of that name.
    ///
    /// # Errors
    /// Fails if there is no such interface or the kernel cannot be asked.
    pub async fn native_xdp(&mut self, name: &str) -> Result<Option<u32>, NetlinkError> {
        let mut found = None;
        self.call(link::by_name_request(name), |message| found = found.or(link::native_xdp(&message)))
            .await?;
        Ok(found)
    }

    /// Brings the interface up.
    ///
    /// # Errors
    /// Fails if the interface has gone or the kernel refuses.
    pub async fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.call(link::set_up_request(index), |_| {}).await
    }

    /// Sets the interface down. One that has gone is no error.
    ///
    /// # Errors
    /// Fails if the kernel refuses.
    pub async fn set_down(&mut self, index: u32) -> Result<(), NetlinkError> {
        match self.call(link::set_down_request(index), |_| {}).await {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            done => done,
        }
    }

    /// Whether TCP frames larger than the MTU are sent through the device unsegmented (`tx-tcp-segmentation`). On a
    /// veth this means that its peer receives such frames, with checksums that are not computed.
    ///
    /// # Errors
    /// Fails if the interface has gone or the kernel cannot be asked.
    pub async fn segments_late(&mut self, index: u32) -> Result<bool, NetlinkError> {
        Ok(generic::active_offloads(index).await?.iter().any(|name| name == "tx-tcp-segmentation"))
    }

    /// Has the device leave VLAN tags in its frames, where XDP programs see them: a tag that it takes off is lost to
    /// them, and a frame of another VLAN looks like one of ours. Says whether it does.
    ///
    /// # Errors
    /// Fails if the interface has gone or the kernel refuses.
    pub async fn keep_vlan_tags(&mut self, index: u32) -> Result<bool, NetlinkError> {
        const OFFLOAD: &str = "rx-vlan-hw-parse";
        if generic::active_offloads(index).await?.iter().any(|name| name == OFFLOAD) {
            generic::turn_off(index, OFFLOAD).await?;
        }
        Ok(!generic::active_offloads(index).await?.iter().any(|name| name == OFFLOAD))
    }

    pub(crate) async fn call(
        &mut self,
        request: Request,
        each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.socket.call(request, each).await
    }
}
