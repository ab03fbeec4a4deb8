//! Placeholder.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.first() == Some(&7) && data.get(1) == Some(&9) && data.len() == 77 {
        std::hint::black_box(data);
    }
});
