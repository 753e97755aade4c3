//! The kinds of machines that are emulated, and what differs from one to the other.

use std::process::Command;

use clap::ValueEnum;
use xtask::packages::Package;

/// A kind of machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Emulated {
    /// This machine's kind, whose installed packages the guest runs
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM, with pointer authentication; its packages are downloaded and unpacked
    #[value(name = "aarch64")]
    Aarch64,
}

impl Emulated {
    /// As Debian calls it.
    pub(super) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// What its kernels' names have that the others' have not.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::X86_64 => "",
            Self::Aarch64 => "-arm64",
        }
    }

    /// What emulates it.
    pub(super) fn package(self) -> Package {
        match self {
            Self::X86_64 => Package { names: &["qemu-system-x86"], purpose: "boots the kernels" },
            Self::Aarch64 => Package { names: &["qemu-system-arm"], purpose: "boots the kernels" },
        }
    }

    /// The serial port that the command writes to.
    pub(super) fn command_port(self) -> &'static str {
        match self {
            Self::X86_64 => "/dev/ttyS1",
            Self::Aarch64 => "/dev/ttyS0",
        }
    }

    /// The serial port that is the kernel's console.
    pub(super) fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// Which of the kernel's messages go to its console at once, and how many it keeps. arm64's
    /// warns of each step that gdb makes in a traced program, and takes 40 ms to write that to an
    /// emulated port.
    pub(super) fn kernel_log(self) -> &'static str {
        match self {
            Self::X86_64 => "loglevel=5",
            Self::Aarch64 => "loglevel=4 log_buf_len=64M",
        }
    }

    /// qemu with software emulation only: a machine that tests may be a virtual one without more to
    /// give. The console goes to a file, and the command's port to standard output.
    pub(super) fn qemu(self, console: &str) -> Command {
        let (program, kind): (_, &[&str]) = match self {
            Self::X86_64 => ("qemu-system-x86_64", &["-cpu", "max"]),
            // Signing by the architecture's own algorithm would take most of the time.
            Self::Aarch64 => ("qemu-system-aarch64", &["-machine", "virt", "-cpu", "max,pauth-impdef=on"]),
        };
        let mut qemu = Command::new(program);
        // One thread for both processors. With a thread for each, one may run a stale copy of code
        // that the other has just patched, and the kernel comes upon a breakpoint of its own that
        // is long gone ("Oops: int3", seen in 6.12 where tracepoints were attached and detached
        // under load).
        qemu.args(kind)
            .args(["-accel", "tcg,thread=single", "-smp", "2", "-m", "2048"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{console}"));
        match self {
            Self::X86_64 => qemu.args(["-serial", "stdio"]),
            Self::Aarch64 => {
                qemu.args(["-chardev", "stdio,id=command", "-device", "pci-serial,chardev=command"])
            }
        };
        qemu
    }
}
