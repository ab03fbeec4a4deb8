//! Next-hop groups: hosts with the same ways out share one. Which index a group has, who uses it, and what its slot
//! in the table holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use ncm_common::tables::{Name, NextHop, NextHopGroup, NextHopHalf};

use super::neighbours::Hop;

/// Most next hops of a group.
pub(crate) const MOST_HOPS: usize = 8;

/// The ways out that a group stands for, resolved or not, with their shares of the flows; in ascending order.
pub(crate) type Path = Vec<(Hop, u16)>;

/// A group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) path: Path,
    /// What the slot holds, as last written.
    pub(crate) value: NextHopGroup,
    /// Generation of the index under this group.
    pub(crate) generation: u32,
    /// Text that lists the path: how the group is found again after a restart.
    pub(crate) name: String,
    users: u32,
}

/// All groups.
#[derive(Debug)]
pub(crate) struct Groups {
    by_index: BTreeMap<u32, Group>,
    by_path: HashMap<Path, u32>,
    by_hop: HashMap<Hop, BTreeSet<u32>>,
    unused: BTreeSet<u32>,
    /// Left by an agent before, and not claimed yet.
    adopted: HashMap<String, (u32, NextHopGroup)>,
    /// Indices that may be given out again, the longest unused first, with the generations they had.
    free: VecDeque<(u32, u32)>,
    next: u32,
    capacity: u32,
}

impl Groups {
    /// No groups, but those that an agent before left in the table: (index, name, value). `capacity` is the number of
    /// slots, of which the first is never used.
    pub(crate) fn new(capacity: u32, left: Vec<(u32, String, NextHopGroup)>) -> Self {
        let next = left.iter().map(|(index, ..)| index.saturating_add(1)).max().unwrap_or(1).max(1);
        let taken: BTreeSet<u32> = left.iter().map(|(index, ..)| *index).collect();
        let mut free: VecDeque<(u32, u32)> =
            (1..next).filter(|index| !taken.contains(index)).map(|index| (index, 0)).collect();
        let mut adopted = HashMap::new();
        for (index, name, value) in left {
            if let Some((index, value)) = adopted.insert(name, (index, value)) {
                free.push_back((index, value.generation));
            }
        }
        Self {
            by_index: BTreeMap::new(),
            by_path: HashMap::new(),
            by_hop: HashMap::new(),
            unused: BTreeSet::new(),
            adopted,
            free,
            next,
            capacity,
        }
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Group> {
        self.by_index.get(&index)
    }

    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        self.by_index.keys().copied()
    }

    /// The groups that a next hop is in.
    pub(crate) fn with_hop(&self, hop: &Hop) -> impl Iterator<Item = u32> {
        self.by_hop.get(hop).into_iter().flatten().copied()
    }

    /// Whether any group needs the next hop.
    pub(crate) fn needs(&self, hop: &Hop) -> bool {
        self.by_hop.contains_key(hop)
    }

    /// All next hops that are needed.
    pub(crate) fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.by_hop.keys()
    }

    /// The group of that path, for one more user, and whether it is new; `None` if all indices are taken.
    pub(crate) fn acquire(&mut self, path: &Path, name: String) -> Option<(u32, bool)> {
        if let Some(index) = self.by_path.get(path).copied()
            && let Some(group) = self.by_index.get_mut(&index)
        {
            group.users += 1;
            self.unused.remove(&index);
            return Some((index, false));
        }
        let (index, generation, value) = match self.adopted.remove(&name) {
            Some((index, value)) => (index, value.generation.max(1), value),
            None => {
                let (index, before) = match self.free.pop_front() {
                    Some(free) => free,
                    None if self.next < self.capacity => (self.next, 0),
                    None => return None,
                };
                self.next = self.next.max(index + 1);
                (index, before.checked_add(1).unwrap_or(1), NextHopGroup::default())
            }
        };
        for (hop, _) in path {
            self.by_hop.entry(*hop).or_default().insert(index);
        }
        self.by_path.insert(path.clone(), index);
        self.by_index.insert(index, Group { path: path.clone(), value, generation, name, users: 1 });
        Some((index, true))
    }

    /// Takes one user of a group away.
    pub(crate) fn release(&mut self, index: u32) {
        if let Some(group) = self.by_index.get_mut(&index) {
            group.users = group.users.saturating_sub(1);
            if group.users == 0 {
                self.unused.insert(index);
            }
        }
    }

    /// The groups that nobody uses.
    pub(crate) fn unused(&self) -> Vec<u32> {
        self.unused.iter().copied().collect()
    }

    /// Groups of an agent before that nobody claimed, whose slots are to be cleared; they are forgotten here.
    pub(crate) fn unclaimed(&mut self) -> Vec<u32> {
        let left: Vec<(u32, u32)> =
            self.adopted.drain().map(|(_, (index, value))| (index, value.generation)).collect();
        self.free.extend(&left);
        left.into_iter().map(|(index, _)| index).collect()
    }

    /// Remembers what a group's slot holds now.
    pub(crate) fn written(&mut self, index: u32, value: NextHopGroup) {
        if let Some(group) = self.by_index.get_mut(&index) {
            group.value = value;
        }
    }

    /// Forgets an unused group whose slot is empty; returns the next hops that are needed no more.
    pub(crate) fn forget(&mut self, index: u32) -> Vec<Hop> {
        self.unused.remove(&index);
        let Some(group) = self.by_index.remove(&index) else { return Vec::new() };
        self.by_path.remove(&group.path);
        self.free.push_back((index, group.generation));
        let mut needless = Vec::new();
        for (hop, _) in group.path {
            if let Some(groups) = self.by_hop.get_mut(&hop) {
                groups.remove(&index);
                if groups.is_empty() {
                    self.by_hop.remove(&hop);
                    needless.push(hop);
                }
            }
        }
        needless
    }
}

/// One half of a group: up to eight slots, each hop in as many as its share asks for.
pub(crate) fn half(hops: &[(NextHop, u16)]) -> NextHopHalf {
    let hops = &hops[..hops.len().min(MOST_HOPS)];
    let divisor = hops.iter().fold(0, |divisor, (_, weight)| gcd(divisor, (*weight).max(1)));
    let total: usize = hops.iter().map(|(_, weight)| usize::from((*weight).max(1) / divisor.max(1))).sum();
    let mut half = NextHopHalf::default();
    let mut slots = half.hops.iter_mut();
    let mut left = MOST_HOPS;
    for (position, (hop, weight)) in hops.iter().enumerate() {
        let share = usize::from((*weight).max(1) / divisor.max(1));
        let wanted = if total <= MOST_HOPS { share } else { (share * MOST_HOPS / total).max(1) };
        // Whoever comes after needs at least one slot each.
        let given = wanted.min(left - (hops.len() - position - 1));
        for slot in slots.by_ref().take(given) {
            *slot = *hop;
            half.count += 1;
        }
        left -= given;
    }
    half
}

fn gcd(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// The name of a group as the table of names holds it.
pub(crate) fn name(text: &str, generation: u32) -> Name {
    Name::new(text, generation)
}

/// The text as it fits into a name.
pub(crate) fn fitting(text: &str) -> String {
    Name::new(text, 1).as_str().to_owned()
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
