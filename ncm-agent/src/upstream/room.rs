//! Room for what is held: bounded in packets and bytes, in all and for each port.

use std::collections::HashMap;

use crate::config;

/// A number of packets, and of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Amount {
    pub(super) packets: usize,
    pub(super) bytes: usize,
}

impl Amount {
    /// One more packet of that many bytes, if that is within a bound.
    fn plus(self, bytes: usize, most: Self) -> Option<Self> {
        let sum = Self { packets: self.packets + 1, bytes: self.bytes + bytes };
        (sum.packets <= most.packets && sum.bytes <= most.bytes).then_some(sum)
    }

    fn less(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What is held, and how much may be.
#[derive(Debug)]
pub(super) struct Room {
    most: Amount,
    most_of_port: Amount,
    all: Amount,
    ports: HashMap<u32, Amount>,
}

impl Room {
    pub(super) fn new(config: &config::Upstream) -> Self {
        Self {
            most: Amount { packets: config.hold_packets, bytes: config.hold_bytes },
            most_of_port: Amount { packets: config.port_hold_packets, bytes: config.port_hold_bytes },
            all: Amount::default(),
            ports: HashMap::new(),
        }
    }

    /// Takes room for a packet of a port; says whether there is some.
    pub(super) fn take(&mut self, port: u32, bytes: usize) -> bool {
        let of_port = self.ports.get(&port).copied().unwrap_or_default();
        let (Some(all), Some(of_port)) =
            (self.all.plus(bytes, self.most), of_port.plus(bytes, self.most_of_port))
        else {
            return false;
        };
        self.all = all;
        self.ports.insert(port, of_port);
        true
    }

    /// Gives a packet's room back.
    pub(super) fn give_back(&mut self, port: u32, bytes: usize) {
        self.all.less(bytes);
        if let Some(of_port) = self.ports.get_mut(&port) {
            of_port.less(bytes);
            if of_port.packets == 0 {
                self.ports.remove(&port);
            }
        }
    }

    /// What is held in all.
    pub(super) fn held(&self) -> Amount {
        self.all
    }
}
