//! Bounds-checked stretches of a frame.

use core::marker::PhantomData;

/// Something that holds a frame, of which stretches can be read.
pub trait Frame {
    /// The `N` bytes from `offset` on, or `None` where the frame (or the part of it that can be read) is shorter.
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>>;

    /// Bytes of the whole frame, from the Ethernet header on.
    fn length(&self) -> u32;

    /// Brings as many bytes from the start into reach, where that takes anything; invalidates all windows.
    fn reach(&self, _bytes: u32) {}
}

/// `N` bytes of a frame, checked once to be there. Offsets count from the window's start and are checked while compiling.
#[derive(Clone, Copy)]
pub struct Window<'a, const N: usize> {
    start: *const u8,
    bytes: PhantomData<&'a [u8; N]>,
}

impl<'a, const N: usize> Window<'a, N> {
    /// The window that starts at `start`.
    ///
    /// # Safety
    ///
    /// `start` points to at least `N` bytes that may be read for as long as `'a`.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(start: *const u8) -> Self {
        Self { start, bytes: PhantomData }
    }

    /// The byte at `OFFSET`.
    #[inline(always)]
    #[must_use]
    pub fn u8<const OFFSET: usize>(&self) -> u8 {
        const { assert!(OFFSET < N) };
        // SAFETY: the offset is inside the window, whose bytes may be read.
        unsafe { self.start.add(OFFSET).read() }
    }

    /// The big-endian number in the two bytes at `OFFSET`.
    #[inline(always)]
    #[must_use]
    pub fn be16<const OFFSET: usize>(&self) -> u16 {
        u16::from_be(self.raw16::<OFFSET>())
    }

    /// The big-endian number in the four bytes at `OFFSET`.
    #[inline(always)]
    #[must_use]
    pub fn be32<const OFFSET: usize>(&self) -> u32 {
        u32::from_be(self.raw32::<OFFSET>())
    }

    /// The two bytes at `OFFSET`, as they are in memory.
    #[inline(always)]
    #[must_use]
    pub fn raw16<const OFFSET: usize>(&self) -> u16 {
        const { assert!(OFFSET + 2 <= N) };
        // SAFETY: the two bytes are inside the window, whose bytes may be read.
        unsafe { load::u16::<OFFSET>(self.start) }
    }

    /// The four bytes at `OFFSET`, as they are in memory.
    #[inline(always)]
    #[must_use]
    pub fn raw32<const OFFSET: usize>(&self) -> u32 {
        const { assert!(OFFSET + 4 <= N) };
        // SAFETY: the four bytes are inside the window, whose bytes may be read.
        unsafe { load::u32::<OFFSET>(self.start) }
    }
}

impl Frame for [u8] {
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        let bytes: &[u8; N] = self.get(offset..)?.first_chunk()?;
        // SAFETY: the window is made of the array itself and lives no longer.
        Some(unsafe { Window::new(bytes.as_ptr()) })
    }

    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

/// Loads of words at any address. On the kernel's machine that is one instruction, which its verifier allows in packets;
/// left to itself the compiler would load byte by byte there, as it cannot know that.
#[cfg(target_arch = "bpf")]
mod load {
    use core::arch::asm;

    /// # Safety
    ///
    /// The two bytes at `start + OFFSET` may be read.
    #[inline(always)]
    pub(super) unsafe fn u16<const OFFSET: usize>(start: *const u8) -> u16 {
        let word: u64;
        // SAFETY: as the caller promises; the instruction reads two bytes and clears the rest of the register.
        unsafe {
            asm!("{word} = *(u16 *)({start} + {offset})", word = out(reg) word, start = in(reg) start,
                offset = const OFFSET, options(pure, readonly, nostack, preserves_flags));
            core::hint::assert_unchecked(word <= 0xffff);
        }
        word as u16
    }

    /// # Safety
    ///
    /// The four bytes at `start + OFFSET` may be read.
    #[inline(always)]
    pub(super) unsafe fn u32<const OFFSET: usize>(start: *const u8) -> u32 {
        let word: u64;
        // SAFETY: as the caller promises; the instruction reads four bytes and clears the rest of the register.
        unsafe {
            asm!("{word} = *(u32 *)({start} + {offset})", word = out(reg) word, start = in(reg) start,
                offset = const OFFSET, options(pure, readonly, nostack, preserves_flags));
            core::hint::assert_unchecked(word <= 0xffff_ffff);
        }
        word as u32
    }
}

#[cfg(not(target_arch = "bpf"))]
mod load {
    /// # Safety
    ///
    /// The two bytes at `start + OFFSET` may be read.
    pub(super) unsafe fn u16<const OFFSET: usize>(start: *const u8) -> u16 {
        // SAFETY: as the caller promises; the read is unaligned.
        unsafe { start.add(OFFSET).cast::<u16>().read_unaligned() }
    }

    /// # Safety
    ///
    /// The four bytes at `start + OFFSET` may be read.
    pub(super) unsafe fn u32<const OFFSET: usize>(start: *const u8) -> u32 {
        // SAFETY: as the caller promises; the read is unaligned.
        unsafe { start.add(OFFSET).cast::<u32>().read_unaligned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_the_bytes_end() {
        let bytes = [1u8, 2, 3, 4, 5, 6];
        let window = bytes[..].window::<4>(2).unwrap();
        assert_eq!(window.u8::<3>(), 6);
        assert_eq!(window.be16::<1>(), 0x0405);
        assert_eq!(window.be32::<0>(), 0x0304_0506);
        assert!(bytes[..].window::<4>(3).is_none());
        assert!(bytes[..].window::<1>(usize::MAX).is_none());
    }
}
