//! `memleak doctor -p`: what it says of a process is what the process says of itself, and the price
//! is what is paid. Times are CPU time, so that others on the machine change little.

use std::{fs, process::Command};

use serde::Deserialize;

use crate::{
    guard::alone,
    process::Running,
    programs::{Link, build},
    tracer::{MEMLEAK, NEVER, Tracer},
};

/// The doctor's JSON, as far as it is compared.
#[derive(Debug, Deserialize)]
struct Findings {
    processes: Vec<Price>,
}

#[derive(Clone, Debug, Deserialize)]
struct Price {
    allocators: Vec<String>,
    acquired_per_second: f64,
    released_per_second: f64,
    cpus: f64,
    offers: Vec<Offer>,
}

#[derive(Clone, Debug, Deserialize)]
struct Offer {
    options: String,
    cpus: f64,
}

impl Price {
    /// CPUs that such tracing takes.
    fn of(&self, options: &str) -> f64 {
        let offer = self.offers.iter().find(|offer| offer.options == options);
        offer.unwrap_or_else(|| panic!("{options}: {self:?}")).cpus
    }
}

fn doctor(pid: u32) -> Price {
    let output = Command::new(MEMLEAK).args(["doctor", "--json", "-p", &pid.to_string()]).output();
    let output = output.expect("memleak");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Findings = serde_json::from_slice(&output.stdout).expect("JSON");
    findings.processes.into_iter().next().expect("the process")
}

/// The one in the middle of several: it looks for a fifth of a second, in which a busy machine may
/// let a program run less than it does over a longer time.
fn several(pid: u32) -> Price {
    let mut prices: Vec<Price> = (0..3).map(|_| doctor(pid)).collect();
    prices.sort_by(|a, b| a.acquired_per_second.total_cmp(&b.acquired_per_second));
    prices.swap_remove(prices.len() / 2)
}

/// What steady.c says of itself.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Measured {
    pairs: f64,
    wall_ns: f64,
    cpu_ns: f64,
}

fn steady(rate: u32, preload: Option<&str>) -> Running {
    let mut command = Command::new(build("steady.c", Link::Dynamic, &[]));
    command.arg(rate.to_string());
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    let mut program = Running::start(&mut command);
    program.expect("READY");
    program
}

fn measure(program: &mut Running, pairs: u32) -> Measured {
    program.tell(&format!("measure {pairs}"));
    let line = program.expect_line("measure", |line| line.starts_with("{\"pairs\""));
    serde_json::from_str(&line).expect("JSON")
}

/// Neither is more than `factor` times the other.
fn within(said: f64, is: f64, factor: f64, what: &str) {
    println!("{what}: doctor {said:.4}, measured {is:.4}, ratio {:.3}", said / is);
    assert!(said > 0.0 && said < is * factor && said * factor > is, "{what}: doctor {said}, measured {is}");
}

/// The library that is preloaded is mapped, and is what the doctor names.
#[test]
fn it_names_the_allocators_that_are_there() {
    let _alone = alone();
    for (preload, wanted) in [(None, "libc.so.6"), (Some("libjemalloc.so.2"), "libjemalloc.so.2")] {
        let program = steady(1000, preload);
        let maps = fs::read_to_string(format!("/proc/{}/maps", program.pid())).expect("maps");
        assert!(maps.contains(wanted), "{maps}");
        let allocators = doctor(program.pid()).allocators.join(", ");
        println!("{allocators}");
        let name = wanted.trim_start_matches("lib").split('.').next().unwrap_or_default();
        let names = if preload.is_none() { ["glibc", "libc"] } else { [name, wanted] };
        assert!(names.iter().any(|name| allocators.contains(name)), "{allocators}");
        assert_eq!(allocators.contains("jemalloc"), preload.is_some(), "{allocators}");
    }
}

