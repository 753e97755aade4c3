//! What a client of `--listen` sends: anybody who reaches the address.
#![no_main]

use memleak::serve::answer_to;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let answer = answer_to(input).expect("a connection that comes to its end");
    // Whatever was asked: answers by HTTP, or none.
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", answer.get(..40));
    // Nothing is changed, and nothing is told but what there is.
    let known: [&[u8]; 9] =
        [b"200", b"400", b"404", b"405", b"414", b"421", b"431", b"503", b"505"];
    let status = answer.get(9..12).unwrap_or(b"200");
    assert!(known.contains(&status), "{}", String::from_utf8_lossy(status));
    let asked = input.windows(4).filter(|end| *end == b"\r\n\r\n" || end[2..] == *b"\n\n").count();
    let bound = 4096 * (asked + 2);
    assert!(answer.len() <= bound, "{} bytes for {asked} requests", answer.len());
});
