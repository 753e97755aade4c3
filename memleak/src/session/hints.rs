//! How to get what a report lacks, where the target's own settings decide: said once.

use crate::{
    stderr,
    symbolize::{Frame, NoSymbol},
};

/// What was said.
#[derive(Default)]
pub(super) struct Hints {
    told: bool,
}

/// Where the frames of a runtime's own are, and how to have it write the names of what it compiles
/// to
/// /tmp/perf-PID.map. `PID` stands for the process's number.
const RUNTIMES: &[(&str, &str)] = &[
    ("node", "start node with --perf-basic-prof"),
    ("libnode.so", "start node with --perf-basic-prof"),
    ("libjvm.so", "type jcmd PID Compiler.perfmap while it is traced (JDK 17 or newer)"),
    ("libcoreclr.so", "start it with DOTNET_PerfMapEnabled=1"),
    ("beam.smp", "start Erlang with +JPperf true"),
    ("libpython", "start Python 3.12 or newer with -X perf"),
];

impl Hints {
    /// Says how to get names for frames of process `pid` that lie in no file, if there are such
    /// among these.
    pub(super) fn tell(&mut self, frames: &[Frame], pid: u32) {
        let is_nameless = |frame: &Frame| frame.no_symbol == Some(NoSymbol::Anonymous);
        if self.told || !frames.iter().any(is_nameless) {
            return;
        }
        let Some(how) = frames.iter().filter_map(|frame| frame.module.as_deref()).find_map(how) else {
            return;
        };
        self.told = true;
        let how = how.replace("PID", &pid.to_string());
        stderr::line(&format!(
            "process {pid}: frames named [unknown] are code that it has compiled; for names {how}"
        ));
    }
}

/// How the runtime in this file is asked for names.
fn how(module: &str) -> Option<&'static str> {
    let file = module.rsplit('/').next()?;
    let is_it = |runtime: &str| {
        let rest = file.strip_prefix(runtime);
        rest.is_some_and(|rest| rest.is_empty() || (runtime.starts_with("lib") && !rest.starts_with('-')))
    };
    RUNTIMES.iter().find(|(runtime, _)| is_it(runtime)).map(|(_, how)| *how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_runtimes_by_their_files() {
        for (module, word) in [
            ("/usr/bin/node", Some("--perf-basic-prof")),
            ("/usr/lib/x86_64-linux-gnu/libnode.so.108", Some("--perf-basic-prof")),
            ("/usr/lib/jvm/java-17/lib/server/libjvm.so", Some("jcmd PID")),
            ("/usr/lib/libpython3.12.so.1.0", Some("-X perf")),
            ("/usr/bin/nodejs-wrapper", None),
            ("[vdso]", None),
        ] {
            assert_eq!(
                how(module).map(|how| how.contains(word.unwrap_or("-"))),
                word.map(|_| true),
                "{module}"
            );
        }
    }
}
