//! Values that are nothing but their bytes.

/// A type that may be copied to and from a table byte by byte.
///
/// # Safety
///
/// The type is `repr(C)` (or a primitive), has no padding, and every bit pattern is a valid value.
pub unsafe trait Plain: Copy + Eq + core::fmt::Debug + Send + Sync + 'static {
    /// The value's bytes, as the kernel sees them.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the implementor promises a type without padding, so that every byte is initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value in `bytes`, or `None` if their number is not exactly the type's size. Alignment does not matter.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: the length is checked, the read is unaligned, and the implementor promises that any bits are a value.
        (bytes.len() == size_of::<Self>()).then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// The value of which every byte is zero.
    #[must_use]
    fn zeroed() -> Self {
        // SAFETY: the implementor promises that any bit pattern is a value.
        unsafe { core::mem::zeroed() }
    }
}

// SAFETY: a primitive without padding; every bit pattern is a value.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
