//! tc programs as filters on a clsact qdisc: where the kernel has no tcx, or the operator wants them so.
//!
//! A filter holds its program. It stays when the agent goes, as a pinned link does, and goes with its interface: so there is
//! nothing to pin. Whose it is stands in its name: `ncm/<instance>/<program>`, with `/qdisc` behind it where the qdisc came with
//! it, and goes with the last. Another program takes its place at once, as with a link.
//!
//! Ours have one priority, before which there is none, and one handle. Of filters of one priority the latest runs first.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Hook;
use crate::message::{Attributes, Message, Refusal, Request, flags, text, u32_at};
use crate::netlink;

const PRIORITY: u32 = 1;
/// "ncm".
const HANDLE: u32 = 0x6e_636d;

/// Types of messages (`RTM_*`).
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

/// `TC_H_CLSACT`: where the qdisc is; and its own handle.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of it: where its filters are.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Attributes (`TCA_*`, `TCA_BPF_*`), and their bits.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_FLAGS_GEN: u16 = 9;
const BPF_ID: u16 = 11;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is what is done.
const DIRECT_ACTION: u32 = 1;
/// `TCA_CLS_FLAGS_SKIP_HW`: no device is asked to run it.
const IN_SOFTWARE: u32 = 1;

/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;

/// A filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    pub(super) ifindex: u32,
    /// What kind of filter: "bpf" of programs.
    pub(super) kind: String,
    /// The kernel's id of its program; 0 of other kinds.
    pub(super) program: u32,
    /// What its name says, if it is one of ours.
    pub(super) owner: Option<Owner>,
}

/// What the name of a filter of ours says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    pub(super) instance: String,
    pub(super) hook: Hook,
    /// Whether the qdisc came with the filter.
    has_qdisc: bool,
}

impl Owner {
    fn parse(name: &str) -> Option<Self> {
        let (instance, rest) = name.strip_prefix("ncm/")?.split_once('/')?;
        let (program, has_qdisc) = match rest.strip_suffix("/qdisc") {
            Some(program) => (program, true),
            None => (rest, false),
        };
        let hook = Hook::of_program(program).filter(|hook| !hook.is_xdp())?;
        Some(Self { instance: instance.to_owned(), hook, has_qdisc })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let qdisc = if self.has_qdisc { "/qdisc" } else { "" };
        write!(formatter, "ncm/{}/{}{qdisc}", self.instance, self.hook.program())
    }
}

/// Where the filters of a hook are.
const fn place(hook: Hook) -> u32 {
    if matches!(hook, Hook::HandDownTc) { EGRESS } else { INGRESS }
}

/// A request about an interface's filters, ours unless it is for all.
fn request(kind: u16, request_flags: u16, ifindex: u32, place: u32, is_own: bool) -> Request {
    let (handle, info) =
        if is_own { (HANDLE, PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be())) } else { (0, 0) };
    Request::new(kind, request_flags, &header(ifindex, handle, place, info))
}

fn header(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    for (number, at) in [(ifindex, 4), (handle, 8), (parent, 12), (info, 16)] {
        header[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    header
}

/// The filter, or classifier of another kind, that a message is about; of a whole priority only those of other kinds.
fn parse(message: &Message<'_>) -> Option<Filter> {
    let number = |at| u32_at(message.payload, at);
    let (ifindex, handle, info) = (number(4)?, number(8)?, number(16)?);
    let attributes = Attributes::after(message.payload, HEADER);
    let kind = attributes.find(KIND).map(text)?;
    if message.kind != NEW_FILTER || (kind == "bpf") == (handle == 0) {
        return None;
    }
    let options = Attributes(attributes.find(OPTIONS).unwrap_or_default());
    let program = options.find(BPF_ID).and_then(|id| u32_at(id, 0)).unwrap_or(0);
    let is_own = handle == HANDLE && info >> 16 == PRIORITY;
    let owner = options.find(BPF_NAME).filter(|_| is_own).and_then(|name| Owner::parse(&text(name)));
    Some(Filter { ifindex, kind, program, owner })
}

/// All filters where those of a hook are, in the order in which they run. None where there is no qdisc, or no interface.
pub(super) fn on(hook: Hook, ifindex: u32) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    let asked = request(GET_FILTER, 0, ifindex, place(hook), false);
    netlink::dump(asked, |message| found.extend(parse(&message))).map_err(|refusal| refusal.error)?;
    Ok(found)
}

/// The filter of an instance.
pub(super) fn find(instance: &str, hook: Hook, ifindex: u32) -> Option<Filter> {
    let mut found = None;
    let asked = request(GET_FILTER, 0, ifindex, place(hook), true);
    // It is refused where there is no interface, no qdisc, or no such filter.
    netlink::call(asked, |message| found = parse(&message)).ok()?;
    found.filter(|filter| {
        filter.owner.as_ref().is_some_and(|owner| owner.instance == instance && owner.hook == hook)
    })
}

/// Where an instance has filters: on which hooks of which interfaces of this network namespace.
pub(super) fn all(instance: &str) -> io::Result<Vec<(Hook, u32)>> {
    let mut interfaces = Vec::new();
    let asked = Request::new(GET_QDISC, 0, &header(0, 0, 0, 0));
    netlink::dump(asked, |message| {
        if message.kind == NEW_QDISC && u32_at(message.payload, 12) == Some(CLSACT) {
            interfaces.extend(u32_at(message.payload, 4));
        }
    })
    .map_err(|refusal| refusal.error)?;
    let mut found = Vec::new();
    for ifindex in interfaces {
        for hook in [Hook::GuestTc, Hook::HandDownTc] {
            let own = on(hook, ifindex)?.into_iter().filter_map(|filter| {
                let owner = filter.owner.as_ref()?;
                // A qdisc of the kind "ingress" has the same filters everywhere.
                let is_own = owner.instance == instance && place(owner.hook) == place(hook);
                is_own.then_some((owner.hook, filter.ifindex))
            });
            found.extend(own);
        }
    }
    Ok(found)
}

/// Puts a program on a hook as a filter of an instance, and a qdisc where there is none.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    instance: &str,
    hook: Hook,
    ifindex: u32,
) -> Result<(), Refusal> {
    let made = make_qdisc(hook, ifindex)?;
    // Of several of ours on one interface, any may be the last.
    let shares = || {
        let others = [Hook::GuestTc, Hook::HandDownTc].into_iter().flat_map(|hook| on(hook, ifindex).ok());
        others
            .flatten()
            .any(|other| other.owner.is_some_and(|owner| owner.instance == instance && owner.has_qdisc))
    };
    let owner = Owner { instance: instance.to_owned(), hook, has_qdisc: made || shares() };
    put(program, &owner, ifindex, flags::CREATE | flags::EXCLUSIVE).map_err(|Refusal { error, words }| {
        if made {
            let _left_behind = remove_qdisc(ifindex);
        }
        let is_taken = error.raw_os_error() == Some(libc::EINVAL);
        let why = || {
            format!(
                "priority {PRIORITY} of `tc filter show` has to be free, or of programs for all protocols"
            )
        };
        Refusal {
            error,
            words: words.map(|words| if is_taken { format!("{words}; {}", why()) } else { words }),
        }
    })
}

