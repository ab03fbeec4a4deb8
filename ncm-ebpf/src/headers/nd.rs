//! Neighbour discovery (RFC 4861): the solicitation, and the advertisement that answers it.

use super::{
    Address, Frame, Mac, checksum, ethernet, ipv6,
    packet::{icmp, protocol},
};

/// Bytes of a solicitation or an advertisement without options.
pub const LEN: usize = 24;

/// Bytes of a frame with an advertisement and its option.
pub const FRAME_LEN: usize = ethernet::LEN + ipv6::LEN + LEN + 8;

/// The hop limit of all neighbour discovery: nothing has been routed (RFC 4861, section 7.1.1).
pub const HOP_LIMIT: u8 = 255;

/// The link-layer address of a message's sender, and of its target.
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;

/// A neighbour solicitation or advertisement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The address that the message is about.
    pub target: Address,
    /// The MAC that its first option gives for the sender or the target; zero without one.
    pub mac: Mac,
}

impl Neighbour {
    /// The message of `len` bytes at `offset`; `None` if it is cut short, in its first option too, or its code is not 0.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), offset: usize, len: u32) -> Option<Self> {
        let window = frame.window::<LEN>(offset)?;
        // Options come in units of eight bytes, as the message itself does (RFC 4861, section 4.6).
        if len < LEN as u32 || len & 7 != 0 || window.u8::<1>() != 0 {
            return None;
        }
        let target = Address::at::<8, 12, 16, 20, LEN>(&window);
        let mut mac = Mac::ZERO;
        if len >= LEN as u32 + 8 {
            let option = frame.window::<8>(offset + LEN)?;
            let size = u32::from(option.u8::<1>()) * 8;
            if size == 0 || size > len - LEN as u32 {
                return None;
            }
            if matches!(option.u8::<0>(), SOURCE_OPTION | TARGET_OPTION) && option.u8::<1>() == 1 {
                mac = Mac::at::<2, 6, 8>(&option);
            }
        }
        Some(Self { target, mac })
    }
}

/// An advertisement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advertisement {
    /// The address, and the MAC that it has.
    pub target: (Address, Mac),
    /// Who asked.
    pub asker: (Address, Mac),
    /// Whether the target is a router.
    pub router: bool,
}

impl Advertisement {
    /// Writes the frame. Who asked without an address of its own (RFC 4862, section 5.4.3) is answered through all nodes' address.
    #[inline(always)]
    pub fn write(&self, frame: &mut [u8; FRAME_LEN]) {
        const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        const OVERRIDE: u8 = 0x20;
        const SOLICITED: u8 = 0x40;
        const ROUTER: u8 = 0x80;
        let ((target, mac), (asker, asker_mac)) = (self.target, self.asker);
        let to_all = asker.is_unspecified();
        let (to, to_mac) = if to_all {
            (Address::new(&ALL_NODES), Mac::new(&[0x33, 0x33, 0, 0, 0, 1]))
        } else {
            (asker, asker_mac)
        };
        let flags = OVERRIDE | if to_all { 0 } else { SOLICITED } | if self.router { ROUTER } else { 0 };
        let words = mac.words();
        let sum = target.sum() * 2
            + to.sum()
            + u32::from(32u16.to_be())
            + u32::from(u16::from(protocol::ICMPV6).to_be())
            + u32::from(u16::from_ne_bytes([icmp::NEIGHBOUR_ADVERTISEMENT, 0]))
            + u32::from(u16::from_ne_bytes([flags, 0]))
            + u32::from(u16::from_ne_bytes([TARGET_OPTION, 1]))
            + u32::from(words[0])
            + u32::from(words[1])
            + u32::from(words[2]);
        // Each byte once: to clear all of them would be a call, and a frame on the stack.
        frame[0..6].copy_from_slice(&to_mac.bytes());
        frame[6..12].copy_from_slice(&mac.bytes());
        frame[12..14].copy_from_slice(&ethernet::ethertype::IPV6.to_be_bytes());
        frame[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
        frame[18..20].copy_from_slice(&32u16.to_be_bytes());
        frame[20] = protocol::ICMPV6;
        frame[21] = HOP_LIMIT;
        frame[22..38].copy_from_slice(&target.bytes());
        frame[38..54].copy_from_slice(&to.bytes());
        frame[54] = icmp::NEIGHBOUR_ADVERTISEMENT;
        frame[55] = 0;
        frame[56..58].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
        frame[58..62].copy_from_slice(&[flags, 0, 0, 0]);
        frame[62..78].copy_from_slice(&target.bytes());
        frame[78] = TARGET_OPTION;
        frame[79] = 1;
        frame[80..86].copy_from_slice(&mac.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message in a frame with an advertisement whose option is this long by its own account.
    fn parse(units: u8, len: u32) -> Option<Neighbour> {
        let target = (Address::new(&[0xfd; 16]), Mac::new(&[2, 0, 0, 0, 0, 2]));
        let mut frame = [0; FRAME_LEN];
        Advertisement { target, asker: target, router: false }.write(&mut frame);
        frame[79] = units;
        Neighbour::parse(&frame[..], 54, len)
    }

    #[test]
    fn what_is_cut_short_is_none() {
        assert!(parse(1, 32).is_some() && parse(1, 24).is_some());
        for len in (0..24).chain(25..32) {
            assert_eq!(parse(1, len), None, "{len} bytes");
        }
        for units in [0, 2, 255] {
            assert_eq!(parse(units, 32), None, "an option of {units} units");
        }
    }

    #[test]
    fn an_advertisement_reads_as_one_and_its_checksum_holds() {
        let owner = (Address::new(&[0xfd; 16]), Mac::new(&[2, 0, 0, 0, 0, 2]));
        for asker in
            [(Address::new(&[0xfc; 16]), Mac::new(&[2, 0, 0, 0, 0, 1])), (Address::UNSPECIFIED, Mac::ZERO)]
        {
            let mut frame = [0xff; FRAME_LEN];
            Advertisement { target: owner, asker, router: true }.write(&mut frame);
            let message = Neighbour::parse(&frame[..], 54, 32).unwrap();
            assert_eq!(message, Neighbour { target: owner.0, mac: owner.1 });
            let sum: u32 =
                frame[22..].chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
            let sum = sum + u32::from(32u16.to_be()) + u32::from(58u16.to_be());
            assert_eq!(checksum::fold(sum), 0xffff);
        }
    }
}
