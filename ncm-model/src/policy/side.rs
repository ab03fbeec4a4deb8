//! One direction of a policy set: from rules counted in and out to table entries, of which only those are looked at again that
//! may have changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use ncm_common::tables::{ClassKey, Classes, MAX_CLASSES, Rule, RuleKey};

use super::members::Members;
use super::ranges::{Piece, Ranges, pieces};
use super::rule::{Allowance, Family, Prefix, Remote};

/// What rules of one class are told apart by, besides ports: family, and protocol if it is not every one.
type Kind = (Family, Option<u8>);

/// Whom rules are for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Whom {
    /// Addresses of a class; 0: all.
    Class(u32),
    /// Members of a group.
    Members(u32),
}

/// An entry to write or to delete, with the group that it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Rule(RuleKey, Option<(Rule, u32)>),
    Class(ClassKey, Option<(Classes, u32)>),
}

/// The key of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum OpKey {
    Rule(RuleKey),
    Class(ClassKey),
}

impl Op {
    pub(super) fn key(&self) -> OpKey {
        match self {
            Self::Rule(key, _) => OpKey::Rule(*key),
            Self::Class(key, _) => OpKey::Class(*key),
        }
    }
}

/// A prefix that rules have.
#[derive(Debug)]
struct Covered {
    class: u32,
    rules: u32,
    /// How many of the rules are of which group.
    groups: Vec<(u32, u32)>,
}

/// Entries of one class and kind.
#[derive(Debug)]
struct Cell {
    pieces: Vec<Piece>,
    group: u32,
}

/// How much a side, or several together, take.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Size {
    /// Entries of the table of rules.
    pub(super) rules: usize,
    /// Entries of the table of classes.
    pub(super) classes: usize,
    /// Different ranges of ports that are remembered.
    pub(super) ranges: usize,
}

impl std::ops::AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.rules += other.rules;
        self.classes += other.classes;
        self.ranges += other.ranges;
    }
}

impl std::ops::SubAssign for Size {
    fn sub_assign(&mut self, other: Self) {
        self.rules -= other.rules;
        self.classes -= other.classes;
        self.ranges -= other.ranges;
    }
}

/// One direction of a set.
#[derive(Debug)]
pub(super) struct Side {
    /// `set_direction` of keys.
    key: u32,
    /// The class given out last. None is ever given out twice in the life of a set: an entry that still lists one which has gone must
    /// not lead to the rules of another prefix.
    last_class: u32,
    /// Classes that an earlier run gave to prefixes.
    former: HashMap<ClassKey, u32>,
    ranges: BTreeMap<(Whom, Kind), Ranges>,
    prefixes: BTreeMap<(Family, Prefix), Covered>,
    cells: BTreeMap<(u32, Kind), Cell>,
    /// Prefixes under more than [`MAX_CLASSES`], themselves included.
    deep: BTreeSet<(Family, Prefix)>,
    /// Groups whose members rules name, with the kinds of those rules.
    asked: BTreeMap<u32, BTreeSet<Kind>>,
    /// Whether there were any such groups when entries were last brought up to date.
    named: bool,
    size: Size,
    dirty_ranges: BTreeSet<(Whom, Kind)>,
    dirty_prefixes: BTreeSet<(Family, Prefix)>,
    dirty_members: BTreeSet<u32>,
}

impl Side {
    pub(super) fn new(key: u32, last_class: u32, former: HashMap<ClassKey, u32>) -> Self {
        Self {
            key,
            last_class,
            former,
            ranges: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            cells: BTreeMap::new(),
            deep: BTreeSet::new(),
            asked: BTreeMap::new(),
            named: false,
            size: Size::default(),
            dirty_ranges: BTreeSet::new(),
            dirty_prefixes: BTreeSet::new(),
            dirty_members: BTreeSet::new(),
        }
    }

