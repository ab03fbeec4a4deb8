//! The bpf(2) system call: the commands that aya has no calls for, or wraps in ways that do not fit here.
//!
//! Every function is safe to call: pointers handed to the kernel come from slices that outlive the call, and their
//! lengths are those that the kernel is told. Callers that pass buffers for a map check the map's own sizes first
//! ([`crate::raw::RawMap`]).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_map_info, bpf_prog_info};

/// Calls bpf(2) with the attributes `attr`.
fn bpf<T>(command: bpf_cmd, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is one of the `repr(C)` structs below, laid out as the kernel's `union bpf_attr` for that
    // command, without padding, and its size is passed along; the kernel writes into it at most.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).unwrap_or(i32::MAX))
}

/// Like [`bpf`], for commands that give a new file descriptor.
fn bpf_fd<T>(command: bpf_cmd, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command succeeded and so gave a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// BPF_MAP_UPDATE_ELEM: adds or replaces one entry.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    update_by(map, key, value, 0)
}

/// `BPF_NOEXIST` of `linux/bpf.h`.
const NO_EXIST: u64 = 1;

/// BPF_MAP_UPDATE_ELEM: adds one entry, where there is none.
pub(crate) fn add(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    update_by(map, key, value, NO_EXIST)
}

fn update_by(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let (key, value) = (address(key), address(value));
    let mut attr = ElementAttr { map: raw(map), key, value, flags, ..ElementAttr::default() };
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// BPF_MAP_DELETE_ELEM: removes one entry.
pub(crate) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr { map: raw(map), key: address(key), ..ElementAttr::default() };
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// BPF_MAP_LOOKUP_ELEM: reads one entry into `value`.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attr =
        ElementAttr { map: raw(map), key: address(key), value: address_mut(value), ..ElementAttr::default() };
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop)
}

/// BPF_MAP_GET_NEXT_KEY: the key after `key`, or the first; `false` at the end.
pub(crate) fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map: raw(map),
        key: key.map_or(0, address),
        value: address_mut(next),
        ..ElementAttr::default()
    };
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    cursor_in: u64,
    cursor_out: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// BPF_MAP_UPDATE_BATCH of `count` entries: how many were written, and the error that stopped it.
pub(crate) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr {
        keys: address(keys),
        values: address(values),
        count,
        map: raw(map),
        ..BatchAttr::default()
    };
    let result = bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr);
    batch_progress(count, &attr, result)
}

/// BPF_MAP_DELETE_BATCH of `count` keys: how many were removed, and the error that stopped it.
pub(crate) fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr { keys: address(keys), count, map: raw(map), ..BatchAttr::default() };
    let result = bpf(bpf_cmd::BPF_MAP_DELETE_BATCH, &mut attr);
    batch_progress(count, &attr, result)
}

/// The kernel leaves `count` as it was when it refuses the command as such, else sets it to what it has done.
fn batch_progress(asked: u32, attr: &BatchAttr, result: io::Result<i32>) -> (u32, io::Result<()>) {
    match result {
        Ok(_) => (asked, Ok(())),
        Err(error) if attr.count >= asked => (0, Err(error)),
        Err(error) => (attr.count, Err(error)),
    }
}

/// BPF_MAP_LOOKUP_BATCH: reads up to `count` entries after the position `cursor` (`None`: from the start) and moves
/// it. How many were read, and whether the end was reached.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Option<Vec<u8>>,
    cursor_size: usize,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    let mut next = vec![0; cursor_size];
    let mut attr = BatchAttr {
        cursor_in: cursor.as_deref().map_or(0, address),
        cursor_out: address_mut(&mut next),
        keys: address_mut(keys),
        values: address_mut(values),
        count,
        map: raw(map),
        ..BatchAttr::default()
    };
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => {
            *cursor = Some(next);
            Ok((attr.count.min(count), false))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count.min(count), true)),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct PathAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// BPF_OBJ_PIN: gives a map, program or link a name in bpffs that keeps it alive.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = PathAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// `BPF_F_RDONLY` of `linux/bpf.h`.
const READ_ONLY: u32 = 1 << 3;

/// BPF_OBJ_GET: opens what is pinned at `path`.
pub(crate) fn get_pinned(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = if read_only { READ_ONLY } else { 0 };
    let mut attr = PathAttr { path: path.as_ptr() as u64, fd: 0, flags };
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// BPF_OBJ_GET_INFO_BY_FD into a struct of the kernel's.
fn info<T>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = std::mem::MaybeUninit::<T>::zeroed();
    let len = u32::try_from(size_of::<T>()).unwrap_or(0);
    let mut attr = InfoAttr { fd: raw(fd), len, info: info.as_mut_ptr() as u64 };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: only called for the three structs of integers below, for which all bits zero is a value; the kernel
    // overwrote at most their size.
    Ok(unsafe { info.assume_init() })
}

/// What the kernel knows of a map.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    info(fd)
}

/// What the kernel knows of a program.
pub(crate) fn prog_info(fd: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    info(fd)
}

/// The part of `struct bpf_link_info` that is the same for XDP (`ifindex`) and tcx (`ifindex`, `attach_type`).
#[repr(C)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    reserved: u32,
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

