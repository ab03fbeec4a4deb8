//! Writes the state into the tables: idle halves before flips, groups before who refers to them, and what nobody
//! refers to any more last.

use ncm_common::tables::{Host, NextHopGroup};

use super::neighbours::Neighbour;
use super::state::State;
use super::{Settings, TableSink, TableWrite, groups, template};

impl State {
    /// Writes what is not as it should be: groups, then who refers to them, then what nobody refers to any more.
    /// Returns the hosts that could not be written, and why; they are tried again on the next flush.
    pub(crate) fn flush(&mut self, sink: &mut dyn TableSink) -> Flushed {
        let mut flushed = Flushed::default();
        if !self.synchronised {
            return flushed;
        }
        if let Err(error) = self.write_uplinks(sink, &mut flushed.wrote) {
            tracing::warn!(%error, "the underlay's interfaces cannot be written: trying again");
        }
        let hosts = std::mem::take(&mut self.dirty_hosts);
        for index in &hosts {
            self.route_host(*index);
        }
        let mut refused = None;
        for index in std::mem::take(&mut self.dirty_groups) {
            if let Err(error) = self.write_group(index, sink, &mut flushed.wrote) {
                refused = Some(error);
                self.dirty_groups.insert(index);
            }
        }
        if let Some(error) = refused {
            let groups = self.dirty_groups.len();
            tracing::warn!(groups, %error, "next-hop groups cannot be written: trying again");
        }
        for index in hosts {
            if let Err(error) = self.write_host(index, sink, &mut flushed.wrote) {
                self.dirty_hosts.insert(index);
                flushed.failed.push((index, error));
            }
        }
        self.clear(sink, &mut flushed.wrote);
        flushed
    }

    fn write_uplinks(&mut self, sink: &mut dyn TableSink, wrote: &mut bool) -> Result<(), String> {
        let uplinks = self.uplink_slots();
        if self.written_uplinks != Some(uplinks) {
            sink.write(&TableWrite::Uplinks(uplinks))?;
            self.written_uplinks = Some(uplinks);
            *wrote = true;
        }
        Ok(())
    }

    fn write_group(&mut self, index: u32, sink: &mut dyn TableSink, wrote: &mut bool) -> Result<(), String> {
        let Some(group) = self.groups.get(index) else { return Ok(()) };
        let mut half = groups::half(&self.resolve(&group.path));
        if half.count == 0 {
            // Not in use; but a program that no longer trusts us asks the kernel for a neighbour there.
            half.hops[0].ifindex = group.path.first().map_or(0, |(hop, _)| hop.interface);
        }
        let (mut value, generation) = (group.value, group.generation);
        let name = groups::name(&group.name, generation);
        if value.generation != generation {
            // Nobody refers to it yet.
            value = NextHopGroup { generation, active: 0, halves: [half, Default::default()] };
            sink.write(&TableWrite::GroupName { index, name: Some(name) })?;
            sink.write(&TableWrite::Group { index, value })?;
        } else if value.halves[value.active as usize & 1] != half {
            let idle = (value.active & 1) ^ 1;
            value.halves[idle as usize] = half;
            sink.write(&TableWrite::Group { index, value })?;
            value.active = idle;
            sink.write(&TableWrite::Group { index, value })?;
        } else {
            return Ok(());
        }
        *wrote = true;
        self.groups.written(index, value);
        Ok(())
    }

    fn write_host(&mut self, index: u32, sink: &mut dyn TableSink, wrote: &mut bool) -> Result<(), String> {
        let Some(host) = self.hosts.get_mut(&index) else { return Ok(()) };
        if self.dirty_groups.contains(&host.group) {
            return Err("its next-hop group cannot be written".to_owned());
        }
        let Settings { endpoints, port, .. } = self.settings;
        let half = template::half(endpoints, host.address, port, host.group, host.mtu);
        let mut value = host.value;
        if value.generation != host.generation {
            value = Host { generation: host.generation, active: 0, halves: [half, Default::default()] };
            sink.write(&TableWrite::Host { index, value })?;
            *wrote = true;
        } else if value.halves[value.active as usize & 1] != half {
            let idle = (value.active & 1) ^ 1;
            value.halves[idle as usize] = half;
            sink.write(&TableWrite::Host { index, value })?;
            value.active = idle;
            sink.write(&TableWrite::Host { index, value })?;
            *wrote = true;
        }
        host.value = value;
        for group in std::mem::take(&mut host.leaving) {
            self.groups.release(group);
        }
        Ok(())
    }

    /// Clears the slots of what is gone. What fails is tried again on the next flush.
    fn clear(&mut self, sink: &mut dyn TableSink, wrote: &mut bool) {
        for (index, leaving) in std::mem::take(&mut self.clearing) {
            if sink.write(&TableWrite::Host { index, value: Host::default() }).is_err() {
                self.clearing.insert(index, leaving);
                continue;
            }
            *wrote = true;
            for group in leaving {
                self.groups.release(group);
            }
        }
        self.clearing_groups.extend(self.groups.unclaimed());
        for index in self.groups.unused() {
            if clear_group(index, sink).is_ok() {
                *wrote = true;
                self.dirty_groups.remove(&index);
                self.dirty_hosts.append(&mut self.starved);
                for hop in self.groups.forget(index) {
                    if self.neighbours.get(&hop).is_some_and(Neighbour::is_kept_for_us) {
                        self.to_release.insert(hop);
                    }
                }
            }
        }
        self.clearing_groups
            .retain(|index| self.groups.get(*index).is_none() && clear_group(*index, sink).is_err());
    }
}

/// What a flush did.
#[derive(Default, Debug)]
pub(crate) struct Flushed {
    /// Whether anything was written.
    pub(crate) wrote: bool,
    /// Hosts that could not be written, and why.
    pub(crate) failed: Vec<(u32, String)>,
}

fn clear_group(index: u32, sink: &mut dyn TableSink) -> Result<(), String> {
    sink.write(&TableWrite::Group { index, value: NextHopGroup::default() })?;
    sink.write(&TableWrite::GroupName { index, name: None })
}
