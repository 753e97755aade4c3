//! What a Rust program does to its global allocator, which a feature names. It acquires and
//! releases by all of `GlobalAlloc`'s functions, tells its ledger and waits.
//!
//! phases: READY, go, <ledger> END, end

use std::{hint::black_box, mem::forget};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: jemalloc::Jemalloc = jemalloc::Jemalloc;
#[cfg(feature = "unprefixed-jemalloc")]
#[global_allocator]
static ALLOCATOR: unprefixed_jemalloc::Jemalloc = unprefixed_jemalloc::Jemalloc;
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[cfg(feature = "snmalloc")]
#[global_allocator]
static ALLOCATOR: snmalloc::SnMalloc = snmalloc::SnMalloc;
#[cfg(feature = "rpmalloc")]
#[global_allocator]
static ALLOCATOR: rpmalloc::RpMalloc = rpmalloc::RpMalloc;
#[cfg(feature = "scudo")]
#[global_allocator]
static ALLOCATOR: scudo::GlobalScudoAllocator = scudo::GlobalScudoAllocator;

#[repr(align(64))]
struct Aligned {
    _bytes: [u8; 64],
}

fn aligned() -> Box<Aligned> {
    black_box(Box::new(Aligned { _bytes: [1; 64] }))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn site_alloc() {
    forget(black_box(vec![1_u8; 100]));
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn site_alloc_zeroed() {
    forget(black_box(vec![0_u8; 200]));
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn site_realloc() {
    let mut words: Vec<u32> = Vec::with_capacity(4);
    words.extend(0..4);
    words.reserve_exact(96);
    forget(black_box(words));
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn site_aligned() {
    forget(aligned());
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn site_large() {
    forget(black_box(vec![1_u8; 3_000_000]));
}

/// A site, the bytes of one block of it, and how often it is gone through.
const SITES: [(&str, extern "C" fn(), u64, u64); 5] = [
    ("site_alloc", site_alloc, 100, 10),
    ("site_alloc_zeroed", site_alloc_zeroed, 200, 10),
    ("site_realloc", site_realloc, 400, 10),
    ("site_aligned", site_aligned, 64, 10),
    ("site_large", site_large, 3_000_000, 2),
];

fn leaves_nothing() {
    for i in 1..100 {
        drop(black_box(vec![1_u8; i * 17]));
        drop(aligned());
    }
}

unsafe extern "C" {
    fn write(descriptor: i32, bytes: *const u8, len: usize) -> isize;
    fn read(descriptor: i32, bytes: *mut u8, len: usize) -> isize;
}

/// Writes a line, with its end, without the standard library's buffers, which would be outstanding:
/// whoever hears the last one finds nothing of ours that is yet to be freed.
fn say(line: &str) {
    // SAFETY: the bytes live through the call.
    assert_eq!(unsafe { write(1, line.as_ptr(), line.len()) }, line.len() as isize);
}

/// Waits for the test's next line.
fn hear() {
    let mut byte = 0;
    while byte != b'\n' {
        // SAFETY: one byte, which lives through the call.
        assert_eq!(unsafe { read(0, &raw mut byte, 1) }, 1, "the test is gone");
    }
}

fn main() {
    leaves_nothing();
    say("READY\n");
    hear();
    for (_, site, _, times) in SITES {
        (0..times).for_each(|_| site());
    }
    leaves_nothing();
    let other = std::thread::spawn(|| {
        leaves_nothing();
        vec![7_u8; 333]
    });
    drop(other.join().unwrap());
    for (name, _, bytes, times) in SITES {
        let bytes = bytes * times;
        say(&format!("{{\"site\":\"{name}\",\"resource\":\"heap\",\"bytes\":{bytes},\"count\":{times}}}\n"));
    }
    say("END\n");
    hear();
}