/// What the kernel knows of a link; `ifindex` is 0 once its interface is gone.
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// Opens a program by its id.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut IdAttr { id, ..IdAttr::default() })
}

/// Opens a link by its id.
pub(crate) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut IdAttr { id, ..IdAttr::default() })
}

/// The id of the link after `id`, or `None` at the end.
pub(crate) fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut attr = IdAttr { id, ..IdAttr::default() };
    match bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) {
        Ok(_) => Ok(Some(attr.next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

/// BPF_LINK_CREATE on an interface.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let attach_type = attach_type as u32;
    let mut attr = LinkAttr { program: raw(program), ifindex, attach_type, flags, ..LinkAttr::default() };
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// BPF_LINK_UPDATE: puts another program behind a link, atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link: raw(link), program: raw(program), ..LinkUpdateAttr::default() };
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// BPF_PROG_QUERY of a tcx hook: the (program id, link id) of all that is attached, in order of execution.
pub(crate) fn query_tcx(ifindex: u32, attach_type: bpf_attach_type) -> io::Result<Vec<(u32, u32)>> {
    /// The kernel allows 64 programs on one hook.
    const MOST: usize = 64;
    let mut programs = [0u32; MOST];
    let mut links = [0u32; MOST];
    let mut attr = QueryAttr {
        ifindex,
        attach_type: attach_type as u32,
        programs: programs.as_mut_ptr() as u64,
        links: links.as_mut_ptr() as u64,
        count: 64,
        ..QueryAttr::default()
    };
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr.count).unwrap_or(0).min(MOST);
    Ok(programs.into_iter().zip(links).take(count).collect())
}

/// Arguments and results of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
pub(crate) struct TestRunAttr {
    pub(crate) program: u32,
    pub(crate) action: u32,
    pub(crate) data_size_in: u32,
    pub(crate) data_size_out: u32,
    pub(crate) data_in: u64,
    pub(crate) data_out: u64,
    pub(crate) repeat: u32,
    pub(crate) duration: u32,
    pub(crate) context_size_in: u32,
    pub(crate) context_size_out: u32,
    pub(crate) context_in: u64,
    pub(crate) context_out: u64,
    pub(crate) flags: u32,
    pub(crate) cpu: u32,
    pub(crate) batch_size: u32,
    pub(crate) reserved: u32,
}

/// Input and output of one BPF_PROG_TEST_RUN.
pub(crate) struct TestRunBuffers<'a> {
    pub(crate) data_in: &'a [u8],
    pub(crate) data_out: Option<&'a mut [u8]>,
    pub(crate) context_in: &'a [u8],
}

/// BPF_PROG_TEST_RUN: runs a program over a packet. `attr` carries `repeat`, `flags` and `batch_size` in, and
/// `action`, `duration` and `data_size_out` out.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    buffers: TestRunBuffers<'_>,
    attr: &mut TestRunAttr,
) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::E2BIG);
    attr.program = raw(program);
    attr.data_in = address(buffers.data_in);
    attr.data_size_in = u32::try_from(buffers.data_in.len()).map_err(too_long)?;
    if let Some(out) = buffers.data_out {
        attr.data_size_out = u32::try_from(out.len()).map_err(too_long)?;
        attr.data_out = address_mut(out);
    }
    if !buffers.context_in.is_empty() {
        attr.context_in = address(buffers.context_in);
        attr.context_size_in = u32::try_from(buffers.context_in.len()).map_err(too_long)?;
    }
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instructions_len: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

/// BPF_PROG_LOAD of a tc program given as instructions: for the few that only tests need.
pub(crate) fn load_classifier(name: &[u8], instructions: &[u64]) -> io::Result<OwnedFd> {
    const LICENSE: &[u8] = b"GPL\0";
    let mut attr = LoadAttr {
        kind: aya_obj::generated::bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32,
        instructions_len: u32::try_from(instructions.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: instructions.as_ptr() as u64,
        license: address(LICENSE),
        ..LoadAttr::default()
    };
    for (slot, byte) in attr.name.iter_mut().take(15).zip(name) {
        *slot = *byte;
    }
    bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
}

/// What a new map is to be.
pub(crate) struct NewMap<'a> {
    pub(crate) kind: aya_obj::generated::bpf_map_type,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    /// For maps of maps: a map like those that it is to hold.
    pub(crate) inner: Option<BorrowedFd<'a>>,
}

/// BPF_MAP_CREATE.
pub(crate) fn create_map(new: &NewMap<'_>) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        kind: new.kind as u32,
        key_size: new.key_size,
        value_size: new.value_size,
        max_entries: new.max_entries,
        flags: new.flags,
        inner_map: new.inner.map_or(0, raw),
    };
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

#[repr(C)]
#[derive(Default)]
struct ByIdAttr {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// BPF_MAP_GET_FD_BY_ID: opens the map that the kernel has under a number.
pub(crate) fn map_by_id(id: u32, read_only: bool) -> io::Result<OwnedFd> {
    let flags = if read_only { READ_ONLY } else { 0 };
    bpf_fd(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut ByIdAttr { id, flags, ..ByIdAttr::default() })
}

/// BPF_LINK_DETACH: takes a link's program from its hook at once, whoever else holds the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut raw(link)).map(drop)
}