    pub(super) fn last_class(&self) -> u32 {
        self.last_class
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Groups whose members rules name.
    pub(super) fn asked(&self) -> impl Iterator<Item = u32> {
        self.asked.keys().copied()
    }

    /// Whether rules name groups whose members they are about.
    pub(super) fn names_groups(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(super) fn asks(&self, group: u32) -> bool {
        self.asked.contains_key(&group)
    }

    /// A prefix under more others than an entry can list.
    pub(super) fn too_deep(&self) -> Option<Prefix> {
        self.deep.first().map(|(_, prefix)| *prefix)
    }

    /// A class of members has come or gone.
    pub(super) fn disturb_members(&mut self, class: u32) {
        self.dirty_members.insert(class);
    }

    /// Counts a rule of a group in.
    pub(super) fn add(&mut self, rule: &Allowance, group: u32) {
        let kind = (rule.family, rule.protocol);
        let whom = match rule.remote {
            Remote::Any => Whom::Class(0),
            Remote::Group(members) => Whom::Members(members),
            Remote::Prefix(prefix) => {
                let place = (rule.family, prefix);
                let covered = self.prefixes.entry(place).or_insert_with(|| {
                    self.dirty_prefixes.insert(place);
                    let class = self.former.remove(&class_key(self.key, prefix)).unwrap_or_else(|| {
                        self.last_class += 1;
                        self.last_class
                    });
                    Covered { class, rules: 0, groups: Vec::new() }
                });
                covered.rules += 1;
                match covered.groups.iter_mut().find(|(known, _)| *known == group) {
                    Some((_, count)) => *count += 1,
                    None => covered.groups.push((group, 1)),
                }
                Whom::Class(covered.class)
            }
        };
        self.size.ranges += self.ranges.entry((whom, kind)).or_default().add(rule.ports, group);
        if let Whom::Members(members) = whom {
            self.asked.entry(members).or_default().insert(kind);
        }
        self.dirty_ranges.insert((whom, kind));
    }

    /// Counts a rule of a group out.
    pub(super) fn remove(&mut self, rule: &Allowance, group: u32) {
        let kind = (rule.family, rule.protocol);
        let whom = match rule.remote {
            Remote::Any => Whom::Class(0),
            Remote::Group(members) => Whom::Members(members),
            Remote::Prefix(prefix) => {
                let place = (rule.family, prefix);
                let Some(covered) = self.prefixes.get_mut(&place) else { return };
                let class = covered.class;
                covered.rules -= 1;
                if let Some(at) = covered.groups.iter().position(|(known, _)| *known == group) {
                    covered.groups[at].1 -= 1;
                    if covered.groups[at].1 == 0 {
                        covered.groups.remove(at);
                        // Its entry may name the group.
                        self.dirty_prefixes.insert(place);
                    }
                }
                if covered.rules == 0 {
                    self.prefixes.remove(&place);
                    self.dirty_prefixes.insert(place);
                }
                Whom::Class(class)
            }
        };
        let Some(ranges) = self.ranges.get_mut(&(whom, kind)) else { return };
        self.size.ranges -= ranges.remove(rule.ports, group);
        if ranges.is_empty() {
            self.ranges.remove(&(whom, kind));
            if let Whom::Members(members) = whom
                && let Some(kinds) = self.asked.get_mut(&members)
            {
                kinds.remove(&kind);
                if kinds.is_empty() {
                    self.asked.remove(&members);
                }
            }
        }
        self.dirty_ranges.insert((whom, kind));
    }

    /// Brings the entries up to date and appends what changes to `ops`; says whether rules have come or gone.
    pub(super) fn settle(&mut self, members: &Members, ops: &mut Vec<Op>) -> bool {
        let mut changed = false;
        let mut by_members = BTreeSet::new();
        for (whom, kind) in std::mem::take(&mut self.dirty_ranges) {
            match whom {
                Whom::Class(class) => {
                    let of = self.ranges.get(&(whom, kind));
                    let wanted = of.map(|ranges| (pieces([ranges]), ranges.group()));
                    changed |= self.replace_cell((class, kind), wanted, ops);
                }
                Whom::Members(group) => {
                    by_members.extend(members.classes_of(group).map(|class| (class, kind)));
                }
            }
        }
        for (class, kind) in by_members {
            changed |= self.settle_members(class, kind, members, ops);
        }
        // That a class of members comes or goes changes nothing for the endpoints of others.
        for class in std::mem::take(&mut self.dirty_members) {
            let mut kinds: BTreeSet<Kind> = self
                .cells
                .range((class, FIRST_KIND)..=(class, LAST_KIND))
                .map(|((_, kind), _)| *kind)
                .collect();
            for group in members.groups(class) {
                kinds.extend(self.asked.get(group).into_iter().flatten());
            }
            for kind in kinds {
                self.settle_members(class, kind, members, ops);
            }
        }
        self.settle_prefixes(ops);
        let named = self.names_groups();
        changed |= std::mem::replace(&mut self.named, named) != named;
        changed
    }

    fn settle_members(&mut self, class: u32, kind: Kind, members: &Members, ops: &mut Vec<Op>) -> bool {
        let of: Vec<_> = members
            .groups(class)
            .iter()
            .filter_map(|group| self.ranges.get(&(Whom::Members(*group), kind)))
            .collect();
        let group = of.iter().find_map(|ranges| ranges.group());
        let wanted = Some((pieces(of), group)).filter(|(pieces, _)| !pieces.is_empty());
        self.replace_cell((class, kind), wanted, ops)
    }

    /// Gives a class other entries; says whether any have come or gone.
    fn replace_cell(
        &mut self,
        (class, kind): (u32, Kind),
        wanted: Option<(Vec<Piece>, Option<u32>)>,
        ops: &mut Vec<Op>,
    ) -> bool {
        let wanted = wanted.map(|(pieces, group)| Cell { pieces, group: group.unwrap_or_default() });
        let held = self.cells.remove(&(class, kind));
        let (mut changed, key) = (false, self.key);
        let old = held.as_ref().map_or(&[][..], |held| &held.pieces);
        let new = wanted.as_ref().map_or(&[][..], |wanted| &wanted.pieces);
        let group = wanted.as_ref().map_or(0, |wanted| wanted.group);
        let same_group = held.as_ref().is_none_or(|held| held.group == group);
        let put = |piece: &Piece| {
            Op::Rule(rule_key(key, class, kind, piece), Some((Rule { rules: piece.rules }, group)))
        };
        let (mut old_at, mut new_at) = (0, 0);
        while old_at < old.len() || new_at < new.len() {
            let order = match (old.get(old_at), new.get(new_at)) {
                (Some(old), Some(new)) => (old.start, old.bits).cmp(&(new.start, new.bits)),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, _) => std::cmp::Ordering::Greater,
            };
            match order {
                std::cmp::Ordering::Less => {
                    ops.push(Op::Rule(rule_key(key, class, kind, &old[old_at]), None));
                    changed = true;
                }
                std::cmp::Ordering::Greater => {
                    ops.push(put(&new[new_at]));
                    changed = true;
                }
                std::cmp::Ordering::Equal => {
                    if !same_group || old[old_at].rules != new[new_at].rules {
                        ops.push(put(&new[new_at]));
                    }
                }
            }
            old_at += usize::from(order.is_le());
            new_at += usize::from(order.is_ge());
        }
        self.size.rules = self.size.rules + new.len() - old.len();
        if let Some(wanted) = wanted {
            self.cells.insert((class, kind), wanted);
        }
        changed
    }

    /// Lists anew the classes of all prefixes that lie in one which has come or gone.
    fn settle_prefixes(&mut self, ops: &mut Vec<Op>) {
        let mut done: Option<(Family, Prefix)> = None;
        for (family, root) in std::mem::take(&mut self.dirty_prefixes) {
            if !self.prefixes.contains_key(&(family, root)) {
                self.deep.remove(&(family, root));
                ops.push(Op::Class(class_key(self.key, root), None));
            }
            // They come in the order of their networks, and the shorter first: what the last one covers has been looked at.
            if done.is_some_and(|(of, last)| of == family && last.covers(root)) {
                continue;
            }
            done = Some((family, root));
            self.list_classes(family, root, ops);
        }
        self.size.classes = self.prefixes.len();
    }

    fn list_classes(&mut self, family: Family, root: Prefix, ops: &mut Vec<Op>) {
        let mut covering: Vec<(Prefix, u32)> = (family.shortest()..root.len)
            .filter_map(|len| {
                let prefix = Prefix::new(root.network, len);
                self.prefixes.get(&(family, prefix)).map(|covered| (prefix, covered.class))
            })
            .collect();
        let end = Prefix { network: root.last(), len: 128 };
        let within = (Bound::Included((family, root)), Bound::Included((family, end)));
        for ((_, prefix), covered) in self.prefixes.range(within) {
            while covering.pop_if(|(above, _)| !above.covers(*prefix)).is_some() {}
            covering.push((*prefix, covered.class));
            if covering.len() > MAX_CLASSES {
                self.deep.insert((family, *prefix));
                continue;
            }
            self.deep.remove(&(family, *prefix));
            let mut list = Classes::default();
            for (place, (_, class)) in list.classes.iter_mut().zip(covering.iter().rev()) {
                *place = *class;
            }
            let group = covered.groups.first().map_or(0, |(group, _)| *group);
            ops.push(Op::Class(class_key(self.key, *prefix), Some((list, group))));
        }
    }

    /// Deletes everything.
    pub(super) fn withdraw(&self, ops: &mut Vec<Op>) {
        for ((class, kind), cell) in &self.cells {
            let keys = cell.pieces.iter().map(|piece| rule_key(self.key, *class, *kind, piece));
            ops.extend(keys.map(|key| Op::Rule(key, None)));
        }
        let keys = self.prefixes.keys().map(|(_, prefix)| class_key(self.key, *prefix));
        ops.extend(keys.map(|key| Op::Class(key, None)));
    }
}

const FIRST_KIND: Kind = (Family::V4, None);
const LAST_KIND: Kind = (Family::V6, Some(u8::MAX));

fn rule_key(set: u32, class: u32, (family, protocol): Kind, piece: &Piece) -> RuleKey {
    let within = if protocol.is_some() { 16 + u32::from(piece.bits) } else { 8 };
    RuleKey {
        prefix_len: 64 + within,
        set,
        class,
        family: family.number(),
        protocol: protocol.unwrap_or_default(),
        port: piece.start.to_be_bytes(),
    }
}

fn class_key(set: u32, prefix: Prefix) -> ClassKey {
    ClassKey { prefix_len: 32 + u32::from(prefix.len), set, ip: prefix.network.to_be_bytes() }
}