/// A program that waits between its calls makes as many while it is looked at.
#[test]
fn it_counts_as_many_calls_as_the_program_does() {
    let _alone = alone();
    let mut paced = steady(40_000, None);
    let price = several(paced.pid());
    let ledger = measure(&mut paced, 40_000);
    let rate = ledger.pairs / (ledger.wall_ns / 1e9);
    within(price.acquired_per_second, rate, 1.1, "acquires a second, paced");
    within(price.released_per_second, rate, 1.1, "releases a second, paced");
}

/// The CPU time of each pair, traced and not. Others on the machine change both what the doctor
/// measures and what is paid, for a second or two at a time: each comparison is as short as that,
/// and of all of them the one in the middle counts.
#[test]
fn the_price_is_what_is_paid() {
    let _alone = alone();
    const PAIRS: u32 = 10_000;
    const COMPARISONS: usize = 5;
    let mut program = steady(40_000, None);
    let pid = program.pid();
    const WAYS: [&str; 3] = ["", "-s 100", "--sample-bytes 512K"];
    let mut compared: [Vec<(f64, f64)>; WAYS.len()] = Default::default();
    for _ in 0..COMPARISONS {
        let price = doctor(pid);
        let mut before = measure(&mut program, PAIRS);
        for (options, compared) in WAYS.iter().zip(&mut compared) {
            let arguments: Vec<&str> = options.split_ascii_whitespace().chain([NEVER]).collect();
            let tracer = Tracer::attach_with(pid, &arguments);
            let traced = measure(&mut program, PAIRS);
            tracer.stop();
            let after = measure(&mut program, PAIRS);
            let untraced = f64::midpoint(before.cpu_ns, after.cpu_ns);
            compared.push((price.of(options), (traced.cpu_ns - untraced) / traced.wall_ns));
            before = after;
        }
    }
    for (options, mut compared) in WAYS.iter().zip(compared) {
        println!("{compared:.4?}");
        compared
            .sort_by(|(said, is), (other_said, other_is)| (said / is).total_cmp(&(other_said / other_is)));
        let (said, is) = compared[COMPARISONS / 2];
        within(said, is, 1.5, &format!("CPUs, '{options}'"));
    }
}

/// What answers.c says of itself: the CPU time of a thousand answers, each time.
#[derive(Clone, Debug, Deserialize)]
struct Answered {
    cpu_ns: Vec<f64>,
}

impl Answered {
    /// What a quarter of the times took no more than: others on the machine make it more, and never
    /// less.
    fn cpu_undisturbed(program: &mut Running) -> f64 {
        const TIMES: usize = 40;
        program.tell(&format!("measure {TIMES}"));
        let line = program.expect_line("measure", |line| line.starts_with("{\"cpu_ns\""));
        let Self { mut cpu_ns } = serde_json::from_str(&line).expect("JSON");
        assert_eq!(cpu_ns.len(), TIMES);
        cpu_ns.sort_by(f64::total_cmp);
        cpu_ns[TIMES / 4]
    }
}

/// Of a server that answers all the time: by how much more CPU time each answer takes.
#[test]
fn the_price_of_a_server_is_what_each_answer_takes_more() {
    let _alone = alone();
    const COMPARISONS: usize = 3;
    let mut server = Running::start(&mut Command::new(build("answers.c", Link::Dynamic, &[])));
    server.expect("READY");
    let pid = server.pid();
    let mut compared = Vec::new();
    for _ in 0..COMPARISONS {
        let price = doctor(pid);
        let before = Answered::cpu_undisturbed(&mut server);
        let tracer = Tracer::attach_with(pid, &[NEVER]);
        let traced = Answered::cpu_undisturbed(&mut server);
        tracer.stop();
        let untraced = before.min(Answered::cpu_undisturbed(&mut server));
        compared.push((price.of("") / price.cpus, traced / untraced - 1.0));
    }
    println!("{compared:.4?}");
    compared.sort_by(|(said, is), (other_said, other_is)| (said / is).total_cmp(&(other_said / other_is)));
    let (said, is) = compared[COMPARISONS / 2];
    within(said, is, 1.5, "slower by");
}
