//! What fuzzing begins with: small files of this machine's compilers, made again at each run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use xtask::run;

/// Compiled in each of these ways, from the source of that name in memleak/tests/unwind_fixtures.
const FILES: [(&str, &str, &str); 9] = [
    ("plain", "plain.c", "-O2"),
    ("debug", "plain.c", "-O1 -g"),
    ("packed", "plain.c", "-O1 -g -gz"),
    ("pointer", "plain.c", "-O0 -fno-omit-frame-pointer"),
    ("realigned", "plain.c", "-O2 -mstackrealign -mavx2"),
    ("debug-frame", "plain.c", "-O2 -g -fno-asynchronous-unwind-tables -fno-exceptions"),
    ("stripped", "plain.c", "-O2 -s"),
    ("kept", "kept.c", "-O2 -g"),
    ("split", "kept.c", "-O2 -gdwarf-5 -gsplit-dwarf"),
];

/// Names of every kind that the demanglers know, and one that is long by its back references.
const NAMES: [&str; 8] = [
    "_ZN12word_counter10word_countENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
    "_ZNSt6vectorIS_IiSaIiEESaIS1_EE12emplace_backIJiRiEEERS1_DpOT_",
    "_ZN4core3ptr85drop_in_place$LT$std..rt..lang_start$LT$$LP$$RP$$GT$..$u7b$$u7b$closure$u7d$$u7d$$GT$17h0123456789abcdefE",
    "_RNvMsr_NtCs3ssYzQotkvD_3std4pathNtB5_7PathBuf3newCs15kBYyAo9fc_7mycrate",
    "_RNvXs5_NtCsd4VYFwevHkG_4core3fmtRINtNtB7_6option6OptionNtNtB7_3num5ErrorENtB5_5Debug3fmtCs_3foo",
    "_ZZ4mainENKUlT_T0_E_clIicEEDaS_S0_",
    "_ZGVZN1a1bEvE1c",
    "malloc",
];

/// A function of aarch64: `stp x29, x30, [sp, #-16]!; mov x29, sp; cbz x0, .+8; bl .+8;
/// ldp x29, x30, [sp], #16; ret`.
const FUNCTION: [u32; 6] = [0xa9bf_7bfd, 0x9100_03fd, 0xb400_0040, 0x9400_0002, 0xa8c1_7bfd, 0xd65f_03c0];

/// An int and `struct Event { int kind; }` in BTF (Documentation/bpf/btf.rst); the kernel's own has
/// megabytes.
fn type_information() -> Vec<u8> {
    let strings = b"\0int\0Event\0kind\0";
    let types: [u32; 10] = [1, 1 << 24, 4, 32, 5, 4 << 24 | 1, 4, 11, 1, 0];
    let types_len = 4 * types.len() as u32;
    // Magic number and version, then the header's length, and place and length of types and
    // strings.
    let header = [0x0001_eb9f, 24, 0, types_len, types_len, strings.len() as u32];
    header.iter().chain(&types).flat_map(|word| word.to_le_bytes()).chain(*strings).collect()
}

/// Files of all kinds.
pub(super) struct Seeds {
    /// Name and path of shared objects.
    objects: Vec<(&'static str, PathBuf)>,
    folder: PathBuf,
}

impl Seeds {
    /// Compiles them into `folder`.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let sources = run::root().join("memleak/tests/unwind_fixtures");
        let mut objects = Vec::new();
        for (name, source, flags) in FILES {
            let path = folder.join(name);
            // Without the C library's start files they are small, and small inputs are fuzzed fast.
            let fixed = ["-shared", "-fPIC", "-nostdlib", "-fomit-frame-pointer"];
            let mut compiler = Command::new("gcc");
            compiler.current_dir(folder).args(fixed).args(flags.split(' '));
            run::run(compiler.arg(sources.join(source)).arg("-o").arg(&path))?;
            objects.push((name, path));
        }
        Ok(Self { objects, folder: folder.to_owned() })
    }

