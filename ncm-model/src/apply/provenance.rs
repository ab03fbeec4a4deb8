//! Who asks for a neighbour, and the fields of it that are seldom set: stored once for all that share them.

use super::Request;
use crate::goalstate::neighbour_view::{self, NeighbourView};
use crate::model::Model;
use crate::resources::Neighbour;
use crate::store::{Provenance, Sym};

impl Model {
    /// Stores who asks, in which revision, and the rarely set fields.
    pub(super) fn hold_provenance(
        &mut self,
        view: &NeighbourView<'_>,
        before: Option<&Neighbour>,
        full: bool,
        request: Request,
    ) -> u32 {
        let held = before.map(|neighbour| *self.provenances.get(neighbour.provenance));
        let kept = held.filter(|_| !full);
        let request_sym = self.strings.hold(view.request_id.as_bytes());
        let vpc = match kept {
            Some(kept) if view.vpc_id.is_empty() => {
                self.strings.retain(kept.vpc);
                kept.vpc
            }
            _ => self.strings.hold(view.vpc_id.as_bytes()),
        };
        let extra = self.hold_extra(view, kept.map_or(Sym::EMPTY, |kept| kept.extra));
        let members = match kept {
            Some(kept) if view.groups.is_empty() => {
                self.policy.retain_members(kept.members);
                kept.members
            }
            _ => self.hold_groups(&view.groups),
        };
        let provenance = Provenance {
            revision: Self::merged_revision(held.map(|held| held.revision), view.revision),
            request: request_sym,
            vpc,
            members,
            extra,
            time: request.now,
            origin: request.origin,
        };
        let slot = self.provenances.hold(provenance, &mut self.strings, &mut self.policy);
        self.strings.release(request_sym);
        self.strings.release(vpc);
        self.strings.release(extra);
        self.policy.release_members(members);
        slot
    }

    /// The class of members of these groups.
    fn hold_groups(&mut self, sent: &[&str]) -> u32 {
        if sent.is_empty() {
            return 0;
        }
        let mut groups: Vec<&str> = sent.iter().copied().filter(|group| !group.is_empty()).collect();
        groups.sort_unstable();
        groups.dedup();
        self.policy.hold_members(&groups)
    }

    /// Stores the fields that are seldom set, each from the held ones where it was sent empty.
    fn hold_extra(&mut self, view: &NeighbourView<'_>, held: Sym) -> Sym {
        if view.name.is_empty() && view.host_mac.is_empty() && view.pairs.is_empty() && view.groups.is_empty()
        {
            self.strings.retain(held);
            return held;
        }
        let bytes = self.strings.bytes(held).into_owned();
        let before = neighbour_view::read(0, Some(&bytes)).unwrap_or_default();
        let name = if view.name.is_empty() { before.name } else { view.name };
        let host_mac = if view.host_mac.is_empty() { before.host_mac } else { view.host_mac };
        let pairs = if view.pairs.is_empty() { &before.pairs } else { &view.pairs };
        let groups = if view.groups.is_empty() { &before.groups } else { &view.groups };
        let mut extra = std::mem::take(&mut self.scratch_bytes);
        extra.clear();
        put_text(&mut extra, 6, name);
        put_text(&mut extra, 8, host_mac);
        for (address, mac) in pairs {
            let mut pair = Vec::new();
            put_text(&mut pair, 1, address);
            put_text(&mut pair, 2, mac);
            put_bytes(&mut extra, 11, &pair);
        }
        for group in groups {
            put_bytes(&mut extra, 1000, group.as_bytes());
        }
        let sym = self.strings.hold(&extra);
        self.scratch_bytes = extra;
        sym
    }
}

fn put_text(into: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(into, field, text.as_bytes());
    }
}

fn put_bytes(into: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, into);
    prost::encoding::encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}
