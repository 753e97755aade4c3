//! One run of a virtual machine: boots, shows what it says, and gives the status of the command
//! that ran in it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use xtask::run;

use super::{disks, emulated::Emulated, initramfs, kernels::Kernel};

/// Before the status in the last line that a guest writes. Without this line a run has failed,
/// whatever else it wrote.
const STATUS_MARK: &str = "memleak-vm: status ";

/// On the console: the kernel found itself, or us, at fault, even if it went on.
const KERNEL_FAULTS: [&str; 8] = [
    "Kernel panic",
    "BUG: ",
    "Oops",
    "WARNING: ",
    "general protection fault",
    "leaking uprobe",
    "blocked for more than",
    "refcount_t:",
];

/// How many of the console's last lines a failure shows.
const TAIL: usize = 30;

/// Process 1 of the initramfs: mounts the disks and hands over to [`SECOND_STAGE`].
const FIRST_STAGE: &str = "\
mount -t devtmpfs dev /dev
mount -t ext4 /dev/vda /root || echo 'cannot mount the disk of packages'
mount -t ext4 /dev/vdb /root/built || echo 'cannot mount the disk of what was built'
umount /dev
exec switch_root /root /bin/bash /built/start
";

/// Process 1 from then on, before anything else.
const SECOND_STAGE: &str = "\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t devtmpfs dev /dev; mkdir -p /dev/pts /dev/shm
mount -t proc proc /proc; mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t tracefs trace /sys/kernel/tracing; mount -t bpf bpf /sys/fs/bpf
ip link set lo up 2>/dev/null || busybox ip link set lo up
while read -r path; do
  if [ -d \"/built$path\" ]; then mkdir -p \"$path\"; else mkdir -p \"${path%/*}\"; : >>\"$path\"; fi
  mount --bind \"/built$path\" \"$path\"
done </built/paths
";

/// What the machine is for. The command's output and status go to a serial port of its own
/// (`COMMAND_PORT`). What the kernel kept off its console is looked through in the end.
const WORK: &str = "\
stty -F COMMAND_PORT raw
cd /tmp
bash /built/command </dev/null >COMMAND_PORT 2>&1
status=$?
sync
dmesg | grep -aE 'KERNEL_FAULTS' | head -n 20 >/dev/console
echo \"memleak-vm: status $status\" >COMMAND_PORT
mount -o remount,ro /built
busybox poweroff -f
";

/// Process 1 becomes systemd, and [`WORK`] a unit of it. What would wait for devices or look
/// through packages is left out.
const SYSTEMD: &str = "\
units=/run/systemd/system
mkdir -p $units
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-hwdb-update.service \\
  systemd-timesyncd.service systemd-networkd.service systemd-resolved.service; do
  ln -s /dev/null $units/$unit
done
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
cat >$units/memleak-vm.service <<END
[Unit]
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
Environment=PATH=$PATH HOME=$HOME LANG=$LANG
ExecStart=/bin/bash /built/run-command
END
exec /lib/systemd/systemd --unit=memleak-vm.service
";

/// What to run, and where.
pub(super) struct Machine<'a> {
    /// What kind of machine it is.
    pub emulated: Emulated,
    /// The kernel to boot.
    pub kernel: &'a Kernel,
    /// The disk of this machine's packages; the guest changes a copy.
    pub packages: &'a Path,
    /// Files and folders of this machine, to be found at the same paths.
    pub paths: &'a [PathBuf],
    /// A script for bash, run as root.
    pub command: &'a str,
    /// The script is a unit of systemd, which is process 1.
    pub has_systemd: bool,
    /// How long all of it may take.
    pub limit: Duration,
    /// Where images and the console's log are written.
    pub work: &'a Path,
}

/// How a run ended.
pub(super) struct Ended {
    /// Exit status of the command.
    pub status: i32,
    /// All that the command wrote, to either stream.
    pub lines: Vec<String>,
    /// The disk of what was built, as the guest left it.
    pub built: PathBuf,
}

impl Machine<'_> {
    /// Boots, runs the command, hands each line it writes to `show`. Fails if the guest did not
    /// come to an end in time, gave no status, or its kernel complained: with the console's last
    /// lines.
    pub(super) fn run(&self, busybox: &Path, mut show: impl FnMut(&str)) -> Result<Ended> {
        let started = Instant::now();
        let paths: String = self.paths.iter().map(|path| format!("{}\n", path.display())).collect();
        let work = WORK
            .replace("COMMAND_PORT", self.emulated.command_port())
            .replace("KERNEL_FAULTS", &KERNEL_FAULTS.join("|"));
        let start = SECOND_STAGE.to_owned() + if self.has_systemd { SYSTEMD } else { &work };
        let extra =
            [("start", &*start), ("run-command", &work), ("command", self.command), ("paths", &paths)];
        let built = disks::of_paths(self.paths, &extra, self.work)?;
        let initramfs = self.work.join("initramfs");
        fs::write(&initramfs, initramfs::build(self.kernel, busybox, FIRST_STAGE)?)?;
        let console = self.work.join("console.log");
        let mut guest = Guest::start(&mut self.qemu(&initramfs, &built, &console))?;
        let said = guest.follow(started + self.limit, &mut show);
        drop(guest);
        let log = String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
        let tail = tail(&log);
        let mut lines = said.with_context(|| {
            format!("not done after {} s; its console's last lines:\n{tail}", self.limit.as_secs())
        })?;
        let last = lines.pop().unwrap_or_default();
        let Some(status) = last.strip_prefix(STATUS_MARK).and_then(|status| status.parse().ok()) else {
            bail!("it ended without a status, its last line is `{last}`; its console's last lines:\n{tail}");
        };
        if let Some(fault) = log.lines().find(|line| KERNEL_FAULTS.iter().any(|fault| line.contains(fault))) {
            bail!(
                "the kernel complained: {fault}\nthe whole log is {}; its last lines:\n{tail}",
                console.display()
            );
        }
        Ok(Ended { status, lines, built })
    }

    /// qemu, with the kernel and both disks.
    fn qemu(&self, initramfs: &Path, built: &Path, console: &Path) -> Command {
        // Emulated processors have nothing to mitigate.
        const SETTINGS: &str =
            "quiet panic=-1 mitigations=off rcupdate.rcu_expedited=1 rcupdate.rcu_task_ipi_delay=0";
        let disk = |path: &Path, snapshot: &str| {
            format!("file={},format=raw,if=virtio,cache=unsafe,snapshot={snapshot}", path.display())
        };
        let mut qemu = self.emulated.qemu(&console.display().to_string());
        qemu.arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!("console={} {SETTINGS} {}", self.emulated.console(), self.emulated.kernel_log()))
            .arg("-drive")
            .arg(disk(self.packages, "on"))
            .arg("-drive")
            .arg(disk(built, "off"));
        qemu
    }
}

/// A running qemu, ended when it is dropped.
struct Guest {
    child: Child,
    /// The lines of the second serial port, until qemu ends.
    lines: mpsc::Receiver<String>,
}

impl Guest {
    fn start(qemu: &mut Command) -> Result<Self> {
        eprintln!("+ {}", run::shown(qemu));
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", run::shown(qemu)))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Its lines until it ends; `None` if it did not by the deadline.
    fn follow(&mut self, deadline: Instant, show: &mut impl FnMut(&str)) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if !line.starts_with(STATUS_MARK) {
                        show(&line);
                    }
                    lines.push(line);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Some(lines),
                Err(mpsc::RecvTimeoutError::Timeout) => return None,
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Ended by itself already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}