    /// Writes those of one target into its corpus.
    pub(super) fn write(&self, target: &str, corpus: &Path) -> Result<()> {
        match target {
            "unwind_table" | "elf" | "symbolize" => {
                for (name, path) in &self.objects {
                    fs::copy(path, named(corpus, name))?;
                }
            }
            "frames" | "walk" => self.write_frames(target, corpus)?,
            "placement" => {
                for (name, path) in &self.objects {
                    let code = self.section(path, ".text")?;
                    fs::write(named(corpus, name), [&[3], code.as_slice()].concat())?;
                }
            }
            "unwind_code" => {
                for (name, path) in &self.objects {
                    fs::write(named(corpus, name), self.section(path, ".text")?)?;
                }
                let mut code: Vec<u8> = FUNCTION.into_iter().flat_map(u32::to_le_bytes).collect();
                code.push(4); // of aarch64, says the target
                fs::write(named(corpus, "aarch64"), code)?;
            }
            "demangle" => {
                for (number, name) in NAMES.iter().enumerate() {
                    fs::write(named(corpus, &number.to_string()), name)?;
                }
            }
            "btf" => {
                fs::write(named(corpus, "event"), type_information())?;
            }
            "perf_map" => {
                let text =
                    "1000 fff py::main:/app.py\n0x2000 0x10 Builtin:Add\n1800 100 moved\n7f0000000000 1 x";
                fs::write(named(corpus, "jit"), text)?;
            }
            "pairs" => {
                let pairs = [
                    "a=\"lib\\\"x\":f(arg1*arg2 size) -> *(arg3-0x10) as int, *arg4 counted releasing *(arg6+8) if ret as long >= -2",
                    "db:db_close(*(arg1+8) as int) if ret == 0",
                ];
                for (number, pair) in pairs.iter().enumerate() {
                    fs::write(named(corpus, &number.to_string()), pair)?;
                }
                fs::copy(run::root().join("examples/resources/pairs.toml"), named(corpus, "file"))?;
            }
            "listen" => {
                for path in ["/", "/metrics", "/report", "/debug/pprof/heap", "/healthz"] {
                    let accept = "Accept: application/openmetrics-text";
                    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:80\r\n{accept}\r\n\r\n");
                    fs::write(named(corpus, &path.replace('/', "_")), request.repeat(2))?;
                }
            }
            "maps" => {
                fs::write(named(corpus, "self"), fs::read("/proc/self/maps")?)?;
                let deleted =
                    "55d0-55d1 r-xp 00001000 fe:01 42 /tmp/a b (deleted)\n7ffc-7ffd r-xp 0 00:00 0 [vdso]\n";
                fs::write(named(corpus, "deleted"), deleted)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sections with what the targets put before them.
    fn write_frames(&self, target: &str, corpus: &Path) -> Result<()> {
        // walk: registers, and a stack of 16 words that alternate between addresses of text and of
        // the stack.
        let stack: Vec<u8> = (0..16u8).flat_map(|word| [word * 16, word, 0, 0, 0, 0, 0, word & 1]).collect();
        let before: Vec<u8> = match target {
            "walk" => [&[0x10, 0x10, 0x40, 0, 0x60, 0, 16][..], &stack].concat(),
            _ => Vec::new(),
        };
        for (name, path) in &self.objects {
            for (section, forms) in [(".eh_frame", &[0u8, 2][..]), (".debug_frame", &[1])] {
                let Some(address) = self.address(path, section)? else { continue };
                let bytes = self.section(path, section)?;
                for form in forms {
                    let [low, high] = (address as u16 & 0x0fff).to_le_bytes();
                    let input = [&before[..], &[*form, low, high], &bytes].concat();
                    fs::write(named(corpus, &format!("{name}-{form}")), input)?;
                }
            }
        }
        Ok(())
    }

    /// A section's bytes.
    fn section(&self, file: &Path, name: &str) -> Result<Vec<u8>> {
        let path = self.folder.join("section");
        let mut objcopy = Command::new("objcopy");
        // Debug sections are not loaded, and without the flag would not be written.
        objcopy.args(["-O", "binary", "--only-section", name, "--set-section-flags"]);
        run::output(objcopy.arg(format!("{name}=alloc,contents")).arg(file).arg(&path))?;
        fs::read(&path).with_context(|| format!("no section {name} in {}", file.display()))
    }

    /// A section's address; `None` if there is none.
    fn address(&self, file: &Path, name: &str) -> Result<Option<u64>> {
        let table = run::output(Command::new("readelf").arg("-SW").arg(file))?;
        let wanted = |line: &&str| line.split_whitespace().any(|word| word == name);
        let Some(line) = table.lines().find(wanted) else { return Ok(None) };
        // NAME TYPE ADDRESS
        let address =
            line.split_whitespace().skip_while(|word| *word != name).nth(2).context("no address")?;
        Ok(Some(u64::from_str_radix(address, 16)?))
    }
}

/// A file beside others of its kind.
fn named(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("seed-{name}"))
}
