//! Who is at the other end of a Unix socket: root, the agent's own user and one group are let in. The kernel says who it
//! was that connected, supplementary groups included; no data base of users is asked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::unistd::Gid;
use tokio::net::UnixStream;

/// Groups of a peer that are asked for at first; it is asked again with room for as many as there are.
const USUAL_GROUPS: usize = 32;

/// The socket's mode keeps others out already; this holds also where a path was opened wider by hand.
pub(super) fn admit(stream: &UnixStream, group: Option<Gid>) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("its credentials cannot be read: {error}");
    let peer = stream.peer_cred().map_err(unreadable)?;
    if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    if let Some(group) = group.map(Gid::as_raw)
        && (peer.gid() == group || groups(stream.as_fd()).map_err(unreadable)?.contains(&group))
    {
        return Ok(());
    }
    Err(format!("user {} is neither root nor of api.group", peer.uid()))
}

/// The supplementary groups that the peer had when it connected (`SO_PEERGROUPS`, socket(7)): an option that none of the crates in use
/// knows.
fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; USUAL_GROUPS];
    loop {
        let size = size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has that many, and their number to
        // `length`; any bytes are valid group ids.
        let code = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if code == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // Too little room: `length` says how much it takes.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
