//! New connections: made, used for one exchange and closed, ours and those of connection tracking in turn.

use std::time::Duration;

use anyhow::Result;

use super::Plan;
use super::kernel::{BRIDGE, CONNTRACK, advised, kernel, ours, stateful};
use super::requests::connections;
use super::row::{Bound, Row};
use super::turns::in_turn;
use crate::testbed::HostOptions;

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    for (wire, options, bound) in [
        ("", advised(HostOptions::default()), Some(Bound::AtLeast(1.5))),
        ("_defaults", HostOptions::default(), None),
        ("_virtual", HostOptions::virtual_wire(), None),
    ] {
        for (guests, taps) in [("veth", false), ("tap", true)] {
            let name = format!("connections{wire}_{guests}");
            if !plan.wants(&name) {
                continue;
            }
            let pairs = [
                ours(options.clone(), taps)?,
                stateful(options.clone(), taps)?,
                kernel(options.clone(), taps)?,
            ];
            let time = Duration::from_millis(u64::from(plan.seconds()) * 200);
            let values = in_turn(plan, &pairs, |pair| connections(pair, time))?;
            let [own, other, bare] = [values[0], values[1], values[2]].map(|[value]| value);
            done(Row::new(name.clone(), "1/s", own, CONNTRACK, other, bound));
            done(Row::new(name + "_stateless", "1/s", own, BRIDGE, bare, None));
        }
    }
    Ok(())
}
