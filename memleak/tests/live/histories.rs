//! What a stack has released, and how old it was, is what the program has done.

use std::process::Command;

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build},
    tracer::Tracer,
};

/// The counts of a stack are those that the program has made.
#[test]
fn calls_of_a_stack_are_counted() {
    const HELD: u64 = 1000;
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("released.c", Link::Dynamic, &["-O2"])));
    target.expect("READY");
    let tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100", "1000"]);
    target.tell("go");
    target.expect("DONE");
    let report = tracer.stop_with_report();
    let stack = report.stacks.iter().find(|stack| stack.count == HELD).expect("the site that holds some");
    let calls = [stack.acquired, stack.released, stack.bytes_acquired, stack.bytes_released];
    assert_eq!(calls, [Some(5000), Some(4000), Some(5000 * 48), Some(4000 * 48)], "{}", report.describe());
    let lifetime = stack.lifetime.as_ref().expect("lifetimes");
    // 3000 at once, 1000 after 300 ms; a tick of the clock is 10 ms at most.
    assert!(lifetime.released_p50_ms.is_some_and(|ms| ms <= 16), "{lifetime:?}");
    assert!(lifetime.released_max_ms.is_some_and(|ms| (280..2000).contains(&ms)), "{lifetime:?}");
}
