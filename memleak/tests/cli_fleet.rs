//! The command line of machines that others watch: names of processes, and where to ask.

use std::collections::BTreeSet;

use memleak::{
    exit::{self, ExitMessage},
    settings::{ListenAddress, Settings, TargetSpec},
    target::selector::Selector,
};

fn parse(arguments: &[&str]) -> Result<Settings, ExitMessage> {
    Settings::from_args(std::iter::once(&"memleak").chain(arguments))
}

fn settings(arguments: &[&str]) -> Settings {
    parse(arguments).unwrap_or_else(|message| panic!("{arguments:?}: {}", message.text))
}

#[test]
fn processes_are_named_in_several_ways_at_once() {
    let name = |name: &str| Selector::Name(name.to_owned());
    let all = settings(&[
        "-p",
        "7",
        "--name",
        "nginx",
        "--name",
        "php",
        "--unit",
        "db",
        "--cgroup",
        "/a/b",
        "--container",
        "3f4e",
        "--pod",
        "shop/web-1",
        "10",
    ]);
    let selectors = vec![
        name("nginx"),
        name("php"),
        Selector::Unit("db".to_owned()),
        Selector::Cgroup("/a/b".into()),
        Selector::Container("3f4e".to_owned()),
        Selector::Pod { namespace: "shop".to_owned(), name: "web-1".to_owned() },
    ];
    assert_eq!(all.target, TargetSpec::Members { pids: BTreeSet::from([7]), selectors });
    let one = settings(&["--name", "nginx"]);
    assert_eq!(one.target, TargetSpec::Members { pids: BTreeSet::new(), selectors: vec![name("nginx")] });
}

#[test]
fn what_is_wrong_is_one_line() {
    for (arguments, wanted) in [
        (&["--name", "a", "--", "true"][..], "more than one target: --name and -- COMMAND were given"),
        (&["--unit", "a", "-k"], "more than one target: --unit and -k were given"),
        (&["--name", ""], "--name: it is empty"),
        (&["--cgroup", "/"], "--cgroup: that is the whole machine"),
        (&["--pod", "web"], "--pod: 'web' is not NAMESPACE/NAME"),
        (&["--pod", "a/b/c"], "--pod: 'a/b/c' is not NAMESPACE/NAME"),
        (&["--name", "a", "-p", "x"], "-p/--pid: 'x' is not a process ID"),
        (&["--name", "a", "--slab", "dentry"], "--slab: it names a cache of the kernel"),
        (&["-p", "7", "--listen", "example.org:80"], "--listen: 'example.org:80' is not an address"),
        (&["--name"], "--name <NAME>: its value is missing"),
    ] {
        let message = parse(arguments).expect_err("wrong");
        assert_eq!(message.status, exit::USAGE, "{arguments:?}: {}", message.text);
        assert!(message.text.starts_with(&format!("memleak: {wanted}")), "{arguments:?}: {}", message.text);
        assert_eq!(message.text.lines().count(), 1);
    }
}

#[test]
fn where_to_ask_is_this_machine_unless_told_otherwise() {
    let listen =
        |address: &str| settings(&["-p", "7", "--listen", address]).fleet.listen.map(|at| at.to_string());
    assert_eq!(listen("9464").as_deref(), Some("http://127.0.0.1:9464"));
    assert_eq!(listen("0.0.0.0:1").as_deref(), Some("http://0.0.0.0:1"));
    let unix = settings(&["-k", "--listen", "unix:/run/memleak.sock"]).fleet.listen;
    assert_eq!(unix, Some(ListenAddress::Unix("/run/memleak.sock".into())));
    assert_eq!(settings(&["-p", "7"]).fleet.listen, None);
}
