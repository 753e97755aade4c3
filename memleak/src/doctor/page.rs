//! What was found, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    machine::Check,
    price::{Offer, Price, Prices},
};
use crate::{escape::printable, words::Grouped};

/// All of it.
#[derive(Serialize)]
pub(super) struct Findings {
    schema: u32,
    memleak: &'static str,
    machine: &'static str,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trap_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traced_trap_ns: Option<u64>,
    processes: Vec<Price>,
}

impl Findings {
    pub(super) fn new(checks: Vec<Check>, prices: Prices) -> Self {
        let costs = prices.costs.and_then(Result::ok);
        let ns = |of: std::time::Duration| u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
        Self {
            schema: 1,
            memleak: env!("CARGO_PKG_VERSION"),
            machine: std::env::consts::ARCH,
            checks,
            trap_ns: costs.as_ref().map(|costs| ns(costs.trap.alone)),
            traced_trap_ns: costs.as_ref().map(|costs| ns(costs.full)),
            processes: prices.prices,
        }
    }

    pub(super) fn json(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = format!("memleak {} on {}\n\n", self.memleak, self.machine);
        for Check { name, value, ok, means } in &self.checks {
            let mark = if *ok { " " } else { "!" };
            let _ = writeln!(text, "{mark} {name:<20} {}\n{:23}{means}", printable(value), "");
        }
        if let (Some(trap), Some(full)) = (self.trap_ns, self.traced_trap_ns) {
            let _ = writeln!(
                text,
                "\nA trap takes {trap} ns on this machine, and {full} ns with what is done in it."
            );
        }
        self.processes.iter().for_each(|price| write_price(price, &mut text));
        text.into_bytes()
    }
}

fn write_price(price: &Price, text: &mut String) {
    let _ = write!(text, "\nprocess {} ({}): ", price.pid, printable(&price.comm));
    if let Some(error) = &price.error {
        let _ = writeln!(text, "{error}");
        return;
    }
    let allocators = match price.allocators.as_slice() {
        [] => "no allocator that is known".to_owned(),
        several => several.join(" and "),
    };
    let _ = writeln!(
        text,
        "{allocators}, {:.0} % of a CPU\n  acquires {}/s, releases {}/s:",
        price.cpus * 100.0,
        Grouped(price.acquired_per_second),
        Grouped(price.released_per_second)
    );
    for Offer { options, cpus } in &price.offers {
        let what = if options.is_empty() { "full tracing" } else { options };
        let _ = writeln!(text, "  {what:<19} costs about {} of a CPU", percent(*cpus));
    }
}

/// Two digits that count.
fn percent(cpus: f64) -> String {
    let percent = cpus * 100.0;
    if percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_digits_count() {
        assert_eq!(
            (percent(0.1234), percent(0.0021), percent(1.5)),
            ("12 %".into(), "0.2 %".into(), "150 %".into())
        );
    }
}
