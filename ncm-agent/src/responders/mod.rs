//! What guests ask for and the agent answers: DHCP, DHCPv6 and router solicitations. Messages in, messages out: nothing here
//! knows of sockets, time or the model.
//!
//! Only the client that a port is for is answered: its MAC is the port's, and what it gets is that port's alone. There is no
//! state but the pushed one, so an answer does not depend on which agent gives it, nor on what was answered before.
//!
//! `dhcproto` writes the messages, and reads DHCP's lazily. Its complete decoders see no guest's bytes: they take lengths on
//! trust (an option too short for its kind ends the process) and follow DHCPv6's nested options as deep as they go.

mod advertisement;
mod dhcp;
mod dhcp_options;
mod dhcpv6;
mod dhcpv6_options;
mod frame;
#[cfg(test)]
mod tests;

use ncm_common::marks;
use ncm_model::lease::LeaseFacts;

pub use advertisement::{Schedule, advertisements};

/// What a guest asks by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// A DHCP client's message.
    Dhcp,
    /// A DHCPv6 client's message.
    Dhcpv6,
    /// A router solicitation.
    RouterSolicitation,
}

impl Question {
    /// The question that a packet's mark tells of, and the index of the port it is from.
    #[must_use]
    pub const fn of_mark(mark: u32) -> Option<(Self, u32)> {
        let port = mark & ((1 << marks::PORT_BITS) - 1);
        match mark >> marks::PORT_BITS {
            marks::DHCP => Some((Self::Dhcp, port)),
            marks::DHCPV6 => Some((Self::Dhcpv6, port)),
            marks::ROUTER_SOLICITATION => Some((Self::RouterSolicitation, port)),
            _ => None,
        }
    }
}

/// What became of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// This frame is for the guest.
    Frame(Vec<u8>),
    /// These frames are for the guest, now.
    Frames(Vec<Vec<u8>>),
    /// The guest asked for advertisements to everybody, which have their own pace: see [`Schedule::ask`].
    Advertise,
    /// The guest has given its lease back.
    Released,
    /// The guest says that another has its address.
    Declined,
}

/// Why a question got no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ignored {
    /// The message is not one that the protocol knows, or it is damaged.
    Malformed,
    /// The client is not the one that the port is for.
    OtherClient,
    /// The client speaks to another server.
    OtherServer,
    /// There is nothing that the port's guest could be told.
    NoBinding,
}

/// Answers a frame of the guest that `facts` are about. With `partial`, its transport checksum is not computed yet, as of
/// guests that leave that to their interface.
///
/// # Errors
/// Says why there is no answer.
pub fn answer(
    question: Question,
    frame: &[u8],
    partial: bool,
    facts: &LeaseFacts,
) -> Result<Answer, Ignored> {
    match question {
        Question::Dhcp => dhcp::answer(frame, partial, facts),
        Question::Dhcpv6 => dhcpv6::answer(frame, partial, facts),
        Question::RouterSolicitation => advertisement::answer(frame, partial, facts),
    }
}