/// Puts another program in the place of an instance's filter, at once; whether there is one.
pub(super) fn replace(
    program: BorrowedFd<'_>,
    instance: &str,
    hook: Hook,
    ifindex: u32,
) -> Result<bool, Refusal> {
    let Some(owner) = find(instance, hook, ifindex).and_then(|filter| filter.owner) else { return Ok(false) };
    match put(program, &owner, ifindex, 0) {
        Ok(()) => Ok(true),
        // It has gone meanwhile, maybe with its interface.
        Err(_) if find(instance, hook, ifindex).is_none() => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

fn put(program: BorrowedFd<'_>, owner: &Owner, ifindex: u32, how: u16) -> Result<(), Refusal> {
    let put = request(NEW_FILTER, how, ifindex, place(owner.hook), true).string(KIND, "bpf");
    let put = put.nested(OPTIONS, |options| {
        options
            .attribute(BPF_FD, &program.as_raw_fd().to_ne_bytes())
            .string(BPF_NAME, &owner.to_string())
            .attribute(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes())
            .attribute(BPF_FLAGS_GEN, &IN_SOFTWARE.to_ne_bytes())
    });
    netlink::call(put, |_| ())
}

/// Removes an instance's filter, and the qdisc if it came with one of ours and nobody else has filters there. Not being there is no
/// error.
pub(super) fn detach(instance: &str, hook: Hook, ifindex: u32) -> io::Result<()> {
    let Some(owner) = find(instance, hook, ifindex).and_then(|filter| filter.owner) else { return Ok(()) };
    let removed = netlink::call(request(DELETE_FILTER, 0, ifindex, place(hook), true), |_| ());
    if let Err(refusal) = removed
        && find(instance, hook, ifindex).is_some()
    {
        return Err(refusal.error);
    }
    let is_empty = |hook| on(hook, ifindex).is_ok_and(|filters| filters.is_empty());
    if owner.has_qdisc && is_empty(Hook::GuestTc) && is_empty(Hook::HandDownTc) {
        let _gone = remove_qdisc(ifindex);
    }
    Ok(())
}

/// Makes the qdisc; whether there was none. One of the kind "ingress" will do where filters are for ingress.
fn make_qdisc(hook: Hook, ifindex: u32) -> Result<bool, Refusal> {
    let how = flags::CREATE | flags::EXCLUSIVE;
    let make = Request::new(NEW_QDISC, how, &header(ifindex, CLSACT_HANDLE, CLSACT, 0));
    match netlink::call(make.string(KIND, "clsact"), |_| ()) {
        Ok(()) => Ok(true),
        Err(Refusal { error, .. }) if error.raw_os_error() == Some(libc::EEXIST) => {
            let mut kind = String::new();
            let asked = Request::new(GET_QDISC, flags::ECHO, &header(ifindex, 0, CLSACT, 0));
            netlink::call(asked, |message| {
                let attributes = Attributes::after(message.payload, HEADER);
                kind = attributes.find(KIND).map(text).unwrap_or_default();
            })?;
            if kind == "clsact" || kind == "ingress" && place(hook) == INGRESS {
                return Ok(false);
            }
            Err(Refusal { error, words: Some(format!("a qdisc of the kind `{kind}` is in the way")) })
        }
        Err(refusal) => Err(refusal),
    }
}

fn remove_qdisc(ifindex: u32) -> Result<(), Refusal> {
    netlink::call(Request::new(DELETE_QDISC, 0, &header(ifindex, CLSACT_HANDLE, CLSACT, 0)), |_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_named_after_whose_it_is() {
        for hook in Hook::ALL.into_iter().filter(|hook| !hook.is_xdp()) {
            for has_qdisc in [false, true] {
                let owner = Owner { instance: "host-1".to_owned(), hook, has_qdisc };
                assert_eq!(Owner::parse(&owner.to_string()), Some(owner));
            }
        }
        for other in
            ["", "ncm", "ncm/a", "ncm/a/other", "ncm/a/wire_xdp", "cil_from_netdev", "ncm/a/guest_tc/x"]
        {
            assert_eq!(Owner::parse(other), None, "{other}");
        }
    }
}
