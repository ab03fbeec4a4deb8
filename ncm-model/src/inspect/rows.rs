//! The outcomes of a message's states. Nothing is stored for a plain success: its row is read from the message.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::goalstate::message::Entry;
use crate::goalstate::neighbour_view::{self, split_state};
use crate::model::Model;
use crate::run::{Note, Run, head};
use crate::state::Row;
use crate::wire::{OperationStatus, ResourceType};

/// The few kinds' order in a reply.
const ORDER: [ResourceType; 7] = [
    ResourceType::Vpc,
    ResourceType::Subnet,
    ResourceType::Port,
    ResourceType::Router,
    ResourceType::Securitygroup,
    ResourceType::Dhcp,
    ResourceType::Gateway,
];

/// A state's id and operation; a neighbour's id is not copied.
fn heading<'a>(resource: ResourceType, entry: &Entry<'a>) -> (Cow<'a, str>, i32) {
    if resource == ResourceType::Neighbor
        && let Cow::Borrowed(state) = entry.state
        && let Ok((operation, Some(Cow::Borrowed(configuration)))) = split_state(state)
        && let Some(id) = neighbour_view::id_of(configuration)
    {
        return (Cow::Borrowed(id), operation);
    }
    let (id, operation) = head(resource, &entry.state);
    (Cow::Owned(id), operation)
}

impl Model {
    /// The outcomes of a run that is done: those other than SUCCESS first, then those of few kinds, then neighbours'. A
    /// caller that has no room for more may stop anywhere.
    pub fn rows<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = Row<'a>> + 'a {
        let noted =
            run.notes.iter().filter_map(|(at, resource, note)| self.noted_row(run, *at, *resource, note));
        let failed = self.failed_rows(run);
        let told: HashSet<(usize, ResourceType)> =
            failed.iter().map(|(at, row)| (*at, row.resource_type)).collect();
        let plain = self.plain_entries(run).filter_map(move |(resource, entry)| {
            if told.contains(&(entry.at, resource)) {
                return None;
            }
            match run.note_at(entry.at, resource) {
                Some(Note::Refused(..) | Note::Skipped) => return None,
                // Pending when it was applied: told above if it still is.
                Some(Note::Check) if self.noted_status(&entry, resource) != OperationStatus::Success => {
                    return None;
                }
                _ => {}
            }
            let (id, operation) = heading(resource, &entry);
            Some(Row {
                id,
                resource_type: resource,
                operation,
                status: OperationStatus::Success,
                cause: "".into(),
            })
        });
        noted.chain(failed.into_iter().map(|(_, row)| row)).chain(plain)
    }

    /// How many rows [`Model::rows`] has at most: one for each state that concerns this node.
    #[must_use]
    pub fn row_count(&self, run: &Run) -> usize {
        run.rows
    }

    fn noted_status(&self, entry: &Entry<'_>, resource: ResourceType) -> OperationStatus {
        let (id, _) = heading(resource, entry);
        self.entry_standing(resource, &id, entry).0
    }

    fn noted_row<'a>(
        &'a self,
        run: &'a Run,
        at: usize,
        resource: ResourceType,
        note: &'a Note,
    ) -> Option<Row<'a>> {
        let entry = run.entry_at(resource, at)?;
        let (id, operation) = heading(resource, &entry);
        let (status, cause) = match note {
            Note::Skipped => return None,
            Note::Refused(status, cause) => (*status, Cow::Borrowed(&**cause)),
            Note::Check => {
                let (status, cause) = self.entry_standing(resource, &id, &entry);
                if status == OperationStatus::Success {
                    return None;
                }
                (status, cause)
            }
        };
        Some(Row { id, resource_type: resource, operation, status, cause })
    }

    /// Rows of states that are not noted, but whose entries the kernel has refused or has no room for.
    fn failed_rows<'a>(&'a self, run: &'a Run) -> Vec<(usize, Row<'a>)> {
        if (self.failed.is_empty() && self.hosts.waiting.is_empty() && !self.room.any_barred())
            || run.is_for_others()
        {
            return Vec::new();
        }
        let mut rows = Vec::new();
        for (resource, entry) in self.plain_entries(run) {
            if run.note_at(entry.at, resource).is_some() {
                continue;
            }
            let (id, operation) = heading(resource, &entry);
            let (status, cause) = self.entry_standing(resource, &id, &entry);
            if status != OperationStatus::Success && rows.len() < 600_000 {
                rows.push((entry.at, Row { id, resource_type: resource, operation, status, cause }));
            }
        }
        rows
    }

    fn plain_entries<'a>(&self, run: &'a Run) -> impl Iterator<Item = (ResourceType, Entry<'a>)> + 'a {
        let told = !run.overflow && !run.is_for_others();
        let message = &run.message;
        let few = ORDER.into_iter().flat_map(move |resource| {
            (0..message.section_len(resource))
                .filter_map(move |position| Some((resource, message.section_entry(resource, position)?)))
        });
        let mut at = 0;
        let neighbours = std::iter::from_fn(move || {
            let (entry, next) = message.next_neighbour(at)?;
            at = next;
            Some((ResourceType::Neighbor, entry))
        });
        few.chain(neighbours).take_while(move |_| told)
    }
}
