//! ARP for IPv4 over Ethernet (RFC 826).

use super::{Frame, Ipv4Address, Mac, ethernet};

/// Bytes of the message.
pub const LEN: usize = 28;

/// Bytes of a frame with nothing but a message.
pub const FRAME_LEN: usize = ethernet::LEN + LEN;

/// The operation of a request, host order.
pub const REQUEST: u16 = 1;

/// Hardware Ethernet, protocol IPv4, and the lengths of their addresses: how each message of this kind begins.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// An ARP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// Operation, host order.
    pub operation: u16,
    /// The sender's MAC.
    pub sender_mac: Mac,
    /// The sender's address.
    pub sender_ip: Ipv4Address,
    /// The address that the message is about.
    pub target_ip: Ipv4Address,
}

impl Arp {
    /// The message at `offset`; `None` if it is cut short or of another kind than IPv4 over Ethernet.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), offset: usize) -> Option<Self> {
        let window = frame.window::<LEN>(offset)?;
        if window.raw32::<0>() != u32::from_ne_bytes([KIND[0], KIND[1], KIND[2], KIND[3]])
            || window.raw16::<4>() != u16::from_ne_bytes([KIND[4], KIND[5]])
        {
            return None;
        }
        Some(Self {
            operation: window.be16::<6>(),
            sender_mac: Mac::at::<8, 12, LEN>(&window),
            sender_ip: Ipv4Address::at::<14, LEN>(&window),
            target_ip: Ipv4Address::at::<24, LEN>(&window),
        })
    }

    /// The frame that answers this request: the target's address is at `mac`.
    #[inline(always)]
    #[must_use]
    pub fn answer(&self, mac: Mac) -> [u8; FRAME_LEN] {
        let mut frame = [0; FRAME_LEN];
        frame[0..6].copy_from_slice(&self.sender_mac.bytes());
        frame[6..12].copy_from_slice(&mac.bytes());
        frame[12..14].copy_from_slice(&ethernet::ethertype::ARP.to_be_bytes());
        frame[14..20].copy_from_slice(&KIND);
        frame[20..22].copy_from_slice(&2u16.to_be_bytes());
        frame[22..28].copy_from_slice(&mac.bytes());
        frame[28..32].copy_from_slice(&self.target_ip.bytes());
        frame[32..38].copy_from_slice(&self.sender_mac.bytes());
        frame[38..42].copy_from_slice(&self.sender_ip.bytes());
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_as_the_reply_to_its_request() {
        let request = Arp {
            operation: REQUEST,
            sender_mac: Mac::new(&[2, 0, 0, 0, 0, 1]),
            sender_ip: Ipv4Address::new([10, 0, 0, 1]),
            target_ip: Ipv4Address::new([10, 0, 0, 2]),
        };
        let mac = Mac::new(&[2, 0, 0, 0, 0, 2]);
        let frame = request.answer(mac);
        let ethernet = ethernet::Ethernet::parse(&frame[..], 0).unwrap();
        assert_eq!((ethernet.destination, ethernet.source), (request.sender_mac, mac));
        assert_eq!(ethernet.ethertype, ethernet::ethertype::ARP);
        let reply = Arp::parse(&frame[..], ethernet::LEN).unwrap();
        assert_eq!(reply.operation, 2);
        assert_eq!((reply.sender_mac, reply.sender_ip), (mac, request.target_ip));
        assert_eq!(reply.target_ip, request.sender_ip);
    }

    #[test]
    fn other_kinds_and_short_messages_are_none() {
        let mut frame = Arp {
            operation: REQUEST,
            sender_mac: Mac::ZERO,
            sender_ip: Ipv4Address::UNSPECIFIED,
            target_ip: Ipv4Address::UNSPECIFIED,
        }
        .answer(Mac::ZERO);
        assert!(Arp::parse(&frame[..FRAME_LEN - 1], ethernet::LEN).is_none());
        frame[18] = 8;
        assert!(Arp::parse(&frame[..], ethernet::LEN).is_none());
    }
}
