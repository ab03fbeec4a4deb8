//! New connections: made, used for one exchange and closed, ours and those of connection tracking in turn.

use std::time::Duration;

use anyhow::Result;

use super::Plan;
use super::kernel::{CONNTRACK, ours, stateful};
use super::requests::connections;
use super::row::{Bound, Row};
use super::turns::in_turn;
use crate::testbed::HostOptions;

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    for (guests, taps) in [("veth", false), ("tap", true)] {
        let name = format!("connections_{guests}");
        if !plan.wants(&name) {
            continue;
        }
        let options = HostOptions::default;
        let pairs = [ours(options(), taps)?, stateful(options(), taps)?];
        let time = Duration::from_millis(u64::from(plan.seconds()) * 200);
        let values = in_turn(plan, &pairs, |pair| connections(pair, time))?;
        let ([[own], [other]], bound) = ([values[0], values[1]], Some(Bound::AtLeast(1.5)));
        done(Row::new(name, "1/s", own, CONNTRACK, other, bound));
    }
    Ok(())
}
