//! A neighbour state read where it was received: nothing is copied or allocated in the ordinary case.

use std::borrow::Cow;

use super::reader::{Fault, Reader};

/// One of a neighbour's addresses, as sent.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct FixedIpView<'a> {
    pub(crate) neighbor_type: i32,
    pub(crate) subnet_id: &'a str,
    pub(crate) ip_address: &'a str,
    pub(crate) arion_group: &'a str,
    pub(crate) tunnel_id: u32,
}

/// A `NeighborState`, as sent.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct NeighbourView<'a> {
    pub(crate) operation: i32,
    pub(crate) configured: bool,
    pub(crate) revision: u32,
    pub(crate) request_id: &'a str,
    pub(crate) id: &'a str,
    pub(crate) update_type: i32,
    pub(crate) vpc_id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) mac: &'a str,
    pub(crate) host_mac: &'a str,
    pub(crate) host_ip: &'a str,
    /// The first address; the others are in `more`, which allocates only if there are any.
    pub(crate) first: Option<FixedIpView<'a>>,
    pub(crate) more: Vec<FixedIpView<'a>>,
    /// Allowed pairs (address, MAC) and security groups: rare.
    pub(crate) pairs: Vec<(&'a str, &'a str)>,
    pub(crate) groups: Vec<&'a str>,
}

impl<'a> NeighbourView<'a> {
    pub(crate) fn fixed_ips(&self) -> impl Iterator<Item = &FixedIpView<'a>> {
        self.first.iter().chain(&self.more)
    }
}

/// The bytes of a message field, if it is there: borrowed unless it came in several pieces.
pub(crate) type Part<'a> = Option<Cow<'a, [u8]>>;

/// The bytes of `configuration` in an encoded state, and the state's operation type. A field that occurs twice is the sum of
/// both, as protobuf merges messages.
pub(crate) fn split_state(state: &[u8]) -> Result<(i32, Part<'_>), Fault> {
    let mut reader = Reader::new(state);
    let (mut operation, mut configuration) = (0, None);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => operation = reader.number(wire).map_err(|fault| fault.within("operation_type"))? as i32,
            2 => {
                merge(&mut configuration, reader.bytes(wire).map_err(|fault| fault.within("configuration"))?)
            }
            _ => reader.skip(number, wire)?,
        }
    }
    Ok((operation, configuration))
}

/// Adds an occurrence of a message field to those before it.
pub(crate) fn merge<'a>(field: &mut Option<Cow<'a, [u8]>>, bytes: &'a [u8]) {
    match field {
        None => *field = Some(Cow::Borrowed(bytes)),
        Some(before) => before.to_mut().extend_from_slice(bytes),
    }
}

/// The id of a configuration whose structure was checked before.
pub(crate) fn id_of(configuration: &[u8]) -> Option<&str> {
    let mut id = "";
    let mut reader = Reader::new(configuration);
    while let Some((number, wire)) = reader.field().ok()? {
        match number {
            3 => id = reader.text(wire).ok()?,
            _ => reader.skip(number, wire).ok()?,
        }
    }
    Some(id)
}

/// Reads the configuration's fields.
pub(crate) fn read<'a>(operation: i32, configuration: Option<&'a [u8]>) -> Result<NeighbourView<'a>, Fault> {
    let mut view =
        NeighbourView { operation, configured: configuration.is_some(), ..NeighbourView::default() };
    let mut reader = Reader::new(configuration.unwrap_or_default());
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => view.revision = reader.number(wire).map_err(|fault| fault.within("revision_number"))? as u32,
            2 => view.request_id = reader.text(wire).map_err(|fault| fault.within("request_id"))?,
            3 => view.id = reader.text(wire).map_err(|fault| fault.within("id"))?,
            4 => view.update_type = reader.number(wire).map_err(|fault| fault.within("update_type"))? as i32,
            5 => view.vpc_id = reader.text(wire).map_err(|fault| fault.within("vpc_id"))?,
            6 => view.name = reader.text(wire).map_err(|fault| fault.within("name"))?,
            7 => view.mac = reader.text(wire).map_err(|fault| fault.within("mac_address"))?,
            8 => view.host_mac = reader.text(wire).map_err(|fault| fault.within("host_mac_address"))?,
            9 => view.host_ip = reader.text(wire).map_err(|fault| fault.within("host_ip_address"))?,
            10 => {
                let bytes = reader.bytes(wire).map_err(|fault| fault.within("fixed_ips"))?;
                let fixed = read_fixed_ip(bytes).map_err(|fault| fault.within("fixed_ips"))?;
                match view.first {
                    None => view.first = Some(fixed),
                    Some(_) => view.more.push(fixed),
                }
            }
            11 => {
                let bytes = reader.bytes(wire).map_err(|fault| fault.within("allow_address_pairs"))?;
                view.pairs.push(read_pair(bytes).map_err(|fault| fault.within("allow_address_pairs"))?);
            }
            1000 => view.groups.push(reader.text(wire).map_err(|fault| fault.within("security_group_ids"))?),
            _ => reader.skip(number, wire)?,
        }
    }
    Ok(view)
}

fn read_fixed_ip(bytes: &[u8]) -> Result<FixedIpView<'_>, Fault> {
    let mut fixed = FixedIpView::default();
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => {
                fixed.neighbor_type =
                    reader.number(wire).map_err(|fault| fault.within("neighbor_type"))? as i32
            }
            2 => fixed.subnet_id = reader.text(wire).map_err(|fault| fault.within("subnet_id"))?,
            3 => fixed.ip_address = reader.text(wire).map_err(|fault| fault.within("ip_address"))?,
            4 => fixed.arion_group = reader.text(wire).map_err(|fault| fault.within("arion_group"))?,
            5 => fixed.tunnel_id = reader.number(wire).map_err(|fault| fault.within("tunnel_id"))? as u32,
            _ => reader.skip(number, wire)?,
        }
    }
    Ok(fixed)
}

fn read_pair(bytes: &[u8]) -> Result<(&str, &str), Fault> {
    let mut pair = ("", "");
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => pair.0 = reader.text(wire).map_err(|fault| fault.within("ip_address"))?,
            2 => pair.1 = reader.text(wire).map_err(|fault| fault.within("mac_address"))?,
            _ => reader.skip(number, wire)?,
        }
    }
    Ok(pair)
}
