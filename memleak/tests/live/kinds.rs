//! Each kind of site is called by its verdict.

use std::collections::BTreeMap;

use crate::{
    guard::alone,
    programs::{Link, build, text},
    tracer::{CommandOutcome, trace_command},
};

#[test]
fn each_kind_of_site_is_called_by_its_verdict() {
    let _alone = alone();
    let program = build("kinds.c", Link::Dynamic, &[]);
    // By reports, and by what is looked at before a single one. -o 0: what is held for a moment is
    // a site, too.
    for times in [["1", "16"], ["30", "1"]] {
        let options = [&["-o", "0", "-T", "100"][..], &times].concat();
        check_kinds(&trace_command(&options, &[text(&program)]), times);
    }
}

fn check_kinds(outcome: &CommandOutcome, times: [&str; 2]) {
    let found: BTreeMap<String, (String, String)> = outcome
        .last_report()
        .stacks
        .iter()
        .map(|stack| {
            let site = stack.frames.first().and_then(|frame| frame.function.clone()).unwrap_or_default();
            (
                site,
                (stack.verdict.clone().unwrap_or_default(), stack.verdict_reason.clone().unwrap_or_default()),
            )
        })
        .collect();
    let expected = [
        ("leaks_slowly", "leak"),
        ("only_grows", "growing"),
        ("piles_up", "growing"),
        ("fills_a_cache", "cache"),
        ("pool_block", "cache"),
        ("is_made_once", "cache"),
        ("goes_round", "in_use"),
        ("queues", "in_use"),
        ("is_temporary", "temporary"),
    ];
    for (site, verdict) in expected {
        let judged = found.get(site).map(|(verdict, _)| verdict.as_str());
        assert_eq!(judged, Some(verdict), "{times:?}: {site}: {found:#?}");
    }
}
