//! What each stack does with what it acquires is told, from what it has released.

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build},
    report::Report,
    tracer::Tracer,
};

const WANTED: [(&str, &str); 6] = [
    ("slow_leak", "leak"),
    ("growing", "growing"),
    ("cache", "cache"),
    ("ring", "in_use"),
    ("single", "cache"),
    ("draining", "in_use"),
];

/// The verdicts of a report, by the program's functions.
fn verdicts(report: &Report) -> BTreeMap<String, String> {
    let named = report.stacks.iter().filter_map(|stack| {
        let function = stack.frames.first()?.function.clone()?;
        Some((function, stack.verdict.clone()?))
    });
    named.collect()
}

#[test]
fn each_kind_of_site_is_called_what_it_is() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let _alone = alone();
    let mut target = Running::start(&mut Command::new(build("verdicts.c", Link::Dynamic, &["-O2", "-g"])));
    target.expect("READY");
    let mut tracer = Tracer::attach_with(target.pid(), &["-o", "0", "-T", "100", "1"]);
    target.tell("go");
    let start = Instant::now();
    let report = tracer.wait_report(|report| {
        let last = verdicts(report);
        let right = WANTED.iter().all(|(site, verdict)| last.get(*site).is_some_and(|it| it == verdict));
        right || start.elapsed() > PATIENCE
    });
    for (site, verdict) in WANTED {
        let found = verdicts(&report).get(site).cloned();
        assert_eq!(found.as_deref(), Some(verdict), "{site}\n{}", report.describe());
    }
    // What is gone at once holds nothing most of the time; where it does, it is no leak.
    let temporary = verdicts(&report).get("temporary").cloned();
    assert!(temporary.as_deref().is_none_or(|verdict| verdict != "leak"), "{temporary:?}");
    tracer.stop();
}

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
