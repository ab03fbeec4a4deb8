//! Values of configurations in the words of people, for the differences that a preview shows.

use crate::wire::neighbor_configuration as neighbor;
use crate::wire::port_configuration as port;
use crate::wire::router_configuration::{RoutingRule, SubnetRoutingTable};
use crate::wire::subnet_configuration as subnet;

/// Longest text of one value, in characters.
const LONGEST: usize = 120;

/// What the field of a configuration looks like in a line of text.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

/// The value, cut where it is long.
pub(crate) fn short(value: &impl Shown) -> String {
    let text = value.shown();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// Words with a space between, without the empty ones; `none` if all are.
fn words(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(" ") }
}

impl Shown for String {
    fn shown(&self) -> String {
        words(&[self])
    }
}

macro_rules! plainly {
    ($($kind:ty),+) => {
        $(impl Shown for $kind {
            fn shown(&self) -> String {
                self.to_string()
            }
        })+
    };
}
plainly!(bool, i32, u32, u64);

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), Shown::shown)
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> String {
        if self.is_empty() {
            return "none".to_owned();
        }
        self.iter().map(Shown::shown).collect::<Vec<_>>().join(", ")
    }
}

/// Shown as some of the fields, in that order.
macro_rules! by_fields {
    ($($kind:ty: $($field:ident),+;)+) => {
        $(impl Shown for $kind {
            fn shown(&self) -> String {
                words(&[$(&self.$field),+])
            }
        })+
    };
}
by_fields! {
    subnet::Gateway: ip_address, mac_address;
    subnet::ExtraDhcpOption: name, value;
    subnet::DnsEntry: entry;
    port::HostInfo: ip_address, mac_address;
    port::AllowAddressPair: ip_address, mac_address;
    port::SecurityGroupId: id;
    neighbor::AllowAddressPair: ip_address, mac_address;
}

impl Shown for port::FixedIp {
    fn shown(&self) -> String {
        format!("{} in {}", self.ip_address, words(&[&self.subnet_id]))
    }
}

impl Shown for neighbor::FixedIp {
    fn shown(&self) -> String {
        let kind = self.neighbor_type().as_str_name();
        let text = format!("{kind} {} in {}", self.ip_address, words(&[&self.subnet_id]));
        if self.tunnel_id == 0 { text } else { format!("{text} with VNI {}", self.tunnel_id) }
    }
}

impl Shown for RoutingRule {
    fn shown(&self) -> String {
        format!("{} via {}", self.destination, words(&[&self.next_hop_ip]))
    }
}

impl Shown for SubnetRoutingTable {
    fn shown(&self) -> String {
        format!("{} ({})", self.subnet_id, self.routing_rules.shown())
    }
}
