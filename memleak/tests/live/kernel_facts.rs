//! What is read of the running kernel, against what other tools read of it.

use std::{collections::BTreeMap, io, process::Command};

use memleak::{
    proc::{btf::Btf, kallsyms::kernel_setting},
    symbolize::{KernelSymbols, KernelSymbolsError, KernelTexts},
};

use crate::guard::alone;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Types of bpftool's dump by number: the line `[N] KIND 'name' key=value...`, and the lines of its
/// entries.
fn dump() -> BTreeMap<u32, (String, Vec<String>)> {
    let mut types = BTreeMap::new();
    let mut latest = 0;
    for line in run("bpftool", &["btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"]).lines() {
        match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((number, what)) => {
                latest = number.parse().expect("a number");
                types.insert(latest, (what.to_owned(), Vec::new()));
            }
            None => {
                let of = types.get_mut(&latest).expect("an entry follows its type");
                of.1.push(line.trim().to_owned());
            }
        }
    }
    types
}

fn value(line: &str, key: &str) -> u32 {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    found.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line}"))
}

fn quoted(line: &str) -> &str {
    line.split('\'').nth(1).unwrap_or_default()
}

/// bpftool reads the same file by libbpf.
#[test]
fn type_information_is_what_bpftool_says() {
    let _alone = alone();
    let types = dump();
    let btf = Btf::kernel().expect("this kernel has type information");
    let mut compared = 0;
    for name in ["kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free", "mm_page_alloc", "mm_page_free"] {
        let function = format!("FUNC '__traceiter_{name}' ");
        let (line, _) = types.values().find(|(line, _)| line.starts_with(&function)).expect("a tracepoint");
        let parameters = &types[&value(line, "type_id")].1;
        let parameters: Vec<&str> = parameters.iter().map(|line| quoted(line)).collect();
        assert_eq!(parameters[0], "__data", "{name}");
        assert_eq!(btf.tracepoint_arguments(name).expect(name), parameters[1..]);
        assert!(btf.has_tracepoint(name));
    }
    for name in ["task_struct", "kmem_cache", "page", "slab"] {
        let structure = format!("STRUCT '{name}' ");
        let (_, members) =
            types.values().find(|(line, _)| line.starts_with(&structure)).expect("a structure");
        for member in members.iter().filter(|line| quoted(line) != "(anon)") {
            let offset = value(member, "bits_offset") / 8;
            assert_eq!(btf.member_offset(name, quoted(member)), Some(offset), "{name}: {member}");
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
    let functions = types.values().filter(|(line, _)| line.starts_with("FUNC '"));
    for (line, _) in functions.step_by(997) {
        assert!(btf.has_function(quoted(line)), "{line}");
    }
    assert!(!btf.has_tracepoint("no_such_tracepoint") && !btf.has_function("no_such_function"));
}

/// What somebody else is shown.
#[derive(Debug)]
struct Shown(String);

impl KernelTexts for Shown {
    fn kallsyms(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }

    fn modules(&self) -> Vec<u8> {
        Vec::new()
    }
}

#[test]
fn addresses_that_the_kernel_hides_are_told_as_such() {
    let _alone = alone();
    let text = run("setpriv", &["--reuid", "65534", "--clear-groups", "cat", "/proc/kallsyms"]);
    let setting = |name| kernel_setting(name).expect("a setting");
    let shown = setting("kptr_restrict") == 0 && setting("perf_event_paranoid") <= 1;
    match KernelSymbols::of(Box::new(Shown(text))) {
        Ok(_) => assert!(shown, "symbols that are not shown"),
        Err(error @ KernelSymbolsError::HiddenFromUs { kptr_restrict, perf_event_paranoid }) => {
            assert!(!shown, "{error}");
            assert_eq!(kptr_restrict, setting("kptr_restrict"));
            assert_eq!(perf_event_paranoid, setting("perf_event_paranoid"));
            assert!(error.to_string().contains("CAP_SYSLOG"), "{error}");
        }
        Err(error) => assert_eq!(setting("kptr_restrict"), 2, "{error}"),
    }
}
