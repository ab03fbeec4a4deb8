//! DHCPv6's options (RFC 8415, section 21): reading a client's, and the configuration that an answer carries.

use std::net::Ipv6Addr;

use dhcproto::v6::{DhcpOption, DhcpOptions, OptionCode, UnknownOption};
use ncm_model::lease::options::domain_name;
use ncm_model::lease::{LinkV6, split_name};

pub(super) const CLIENT: u16 = 1;
pub(super) const SERVER: u16 = 2;
pub(super) const IA_NA: u16 = 3;
pub(super) const IA_TA: u16 = 4;
pub(super) const IA_ADDRESS: u16 = 5;
pub(super) const REQUESTED: u16 = 6;
pub(super) const RAPID_COMMIT: u16 = 14;
pub(super) const DNS: u16 = 23;
pub(super) const SEARCH: u16 = 24;
pub(super) const IA_PD: u16 = 25;

/// Most identity associations that one message is answered for.
const MOST_ASSOCIATIONS: usize = 16;
/// Most addresses of an identity association that count.
const MOST_ADDRESSES: usize = 16;
/// Bytes of an identity association's address without its options.
const ADDRESS_LEAST: usize = 24;
/// Longest identifier of a client, in bytes (RFC 8415, section 11.1).
const LONGEST_ID: usize = 130;

/// Options of a message or within an option: code and data.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Walk<'a> {
    /// An option, or that the rest is none.
    type Item = Result<(u16, &'a [u8]), ()>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        let (head, rest) = match bytes {
            [] => return None,
            [a, b, c, d, rest @ ..] => ([*a, *b, *c, *d], rest),
            _ => return Some(Err(())),
        };
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let Some((data, rest)) = rest.split_at_checked(length) else { return Some(Err(())) };
        self.0 = rest;
        Some(Ok((u16::from_be_bytes([head[0], head[1]]), data)))
    }
}

/// An identity association of a client: for addresses, for temporary ones, or for prefixes.
pub(super) struct Association {
    /// `IA_NA`, `IA_TA` or `IA_PD`.
    pub(super) code: u16,
    pub(super) id: u32,
    /// The addresses that the client has or would like.
    pub(super) addresses: Vec<Ipv6Addr>,
}

/// The options of a client's message that count.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) client: Option<Vec<u8>>,
    pub(super) server: Option<Vec<u8>>,
    pub(super) associations: Vec<Association>,
    /// The options it asks for, if it says which.
    pub(super) requested: Option<Vec<u16>>,
    pub(super) rapid: bool,
}

impl Asked {
    /// Reads the options; `None` if they are damaged.
    pub(super) fn read(options: &[u8]) -> Option<Self> {
        let mut asked = Self::default();
        for option in Walk(options) {
            let (code, data) = option.ok()?;
            match code {
                CLIENT if data.is_empty() || data.len() > LONGEST_ID => return None,
                CLIENT => asked.client = Some(data.to_vec()),
                SERVER => asked.server = Some(data.to_vec()),
                IA_NA | IA_TA | IA_PD if asked.associations.len() < MOST_ASSOCIATIONS => {
                    asked.associations.push(association(code, data)?);
                }
                REQUESTED => {
                    let (codes, rest) = data.as_chunks::<2>();
                    rest.is_empty().then_some(())?;
                    asked.requested = Some(codes.iter().map(|code| u16::from_be_bytes(*code)).collect());
                }
                RAPID_COMMIT if !data.is_empty() => return None,
                RAPID_COMMIT => asked.rapid = true,
                _ => {}
            }
        }
        Some(asked)
    }
}

fn association(code: u16, data: &[u8]) -> Option<Association> {
    let id = u32::from_be_bytes(data.get(..4)?.try_into().ok()?);
    let options = data.get(if code == IA_TA { 4 } else { 12 }..)?;
    let mut addresses = Vec::new();
    for option in Walk(options) {
        let (code, data) = option.ok()?;
        if code == IA_ADDRESS {
            // Its lifetimes, which are wishes only, have to be there.
            let address = Ipv6Addr::from(*data.get(..ADDRESS_LEAST)?.first_chunk::<16>()?);
            if addresses.len() < MOST_ADDRESSES {
                addresses.push(address);
            }
        }
    }
    Some(Association { code, id, addresses })
}

/// An option by its code and bytes.
pub(super) fn raw(code: u16, data: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data))
}

/// The options in that order: equal codes come out of `DhcpOptions` in the reverse order of their insertion.
pub(super) fn in_order(options: Vec<DhcpOption>) -> DhcpOptions {
    let mut ordered = DhcpOptions::new();
    options.into_iter().rev().for_each(|option| ordered.insert(option));
    ordered
}

/// Adds what the client asks for, or all that there is if it does not say: name servers, domains to search, and what the
/// subnet adds.
pub(super) fn add_configuration(options: &mut Vec<DhcpOption>, requested: Option<&[u16]>, link: &LinkV6) {
    let wanted = |code: u16| requested.is_none_or(|codes| codes.contains(&code));
    if wanted(DNS) && link.extras.v6(DNS).is_none() && !link.dns.is_empty() {
        options.push(DhcpOption::DomainNameServers(link.dns.clone()));
    }
    if wanted(SEARCH)
        && link.extras.v6(SEARCH).is_none()
        && let Some(domain) = domain_name(split_name(&link.host_name).1)
    {
        options.push(raw(SEARCH, domain));
    }
    for (code, data) in &link.extras.v6 {
        if wanted(*code) && !data.is_empty() {
            options.push(raw(*code, data.clone()));
        }
    }
}

/// Whether there is anything that [`add_configuration`] could add.
pub(super) fn has_configuration(link: &LinkV6) -> bool {
    let mut options = Vec::new();
    add_configuration(&mut options, None, link);
    !options.is_empty()
}
