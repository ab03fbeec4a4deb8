//! `ncmctl verify` and `prune`: what the kernel holds, against what it should.

use super::args::Global;
use super::connect::Agent;
use super::failure::{Exit, Failure};
use super::json::Json;
use super::output::{self, Grid};
use crate::ncm_v1::deviation::Kind;
use crate::ncm_v1::{VerifyReply, VerifyRequest};

/// Tells what differs. Exits with 1 if anything does and is not repaired.
pub(super) async fn verify(global: &Global, repair: bool) -> Result<Exit, Failure> {
    let reply = ask(global, VerifyRequest { repair, prune: false }).await?;
    show(global, &reply)?;
    let wrong = if repair { 0 } else { reply.missing + reply.different };
    let left = reply.unclaimed + reply.foreign + reply.detached.saturating_sub(reply.attached) + wrong;
    Ok(if left == 0 { Exit::Ok } else { Exit::Failed })
}

/// Removes what nothing held claims, or only tells what that is.
pub(super) async fn prune(global: &Global, dry_run: bool) -> Result<Exit, Failure> {
    let mut reply = ask(global, VerifyRequest { repair: false, prune: !dry_run }).await?;
    reply.deviations.retain(|deviation| deviation.kind() == Kind::Unclaimed);
    (reply.missing, reply.different, reply.detached, reply.foreign) = (0, 0, 0, 0);
    show(global, &reply)?;
    Ok(Exit::Ok)
}

async fn ask(global: &Global, request: VerifyRequest) -> Result<VerifyReply, Failure> {
    let mut agent = Agent::connect(global).await?;
    Ok(agent.operate.verify(request).await?.into_inner())
}

fn show(global: &Global, reply: &VerifyReply) -> Result<(), Failure> {
    let json = Json::new()?.own("VerifyReply", reply)?;
    output::show(global.output, &json, || text(reply))?;
    Ok(())
}

fn text(reply: &VerifyReply) -> String {
    let mut text = String::new();
    if !reply.deviations.is_empty() {
        let mut grid = Grid::new(["KIND", "PLACE", "KEY", "EXPECTED", "FOUND"]);
        for deviation in &reply.deviations {
            let kind = deviation.kind().as_str_name().to_ascii_lowercase();
            grid.row([&kind, &deviation.place, &deviation.key, &deviation.expected, &deviation.found]);
        }
        text.push_str(&grid.text());
    }
    let counts = [
        ("missing", reply.missing),
        ("different", reply.different),
        ("unclaimed", reply.unclaimed),
        ("detached", reply.detached),
        ("foreign", reply.foreign),
    ];
    let counts: Vec<String> = counts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    text.push_str(&match counts.is_empty() {
        true => "everything is as it should be\n".to_owned(),
        false => format!("{}\n", counts.join(", ")),
    });
    if reply.written + reply.removed + reply.attached > 0 {
        let VerifyReply { written, removed, attached, .. } = reply;
        text.push_str(&format!(
            "{written} entries written, {removed} removed, {attached} programs attached\n"
        ));
    }
    text
}
