//! Ethernet (IEEE 802.3).

use super::{Frame, Mac};

/// Bytes of the header.
pub const LEN: usize = 14;

/// Ethertypes, host order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// An outer VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// An Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ethernet {
    /// Destination.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
    /// Ethertype (or a length, below 0x600), host order.
    pub ethertype: u16,
}

impl Ethernet {
    /// A header of zeros.
    pub const EMPTY: Self = Self { destination: Mac::ZERO, source: Mac::ZERO, ethertype: 0 };

    /// The header at `offset`.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), offset: usize) -> Option<Self> {
        let window = frame.window::<LEN>(offset)?;
        Some(Self {
            destination: Mac::at::<0, 4, LEN>(&window),
            source: Mac::at::<6, 10, LEN>(&window),
            ethertype: window.be16::<12>(),
        })
    }
}
