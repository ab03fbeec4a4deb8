//! A neighbour's addresses, as sent: checked before any is applied.

use std::collections::HashMap;
use std::net::IpAddr;

use ncm_common::MAX_VNI;

use super::{Outcome, Refusal};
use crate::goalstate::neighbour_view::{FixedIpView, NeighbourView};
use crate::goalstate::parse;

/// A neighbour's address, checked; its subnet is that of the view's address at `position`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixed {
    pub(crate) l3: bool,
    pub(crate) ip: IpAddr,
    pub(crate) tunnel: u32,
    pub(crate) position: usize,
}

/// The address at a position of the view.
pub(super) fn fixed_at<'a>(view: &NeighbourView<'a>, position: usize) -> FixedIpView<'a> {
    match position {
        0 => view.first.unwrap_or_default(),
        _ => view.more.get(position - 1).copied().unwrap_or_default(),
    }
}

/// Reads all addresses before any is applied.
pub(crate) fn parse_fixed(view: &NeighbourView<'_>, into: &mut Vec<Fixed>) -> Result<(), Refusal> {
    into.clear();
    for (position, fixed) in view.fixed_ips().enumerate() {
        let l3 = match fixed.neighbor_type {
            0 => false,
            1 => true,
            other => {
                return Err(Outcome::invalid(format!("neighbor_type {other} is neither L2 (0) nor L3 (1)")));
            }
        };
        let ip = parse::unicast_ip(fixed.ip_address).ok_or_else(|| {
            Outcome::invalid(format!("fixed_ips: \"{}\" is no guest's IP address", fixed.ip_address))
        })?;
        if fixed.tunnel_id > MAX_VNI {
            return Err(Outcome::invalid(format!(
                "fixed_ips: tunnel_id {} is above {MAX_VNI}",
                fixed.tunnel_id
            )));
        }
        if fixed.subnet_id.is_empty() && fixed.tunnel_id == 0 {
            return Err(Outcome::invalid(format!("fixed_ips: {ip} has neither a subnet_id nor a tunnel_id")));
        }
        into.push(Fixed { l3, ip, tunnel: fixed.tunnel_id, position });
    }
    Ok(())
}

/// Positions of sent addresses by IP address; a later one hides an earlier one.
pub(super) enum ByIp {
    Few(Vec<(IpAddr, usize)>),
    Many(HashMap<IpAddr, usize>),
}

impl ByIp {
    pub(super) fn new<'a>(fixed: impl Iterator<Item = &'a Fixed>) -> Self {
        let mut few: Vec<(IpAddr, usize)> = Vec::new();
        let mut many = HashMap::new();
        for fixed in fixed {
            if many.is_empty() && few.len() < 8 {
                few.retain(|(ip, _)| *ip != fixed.ip);
                few.push((fixed.ip, fixed.position));
            } else {
                many.extend(few.drain(..));
                many.insert(fixed.ip, fixed.position);
            }
        }
        if many.is_empty() { Self::Few(few) } else { Self::Many(many) }
    }

    pub(super) fn get(&self, ip: IpAddr) -> Option<usize> {
        match self {
            Self::Few(few) => few.iter().find(|(other, _)| *other == ip).map(|(_, position)| *position),
            Self::Many(many) => many.get(&ip).copied(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }
}
